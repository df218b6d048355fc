"""The address that providers send their webhooks to: who is let in, what is answered, and what stays out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.app import create_app
from broker.models import ProviderEvent
from broker.secret import Secret
from broker.web.hooks import LONGEST_BODY
from tests.house import House, make_settings, stripe_app
from tests.providers.cases import CASES
from tests.providers.stripe import stripe_signs

SECRETS = (Secret("whsec_new"), Secret("whsec_old"))
BODY = json.dumps(CASES["stripe"].event).encode()


def build(house: House, tmp_path: Path, **changes: Any) -> Flask:
    apps = {"stripe": replace(stripe_app("stripe"), webhook_secrets=SECRETS)}
    chosen = make_settings(house.settings.database_url, data_dir=tmp_path, apps=apps, **changes)
    return create_app(chosen, clock=house.clock)


@pytest.fixture
def app(house: House, tmp_path: Path) -> Iterator[Flask]:
    built = build(house, tmp_path)
    yield built
    built.extensions["broker"].database.engine.dispose()


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def post(
    client: FlaskClient, house: House, body: bytes = BODY, *, secret: str = "whsec_new", path: str = "/hooks/stripe"
) -> TestResponse:
    headers = dict(stripe_signs(body, Secret(secret), house.clock.now()))
    return client.post(path, data=body, headers=headers, content_type="application/json")


def stored(app: Flask) -> int:
    with app.extensions["broker"].database.read() as connection:
        return len(connection.execute(ProviderEvent.__table__.select()).all())


@pytest.mark.parametrize("secret", ["whsec_new", "whsec_old"])
def test_a_signed_event_is_answered_at_once_and_sets_no_cookie(
    app: Flask, client: FlaskClient, house: House, secret: str
) -> None:
    answer = post(client, house, secret=secret)
    assert (answer.status_code, answer.get_json()) == (200, {"received": True})
    assert "Set-Cookie" not in answer.headers
    assert post(client, house, secret=secret).status_code == 200
    assert stored(app) == 1


@pytest.mark.parametrize("headers", [{}, {"Stripe-Signature": ""}, {"Stripe-Signature": "t=1,v1=é"}])
def test_an_unsigned_one_is_refused_before_it_is_read(app: Flask, client: FlaskClient, headers: dict[str, str]) -> None:
    for body in (BODY, b"", b"{", b"\xff" * 100):
        answer = client.post("/hooks/stripe", data=body, headers=headers)
        assert answer.status_code == 401
        assert answer.content_type == "application/problem+json"
        assert answer.get_json()["code"] == "webhook_refused"
    assert stored(app) == 0


def test_a_badly_signed_one_says_nothing_about_the_secret(app: Flask, client: FlaskClient, house: House) -> None:
    answer = post(client, house, secret="whsec_other")
    assert answer.status_code == 401
    assert "whsec" not in answer.text
    assert stored(app) == 0


def test_a_signed_body_that_is_no_event_is_a_400(app: Flask, client: FlaskClient, house: House) -> None:
    for body in (b"", b"null", b"[]", b"{}"):
        assert post(client, house, body).status_code == 400
    assert stored(app) == 0


def test_there_are_addresses_for_configured_apps_only(client: FlaskClient, house: House) -> None:
    for path in ("/hooks/nothing", "/hooks/", "/hooks/stripe/more"):
        assert post(client, house, path=path).status_code == 404
    assert client.get("/hooks/stripe").status_code == 405


def test_what_is_too_large_is_refused_before_it_is_read(client: FlaskClient, house: House) -> None:
    assert post(client, house, b"x" * (LONGEST_BODY + 1)).status_code == 413
    # Larger than what people send, as GitHub's can be.
    large = json.dumps({**CASES["stripe"].event, "padding": "x" * 1_000_000}).encode()
    assert post(client, house, large).status_code == 200


def test_a_body_sent_as_a_form_is_still_read_as_it_came(client: FlaskClient, house: House) -> None:
    headers = dict(stripe_signs(BODY, SECRETS[0], house.clock.now()))
    sent = client.post("/hooks/stripe", data=BODY, headers=headers, content_type="application/x-www-form-urlencoded")
    assert sent.status_code == 200


def test_senders_are_counted_by_the_address_that_a_trusted_proxy_names(house: House, tmp_path: Path) -> None:
    limits = make_settings().limits
    app = build(house, tmp_path, limits=replace(limits, hooks_per_second=1), trusted_proxies=1)
    client = app.test_client()

    def ask(address: str) -> int:
        return client.post("/hooks/stripe", data=BODY, headers={"X-Forwarded-For": f"6.6.6.6, {address}"}).status_code

    # Whatever the sender itself claims comes first and does not count.
    answers = [ask("10.0.0.1") for _ in range(4)]
    assert 429 in answers
    assert ask("10.0.0.2") == 401
    app.extensions["broker"].database.engine.dispose()
