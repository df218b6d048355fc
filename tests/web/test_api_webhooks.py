"""Events and webhook endpoints over the API: what is taken, what is given, and how a refusal reads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.apikeys import ApiKeys
from broker.app import create_app
from tests.connecting import Bench, open_bench
from tests.house import make_settings

HOOK = "http://127.0.0.1:9/hook"


@pytest.fixture
def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, *_more: [(2, 1, 6, "", (host, port))])
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        opened.network.add("POST", HOOK)
        yield opened


@pytest.fixture
def client(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    settings = make_settings(bench.house.settings.database_url, data_dir=tmp_path)
    app: Flask = create_app(settings, clock=bench.clock)
    # One clock for what is asked for over the API and for the worker that does it, on PostgreSQL too.
    monkeypatch.setattr(app.extensions["broker"].database, "now", bench.database.now)
    made = app.test_client()
    _, key = ApiKeys(bench.database, bench.clock).create("test")
    made.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {key.reveal()}"
    yield made
    app.extensions["broker"].database.engine.dispose()


def taken(response: TestResponse, status: int = 200) -> Any:
    assert response.status_code == status, response.get_data(as_text=True)
    return json.loads(response.get_data())


def refused(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = taken(response, status)
    assert response.content_type == "application/problem+json"
    assert body["code"] == code
    return body


def make(client: FlaskClient, **body: Any) -> Any:
    return taken(client.post("/api/v1/webhook-endpoints", json={"url": HOOK} | body), 201)


def test_events_are_listed_and_narrowed(bench: Bench, client: FlaskClient) -> None:
    bench.connect(metadata={"plan": "pro"})
    bench.deliver()
    listed = taken(client.get("/api/v1/events"))
    assert [event["type"] for event in listed["data"]] == ["connection.imported", "connection.connected"]
    assert listed["next_cursor"] is None
    first = listed["data"][1]
    assert set(first) == {"id", "type", "timestamp", "data"}
    assert first["timestamp"] == "2026-11-20T10:00:00Z"
    assert first["data"]["metadata"] == {"plan": "pro"}
    ref = first["data"]["ref"]
    for query, count in (
        ("type=connection.imported", 1),
        (f"connection={ref}", 2),
        ("end_user=user-1&limit=1", 1),
        ("end_user=nobody", 0),
        ("since=2026-11-20T10:00:00Z", 2),
        ("since=2026-11-20T11:00:00%2B01:00", 2),
        ("since=2026-11-20T10:00:01Z", 0),
    ):
        assert len(taken(client.get(f"/api/v1/events?{query}"))["data"]) == count, query
    page = taken(client.get("/api/v1/events?limit=1"))
    rest = taken(client.get(f"/api/v1/events?limit=1&cursor={page['next_cursor']}"))
    assert rest == {"data": [first], "next_cursor": None}


@pytest.mark.parametrize(
    "query",
    ["type=connection.exploded", "since=yesterday", "since=2026-11-20T10:00:00", "limit=0", "limit=101", "x=1",
     "type=flow.failed&type=flow.failed"],
)  # fmt: skip
def test_a_query_that_says_nothing_known_is_refused(client: FlaskClient, query: str) -> None:
    refused(client.get(f"/api/v1/events?{query}"), 422, "request_invalid")


def test_an_unknown_cursor_is_refused(client: FlaskClient) -> None:
    refused(client.get("/api/v1/events?cursor=evt_x"), 404, "cursor_unknown")


def test_an_endpoint_shows_its_secret_once(client: FlaskClient) -> None:
    made = make(client, description="Billing", events=["connection.imported"])
    assert made["secret"].startswith("whsec_")
    shown = {name: value for name, value in made.items() if name != "secret"}
    assert shown == {
        "id": made["id"],
        "url": HOOK,
        "description": "Billing",
        "events": ["connection.imported"],
        "enabled": True,
        "disabled_reason": None,
        "disabled_at": None,
        "last_delivered_at": None,
        "failing_since": None,
        "error": None,
        "next_attempt_at": None,
        "waiting": 0,
        "parked": 0,
        "previous_secret_expires_at": None,
        "created_at": "2026-11-20T10:00:00Z",
        "updated_at": "2026-11-20T10:00:00Z",
    }
    address = f"/api/v1/webhook-endpoints/{made['id']}"
    assert taken(client.get(address)) == shown
    assert taken(client.get("/api/v1/webhook-endpoints")) == {"data": [shown]}
    rotated = taken(client.post(f"{address}/rotate-secret"))
    assert rotated["secret"] != made["secret"]
    assert rotated["previous_secret_expires_at"] == "2026-11-21T10:00:00Z"
    at_once = taken(client.post(f"{address}/rotate-secret", json={"previous_expires_in": 0}))
    assert at_once["previous_secret_expires_at"] == "2026-11-20T10:00:00Z"
    assert client.delete(address).status_code == 204
    refused(client.get(address), 404, "webhook_endpoint_unknown")
    refused(client.delete(address), 404, "webhook_endpoint_unknown")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 7}, "url"),
        ({"url": HOOK, "events": []}, "events"),
        ({"url": HOOK, "events": ["connection.exploded"]}, "events.0"),
        ({"url": HOOK, "secret": "whsec_mine"}, "secret"),
    ],
)
def test_a_body_that_says_nothing_known_is_refused(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    problem = refused(client.post("/api/v1/webhook-endpoints", json=body), 422, "request_invalid")
    assert field in problem["errors"]


@pytest.mark.parametrize("url", ["https://10.0.0.1/", "http://hooks.example/", "nonsense", "https://[::1"])
def test_an_address_that_may_not_be_told_is_refused(client: FlaskClient, url: str) -> None:
    problem = refused(client.post("/api/v1/webhook-endpoints", json={"url": url}), 422, "webhook_endpoint_invalid")
    assert list(problem["errors"]) == ["url"]


def test_an_endpoint_is_changed_switched_off_and_on(client: FlaskClient) -> None:
    address = f"/api/v1/webhook-endpoints/{make(client, events=['flow.failed'])['id']}"
    assert taken(client.patch(address, json={}))["events"] == ["flow.failed"]
    assert taken(client.patch(address, json={"events": None}))["events"] is None
    off = taken(client.patch(address, json={"enabled": False}))
    assert (off["enabled"], off["disabled_reason"]) == (False, "switched_off")
    assert taken(client.patch(address, json={"enabled": True}))["enabled"] is True
    refused(client.patch(address, json={"url": "https://192.168.0.1/"}), 422, "webhook_endpoint_invalid")


def test_a_test_event_is_among_the_deliveries(bench: Bench, client: FlaskClient) -> None:
    address = f"/api/v1/webhook-endpoints/{make(client, events=['flow.failed'])['id']}"
    queued = taken(client.post(f"{address}/test"), 202)
    assert (queued["type"], queued["state"], queued["attempts"]) == ("webhook.test", "pending", 0)
    bench.worker.notify_once()
    (delivery,) = taken(client.get(f"{address}/deliveries"))["data"]
    assert (delivery["event"], delivery["state"]) == (queued["event"], "delivered")
    assert taken(client.get("/api/v1/events"))["data"] == []
    taken(client.patch(address, json={"enabled": False}))
    refused(client.post(f"{address}/test"), 409, "webhook_endpoint_disabled")
    refused(client.post("/api/v1/webhook-endpoints/whe_x/test"), 404, "webhook_endpoint_unknown")


def test_deliveries_are_listed_shown_and_sent_again(bench: Bench, client: FlaskClient) -> None:
    address = f"/api/v1/webhook-endpoints/{make(client)['id']}"
    bench.connect()
    while bench.worker.notify_once():
        pass
    (delivery,) = taken(client.get(f"{address}/deliveries"))["data"]
    assert delivery["state"] == "delivered"
    assert delivery["attempts"] == 1
    assert delivery["last_attempt"]["status"] == 200
    event = delivery["event"]
    details = taken(client.get(f"{address}/deliveries/{event}"))
    assert details == {"delivery": delivery, "attempts": [delivery["last_attempt"]]}
    again = taken(client.post(f"{address}/deliveries/{event}/resend"), 202)
    assert again["state"] == "pending"
    assert taken(client.get(f"{address}/deliveries?state=pending"))["data"] == [again]
    assert taken(client.post(f"{address}/deliveries/resend-parked"), 202) == {"resent": 0}
    refused(client.get(f"{address}/deliveries/evt_x"), 404, "webhook_delivery_unknown")
    refused(client.get(f"{address}/deliveries?state=lost"), 422, "request_invalid")
    refused(client.get(f"{address}/deliveries?cursor=evt_x"), 404, "cursor_unknown")
