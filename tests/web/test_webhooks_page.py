"""The operators' pages about webhook endpoints: how each is doing, and what can be done about it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from broker.app import create_app
from broker.audit import Actor
from broker.operators import Operators
from broker.secret import Secret
from broker.webhook_endpoints import EndpointChanges, EndpointRequest
from tests.connecting import Bench, open_bench
from tests.house import make_settings

HOST = Actor("api_key", "key_of_the_host")
HOOK = "http://127.0.0.1:9/hook"
PASSWORD = "a-password-that-is-long-enough"


@pytest.fixture
def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, *_more: [(2, 1, 6, "", (host, port))])
    with open_bench(database_url) as opened:
        opened.stripe()
        yield opened


@pytest.fixture
def app(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    settings = make_settings(bench.house.settings.database_url, data_dir=tmp_path)
    made = create_app(settings, clock=bench.clock)
    made.config["WTF_CSRF_ENABLED"] = False
    # What is asked for here is done by the bench's worker, and judged by its clock.
    monkeypatch.setattr(made.extensions["broker"].database, "now", lambda _connection: bench.clock.now())
    yield made
    made.extensions["broker"].database.engine.dispose()


def signed_in(app: Flask, bench: Bench, role: str) -> FlaskClient:
    Operators(bench.database, bench.clock).create(f"{role}@example.com", Secret(PASSWORD), role)
    client = app.test_client()
    client.post("/ops/sign-in", data={"email": f"{role}@example.com", "password": PASSWORD})
    return client


def page(client: FlaskClient, address: str, status: int = 200) -> str:
    answer = client.get(address)
    assert answer.status_code == status
    text = re.sub(r"<[^>]+>", " ", answer.get_data(as_text=True))
    return " ".join(html.unescape(text).split())


def test_without_endpoints_the_page_says_how_to_make_one(app: Flask, bench: Bench) -> None:
    assert "POST /api/v1/webhook-endpoints" in page(signed_in(app, bench, "viewer"), "/ops/webhooks")


def test_an_endpoint_that_fails_says_why_and_shows_no_secret(app: Flask, bench: Bench) -> None:
    client = signed_in(app, bench, "viewer")
    view, secret = bench.services.webhook_endpoints.create(EndpointRequest(HOOK, "Billing <b>"), actor=HOST)
    bench.network.add("POST", HOOK, status=503)
    bench.connect()
    bench.worker.notify_once()
    assert "Billing <b>" in page(client, "/ops/webhooks")
    shown = page(client, f"/ops/webhooks/{view.id}")
    for words in ("Failing", "http_503", "connection.connected", "Waiting", "key_of_the_host"):
        assert words in shown
    assert secret.reveal()[6:] not in client.get(f"/ops/webhooks/{view.id}").get_data(as_text=True)
    assert "Send again" not in shown


def test_an_operator_switches_it_on_and_sends_again(app: Flask, bench: Bench) -> None:
    client = signed_in(app, bench, "operator")
    endpoints = bench.services.webhook_endpoints
    view, _ = endpoints.create(EndpointRequest(HOOK), actor=HOST)
    bench.network.add("POST", HOOK, status=410)
    bench.connect()
    bench.worker.notify_once()
    address = f"/ops/webhooks/{view.id}"
    assert "it answered 410" in page(client, address)
    answer = client.post(f"{address}/enable")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{address}?done=enabled")
    bench.network.upsert("POST", HOOK, status=200)
    bench.worker.notify_once()
    assert "Delivered" in page(client, address)
    event = endpoints.deliveries(view.id, limit=1).items[0].event
    assert client.post(f"{address}/deliveries/{event}/resend").status_code == 303
    bench.worker.notify_once()
    assert len(bench.calls(HOOK)) == 3
    assert client.post(f"{address}/resend-parked").status_code == 303


def test_an_operator_sends_a_test_event(app: Flask, bench: Bench) -> None:
    client = signed_in(app, bench, "operator")
    view, _ = bench.services.webhook_endpoints.create(EndpointRequest(HOOK), actor=HOST)
    bench.network.add("POST", HOOK)
    address = f"/ops/webhooks/{view.id}"
    assert "Send a test event" in page(client, address)
    answer = client.post(f"{address}/test")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"{address}?done=tested")
    bench.worker.notify_once()
    shown = page(client, f"{address}?done=tested")
    for words in ("The test event is queued.", "webhook.test", "A test", "Delivered"):
        assert words in shown
    bench.services.webhook_endpoints.change(view.id, EndpointChanges(enabled=False), actor=HOST)
    assert "Send a test event" not in page(client, address)


def test_what_does_not_exist_is_not_found(app: Flask, bench: Bench) -> None:
    client = signed_in(app, bench, "operator")
    page(client, "/ops/webhooks/whe_nothing", 404)
    assert client.post("/ops/webhooks/whe_nothing/enable").status_code == 404


def test_a_viewer_changes_nothing(app: Flask, bench: Bench) -> None:
    client = signed_in(app, bench, "viewer")
    view, _ = bench.services.webhook_endpoints.create(EndpointRequest(HOOK), actor=HOST)
    bench.services.webhook_endpoints.change(view.id, EndpointChanges(enabled=False), actor=HOST)
    assert "Switch on" not in page(client, f"/ops/webhooks/{view.id}")
    assert client.post(f"/ops/webhooks/{view.id}/enable").status_code == 403
    assert client.post(f"/ops/webhooks/{view.id}/test").status_code == 403
    assert bench.services.webhook_endpoints.find(view.id).disabled_at is not None
