"""The pretend product, which uses the broker as a host does."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from broker.status import Status
from tests.web.fakes import TOKEN, FakeServices, application, connection, services, settings

BOTH = ("stripe", "github")


@pytest.fixture
def fake() -> FakeServices:
    return services()


@pytest.fixture
def client(fake: FakeServices) -> FlaskClient:
    return application(fake).test_client()


def post(client: FlaskClient, path: str, **fields: str) -> Any:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/demo/").text)
    assert found is not None
    return client.post(path, data={"csrf_token": found[1], **fields})


def test_the_page_says_what_is_pretended(client: FlaskClient) -> None:
    page = client.get("/demo/").text
    assert "This is a demo." in page
    assert "made up" in page
    assert "Jo Lind" in page
    assert "jo@example.com" in page
    assert "jo-lind" in page
    assert "Nothing is connected yet." in page


def test_connecting_makes_a_link_for_that_person_and_leads_there(client: FlaskClient, fake: FakeServices) -> None:
    answer = post(client, "/demo/connect")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"http://localhost:8000/connect/{TOKEN}")
    (request,) = fake.links.created
    assert (request.end_user_id, request.name, request.email) == ("jo-lind", "Jo Lind", "jo@example.com")
    assert (request.apps, request.return_url, request.manage) == (BOTH, "http://localhost:8000/demo/", False)


def test_managing_asks_for_the_whole_page(client: FlaskClient, fake: FakeServices) -> None:
    post(client, "/demo/manage")
    assert fake.links.created[0].manage is True


def test_without_its_origin_allowed_the_link_has_no_way_back() -> None:
    fake = services(settings(return_origins=()))
    post(application(fake).test_client(), "/demo/connect")
    assert fake.links.created[0].return_url is None


@pytest.mark.parametrize(
    ("status", "words"),
    [(Status.PENDING, "Finishing set-up"), (Status.ERROR, "Needs attention"), (Status.UNKNOWN, "not checked yet")],
)
def test_the_list_is_honest(client: FlaskClient, fake: FakeServices, status: Status, words: str) -> None:
    fake.connections.items = [connection(status)]
    page = client.get("/demo/?status=ok&ref=made-up").text
    assert words in page
    assert "You are back from the broker." in page
    assert "made-up" not in page


def test_it_looks_again_only_while_something_is_on_its_way(client: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = [connection(Status.PENDING)]
    assert 'content="5; url=/demo/?n=1"' in client.get("/demo/").text
    assert "http-equiv" not in client.get("/demo/?n=24").text
    fake.connections.items = [connection()]
    assert "http-equiv" not in client.get("/demo/").text
