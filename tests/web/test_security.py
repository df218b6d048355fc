"""What protects every answer, whatever it is."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.db import DatabaseUnavailable
from broker.links import LinkInvalid
from broker.settings import Branding
from broker.web.cookies import cookie_name
from tests.web.fakes import FLOW, TOKEN, FakeServices, application, services, settings

HTTPS = "https://connect.acme.example"
EVERYWHERE = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}
ANSWERS = [
    ("GET", f"/connect/{TOKEN}", 200),
    ("GET", "/connect/unknown", 404),
    ("GET", f"/connect/{TOKEN}/extra", 404),
    ("GET", "/oauth/stripe/callback", 400),
    ("GET", "/oauth/stripe/callback?state=a&code=b", 303),
    ("GET", f"/flows/{FLOW}", 404),
    ("GET", "/connections", 401),
    ("GET", "/demo/", 200),
    ("GET", "/healthz", 200),
    ("GET", "/robots.txt", 200),
    ("GET", "/static/style.css", 200),
    ("GET", "/static/none.css", 404),
    ("GET", "/nowhere", 404),
    ("GET", "/api/v1/nowhere", 404),
    ("DELETE", "/healthz", 405),
    ("POST", f"/connect/{TOKEN}/start/stripe", 400),
    ("POST", "/sign-out", 400),
]


@pytest.fixture
def fake() -> FakeServices:
    return services()


@pytest.fixture
def client(fake: FakeServices) -> FlaskClient:
    return application(fake).test_client()


def token_in(page: TestResponse) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


def start(client: FlaskClient, **headers: str) -> TestResponse:
    token = token_in(client.get(f"/connect/{TOKEN}"))
    return client.post(f"/connect/{TOKEN}/start/stripe", data={"csrf_token": token}, headers=headers)


@pytest.mark.parametrize(("method", "path", "status"), ANSWERS)
def test_every_answer_carries_the_headers(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)
    answer.close()
    assert answer.status_code == status
    for name, value in EVERYWHERE.items():
        assert answer.headers[name] == value
    policy = answer.headers["Content-Security-Policy"]
    for part in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "script-src 'self'"):
        assert part in policy
    assert "unsafe" not in policy
    assert re.fullmatch(r"[0-9A-Z]{4}(-[0-9A-Z]{4}){2}", answer.headers["X-Request-Id"])
    assert "Access-Control-Allow-Origin" not in answer.headers
    if path != "/static/style.css":
        assert answer.headers["Cache-Control"] == "no-store"


def test_static_files_are_kept_for_a_year_under_an_address_that_names_their_content(client: FlaskClient) -> None:
    address = re.search(r'href="(/static/style\.css\?v=[0-9a-f]+)"', client.get("/signed-out").text)
    assert address is not None
    with client.get(address[1]) as named, client.get("/static/style.css") as bare:
        assert "immutable" in named.headers["Cache-Control"]
        assert "immutable" not in bare.headers["Cache-Control"]


def test_a_page_with_a_token_in_its_address_sends_no_referrer_unless_its_form_needs_one(client: FlaskClient) -> None:
    assert client.get("/connect/unknown").headers["Referrer-Policy"] == "no-referrer"
    assert client.get("/oauth/stripe/callback?state=a&code=b").headers["Referrer-Policy"] == "no-referrer"
    assert client.get(f"/connect/{TOKEN}").headers["Referrer-Policy"] == "same-origin"


def test_only_pages_that_lead_to_a_provider_let_a_form_leave(client: FlaskClient) -> None:
    leaving = client.get(f"/connect/{TOKEN}").headers["Content-Security-Policy"]
    assert "form-action 'self' https: http://127.0.0.1:* http://localhost:*" in leaving
    assert client.get("/signed-out").headers["Content-Security-Policy"].endswith("form-action 'self'")


def test_production_lets_forms_lead_to_https_only() -> None:
    client = application(services(settings(HTTPS, "production"))).test_client()
    policy = client.get(f"/connect/{TOKEN}").headers["Content-Security-Policy"]
    assert policy.endswith("form-action 'self' https:")


def test_a_logo_from_elsewhere_is_the_only_foreign_picture() -> None:
    chosen = settings(branding=Branding(name="Acme", logo_url="https://cdn.acme.example/logo.svg", color="#0550ae"))
    client = application(services(chosen)).test_client()
    answer = client.get("/signed-out")
    assert "img-src 'self' data: https://cdn.acme.example;" in answer.headers["Content-Security-Policy"]
    assert '<link rel="stylesheet" href="/brand.css">' in answer.text
    assert "#0550ae" in client.get("/brand.css").text


def test_pages_a_host_may_open_in_a_popup_keep_their_opener(client: FlaskClient) -> None:
    assert client.get(f"/connect/{TOKEN}").headers["Cross-Origin-Opener-Policy"] == "unsafe-none"
    assert client.get(f"/flows/{FLOW}").headers["Cross-Origin-Opener-Policy"] == "unsafe-none"
    assert client.get("/connections").headers["Cross-Origin-Opener-Policy"] == "same-origin"


def test_cookies_are_host_bound_and_secure_exactly_when_the_public_address_is_https() -> None:
    secure = application(services(settings(HTTPS, "production"))).test_client()
    answer = start_over(secure, HTTPS)
    names = {cookie.partition("=")[0] for cookie in answer}
    assert names == {"__Host-broker_csrf", "__Host-broker_browser"}
    for cookie in answer:
        assert "Secure" in cookie
        assert "HttpOnly" in cookie
        assert "SameSite=Lax" in cookie
        assert "Path=/" in cookie
        assert "Domain" not in cookie
    plain = start_over(application(services()).test_client(), "http://localhost:8000")
    assert {cookie.partition("=")[0] for cookie in plain} == {"broker_csrf", "broker_browser"}
    assert not any("Secure" in cookie for cookie in plain)
    assert cookie_name("session", settings()) == "broker_session"


def start_over(client: FlaskClient, origin: str) -> list[str]:
    page = client.get(f"/connect/{TOKEN}", base_url=origin)
    data = {"csrf_token": token_in(page)}
    answer = client.post(f"/connect/{TOKEN}/start/stripe", data=data, base_url=origin, headers={"Origin": origin})
    assert answer.status_code == 303
    return [*page.headers.getlist("Set-Cookie"), *answer.headers.getlist("Set-Cookie")]


def test_every_unsafe_route_wants_a_csrf_token(fake: FakeServices) -> None:
    app = application(fake)
    routes = [
        (rule, method)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"GET", "HEAD", "OPTIONS"}
    ]
    assert len(routes) >= 7
    for rule, method in routes:
        path = re.sub(r"<[^>]+>", "x", rule.rule)
        answer = app.test_client().open(path, method=method)
        assert answer.status_code == 400, rule.rule
        assert "This page was open too long. Go back, reload, try again." in answer.text
    assert fake.flows.calls == []


def test_a_form_from_another_origin_is_refused_even_with_a_good_token(client: FlaskClient, fake: FakeServices) -> None:
    for sender in ("https://evil.example", "null", "http://localhost.evil.example", "http://localhost:8001"):
        assert start(client, Origin=sender).status_code == 400
    assert start(client, Referer="https://evil.example/http://localhost/").status_code == 400
    assert fake.flows.calls == []
    assert start(client, Origin="http://localhost:8000").status_code == 303
    # A development browser may use another name of this machine than the public address does.
    assert start(client, Origin="http://localhost").status_code == 303
    assert start(client, Referer="http://localhost/connect/abc").status_code == 303


def test_a_csrf_token_of_another_browser_is_refused(fake: FakeServices) -> None:
    app = application(fake)
    token = token_in(app.test_client().get(f"/connect/{TOKEN}"))
    stranger = app.test_client()
    stranger.get(f"/connect/{TOKEN}")
    assert stranger.post(f"/connect/{TOKEN}/start/stripe", data={"csrf_token": token}).status_code == 400


def test_forwarding_headers_count_only_behind_as_many_proxies_as_are_configured() -> None:
    seen: list[Any] = []

    def ask(hops: int) -> None:
        app = application(services(settings(trusted_proxies=hops)))
        add_probe(app, seen)
        headers = {"X-Forwarded-For": "203.0.113.9, 198.51.100.7", "X-Forwarded-Proto": "https"}
        app.test_client().get("/probe", headers=headers)

    ask(0)
    ask(1)
    ask(2)
    assert seen == [("127.0.0.1", False), ("198.51.100.7", True), ("203.0.113.9", False)]


def add_probe(app: Flask, seen: list[Any]) -> None:
    from flask import request

    @app.get("/probe")
    def probe() -> str:
        seen.append((request.remote_addr, request.is_secure))
        return ""


def test_no_answer_is_built_from_the_host_header(client: FlaskClient) -> None:
    for path in ("/demo", "/connections/", f"/connect/{TOKEN}", "//evil.example/", "/nowhere"):
        answer = client.get(path, headers={"Host": "evil.example"})
        assert "evil.example" not in answer.headers.get("Location", "") + answer.text


def test_machines_get_problems_with_the_same_reference(client: FlaskClient) -> None:
    answer = client.get("/api/v1/nowhere")
    assert answer.content_type == "application/problem+json"
    assert answer.json is not None
    assert answer.json["code"] == "not_found"
    assert answer.json["status"] == 404
    assert answer.json["error_ref"] == answer.headers["X-Request-Id"]


def test_a_refusal_lists_the_fields_to_correct(fake: FakeServices) -> None:
    app = application(fake)

    @app.get("/api/v1/fails")
    def fails() -> str:
        raise LinkInvalid({"return_url": ["its origin is not allowed"]})

    answer = app.test_client().get("/api/v1/fails")
    assert answer.status_code == 422
    assert answer.json is not None
    assert answer.json["errors"] == {"return_url": ["its origin is not allowed"]}


def test_a_surprise_becomes_a_page_with_a_reference_and_nothing_else(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.failure = ZeroDivisionError("s3cr3t")
    answer = client.get(f"/connect/{TOKEN}")
    assert answer.status_code == 500
    assert "Something went wrong on our side" in answer.text
    assert answer.headers["X-Request-Id"] in answer.text
    assert "ZeroDivisionError" not in answer.text
    assert "Traceback" not in answer.text


def test_a_broken_template_still_answers_in_words(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.web.errors.render_template", lambda *_, **__: 1 / 0)
    answer = client.get("/nowhere")
    assert answer.status_code == 404
    assert "Page not found" in answer.text
    assert answer.headers["X-Request-Id"] in answer.text


def test_without_a_database_the_page_says_when_to_come_back(client: FlaskClient, fake: FakeServices) -> None:
    fake.links.failure = DatabaseUnavailable("disk full at /var/lib")
    answer = client.get(f"/connect/{TOKEN}")
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "30"
    assert "/var/lib" not in answer.text


def test_a_huge_form_is_refused_before_anything_reads_it(client: FlaskClient) -> None:
    answer = client.post("/demo/connect", data={"csrf_token": "x" * 300_000})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "path", ["/connect/%00", "/connect/%ED%A0%80", "/flows/%F0%9F%98%80", "/oauth/%2e%2e/callback"]
)
def test_odd_addresses_are_refused_and_never_crash(client: FlaskClient, path: str) -> None:
    assert 400 <= client.get(path).status_code < 500


# --- bodies without a length, hosts that are not ours -------------------------------------------------------


def test_a_body_of_unknown_length_is_refused_before_it_is_read(client: FlaskClient) -> None:
    answer = client.post("/sign-out", headers={"Transfer-Encoding": "chunked"}, data=b"")
    assert answer.status_code == 411
