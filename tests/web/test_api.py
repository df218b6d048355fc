"""The host API: who may call, what is taken, what is given, and how a refusal reads."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.apikeys import ApiKeys, Scope
from broker.app import create_app
from broker.models import ConnectedAccount, Event, Flow, IdempotentCall, ImportState, Link
from broker.web.api import SCOPES, limiter_key
from tests.house import House, make_settings

PERSON = {"end_user": {"id": "user-1", "email": "jo@example.com", "name": "Jo"}}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def keys(house: House) -> ApiKeys:
    return ApiKeys(house.database, house.clock)


@pytest.fixture
def key(keys: ApiKeys) -> dict[str, str]:
    return bearer(keys)


def bearer(keys: ApiKeys, *scopes: str) -> dict[str, str]:
    _, key = keys.create("test", scopes or None)
    return {"Authorization": f"Bearer {key.reveal()}"}


def problem(response: TestResponse, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.get_data(as_text=True)
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = json.loads(response.get_data())
    assert body["code"] == code
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["error_ref"] == response.headers["X-Request-Id"]
    return body


def api_rules(app: Flask) -> list[tuple[str, str, str]]:
    """Return every API route as method, path and endpoint."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/api/"):
            path = (
                rule.rule.replace("<public_id>", "lnk_x")
                .replace("<ref>", "AAAA-BBBB-CCCC")
                .replace("<event_id>", "evt_x")
            )
            found += [(method, path, rule.endpoint) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}]
    return found


# --- who may call -----------------------------------------------------------------------------------


def test_every_route_is_refused_without_a_key_and_with_every_other_scope(
    app: Flask, client: FlaskClient, keys: ApiKeys
) -> None:
    everything = {scope.value for scope in Scope}
    rules = api_rules(app)
    assert {endpoint for _, _, endpoint in rules} == set(SCOPES)
    for method, path, endpoint in rules:
        nobody = client.open(path, method=method)
        problem(nobody, 401, "unauthenticated")
        assert nobody.headers["WWW-Authenticate"] == 'Bearer realm="broker"'
        others = bearer(keys, *(everything - {SCOPES[endpoint].value}))
        refused = client.open(path, method=method, headers=others)
        problem(refused, 403, "scope_missing")
        assert f'scope="{SCOPES[endpoint].value}"' in refused.headers["WWW-Authenticate"]
        allowed = client.open(path, method=method, headers=bearer(keys, SCOPES[endpoint].value), json={})
        assert allowed.status_code not in {401, 403, 405, 500}


def test_a_new_endpoint_without_a_scope_is_refused_to_everybody(
    house: House, tmp_path: Path, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.api.SCOPES", {})
    app = create_app(make_settings(house.settings.database_url, data_dir=tmp_path), clock=house.clock)
    assert app.test_client().get("/api/v1/apps", headers=key).status_code == 403
    app.extensions["broker"].database.engine.dispose()


def test_cookies_mean_nothing_here(client: FlaskClient, key: dict[str, str]) -> None:
    client.set_cookie("broker_session", "x" * 43)
    client.set_cookie("broker_operator", "x" * 43)
    problem(client.get("/api/v1/apps"), 401, "unauthenticated")
    answer = client.get("/api/v1/apps", headers=key)
    assert "Set-Cookie" not in answer.headers
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_revoked_key_stops_at_once(client: FlaskClient, keys: ApiKeys) -> None:
    public_id, secret = keys.create("test")
    headers = {"Authorization": f"Bearer {secret.reveal()}"}
    assert client.get("/api/v1/apps", headers=headers).status_code == 200
    keys.revoke(public_id)
    problem(client.get("/api/v1/apps", headers=headers), 401, "unauthenticated")


def test_limits_count_by_key_without_holding_it(app: Flask) -> None:
    with app.test_request_context(headers={"Authorization": "Bearer brk_canary"}):
        first = limiter_key()
    with app.test_request_context(headers={"Authorization": "Bearer brk_other"}):
        second = limiter_key()
    with app.test_request_context(environ_base={"REMOTE_ADDR": "192.0.2.1"}):
        assert limiter_key() == "address:192.0.2.1"
    assert first != second
    assert "canary" not in first


# --- connect links ----------------------------------------------------------------------------------


def test_a_link_is_made_shown_and_taken_back(house: House, client: FlaskClient, key: dict[str, str]) -> None:
    body = PERSON | {
        "apps": ["stripe-test"],
        "return_url": "https://app.example/back",
        "auto_return": True,
        "metadata": {"plan": "pro", "seats": 7, "beta": True},
        "expires_in": 600,
        "manage": True,
        "confirm": False,
        "connection": None,
    }
    made = client.post("/api/v1/connect-links", headers=key, json=body)
    assert made.status_code == 201
    assert set(made.get_json()) == {"id", "url", "expires_at"}
    assert made.get_json()["expires_at"] == "2026-11-20T10:10:00Z"
    assert made.get_json()["url"].startswith("http://localhost:8000/connect/")
    assert made.headers["Location"] == f"/api/v1/connect-links/{made.get_json()['id']}"
    assert house.value(sa.select(Link.host_metadata)) == body["metadata"]
    shown = client.get(made.headers["Location"], headers=key)
    assert shown.get_json() == {
        "id": made.get_json()["id"],
        "state": "unopened",
        "end_user": {"id": "user-1"},
        "apps": ["stripe-test"],
        "return_url": "https://app.example/back",
        "auto_return": True,
        "connection": None,
        "confirm": False,
        "manage": True,
        "connections": [],
        "created_at": "2026-11-20T10:00:00Z",
        "expires_at": "2026-11-20T10:10:00Z",
    }
    token = made.get_json()["url"].rpartition("/")[2]
    assert token not in shown.get_data(as_text=True)
    for _ in range(2):
        revoked = client.delete(made.headers["Location"], headers=key)
        assert (revoked.status_code, revoked.get_json()["state"]) == (200, "revoked")


def test_only_an_id_is_needed(client: FlaskClient, key: dict[str, str]) -> None:
    made = client.post("/api/v1/connect-links", headers=key, json={"end_user": {"id": "user-1"}})
    assert made.status_code == 201
    assert made.get_json()["expires_at"] == "2026-11-20T10:30:00Z"


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"text"', b"null", b"7", b"\xff\xfe", b"{} {}", b'{"a": NaN}', b'{"a": Infinity}',
        b"[" * 50_000, b'{"a":' * 50_000, b'{"a": ' + b"9" * 5_000 + b"}", b"end_user=x",
    ],
)  # fmt: skip
def test_a_body_that_is_no_object_is_refused(client: FlaskClient, key: dict[str, str], body: bytes) -> None:
    headers = key | {"Content-Type": "application/json"}
    problem(client.post("/api/v1/connect-links", headers=headers, data=body), 400, "body_not_an_object")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"end_user": None}, "end_user"),
        ({"end_user": {}}, "end_user.id"),
        ({"end_user": {"id": 7}}, "end_user.id"),
        ({"end_user": {"id": None}}, "end_user.id"),
        ({"end_user": {"id": "x", "admin": True}}, "end_user.admin"),
        ({"state": "used"}, "state"),
        ({"end_user_id": "other"}, "end_user_id"),
        ({"created_by": "cli"}, "created_by"),
        ({"apps": "stripe"}, "apps"),
        ({"apps": [1]}, "apps.0"),
        ({"expires_in": "600"}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": 1.5}, "expires_in"),
        ({"manage": 1}, "manage"),
        ({"metadata": []}, "metadata"),
        ({"confirm": 1}, "confirm"),
        ({"connection": "somebody"}, "connection"),
        ({"return_url": 5}, "return_url"),
        # What the use case refuses reads the same.
        ({"end_user": {"id": ""}}, "end_user.id"),
        ({"end_user": {"id": "a\x00"}}, "end_user.id"),
        ({"end_user": {"id": "\ud800"}}, "end_user.id"),
        ({"end_user": {"id": "x", "email": "\ud800@x"}}, "end_user.email"),
        ({"apps": []}, "apps"),
        ({"apps": ["nope"]}, "apps"),
        ({"return_url": "https://evil.example/"}, "return_url"),
        ({"return_url": "/\\evil.example"}, "return_url"),
        ({"expires_in": 10**30}, "expires_in"),
        ({"metadata": {"end_user_id": "x"}}, "metadata"),
        ({"metadata": {"\ud800": "x"}}, "metadata"),
        ({"metadata": {"x": {"deep": 1}}}, "metadata"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_made(
    house: House, client: FlaskClient, key: dict[str, str], changes: dict[str, Any], field: str
) -> None:
    response = client.post("/api/v1/connect-links", headers=key, json=PERSON | changes)
    body = json.loads(response.get_data())
    problem(response, 422, body["code"])
    assert body["code"] in {"request_invalid", "link_invalid"}
    assert list(body["errors"]) == [field]
    assert house.value(sa.select(sa.func.count()).select_from(Link)) == 0


def test_a_refusal_repeats_no_value(client: FlaskClient, key: dict[str, str]) -> None:
    canary = "canary-that-must-not-come-back"
    body = {"end_user": {"id": "x", "email": canary}, "expires_in": canary, "apps": [canary], "return_url": canary}
    assert canary not in client.post("/api/v1/connect-links", headers=key, json=body).get_data(as_text=True)
    body = {
        "end_user": {"id": "x", "email": canary},
        "apps": [canary],
        "return_url": canary,
        "metadata": {"k": [canary]},
    }
    assert canary not in client.post("/api/v1/connect-links", headers=key, json=body).get_data(as_text=True)


@pytest.mark.parametrize("public_id", ["lnk_none", "%00", "%ff", "a%00b", "%F0%9F%8E%89"])
def test_an_unknown_link_is_unknown(client: FlaskClient, key: dict[str, str], public_id: str) -> None:
    for ask in (client.get, client.delete):
        problem(ask(f"/api/v1/connect-links/{public_id}", headers=key), 404, "link_unknown")


# --- apps -------------------------------------------------------------------------------------------


def test_apps_are_listed_without_secrets(client: FlaskClient, key: dict[str, str]) -> None:
    answer = client.get("/api/v1/apps", headers=key)
    assert [app["key"] for app in answer.get_json()["data"]] == ["stripe", "stripe-test"]
    assert set(answer.get_json()["data"][0]) == {
        "key", "provider", "title", "kind", "scopes", "why", "unavailable_since", "next_try_at",
    }  # fmt: skip
    assert "never_to_be_seen" not in answer.get_data(as_text=True)


# --- connections ------------------------------------------------------------------------------------


def test_a_connection_reads_as_promised(house: House, client: FlaskClient, key: dict[str, str]) -> None:
    person = house.end_user("user-1", email="jo@example.com")
    ref = house.connection(
        person,
        account_id="acct_1",
        account_name="Acme <Ltd>",
        mode="test",
        host_metadata={"plan": "pro"},
        credential_id="crd_1",
        sequin_oauth_app_id="app_1",
        imported_at=house.clock.now(),
        grant_sealed=b"canary sealed grant",
    )
    answer = client.get(f"/api/v1/connections/{ref}", headers=key)
    assert answer.get_json() == {
        "ref": ref,
        "end_user": {"id": "user-1", "email": "jo@example.com", "name": None},
        "provider": "stripe",
        "app": "stripe",
        "kind": "stripe_oauth2",
        "account": {"id": "acct_1", "name": "Acme <Ltd>", "type": "standard", "mode": "test"},
        "scopes": ["read_write"],
        "status": "unknown",
        "note": "This account is connected. It was not checked in the last day.",
        "health": {"status": "unknown", "notes": [], "checked_at": None},
        "sequin": {
            "credential_id": "crd_1",
            "oauth_app_id": "app_1",
            "imported_at": "2026-11-20T10:00:00Z",
            "verified_at": None,
        },
        "steps": [
            {"name": "connected", "state": "done", "at": "2026-11-20T10:00:00Z"},
            {"name": "sealed", "state": "done", "at": "2026-11-20T10:00:00Z"},
            {"name": "imported", "state": "done", "at": "2026-11-20T10:00:00Z"},
            {"name": "verified", "state": "waiting", "at": None},
        ],
        "metadata": {"plan": "pro"},
        "created_at": "2026-11-20T10:00:00Z",
        "updated_at": "2026-11-20T10:00:00Z",
    }
    assert "canary" not in answer.get_data(as_text=True)


def test_connections_are_filtered_and_paged(house: House, client: FlaskClient, key: dict[str, str]) -> None:
    person = house.end_user("user-1")
    made = [house.connection(person, host_metadata={"plan": "pro"}) for _ in range(5)]
    house.connection(house.end_user("user-2"), import_state=ImportState.PENDING)
    seen: list[str] = []
    query: dict[str, str] = {"end_user": "user-1", "status": "unknown", "metadata.plan": "pro", "limit": "2"}
    while True:
        page = client.get("/api/v1/connections", headers=key, query_string=query).get_json()
        seen += [item["ref"] for item in page["data"]]
        if page["next_cursor"] is None:
            break
        query["cursor"] = page["next_cursor"]
    assert seen == made[::-1]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("limit=" + "9" * 5_000, "limit"),
        ("status=fine", "status"), ("mode=prod", "mode"), ("sort=name", "sort"), ("metadata=x", "metadata"),
        ("end_user=a&end_user=b", "end_user"), ("metadata.a=1&metadata.a=2", "metadata.a"),
    ],
)  # fmt: skip
def test_a_wrong_filter_is_named(client: FlaskClient, key: dict[str, str], query: str, field: str) -> None:
    body = problem(client.get(f"/api/v1/connections?{query}", headers=key), 422, "request_invalid")
    assert list(body["errors"]) == [field]


@pytest.mark.parametrize("query", ["end_user=%00", "account=%ff%fe", "metadata.%00=x", "metadata.=x", "kind=%ED%A0%80"])
def test_text_no_row_can_hold_finds_nothing(client: FlaskClient, key: dict[str, str], query: str) -> None:
    answer = client.get(f"/api/v1/connections?{query}", headers=key)
    assert (answer.status_code, answer.get_json()) == (200, {"data": [], "next_cursor": None})


def test_an_unknown_cursor_or_reference_is_refused(client: FlaskClient, key: dict[str, str]) -> None:
    problem(client.get("/api/v1/connections?cursor=NOPE", headers=key), 404, "cursor_unknown")
    problem(client.get("/api/v1/connections/NOPE", headers=key), 404, "connection_unknown")
    problem(client.get("/api/v1/connections/%00", headers=key), 404, "connection_unknown")
    problem(client.post("/api/v1/connections/NOPE/retry", headers=key), 404, "connection_unknown")


def test_asking_for_the_import_again(house: House, client: FlaskClient, key: dict[str, str]) -> None:
    ref = house.connection(house.end_user("user-1"), import_state=ImportState.PARKED, grant_sealed=b"kept")
    for _ in range(2):
        answer = client.post(f"/api/v1/connections/{ref}/retry", headers=key)
        assert (answer.status_code, answer.get_json()) == (202, {"ref": ref})
    assert client.get(f"/api/v1/connections/{ref}", headers=key).get_json()["status"] == "pending"
    assert {entry[2] for entry in house.audited()} >= {"connection.retry"}


def test_disconnecting_is_accepted_however_often_it_is_asked(
    house: House, client: FlaskClient, keys: ApiKeys, key: dict[str, str]
) -> None:
    ref = house.connection(house.end_user("user-1"))
    public_id, secret = keys.create("backend", ["connections:write"])
    writer = {"Authorization": f"Bearer {secret.reveal()}"}
    for _ in range(2):
        answer = client.delete(f"/api/v1/connections/{ref}", headers=writer)
        assert (answer.status_code, answer.get_json()) == (202, {"ref": ref})
    shown = client.get(f"/api/v1/connections/{ref}", headers=key).get_json()
    assert shown["status"] == "disconnected"
    assert "still ending the access at Stripe" in shown["note"]
    assert house.audited().count(("api_key", public_id, "connection.disconnected", ref)) == 1
    listed = client.get("/api/v1/connections?status=disconnected", headers=key).get_json()["data"]
    assert [item["ref"] for item in listed] == [ref]
    problem(client.delete("/api/v1/connections/NOPE", headers=key), 404, "connection_unknown")
    problem(client.delete("/api/v1/connections/%00", headers=key), 404, "connection_unknown")


def test_an_ended_connection_is_not_retried(house: House, client: FlaskClient, key: dict[str, str]) -> None:
    ref = house.connection(house.end_user("user-1"), disconnected_at=house.clock.now())
    problem(client.post(f"/api/v1/connections/{ref}/retry", headers=key), 409, "connection_ended")


def test_what_is_not_here_reads_as_a_problem_too(client: FlaskClient, key: dict[str, str]) -> None:
    problem(client.get("/api/v1/nothing", headers=key), 404, "not_found")
    problem(client.put("/api/v1/apps", headers=key), 405, "method_not_allowed")


def test_a_check_is_asked_for_and_answered_at_once(client: FlaskClient, house: House, key: dict[str, str]) -> None:
    ref = house.connection(house.end_user("jo"))
    answer = client.post(f"/api/v1/connections/{ref}/check", headers=key)
    assert (answer.status_code, answer.json) == (202, {"ref": ref})
    assert house.asked_for() == {"verify", "probe"}


# --- repeated calls, limits, refusals ---------------------------------------------------------------


def test_a_repeated_call_makes_nothing_new_and_gets_the_same_answer(
    house: House, client: FlaskClient, key: dict[str, str]
) -> None:
    headers = key | {"Idempotency-Key": "5f0c"}
    first, again = (client.post("/api/v1/connect-links", headers=headers, json=PERSON) for _ in range(2))

    assert (again.status_code, again.json, again.headers["Location"]) == (201, first.json, first.headers["Location"])
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert house.value(sa.select(sa.func.count()).select_from(Link)) == 1
    token = str(first.get_json()["url"]).rpartition("/")[2]
    assert token.encode() not in house.value(sa.select(IdempotentCall.answer_sealed))
    other = PERSON | {"manage": True}
    problem(client.post("/api/v1/connect-links", headers=headers, json=other), 409, "idempotency_key_reused")


def test_a_refused_call_may_be_corrected_under_its_key(client: FlaskClient, key: dict[str, str]) -> None:
    headers = key | {"Idempotency-Key": "5f0c"}
    problem(client.post("/api/v1/connect-links", headers=headers, json={}), 422, "request_invalid")

    assert client.post("/api/v1/connect-links", headers=headers, json=PERSON).status_code == 201


def test_what_is_counted_says_what_is_left(client: FlaskClient, key: dict[str, str]) -> None:
    answer = client.post("/api/v1/connect-links", headers=key, json=PERSON)

    assert answer.headers["RateLimit-Policy"] == '"calls";q=100;w=1'
    assert re.fullmatch(r'"calls";r=\d+;t=[01]', answer.headers["RateLimit"])
    assert "RateLimit" not in client.get("/api/v1/apps", headers=key).headers


def test_whoever_asks_too_often_is_told_when_to_come_back(
    app: Flask, client: FlaskClient, key: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (limiter,) = app.extensions["limiter"]
    monkeypatch.setattr(limiter.limiter, "hit", lambda *_, **__: False)

    answer = client.post("/api/v1/connect-links", headers=key, json=PERSON)

    problem(answer, 429, "too_many_requests")
    assert answer.headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"path": "/api/v1/none"}, 404, "not_found"),
        ({"path": "/api/"}, 404, "not_found"),
        ({"path": "/api/v1/connect-links", "method": "PATCH"}, 405, "method_not_allowed"),
        ({"path": "/api/v1/connect-links", "method": "TRACE"}, 405, "method_not_allowed"),
        ({"method": "POST", "data": b"a=b", "content_type": "text/plain"}, 415, "media_type_unsupported"),
        ({"method": "POST", "data": b"x" * 300_000, "content_type": "application/json"}, 413, "too_large"),
        ({"method": "POST", "headers": {"Transfer-Encoding": "chunked"}}, 411, "length_required"),
    ],
)
def test_whatever_the_framework_refuses_reads_as_a_problem(
    client: FlaskClient, key: dict[str, str], asked: dict[str, Any], status: int, code: str
) -> None:
    told = {"path": "/api/v1/connect-links"} | asked | {"headers": key | asked.get("headers", {})}
    problem(client.open(**told), status, code)


# --- reconnect links, confirmation, erasure ---------------------------------------------------------


def test_a_reconnect_link_is_for_that_connection_and_its_app(
    house: House, client: FlaskClient, key: dict[str, str]
) -> None:
    ref = house.connection(house.end_user("user-1"), app_key="stripe-test", host_metadata={"plan": "pro"})
    made = client.post("/api/v1/connect-links", headers=key, json={"end_user": {"id": "user-1"}, "connection": ref})

    shown = client.get(made.headers["Location"], headers=key).get_json()
    assert (shown["connection"], shown["apps"], shown["end_user"]) == (ref, ["stripe-test"], {"id": "user-1"})
    assert house.value(sa.select(Link.host_metadata)) == {"plan": "pro"}
    body = {"end_user": {"id": "user-1"}, "connection": ref, "apps": ["stripe"]}
    problem(client.post("/api/v1/connect-links", headers=key, json=body), 422, "link_invalid")


def test_somebody_else_s_connection_reads_like_one_that_does_not_exist(
    house: House, client: FlaskClient, key: dict[str, str]
) -> None:
    ref = house.connection(house.end_user("user-2"))
    answers = [
        client.post("/api/v1/connect-links", headers=key, json=PERSON | {"connection": wrong})
        for wrong in (ref, "0000-0000-0000")
    ]

    told = [problem(answer, 404, "connection_unknown") for answer in answers]
    assert told[0]["detail"] == told[1]["detail"]
    assert house.value(sa.select(sa.func.count()).select_from(Link)) == 0


def test_a_manage_link_cannot_be_for_anything_else(client: FlaskClient, key: dict[str, str]) -> None:
    for besides in ({"confirm": True}, {"connection": "0000-0000-0000"}):
        body = PERSON | {"manage": True} | besides
        problem(client.post("/api/v1/connect-links", headers=key, json=body), 422, "request_invalid")


def test_an_unknown_and_an_erased_person_answer_alike(
    app: Flask, house: House, client: FlaskClient, key: dict[str, str]
) -> None:
    house.connection(house.end_user("a/b c"))
    asked = client.delete("/api/v1/end-users/a/b%20c", headers=key)
    assert (asked.status_code, asked.get_json()["state"], asked.get_json()["connections_left"]) == (202, "erasing", 1)
    again = PERSON | {"end_user": {"id": "a/b c"}}
    problem(client.post("/api/v1/connect-links", headers=key, json=again), 409, "end_user_erased")
    house.run(sa.update(ConnectedAccount).values(revocation="done", removal="done"))
    house.run(sa.update(Event).values(dispatched_at=house.clock.now()))
    services = app.extensions["broker"]
    services.erasures.run(services.jobs.lease(["forget"])[0])

    answers = [client.delete(f"/api/v1/end-users/{who}", headers=key) for who in ("a/b%20c", "nobody")]
    assert len({problem(answer, 404, "end_user_unknown")["detail"] for answer in answers}) == 1


def test_a_confirmation_by_the_wrong_person_ends_the_flow(
    house: House, client: FlaskClient, key: dict[str, str]
) -> None:
    client.post("/api/v1/connect-links", headers=key, json=PERSON | {"confirm": True})
    later = house.clock.now().replace(hour=11)
    flow = house.flow(house.value(sa.select(Link.id)), "b", confirm=True, state="held", hold="confirmation",
        code_sealed=b"x", code_expires_at=later)  # fmt: skip
    ref = house.value(sa.select(Flow.ref).where(Flow.id == flow))

    wrong = client.post(f"/api/v1/flows/{ref}/confirm", headers=key, json={"end_user_id": "somebody"})
    problem(wrong, 409, "confirmation_mismatch")
    late = client.post(f"/api/v1/flows/{ref}/confirm", headers=key, json={"end_user_id": "user-1"})
    problem(late, 409, "flow_ended")
