"""The document for machines and the page for people: what they say is what is served."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import CHECKS, load_all_checks

from broker.apikeys import ApiKeys
from broker.db import DatabaseUnavailable
from broker.models import Flow, Hold, Link
from broker.web.api import CALLS
from broker.web.api.openapi import document
from tests.house import House, make_settings
from tests.web.test_api import bearer

BODY = {"end_user": {"id": "user-1"}}


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def key(house: House) -> dict[str, str]:
    return bearer(ApiKeys(house.database, house.clock))


def served(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/openapi.json")
    assert answer.status_code == 200
    found: dict[str, Any] = json.loads(answer.get_data())
    return found


# --- the document -----------------------------------------------------------------------------------


def test_every_call_is_in_the_document_and_nothing_else(client: FlaskClient) -> None:
    paths = served(client)["paths"]

    assert {(method.upper(), path) for path, methods in paths.items() for method in methods} == {
        (call.method, "/api/v1" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", call.path)) for call in CALLS
    }


def test_every_reference_leads_somewhere() -> None:
    made = document()

    named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(made)))
    assert named <= set(made["components"]["schemas"])


def test_the_document_of_a_deployment_names_its_apps_and_origins_and_no_secret(client: FlaskClient) -> None:
    made = served(client)

    link = made["components"]["schemas"]["LinkBody"]["properties"]
    assert link["apps"]["anyOf"][0]["items"]["enum"] == ["stripe", "stripe-test"]
    pattern = link["return_url"]["anyOf"][0]["pattern"]
    assert re.search(pattern, "https://app.example/settings?tab=accounts")
    assert not re.search(pattern, "https://appxexample/settings")
    assert made["servers"] == [{"url": "http://localhost:8000"}]
    assert "never_to_be_seen" not in json.dumps(made)


def test_a_deployment_without_return_origins_takes_no_return_address(house: House) -> None:
    made = document(make_settings(return_origins=()))

    assert made["components"]["schemas"]["LinkBody"]["properties"]["return_url"]["anyOf"] == [{"type": "null"}]


# --- every documented answer can be had ----------------------------------------------------------------


class Doors:
    """Every way to be answered in a documented way, for one operation after the other."""

    def __init__(self, house: House, client: FlaskClient, key: dict[str, str]) -> None:
        self.house, self.client, self.key = house, client, key

    def ask(self, method: str, path: str, **options: Any) -> int:
        headers = self.key | options.pop("headers", {})
        return self.client.open(path, method=method, headers=headers, **options).status_code

    def statuses(self, method: str, path: str) -> set[int]:
        """Return every status that this operation was answered with."""
        found = {self._refused_key(method, path), self._missing_scope(method, path), self._no_database(method, path)}
        good = {"connect-links": self._link, "flows": self._flow, "connections": self._connection}
        kind = path.split("/")[3]
        address = path
        if "{" in path:
            made = good[kind]() if kind in good else self._person()
            address = re.sub(r"{\w+}", made, path)
            found.add(self.ask(method, re.sub(r"{\w+}", "0000-0000-0000", path), json={"end_user_id": "x"}))
        body = {"end_user_id": "user-1"} if kind == "flows" else BODY
        takes_body = method == "POST" and kind in ("connect-links", "flows")
        found.add(self.ask(method, address, **({"json": body} if takes_body else {})))
        if method == "GET" and path.endswith("/connections"):
            found |= {self.ask(method, address + query) for query in ("?limit=0", "?cursor=NOPE")}
        if method == "POST":
            found |= self._repeated(address, body if takes_body else None)
        if takes_body:
            found |= self._bad_bodies(address)
        if kind == "flows":
            found.add(self.ask(method, address, json={"end_user_id": "somebody-else"}))
        if path == "/api/v1/connect-links":
            unknown = BODY | {"connection": "0000-0000-0000"}
            found |= {self.ask(method, path, json=unknown), self._too_often(path)}
        if kind == "connections" and method == "POST":
            ended = self._connection(disconnected_at=self.house.clock.now())
            found.add(self.ask(method, re.sub(r"{\w+}", ended, path)))
        return found

    def _refused_key(self, method: str, path: str) -> int:
        return self.client.open(path, method=method).status_code

    def _missing_scope(self, method: str, path: str) -> int:
        call = next(call for call in CALLS if call.method == method and _same(call.path, path))
        others = {each.scope.value for each in CALLS} - {call.scope.value}
        headers = bearer(ApiKeys(self.house.database, self.house.clock), *others)
        return self.client.open(path, method=method, headers=headers).status_code

    def _no_database(self, method: str, path: str) -> int:
        def away(_header: str | None) -> None:
            raise DatabaseUnavailable

        services = self.client.application.extensions["broker"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(services.api_keys, "authenticate", away)
            return self.ask(method, path)

    def _bad_bodies(self, path: str) -> set[int]:
        return {
            self.ask("POST", path, data=b"{", content_type="application/json"),
            self.ask("POST", path, data=b"a=b", content_type="text/plain"),
            self.ask("POST", path, json={"nonsense": 1}),
        }

    def _repeated(self, path: str, body: object) -> set[int]:
        options: dict[str, Any] = {"json": body} if body is not None else {}
        headers = {"Idempotency-Key": "the-same"}
        self.ask("POST", path, headers=headers, **options)
        return {
            self.ask("POST", path, headers={"Idempotency-Key": "two words"}, **options),
            self.ask("POST", path + "?other=1", headers=headers, **options),
            self.ask("POST", path, headers=headers, data=b"x" * 300_000, content_type="application/json"),
            self.ask("POST", path, headers={"Transfer-Encoding": "chunked"}),
        }

    def _too_often(self, path: str) -> int:
        (limiter,) = self.client.application.extensions["limiter"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(limiter.limiter, "hit", lambda *_, **__: False)
            return self.ask("POST", path, json=BODY)

    def _link(self) -> str:
        made = self.client.post("/api/v1/connect-links", headers=self.key, json=BODY).get_json()
        return str(made["id"])

    def _person(self) -> str:
        return "user-1" if self._link() else ""

    def _flow(self) -> str:
        self._link()
        link = self.house.value(sa.select(sa.func.max(Link.id)))
        flow = self.house.flow(
            link, "browser", confirm=True, state="held", hold=Hold.CONFIRMATION, code_sealed=b"\x01",
            code_expires_at=self.house.clock.now().replace(hour=11),
        )  # fmt: skip
        return str(self.house.value(sa.select(Flow.ref).where(Flow.id == flow)))

    def _connection(self, **changes: Any) -> str:
        name = f"person-{next(self.house.numbers)}"
        return self.house.connection(self.house.end_user(name), **changes)


def _same(route: str, path: str) -> bool:
    return "/api/v1" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route) == path


@pytest.mark.parametrize(
    # Those about events and webhooks have their own tests.
    "call",
    [call for call in CALLS if call.group != "Events and webhooks"],
    ids=lambda call: call.view.__name__,
)
def test_every_documented_status_is_reachable_and_no_other_is_seen(
    house: House, client: FlaskClient, key: dict[str, str], call: Any
) -> None:
    path = "/api/v1" + re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", call.path)
    told = {int(status) for status in served(client)["paths"][path][call.method.lower()]["responses"]}

    assert Doors(house, client, key).statuses(call.method, path) == told


def test_allow_names_the_methods_of_its_own_route_everywhere(app: Flask) -> None:
    """Where two routes lead to one address, `Allow` would promise what one of them cannot keep."""
    routes = app.url_map.bind("localhost")
    wrong = {}
    for rule in app.url_map.iter_rules():
        address = rule.build(dict.fromkeys(rule.arguments, 7))
        assert address is not None
        same = [other for other in app.url_map.iter_rules() if other.rule == rule.rule]
        own = {method for other in same for method in other.methods or ()}
        if set(routes.allowed_methods(address[1])) != own:
            wrong[rule.rule] = set(routes.allowed_methods(address[1])) ^ own
    assert wrong == {}


# --- what nobody thought of ---------------------------------------------------------------------------


@pytest.mark.parametrize("authorised", [True, False])
def test_generated_calls_find_nothing_that_the_document_does_not_say(
    app: Flask, key: dict[str, str], authorised: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # schemathesis leaves its notes where it is run.
    monkeypatch.chdir(tmp_path)
    # Whether a webhook's address is public is asked of the network; no such name resolves anyway.
    monkeypatch.setattr("broker.http.Http.check", lambda *_: None)
    load_all_checks()
    checks: Any = CHECKS.get_all()
    few = settings(
        max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
    )
    schema = schemathesis.openapi.from_wsgi("/openapi.json", app)
    for result in schema.get_all_operations():
        operation: Any = result.ok()  # type: ignore[union-attr]

        @few
        @given(case=operation.as_strategy())
        def generated(case: schemathesis.Case[Any]) -> None:
            case.call_and_validate(headers=key if authorised else None, checks=checks)

        generated()


# --- the page -----------------------------------------------------------------------------------------


class Addresses(HTMLParser):
    """Every address a page makes a browser ask for, and the ids that links inside it can lead to."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.ids: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.ids.add(found.get("id", ""))
        if tag in ("link", "script", "img", "iframe"):
            self.asked.append(found.get("href", "") + found.get("src", ""))
        if found.get("href", "").startswith("#"):
            self.anchors.add(found["href"][1:])


def test_the_page_tells_of_every_call_and_asks_nobody_else(client: FlaskClient) -> None:
    answer = client.get("/docs")
    page = answer.get_data(as_text=True)
    found = Addresses(page)

    assert answer.status_code == 200
    for call in CALLS:
        assert call.summary in page
        assert f'id="{call.view.__name__}"' in page
        assert call.scope.value in page
    assert found.anchors <= found.ids
    assert all(address.startswith("/") for address in found.asked)
    assert "never_to_be_seen" not in page


def test_fields_inside_others_are_named_by_their_path(client: FlaskClient) -> None:
    page = client.get("/docs").get_data(as_text=True)

    for name in ("end_user.id", "data[].account.mode", "Idempotency-Key", "RateLimit"):
        assert f"<code>{name}</code>" in page
