"""A person's own accounts: what each says, what happened to it, and finding one among many."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from broker.connections import AccountView, ConnectionView, Health
from broker.history import Event, Happening
from broker.sessions import SignedIn
from broker.settings import Branding
from broker.status import Status
from tests.web.fakes import (
    BROWSER,
    FLOW,
    NOW,
    SESSION,
    TOKEN,
    FakeServices,
    application,
    connection,
    services,
    settings,
)

REF = "9QD2-7F3K-M4TX"
DETAILS = f"/connections/{REF}"


@pytest.fixture
def fake() -> FakeServices:
    made = services()
    made.connections.items = [connection()]
    made.sessions.current = SignedIn(7, None, None, NOW)
    return made


@pytest.fixture
def app(fake: FakeServices) -> Flask:
    return application(fake)


@pytest.fixture
def owner(app: Flask) -> FlaskClient:
    """A client that is signed in."""
    client = app.test_client()
    client.set_cookie("broker_session", SESSION)
    return client


def many(count: int) -> list[ConnectionView]:
    account = AccountView("acct_0", "Account 0", "standard", "live")
    return [
        connection(
            ref=f"0000-0000-{number:04}", account=replace(account, id=f"acct_{number}x", name=f"Account {number}")
        )
        for number in range(count)
    ]


def names(page: str) -> list[str]:
    return re.findall(r"<h2 id=\"c-[^>]*><a[^>]*>(.*?)</a></h2>", page)


def post(client: FlaskClient, path: str) -> Any:
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get(DETAILS).text)
    assert found is not None
    return client.post(path, data={"csrf_token": found[1]})


# --- the list -------------------------------------------------------------------------------------------


def test_each_account_says_what_it_is_what_can_be_read_and_when_it_was_checked(owner: FlaskClient) -> None:
    page = owner.get("/connections").text

    for words in (
        "Lind Ceramics", "acct_1032D82eZvKYlo2C", "Connected", "payments, customers, invoices and subscriptions",
        "18 Nov 2026, 10:00 UTC", "20 Nov 2026, 09:57 UTC", f'href="{DETAILS}"', f'href="{DETAILS}/disconnect"',
    ):  # fmt: skip
        assert words in page


def test_the_banner_leads_to_the_account_that_needs_attention(owner: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = [connection(Status.ERROR)]
    page = owner.get("/connections").text

    assert "1 account needs attention." in page
    assert f'<a href="{DETAILS}">Lind Ceramics</a></div>' in page


def test_few_accounts_need_no_search_and_no_pages(owner: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = many(10)
    page = owner.get("/connections").text

    assert len(names(page)) == 10
    assert "<search>" not in page
    assert 'class="pages"' not in page


def test_many_accounts_can_be_searched_by_name_id_and_reference(owner: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = many(11)

    assert "<search>" in owner.get("/connections").text
    assert names(owner.get("/connections?q=account 7").text) == ["Account 7"]
    assert names(owner.get("/connections?q=ACCT_3X").text) == ["Account 3"]
    assert names(owner.get("/connections?q=0000-0000-0009").text) == ["Account 9"]
    nothing = owner.get("/connections?q=<script>").text
    assert "0 accounts match." in nothing
    assert "No accounts connected yet" not in nothing
    assert '<script>"' not in nothing


@pytest.mark.parametrize(
    ("page", "shown"), [("", 25), ("?page=2", 25), ("?page=3", 2), ("?page=99", 2), ("?page=x", 25), ("?page=-1", 25)]
)
def test_more_than_a_page_holds_is_shown_in_pages(
    owner: FlaskClient, fake: FakeServices, page: str, shown: int
) -> None:
    fake.connections.items = many(52)

    assert len(names(owner.get(f"/connections{page}").text)) == shown


def test_pages_keep_the_search(owner: FlaskClient, fake: FakeServices) -> None:
    fake.connections.items = many(60)

    assert 'href="/connections?q=account&amp;page=2"' in owner.get("/connections?q=account").text


# --- one account ----------------------------------------------------------------------------------------


def test_an_account_says_when_it_was_renewed(owner: FlaskClient, fake: FakeServices) -> None:
    assert "Last reconnected" not in owner.get(DETAILS).text
    fake.connections.items = [connection(created_at=NOW - timedelta(days=9))]
    page = owner.get(DETAILS).text

    assert "Last reconnected" in page
    assert "11 Nov 2026" in page


def test_an_account_has_a_history(owner: FlaskClient, fake: FakeServices) -> None:
    fake.history.events = [
        Event(NOW, Happening.CHECK_FAILED, by_person=False),
        Event(NOW - timedelta(days=2), Happening.CONNECTED, by_person=True),
    ]
    page = owner.get(DETAILS).text

    assert "A check did not pass" in page
    assert "Connected – by you" in page


def test_a_check_asked_for_is_looked_for_until_it_is_made(owner: FlaskClient, fake: FakeServices) -> None:
    answer = post(owner, f"{DETAILS}/check")
    assert answer.status_code == 303
    assert fake.connections.checked == [REF]

    waiting = owner.get(answer.headers["Location"]).text
    assert "This account is being checked." in waiting
    assert "data-poll=" in waiting
    assert re.search(r'<noscript><meta http-equiv="refresh" content="5; url=[^"]+&amp;n=1">', waiting)

    fake.connections.items = [connection(health=Health("ok", (), NOW))]
    checked = owner.get(answer.headers["Location"]).text
    assert "This account was just checked." in checked
    assert "data-poll=" not in checked
    assert "http-equiv" not in checked


def test_a_page_without_script_stops_looking_for_the_check(owner: FlaskClient) -> None:
    address = post(owner, f"{DETAILS}/check").headers["Location"]

    assert "http-equiv" in owner.get(f"{address}&n=11").text
    assert "http-equiv" not in owner.get(f"{address}&n=12").text
    assert "http-equiv" not in owner.get(f"{address}&n=-1").text


@pytest.mark.parametrize("status", [Status.ERROR, Status.REVOKED])
def test_renewing_is_offered_where_this_broker_can_renew(
    owner: FlaskClient, app: Flask, fake: FakeServices, status: Status
) -> None:
    fake.connections.items = [connection(status)]
    offered = "connections.reconnect" in app.view_functions

    for path in (DETAILS, "/connections"):
        assert (">Reconnect Lind Ceramics</button>" in owner.get(path).text) is offered


def test_renewing_leads_to_its_route_once_there_is_one(fake: FakeServices) -> None:
    app = application(fake)
    if "connections.reconnect" not in app.view_functions:
        app.add_url_rule("/connections/<ref>/reconnect", "connections.reconnect", lambda ref: "", methods=["POST"])
    client = app.test_client()
    client.set_cookie("broker_session", SESSION)
    fake.connections.items = [connection(Status.REVOKED)]

    assert f'action="{DETAILS}/reconnect"' in client.get(DETAILS).text


# --- what a link and a flow say besides -----------------------------------------------------------------


def link(client: FlaskClient) -> str:
    return client.get(f"/connect/{TOKEN}").text


def test_a_link_shows_what_needs_attention_first_then_what_is_connected(owner: FlaskClient, fake: FakeServices) -> None:
    fake.links.changes = {"spent": {"github": 1}}
    fake.connections.items = [connection(Status.REVOKED, app="github")]
    page = link(owner)

    assert re.findall(r'<h2 id="app-(\w+)">', page) == ["github", "stripe"]
    assert "says that access to this account was removed" in page
    assert f'href="{DETAILS}"' in page


def test_a_link_leads_to_details_only_whoever_may_see_them(app: Flask, fake: FakeServices) -> None:
    fake.links.changes = {"spent": {"stripe": 1}}
    page = link(app.test_client())

    assert "was connected with this link" in page
    assert DETAILS not in page


def test_a_link_that_offers_nothing_says_so(owner: FlaskClient, fake: FakeServices) -> None:
    fake.links.apps = ()
    answer = owner.get(f"/connect/{TOKEN}")

    assert answer.status_code == 503
    assert "<h1>Nothing to connect yet</h1>" in answer.text
    assert "<title>Error: Nothing to connect yet" in answer.text


def flow(fake: FakeServices, **changes: Any) -> str:
    fake.flow_pages.changes = changes
    client = application(fake).test_client()
    client.set_cookie("broker_browser", BROWSER)
    return client.get(f"/flows/{FLOW}").text


def test_an_account_connected_before_is_not_called_new(fake: FakeServices) -> None:
    assert "You had connected" not in flow(fake)
    assert "You had connected Lind Ceramics before. It is up to date again." in flow(fake, was_connected_before=True)


def test_permissions_that_were_not_given_are_named(fake: FakeServices) -> None:
    page = flow(fake, missing_scopes=("read_write",))

    assert "Some permissions are missing." in page
    assert "Stripe did not give: read_write." in page


def test_a_window_of_a_host_is_offered_a_way_to_close_it(fake: FakeServices) -> None:
    assert '<p class="popup" hidden>' in flow(fake)
    assert '<p class="popup" hidden>' not in flow(fake, return_url="https://acme.example/x")


def test_without_a_return_address_people_go_back_to_the_hosts_own() -> None:
    fake = services(settings(branding=Branding(name="Acme", home_url="https://acme.example/app")))
    back = 'href="https://acme.example/app"'

    assert back in flow(fake)
    assert back in link(application(fake).test_client())
    assert back in application(fake).test_client().get("/connections").text
    assert back in application(fake).test_client().get("/nowhere").text
