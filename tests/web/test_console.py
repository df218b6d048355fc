"""The operators' console: signing in, roles, the list, a connection's page."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import responses
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.app import create_app
from broker.models import AuditRecord, ImportState, Job, JobState, Orphan, Role
from broker.operators import Operators
from broker.secret import Secret
from broker.web.console import OPEN, ROLES
from tests.house import House, make_settings

PASSWORD = "correct horse battery staple"


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


def csrf_of(response: TestResponse) -> str:
    found = re.search(r'name="csrf_token" value="([^"]+)"', response.get_data(as_text=True))
    assert found
    return found[1]


def sign_in(client: FlaskClient, email: str = "sam@example.com", password: str = PASSWORD, **more: str) -> TestResponse:
    token = csrf_of(client.get("/ops/sign-in"))
    return client.post("/ops/sign-in", data={"email": email, "password": password, "csrf_token": token} | more)


def signed_in(app: Flask, operators: Operators, role: Role = Role.OPERATOR) -> FlaskClient:
    operators.create(f"{role}@example.com", Secret(PASSWORD), role)
    client = app.test_client()
    assert sign_in(client, f"{role}@example.com").status_code == 303
    return client


def text_of(response: TestResponse) -> str:
    return unescape(response.get_data(as_text=True))


def console_rules(app: Flask) -> list[tuple[str, str, str]]:
    """Return every console route as method, path and endpoint."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/ops"):
            path = rule.rule.replace("<ref>", "AAAA-BBBB-CCCC").replace("<credential_id>", "crd_1")
            path = path.replace("<public_id>", "whe_x").replace("<event_id>", "evt_x")
            path = (
                path.replace("<int:job_id>", "1")
                .replace("<key>", "attempts")
                .replace("<int:record_id>", "1")
                .replace("<app_key>", "nope")
            )
            found += [(method, path, rule.endpoint) for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}]
    return found


# --- who may do what --------------------------------------------------------------------------------


def test_every_route_is_in_one_of_the_two_tables(app: Flask) -> None:
    endpoints = {endpoint for _, _, endpoint in console_rules(app)}
    assert endpoints == set(ROLES) | OPEN
    assert not set(ROLES) & OPEN


def test_every_route_asks_strangers_to_sign_in(app: Flask, client: FlaskClient) -> None:
    app.config["WTF_CSRF_ENABLED"] = False
    for method, path, endpoint in console_rules(app):
        if endpoint in OPEN:
            continue
        for cookie in (None, "x" * 43):
            if cookie:
                client.set_cookie("broker_operator", cookie)
            response = client.open(path, method=method)
            assert response.status_code == 303, path
            assert response.headers["Location"].startswith("/ops/sign-in")


def test_every_route_is_refused_to_every_lower_role(app: Flask, operators: Operators) -> None:
    app.config["WTF_CSRF_ENABLED"] = False
    ranks = list(Role)
    for role in Role:
        operators.create(f"{role}@example.com", Secret(PASSWORD), role)
    for method, path, endpoint in console_rules(app):
        if endpoint in OPEN:
            continue
        for role in Role:
            client = app.test_client()
            client.post("/ops/sign-in", data={"email": f"{role}@example.com", "password": PASSWORD})
            status = client.open(path, method=method).status_code
            assert (status == 403) == (ranks.index(role) < ranks.index(ROLES[endpoint])), (role, endpoint)


def test_a_route_in_no_table_is_refused_to_an_admin(
    app: Flask, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = signed_in(app, operators, Role.ADMIN)
    monkeypatch.setattr("broker.web.console.ROLES", {})
    assert client.get("/ops/connections").status_code == 403


def test_an_end_users_session_opens_no_console(app: Flask, house: House, client: FlaskClient) -> None:
    token = app.extensions["broker"].sessions.open_end_user(None, house.end_user("jo"), None)
    client.set_cookie("broker_operator", token.reveal())
    assert client.get("/ops/connections").status_code == 303


def test_every_unsafe_route_needs_a_token(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators, Role.ADMIN)
    for method, path, _ in console_rules(app):
        if method != "GET":
            assert client.open(path, method=method).status_code == 400, path


# --- signing in -------------------------------------------------------------------------------------


def test_the_first_visit_says_how_to_make_an_operator(client: FlaskClient, operators: Operators) -> None:
    assert "broker operator create" in text_of(client.get("/ops/sign-in"))
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    assert "broker operator create" not in text_of(client.get("/ops/sign-in"))


def test_signing_in_leads_to_the_list_under_a_new_session(client: FlaskClient, operators: Operators) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    first = sign_in(client)
    assert (first.status_code, first.headers["Location"]) == (303, "/ops/connections")
    cookie = next(value for value in first.headers.getlist("Set-Cookie") if value.startswith("broker_operator="))
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Path=/" in cookie
    assert "sam@example.com" in text_of(client.get("/ops/connections"))
    assert client.get("/ops/connections").headers["Cache-Control"] == "no-store"
    assert client.get("/ops/sign-in").headers["Location"] == "/ops/connections"


def test_signing_in_again_ends_the_session_before(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    before = client.get_cookie("broker_operator")
    assert before is not None
    app.config["WTF_CSRF_ENABLED"] = False
    client.post("/ops/sign-in", data={"email": "operator@example.com", "password": PASSWORD})
    after = client.get_cookie("broker_operator")
    assert after is not None
    assert after.value != before.value
    old = app.test_client()
    old.set_cookie("broker_operator", before.value)
    assert old.get("/ops/connections").status_code == 303


def test_over_https_the_cookie_is_bound_to_this_host(house: House, tmp_path: Path, operators: Operators) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    settings = make_settings(house.settings.database_url, data_dir=tmp_path, public_url="https://broker.example")
    app = create_app(settings, clock=house.clock)
    app.config["WTF_CSRF_ENABLED"] = False
    data = {"email": "sam@example.com", "password": PASSWORD}
    answer = app.test_client().post("/ops/sign-in", data=data, base_url="https://broker.example")
    cookie = next(value for value in answer.headers.getlist("Set-Cookie") if "broker_operator=" in value)
    assert cookie.startswith("__Host-broker_operator=")
    assert "Secure" in cookie
    assert "Domain" not in cookie
    app.extensions["broker"].database.engine.dispose()


def test_wrong_details_read_alike_and_keep_the_e_mail(client: FlaskClient, operators: Operators) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    wrong = sign_in(client, password="wrong password <b>")
    unknown = sign_in(client, email='"><script>alert(1)</script>@example.com')
    assert wrong.status_code == unknown.status_code == 401
    for page in (wrong, unknown):
        assert "E-mail or password is not right." in text_of(page)
        assert 'role="alert"' in text_of(page)
        assert not any("broker_operator=" in value for value in page.headers.getlist("Set-Cookie"))
    assert 'value="sam@example.com"' in text_of(wrong)
    assert "wrong password" not in text_of(wrong)
    assert "<script>alert" not in unknown.get_data(as_text=True)


def test_too_many_tries_say_when_to_come_back(client: FlaskClient, operators: Operators) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    for _ in range(5):
        assert sign_in(client, password="wrong password").status_code == 401
    closed = sign_in(client)
    assert closed.status_code == 429
    assert closed.headers["Retry-After"] == "900"
    assert "Try again in 15 minutes." in text_of(closed)


def test_signing_in_returns_to_where_the_person_was_going(client: FlaskClient, operators: Operators) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    sent = client.get("/ops/connections?status=error&q=acct_1")
    assert sent.headers["Location"] == "/ops/sign-in?next=/ops/connections?status%3Derror%26q%3Dacct_1"
    form = client.get(sent.headers["Location"])
    wanted = re.search(r'name="next" value="([^"]+)"', form.get_data(as_text=True))
    assert wanted
    there = sign_in(client, next=unescape(wanted[1]))
    assert there.headers["Location"] == "/ops/connections?status=error&q=acct_1"


@pytest.mark.parametrize(
    "onward",
    [
        "https://evil.example/", "//evil.example", "/\\evil.example", "/ops\\evil", "\\/evil", "/opsevil",
        "/ops@evil.example", "/ops/../connections", "/ops/%2e%2e/connections", "/ops/x\r\nSet-Cookie: a=b",
        "/ops//evil.example", "javascript:alert(1)", "/ops/\u2028", "/",
    ],
)  # fmt: skip
def test_nobody_is_led_away_after_signing_in(client: FlaskClient, operators: Operators, onward: str) -> None:
    operators.create("sam@example.com", Secret(PASSWORD), Role.ADMIN)
    assert sign_in(client, next=onward).headers["Location"] == "/ops/connections"
    fresh = client.application.test_client()
    assert 'name="next"' not in text_of(fresh.get("/ops/sign-in", query_string={"next": onward}))


def test_signing_out_ends_the_session_here(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    cookie = client.get_cookie("broker_operator")
    assert cookie is not None
    token = csrf_of(client.get("/ops/connections"))
    out = client.post("/ops/sign-out", data={"csrf_token": token})
    assert (out.status_code, out.headers["Location"]) == (303, "/ops/sign-in?out=1")
    assert "You have signed out" in text_of(client.get(out.headers["Location"]))
    client.set_cookie("broker_operator", cookie.value)
    assert client.get("/ops/connections").status_code == 303


def test_an_idle_session_says_why_it_ended(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators)
    house.clock.advance(30 * 60)
    sent = client.get("/ops/connections")
    assert "30 minutes without activity" in text_of(client.get(sent.headers["Location"]))


def test_a_disabled_operator_is_out_with_the_next_click(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    operators.disable("operator@example.com")
    assert client.get("/ops/connections").status_code == 303


# --- the list ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["/ops", "/ops/"])
def test_the_house_door_is_the_overview(app: Flask, operators: Operators, address: str) -> None:
    answer = signed_in(app, operators).get(address)
    assert answer.status_code == 200
    assert "<h1>Overview</h1>" in text_of(answer)


def test_an_empty_list_says_how_to_begin(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    assert "broker links create" in text_of(client.get("/ops/connections"))
    assert "No connections match" in text_of(client.get("/ops/connections?q=nothing"))


def test_the_list_is_searched_filtered_and_paged(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators, Role.VIEWER)
    jo = house.end_user("jo-1")
    for _ in range(51):
        house.connection(jo)
    odd = house.connection(
        house.end_user("sam-1"), account_id="acct_odd", account_name="<i>Odd</i>", credential_id="crd_odd",
        import_state=ImportState.PARKED, provider="github", mode="test",
    )  # fmt: skip
    for query in (
        "q=acct_odd",
        f"q={odd}",
        "q=crd_odd",
        "q=sam-1",
        "status=import_failed",
        "provider=github",
        "mode=test",
    ):
        page = client.get(f"/ops/connections?{query}")
        assert page.status_code == 200
        assert text_of(page).count('data-label="Account"') == 1, query
        assert "&lt;i&gt;Odd" in page.get_data(as_text=True)
        assert "Import failed" in text_of(page)
    first = client.get("/ops/connections?mode=live")
    following = re.search(r'href="([^"]+)" rel="next"', first.get_data(as_text=True))
    assert following
    second = client.get(unescape(following[1]))
    assert text_of(first).count('data-label="Account"') == 50
    assert text_of(second).count('data-label="Account"') == 1
    assert "mode=live" in following[1]


@pytest.mark.parametrize(
    ("query", "status"), [("status=nope", 400), ("mode=prod", 400), ("after=NOPE", 404), ("q=%00", 200), ("q=%ff", 200)]
)
def test_a_bad_filter_is_a_page_and_not_a_crash(app: Flask, operators: Operators, query: str, status: int) -> None:
    assert signed_in(app, operators).get(f"/ops/connections?{query}&provider=stripe").status_code == status


@pytest.mark.parametrize(("name", "sentence"), [
        ("status", "There is no such status."), ("mode", "test or live."), ("from", "A day looks like"),
        ("to", "A day looks like"), ("sort", "There is no such order."),
    ],
)  # fmt: skip
def test_a_bad_filter_is_told_at_its_field(app: Flask, operators: Operators, name: str, sentence: str) -> None:
    page = text_of(signed_in(app, operators).get(f"/ops/connections?{name}=nope&provider=stripe"))
    assert f'<a href="#{name}">' in page
    assert f'aria-invalid="true" aria-describedby="{name}-wrong"' in page
    assert page.count("aria-invalid") == 1
    assert page.count(sentence) == 2
    assert '<option value="stripe" selected>' in page
    assert "No connections match" not in page


def refs_of(response: TestResponse) -> list[str]:
    return re.findall(r'data-label="Account"><a href="/ops/connections/([^"]+)"', response.get_data(as_text=True))


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("q=lind cer", {"Lind Ceramics"}),
        ("q=LIND", {"Lind Ceramics", "Lindgren"}),
        ("q=jo@exam", {"Lind Ceramics"}),
        ("q=li", set()),
        ("q=100%25", {"100% Wool"}),
        ("q=100_", set()),
        ("user=sam-1", {"Lindgren", "100% Wool"}),
        ("app=stripe&kind=stripe_oauth2&user=jo-1", {"Lind Ceramics"}),
        ("metadata.plan=pro", {"Lind Ceramics"}),
        ("key=plan&value=pro", {"Lind Ceramics"}),
        ("metadata.plan=pro&metadata.seats=8", set()),
        ("from=2026-11-01&to=2026-11-01", {"Lindgren"}),
        ("to=2026-10-31", set()),
    ],
)
def test_the_list_finds_by_beginning_person_metadata_and_day(
    app: Flask, house: House, operators: Operators, query: str, found: set[str]
) -> None:
    jo, sam = house.end_user("jo-1", email="Jo@Example.com"), house.end_user("sam-1")
    house.connection(jo, account_name="Lind Ceramics", host_metadata={"plan": "pro", "seats": 7})
    house.connection(sam, account_name="Lindgren", connected_at=datetime(2026, 11, 1, 23, 59, tzinfo=UTC))
    house.connection(sam, account_name="100% Wool")
    page = signed_in(app, operators).get(f"/ops/connections?{query}")
    assert page.status_code == 200
    assert set(re.findall(r'data-label="Account"><a [^>]*>([^<]+)<', text_of(page))) == found


def test_what_a_search_names_too_often_is_still_found(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.connection_search.MOST_NAMED", 1)
    refs = [house.connection(house.end_user(f"u{number}"), account_name="Lind") for number in range(3)]
    assert set(refs_of(signed_in(app, operators).get("/ops/connections?q=lin"))) == set(refs)


@pytest.mark.parametrize("sort", ["newest", "oldest", "changed"])
def test_pages_go_on_and_back_in_every_order(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    monkeypatch.setattr("broker.web.console.connections.ON_A_PAGE", 2)
    person = house.end_user("jo-1")
    changed = [3, 1, 3, 5, 2]
    refs = [
        house.connection(person, mode="test", updated_at=house.clock.now() + timedelta(minutes=minutes))
        for minutes in changed
    ]
    newest = refs[::-1]
    expected = {"newest": newest, "oldest": refs, "changed": [refs[3], refs[2], refs[0], refs[4], refs[1]]}[sort]
    client = signed_in(app, operators)
    address, seen = f"/ops/connections?mode=test&sort={sort}", []
    for words in ("1–2 of 5", "3–4 of 5", "5–5 of 5"):
        page = client.get(address)
        assert words in text_of(page)
        seen += refs_of(page)
        onward = re.search(r'href="([^"]+)" rel="next"', page.get_data(as_text=True))
        address = unescape(onward[1]) if onward else address
    assert seen == expected
    assert onward is None
    for words, wanted in (("3–4 of 5", expected[2:4]), ("1–2 of 5", expected[:2])):
        back = re.search(r'href="([^"]+)" rel="prev"', page.get_data(as_text=True))
        assert back
        assert "mode=test" in back[1]
        page = client.get(unescape(back[1]))
        assert refs_of(page) == wanted
        assert words in text_of(page)
    assert 'rel="prev"' not in text_of(page)


def test_many_are_counted_no_further_than_needed(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.connection_search.MOST_COUNTED", 2)
    for number in range(3):
        house.connection(house.end_user(f"u{number}"))
    assert "1–3 of at least 3" in text_of(signed_in(app, operators).get("/ops/connections"))


def test_each_filter_can_be_taken_away_alone(app: Flask, house: House, operators: Operators) -> None:
    house.connection(house.end_user("jo-1"), host_metadata={"plan": "pro"})
    page = text_of(signed_in(app, operators).get("/ops/connections?mode=live&metadata.plan=pro&sort=oldest"))
    assert 'href="/ops/connections?mode=live&sort=oldest">Metadata plan: pro' in page
    assert 'href="/ops/connections?metadata.plan=pro&sort=oldest">Mode: live' in page


@pytest.mark.parametrize("place", ["after=", "before=", "sort=changed&after="])
def test_a_place_from_another_order_is_no_place(app: Flask, house: House, operators: Operators, place: str) -> None:
    ref = house.connection(house.end_user("jo-1"))
    client = signed_in(app, operators)
    cursor = ref if "changed" in place else f"{ref}.1"
    assert client.get(f"/ops/connections?{place}{cursor}").status_code == 404
    assert client.get(f"/ops/connections?sort=changed&after={ref}.{'9' * 400}").status_code == 404


def test_the_list_is_exported_as_it_is_narrowed_and_that_is_recorded(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.connections.EXPORTED_AT_ONCE", 2)
    jo = house.end_user("=jo", email="+jo@example.com")
    refs = [house.connection(jo, account_name=name) for name in ("@SUM(1)", "-1", " =2", 'Fine, "quoted"', "=1\n2")]
    house.connection(house.end_user("sam"), mode="test")
    answer = signed_in(app, operators).get("/ops/connections.csv?mode=live&sort=oldest&q=%2Bjo@")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"].startswith("attachment; filename=")
    assert answer.headers["Cache-Control"] == "no-store"
    rows = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))
    assert [row["id"] for row in rows] == refs
    assert [row["account_name"] for row in rows] == ["'@SUM(1)", "'-1", "' =2", 'Fine, "quoted"', "'=1\n2"]
    assert {row["end_user_id"] for row in rows} == {"'=jo"}
    assert {row["end_user_email"] for row in rows} == {"'+jo@example.com"}
    assert rows[0]["connected_at"].endswith("Z")
    assert ("operator", "operator@example.com", "connections.exported", "connections") in house.audited()
    detail = house.value(sa.select(AuditRecord.detail).where(AuditRecord.action == "connections.exported"))
    assert detail == {"mode": "live", "search": "given"}


def test_an_export_ends_at_its_limit(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.connections.EXPORTED_AT_ONCE", 2)
    monkeypatch.setattr("broker.connections.MOST_EXPORTED", 3)
    for number in range(5):
        house.connection(house.end_user(f"u{number}"))
    answer = signed_in(app, operators).get("/ops/connections.csv")
    assert len(list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))) == 3


def test_no_export_of_a_list_that_cannot_be_narrowed_so(app: Flask, operators: Operators, house: House) -> None:
    assert signed_in(app, operators).get("/ops/connections.csv?status=nope").status_code == 400
    assert not any(action == "connections.exported" for _, _, action, _ in house.audited())


def test_errors_keep_the_consoles_header_and_lead_to_the_list(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators, Role.VIEWER)
    for path, status in (
        ("connections/NOPE", 404),
        ("connections/NOPE/disconnect", 403),
        ("connections?after=NOPE", 404),
    ):
        answer = client.get(f"/ops/{path}")
        assert answer.status_code == status
        assert "viewer@example.com (viewer)" in text_of(answer)
        assert 'href="/ops/connections">All connections</a>' in text_of(answer)
    stranger = app.test_client().get("/ops/nowhere")
    assert stranger.status_code == 404
    assert "Console" not in text_of(stranger)
    stale = client.post("/ops/sign-in")
    assert 'href="/ops/sign-in">Open the page again</a>' in text_of(stale)


# --- a connection's page ----------------------------------------------------------------------------


def failed(house: House, **changes: Any) -> str:
    values = {
        "import_state": ImportState.HELD,
        "import_error": "sequin_unauthorized",
        "import_error_detail": "Sequin answered 401",
        "grant_sealed": b"canary sealed",
        "host_metadata": {"<b>": "</dl>"},
    }
    return house.connection(house.end_user("jo"), **(values | changes))


def test_the_page_tells_what_happened_and_what_to_do(app: Flask, house: House, operators: Operators) -> None:
    page = signed_in(app, operators).get(f"/ops/connections/{failed(house)}")
    for words in ("Import failed", "Sequin answered 401", "SEQUIN_API_TOKEN", "Held encrypted", "Retry import"):
        assert words in text_of(page)
    assert "canary" not in text_of(page)
    assert "<b>" not in page.get_data(as_text=True)


def test_retrying_says_so_and_is_recorded_under_the_operators_name(
    app: Flask, house: House, operators: Operators
) -> None:
    client, ref = signed_in(app, operators), failed(house)
    token = csrf_of(client.get(f"/ops/connections/{ref}"))
    answer = client.post(f"/ops/connections/{ref}/retry", data={"csrf_token": token})
    assert answer.status_code == 303
    after = text_of(client.get(answer.headers["Location"]))
    assert "Asked for the import again." in after
    assert "Import pending" in after
    assert ("operator", "operator@example.com", "connection.retry", ref) in house.audited()


def test_a_check_can_be_asked_for_here(app: Flask, house: House, operators: Operators) -> None:
    client, ref = signed_in(app, operators), house.connection(house.end_user("jo"))
    page = client.get(f"/ops/connections/{ref}")
    assert "Check now" in text_of(page)
    answer = client.post(f"/ops/connections/{ref}/check", data={"csrf_token": csrf_of(page)})
    assert answer.status_code == 303
    assert "Asked for a check." in text_of(client.get(answer.headers["Location"]))
    assert house.asked_for() == {"verify", "probe"}


def test_a_viewer_sees_everything_but_the_buttons(app: Flask, house: House, operators: Operators) -> None:
    client, ref = signed_in(app, operators, Role.VIEWER), failed(house)
    page = text_of(client.get(f"/ops/connections/{ref}"))
    assert "Sequin answered 401" in page
    assert "/retry" not in page


@pytest.mark.parametrize("changes", [{"import_state": ImportState.IMPORTED}, {"disconnected_at": True}])
def test_the_button_is_only_there_when_it_would_do_something(
    app: Flask, house: House, operators: Operators, changes: dict[str, Any]
) -> None:
    if "disconnected_at" in changes:
        changes = {"disconnected_at": house.clock.now()}
    page = text_of(signed_in(app, operators).get(f"/ops/connections/{failed(house, **changes)}"))
    assert "/retry" not in page


def test_disconnecting_is_confirmed_recorded_and_shown_until_done(
    app: Flask, house: House, operators: Operators
) -> None:
    client = signed_in(app, operators)
    ref = house.connection(house.end_user("jo"), account_name="<i>Odd</i>", credential_id="crd-1")
    assert f"/ops/connections/{ref}/disconnect" in text_of(client.get(f"/ops/connections/{ref}"))
    page = client.get(f"/ops/connections/{ref}/disconnect")
    assert "<i>" not in page.get_data(as_text=True)
    for words in ("Disconnect <i>Odd</i>?", "crd-1", "ended at Stripe", "Keep connected"):
        assert words in text_of(page)
    answer = client.post(f"/ops/connections/{ref}/disconnect", data={"csrf_token": csrf_of(page)})
    assert answer.status_code == 303
    after = text_of(client.get(answer.headers["Location"]))
    for words in ("Disconnected.", "Still to do: end the access", "Access at the provider", "next try"):
        assert words in after
    assert "/disconnect" not in after
    assert ("operator", "operator@example.com", "connection.disconnected", ref) in house.audited()
    again = client.get(f"/ops/connections/{ref}/disconnect")
    assert again.headers["Location"] == f"/ops/connections/{ref}"


def test_the_page_tells_what_stands_in_the_way_of_a_disconnect(app: Flask, house: House, operators: Operators) -> None:
    client = signed_in(app, operators, Role.VIEWER)
    ref = house.connection(
        house.end_user("jo"), disconnected_at=house.clock.now(), revocation="refused", removal="pending"
    )
    house.insert(
        Job, kind="remove", subject_id=house.key_of(ref), state=JobState.WAITING, due_at=house.clock.now(),
        error="sequin_unauthorized", error_detail="Sequin <answered> 401", created_at=house.clock.now(),
        updated_at=house.clock.now(),
    )  # fmt: skip
    page = text_of(client.get(f"/ops/connections/{ref}"))
    for words in ("Sequin <answered> 401", "SEQUIN_API_TOKEN", "its owner has to remove it there"):
        assert words in page


def test_a_viewer_is_not_offered_to_disconnect(app: Flask, house: House, operators: Operators) -> None:
    client, ref = signed_in(app, operators, Role.VIEWER), house.connection(house.end_user("jo"))
    assert "/disconnect" not in text_of(client.get(f"/ops/connections/{ref}"))


@pytest.mark.parametrize("ref", ["NOPE", "%00", "%ff"])
def test_an_unknown_connection_is_not_found(app: Flask, operators: Operators, ref: str) -> None:
    client = signed_in(app, operators)
    assert client.get(f"/ops/connections/{ref}").status_code == 404
    assert client.get(f"/ops/connections/{ref}/disconnect").status_code == 404


# --- orphans ----------------------------------------------------------------------------------------


def an_orphan(house: House, credential: str = "crd_1", ref: str = "AAAA-BBBB-CCCC") -> None:
    now = house.clock.now()
    house.run(
        sa.insert(Orphan).values(
            credential_id=credential, kind="stripe_oauth2", claimed_ref=ref, found_at=now, seen_at=now
        )
    )


def test_orphans_are_listed_with_what_they_claim(house: House, app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators)
    assert "No orphans" in text_of(client.get("/ops/orphans"))
    an_orphan(house, "crd_<b>")
    page = client.get("/ops/orphans").get_data(as_text=True)
    assert "crd_&lt;b&gt;" in page
    assert "AAAA-BBBB-CCCC" in page
    assert "Delete in Sequin" in page


def test_a_viewer_sees_orphans_and_no_button(house: House, app: Flask, operators: Operators) -> None:
    an_orphan(house)
    page = text_of(signed_in(app, operators, Role.VIEWER).get("/ops/orphans"))
    assert "crd_1" in page
    assert "Delete in Sequin" not in page


def test_one_click_deletes_an_orphan_in_sequin(house: House, app: Flask, operators: Operators) -> None:
    an_orphan(house)
    client = signed_in(app, operators)
    csrf = csrf_of(client.get("/ops/orphans"))
    with responses.RequestsMock() as network:
        network.add("DELETE", "http://localhost:8100/sequin/v1/credentials/crd_1", json={"id": "crd_1"})
        answer = client.post("/ops/orphans/crd_1/forget", data={"csrf_token": csrf}, follow_redirects=True)
    assert "Deleted in Sequin." in text_of(answer)
    assert "No orphans" in text_of(answer)
    assert ("operator", "operator@example.com", "orphan.forgotten", "crd_1") in house.audited()


def test_one_that_a_connection_owns_by_now_is_never_deleted(house: House, app: Flask, operators: Operators) -> None:
    an_orphan(house)
    house.connection(house.end_user("user-1"), credential_id="crd_1")
    client = signed_in(app, operators)
    csrf = csrf_of(client.get("/ops/orphans"))
    with responses.RequestsMock():
        answer = client.post("/ops/orphans/crd_1/forget", data={"csrf_token": csrf})
    assert answer.status_code == 404
    assert "It may have been dealt with already" in text_of(answer)


def test_when_sequin_does_not_delete_it_the_page_says_so_and_it_stays(
    house: House, app: Flask, operators: Operators
) -> None:
    an_orphan(house)
    client = signed_in(app, operators)
    csrf = csrf_of(client.get("/ops/orphans"))
    with responses.RequestsMock() as network:
        network.add("DELETE", "http://localhost:8100/sequin/v1/credentials/crd_1", status=503)
        answer = client.post("/ops/orphans/crd_1/forget", data={"csrf_token": csrf})
    assert answer.status_code == 502
    assert "crd_1" in text_of(client.get("/ops/orphans"))
