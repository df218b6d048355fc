"""The operators' page about the set-up, the banner about outages, and what a person sees who would leave in vain."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from broker.circuits import app_circuit
from broker.errors import ClientRefused, SequinUnavailable
from broker.links import LinkRequest
from broker.models import Flow, Role
from broker.operators import Operators
from tests.house import House
from tests.web.test_console import csrf_of, signed_in, text_of


@pytest.fixture
def viewer(app: Flask, house: House) -> FlaskClient:
    return signed_in(app, Operators(house.database, house.clock), Role.VIEWER)


def test_a_viewer_sees_checks_addresses_and_matches(viewer: FlaskClient) -> None:
    # No socket is open in these tests: Sequin and Stripe cannot be reached, and the page says so.
    response = viewer.get("/ops/providers")
    text = text_of(response)
    assert response.status_code == 200
    assert "Sequin could not be asked" in text
    assert re.search(r'<input id="address-1" value="http://localhost:8000/oauth/stripe/callback" readonly', text)
    assert 'href="/ops/providers" aria-current="page"' in text
    assert "never_to_be_seen" not in text
    assert text.index("Failed") < text.index("Passed")


def test_a_test_leads_to_the_provider_and_its_way_back_to_the_console(app: Flask, house: House) -> None:
    client = signed_in(app, Operators(house.database, house.clock))
    page = client.get("/ops/providers")
    assert "Test Stripe (stripe-test)" in text_of(page)
    assert "form-action 'self' https:" in page.headers["Content-Security-Policy"]
    away = client.post("/ops/providers/stripe/test", data={"csrf_token": csrf_of(page)})
    assert away.status_code == 303
    address = urlsplit(away.headers["Location"])
    assert address.netloc == "connect.stripe.com"
    assert parse_qs(address.query)["redirect_uri"] == ["http://localhost:8000/oauth/stripe/callback"]

    state = parse_qs(address.query)["state"][0]
    back = client.get(f"/oauth/stripe/callback?error=access_denied&state={state}", follow_redirects=True)
    assert re.fullmatch("/ops/tests/[0-9A-Z-]+", back.request.path)
    for words in ("Test of Stripe (stripe)", "It did not work:</strong> consent_denied", "Nothing was received."):
        assert words in text_of(back)
    assert client.get("/ops/tests/NOPE").status_code == 404


def test_a_viewer_is_offered_no_test(viewer: FlaskClient) -> None:
    assert "/test" not in text_of(viewer.get("/ops/providers")).partition("<main")[2]


def test_every_page_tells_of_an_outage_until_it_is_over(app: Flask, viewer: FlaskClient, house: House) -> None:
    circuits = app.extensions["broker"].circuits
    assert "has not answered" not in text_of(viewer.get("/ops/connections"))
    for _ in range(5):
        circuits.failed("sequin", SequinUnavailable("503"))
    text = text_of(viewer.get("/ops/connections"))
    assert re.search(r"Sequin has not answered since \d\d Nov \d\d:\d\d UTC\. Next try \d\d:\d\d UTC\.", text)
    circuits.succeeded("sequin")
    assert "has not answered" not in text_of(viewer.get("/ops/connections"))
    # Strangers are not told.
    circuits.failed("sequin", SequinUnavailable("503"), at_once=True)
    assert "has not answered" not in text_of(app.test_client().get("/ops/sign-in"))


def test_who_would_leave_in_vain_stays_here_and_can_go_back(app: Flask, house: House) -> None:
    url = house.links.create(LinkRequest("user-1"), created_by="cli").url
    path = url.removeprefix("http://localhost:8000")
    client = app.test_client()
    token = csrf_of(client.get(path))
    circuits = app.extensions["broker"].circuits
    circuits.failed(app_circuit("stripe"), ClientRefused("invalid_client"), at_once=True)

    answer = client.post(f"{path}/start/stripe", data={"csrf_token": token})

    text = text_of(answer)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "needs to fix a setting before you can connect" in text
    assert f'href="{path}">Go back</a>' in text
    assert house.value(Flow.__table__.select().with_only_columns(Flow.id)) is None
    circuits.succeeded(app_circuit("stripe"))
    for _ in range(5):
        circuits.failed(app_circuit("stripe"), SequinUnavailable("503"))
    text = text_of(client.post(f"{path}/start/stripe", data={"csrf_token": token}))
    assert "Stripe is not responding" in text
    assert f'href="{path}">Go back and try again</a>' in text
    circuits.succeeded(app_circuit("stripe"))
    assert client.post(f"{path}/start/stripe", data={"csrf_token": token}).status_code == 303


def test_hosts_are_told_over_the_api(app: Flask, house: House) -> None:
    services = app.extensions["broker"]
    _, key = services.api_keys.create("tests", None)
    headers = {"Authorization": f"Bearer {key.reveal()}"}
    services.circuits.failed(app_circuit("stripe"), ClientRefused("invalid_client"), at_once=True)
    first, second = app.test_client().get("/api/v1/apps", headers=headers).get_json()["data"]
    assert first["unavailable_since"].endswith("Z")
    assert first["next_try_at"] > first["unavailable_since"]
    assert (second["unavailable_since"], second["next_try_at"]) == (None, None)
