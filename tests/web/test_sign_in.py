"""Signing in at an OpenID provider, on the pages: people's and the console's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import responses
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from broker.app import create_app
from broker.clock import ManualClock
from broker.links import LinkRequest
from broker.models import Link, Role
from broker.secret import Secret, digest
from broker.services import Services
from tests.house import START, House, make_settings, open_house
from tests.openid import CODE, ISSUER, CannedProvider, people, staff

SAM: dict[str, Any] = {"email": "sam@example.com", "email_verified": True, "roles": ["admin"]}
PASSWORD = Secret("correct horse battery staple")


class Site:
    """A broker at which people and operators sign in, and the provider they do it at."""

    def __init__(self, app: Flask, there: CannedProvider) -> None:
        self.app = app
        self.there = there
        self.client = app.test_client()

    @property
    def services(self) -> Services:
        services: Services = self.app.extensions["broker"]
        return services

    def leave(self, page: str = "/sign-in", client: FlaskClient | None = None) -> str:
        """Press the button, agree at the provider, and return the address it sends the browser to."""
        client = client or self.client
        form = form_of(client.get(page), "/ops/sign-in/openid" if page.startswith("/ops") else "/sign-in")
        path = form.pop("action")
        answer = client.post(path, data=form)
        assert answer.status_code == 303, answer.text
        asked = self.there.consent(answer.headers["Location"])
        back = urlsplit(asked["redirect_uri"]).path
        return f"{back}?state={asked['state']}&code={CODE}"

    def sign_in(self, page: str = "/sign-in", client: FlaskClient | None = None, **claims: Any) -> TestResponse:
        """Sign in as somebody with these claims and return the callback's answer."""
        client = client or self.client
        address = self.leave(page, client)
        self.there.claims = claims
        return client.get(address)


@pytest.fixture
def house(sqlite_databases: Any) -> Iterator[House]:
    with sqlite_databases.migrated() as url, open_house(url) as opened:
        yield opened


@pytest.fixture
def canned() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def built(house: House, tmp_path: Path, **changes: Any) -> Flask:
    settings = make_settings(house.settings.database_url, data_dir=tmp_path, **changes)
    return create_app(settings, clock=house.clock)


@pytest.fixture
def site(house: House, tmp_path: Path, canned: responses.RequestsMock) -> Iterator[Site]:
    app = built(house, tmp_path, sign_in=people(label="Acme"), operators_sign_in=staff())
    yield Site(app, CannedProvider(house.clock).listen(canned))
    app.extensions["broker"].database.engine.dispose()


@pytest.fixture
def plain(house: House, tmp_path: Path) -> Iterator[FlaskClient]:
    """A browser at a broker where nobody signs in by OpenID Connect."""
    app = built(house, tmp_path)
    yield app.test_client()
    app.extensions["broker"].database.engine.dispose()


def form_of(page: TestResponse, action: str) -> dict[str, str]:
    found = re.search(rf'<form method="post" action="({re.escape(action)})".*?</form>', page.text, re.DOTALL)
    assert found is not None, page.text
    fields = dict(re.findall(r'<input type="hidden" name="([^"]+)" value="([^"]*)">', found[0]))
    return {"action": found[1], **{name: unescape(value) for name, value in fields.items()}}


# --- people -----------------------------------------------------------------------------------------------


def test_a_person_signs_in_sees_their_page_and_connects_an_account_without_a_host(site: Site) -> None:
    page = site.client.get("/sign-in")
    assert page.status_code == 200
    assert "Sign in with Acme" in page.text
    assert "form-action 'self' https:" in page.headers["Content-Security-Policy"]
    answer = site.sign_in(email="jo@example.com")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/connections")
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    mine = site.client.get("/connections")
    assert "No accounts connected yet" in mine.text
    assert "Go back to" not in mine.text
    form = form_of(mine, "/connections/connect/stripe")
    left = site.client.post(form.pop("action"), data=form)
    assert left.headers["Location"].startswith("https://connect.stripe.com/oauth/authorize?")
    link = site.services.links.list()[0]
    assert (link.end_user_id, link.apps, link.created_by) == ("u-1", ("stripe",), "person")


def test_signing_in_changes_session_and_token_and_signing_out_ends_it_here(site: Site) -> None:
    site.sign_in()
    first = site.client.get_cookie("broker_session")
    assert first is not None
    out = form_of(site.client.get("/connections"), "/sign-out")
    gone = site.client.post(out.pop("action"), data=out, follow_redirects=True)
    assert 'href="/sign-in"' in gone.text
    assert site.services.sessions.find(first.value) is None
    site.sign_in()
    second = site.client.get_cookie("broker_session")
    assert second is not None
    assert second.value != first.value


def test_who_signs_in_gets_the_browser_and_what_was_left_in_it_is_nobodys(site: Site, house: House) -> None:
    other_tab = site.leave()
    nonce_there = site.there.nonce
    address = site.leave()
    before = site.client.get_cookie("broker_browser")
    assert before is not None
    made = house.links.create(LinkRequest("jo"), created_by="cli")
    link = house.value(sa.select(Link.id).where(Link.public_id == made.id))
    house.flow(link, digest(before.value), ref="AAAA-BBBB-CCCC", state="failed", ended_at=START)
    assert site.client.get("/flows/AAAA-BBBB-CCCC").status_code == 200
    assert site.client.get(address).headers["Location"] == "/connections"
    after = site.client.get_cookie("broker_browser")
    assert after is not None
    assert after.value != before.value
    assert site.client.get("/flows/AAAA-BBBB-CCCC").status_code == 404
    site.there.nonce = nonce_there
    assert site.client.get(other_tab).headers["Location"] == "/connections"


def test_pages_without_a_session_lead_to_the_sign_in_and_back(site: Site) -> None:
    asked = site.client.get("/connections/7F3K-92QD-M4TX")
    assert (asked.status_code, asked.headers["Location"]) == (303, "/sign-in?next=/connections/7F3K-92QD-M4TX")
    answer = site.client.get(site.leave(asked.headers["Location"]))
    assert answer.headers["Location"] == "/connections/7F3K-92QD-M4TX"
    assert site.client.get("/sign-in").headers["Location"] == "/connections"


def test_signing_in_leads_nowhere_else(site: Site) -> None:
    for wanted in ("https://evil.example", "//evil.example", "/connections/../ops", "/ops/", "/\\evil"):
        client = site.app.test_client()
        assert 'name="next"' not in client.get("/sign-in", query_string={"next": wanted}).text
        form = form_of(client.get("/sign-in"), "/sign-in")
        left = client.post(form.pop("action"), data=form | {"next": wanted})
        asked = site.there.consent(left.headers["Location"])
        answer = client.get(f"/sign-in/callback?state={asked['state']}&code=c")
        assert answer.headers["Location"] == "/connections"


def test_a_form_after_the_session_has_ended_says_where_to_sign_in(site: Site) -> None:
    site.sign_in()
    form = form_of(site.client.get("/connections"), "/connections/connect/stripe")
    site.client.delete_cookie("broker_session")
    answer = site.client.post(form.pop("action"), data=form)
    assert answer.status_code == 401
    assert "Sign in again to go on" in answer.text
    assert 'href="/sign-in"' in answer.text


def test_the_page_that_connects_accounts_says_for_whom(site: Site) -> None:
    site.sign_in(email="jo@example.com", name="Jo")
    assert "For <strong>jo@example.com</strong>. Not you? Sign out." in site.client.get("/connections").text
    site.sign_in(client=(other := site.app.test_client()), sub="u-2", name="<i>Kim</i>")
    assert "For <strong>&lt;i&gt;Kim&lt;/i&gt;</strong>." in other.get("/connections").text


def test_who_came_by_a_link_is_offered_nothing_to_connect(site: Site, house: House) -> None:
    form = form_of(site.client.get("/sign-in"), "/sign-in")
    token = site.services.sessions.open_end_user(None, house.end_user("jo"), None)
    site.client.set_cookie("broker_session", token.reveal())
    assert "/connections/connect/" not in site.client.get("/connections").text
    answer = site.client.post("/connections/connect/stripe", data={"csrf_token": form["csrf_token"]})
    assert answer.status_code == 401
    assert site.services.links.list() == ()


def test_what_leads_to_a_provider_is_counted(site: Site) -> None:
    site.sign_in()
    form = form_of(site.client.get("/connections"), "/connections/connect/stripe")
    for path in ("/connections/connect/nothing", "/connections/NOPE/reconnect", "/flows/NOPE/elsewhere"):
        answer = site.client.post(path, data={"csrf_token": form["csrf_token"]})
        assert (answer.status_code, "RateLimit" in answer.headers) == (404, True), path


def test_an_unknown_app_starts_nothing(site: Site) -> None:
    site.sign_in()
    form = form_of(site.client.get("/connections"), "/connections/connect/stripe")
    assert site.client.post("/connections/connect/nothing", data=form).status_code == 404


def test_where_nobody_signs_in_there_is_no_such_page(plain: FlaskClient) -> None:
    assert plain.get("/sign-in").status_code == 404
    assert plain.get("/sign-in/callback?state=a&code=b").status_code == 404
    assert plain.get("/ops/sign-in/callback?state=a&code=b").status_code == 404
    assert plain.get("/connections").status_code == 401
    assert "Sign in with" not in plain.get("/ops/sign-in").text


# --- what goes wrong --------------------------------------------------------------------------------------


def told(site: Site, answer: TestResponse) -> TestResponse:
    """Follow the callback's redirect to the page that tells; its address holds neither code nor state."""
    assert answer.status_code == 303
    assert set(parse_qs(urlsplit(answer.headers["Location"]).query)) <= {"problem", "ref", "next"}
    page = site.client.get(answer.headers["Location"])
    assert answer.headers["X-Request-Id"] in page.text
    assert 'role="alert"' in page.text
    return page


def test_who_says_no_may_try_again(site: Site) -> None:
    address = site.leave().replace(f"code={CODE}", "error=access_denied&error_description=%3Cb%3Eno%3C/b%3E")
    page = told(site, site.client.get(address))
    assert page.status_code == 403
    assert "You chose not to sign in" in page.text
    assert "<b>no" not in page.text
    assert form_of(page, "/sign-in")["another"] == "1"


def test_a_forged_id_token_signs_nobody_in(site: Site) -> None:
    page = told(site, site.sign_in(aud="another-client"))
    assert page.status_code == 403
    assert "We could not make sure that it was you" in page.text
    assert site.client.get_cookie("broker_session") is None


def test_a_provider_that_is_away_is_told_before_leaving(site: Site, canned: responses.RequestsMock) -> None:
    canned.replace("GET", f"{ISSUER}.well-known/openid-configuration", status=503)
    form = form_of(site.client.get("/sign-in"), "/sign-in")
    page = told(site, site.client.post(form.pop("action"), data=form))
    assert page.status_code == 503
    assert "This is usually short" in page.text
    form = form_of(site.client.get("/ops/sign-in"), "/ops/sign-in/openid")
    page = told(site, site.client.post(form.pop("action"), data=form))
    assert 'name="password"' in page.text


def test_what_does_not_belong_to_this_browser_is_refused_and_the_right_one_may_still_come(site: Site) -> None:
    address, stranger = site.leave(), site.app.test_client()
    assert stranger.get(address).status_code == 403
    for path in (
        "?state=unknown&code=c",
        "",
        "?state=a&state=b&code=c",
        "?state=a&code=c&error=e",
        "?state=%zz&code=c",
    ):
        answer = site.client.get(f"/sign-in/callback{path}")
        assert answer.status_code == 400
        assert 'href="/sign-in"' in answer.text
    assert site.client.head(address).status_code == 204
    assert site.client.get(address, headers={"Sec-Purpose": "prefetch"}).status_code == 425
    assert site.there.forms == []
    assert site.client.get(address).status_code == 303
    assert site.client.get(address).status_code == 400
    assert len(site.there.forms) == 1


def test_a_code_mixed_up_with_another_issuer_is_refused(site: Site) -> None:
    address = site.leave()
    assert site.client.get(f"{address}&iss=https://evil.example/").status_code == 400
    assert site.there.forms == []


def test_too_many_sign_ins_are_told_when_to_come_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.sign_ins.MOST_FAILURES", dict.fromkeys(("people", "operators"), 0))
    for page, action in (("/sign-in", "/sign-in"), ("/ops/sign-in", "/ops/sign-in/openid")):
        form = form_of(site.client.get(page), action)
        answer = site.client.post(form.pop("action"), data=form)
        assert answer.status_code == 429
        assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("problem", ["internal_error", "grant_unreadable", "<script>", "link_used"])
def test_an_address_can_tell_no_other_failure(problem: str, site: Site) -> None:
    for page in ("/sign-in", "/ops/sign-in"):
        answer = site.client.get(page, query_string={"problem": problem, "ref": "<script>"})
        assert answer.status_code == 200
        assert 'role="alert"' not in answer.text
        assert "<script>" not in answer.text


# --- operators --------------------------------------------------------------------------------------------


def test_an_operator_signs_in_with_the_role_of_a_claim_and_goes_where_they_wanted(site: Site) -> None:
    asked = site.client.get("/ops/jobs")
    answer = site.sign_in(asked.headers["Location"], **SAM)
    assert answer.headers["Location"] == "/ops/jobs"
    page = site.client.get("/ops/jobs")
    assert "sam@example.com (admin)" in page.text
    assert site.client.get("/ops/operators").status_code == 200
    assert site.client.get("/connections").status_code == 303


def test_who_is_no_operator_is_told_so_by_name_and_once(site: Site) -> None:
    page = told(site, site.sign_in("/ops/sign-in", email="jo@example.com", roles=["staff"]))
    assert page.status_code == 403
    assert "You signed in, but your account has no role here" in page.text
    assert "jo@example.com" in page.text
    assert form_of(page, "/ops/sign-in/openid")["another"] == "1"
    assert 'name="password"' in page.text
    assert site.client.get_cookie("broker_operator") is None
    again = site.client.get("/ops/sign-in?problem=operator_not_permitted")
    assert "jo@example.com" not in again.text


def test_a_persons_sign_in_opens_no_console_and_the_other_way_round(site: Site) -> None:
    address = site.leave("/sign-in")
    crossed = address.replace("/sign-in/callback", "/ops/sign-in/callback")
    assert site.client.get(crossed).status_code == 400
    site.there.claims = SAM
    assert site.client.get(address).status_code == 303
    assert site.client.get("/ops/connections").status_code == 303
    assert site.services.operators.list() == ()


def test_signing_out_everywhere_ends_ones_own_sessions_in_every_browser(site: Site, house: House) -> None:
    other = site.app.test_client()
    site.sign_in("/ops/sign-in", **SAM)
    site.sign_in("/ops/sign-in", other, **SAM)
    form = form_of(other.get("/ops/settings"), "/ops/sign-out-everywhere")
    page = other.post(form.pop("action"), data=form, follow_redirects=True)
    assert "You have signed out" in page.text
    assert "In every browser" in page.text
    assert site.client.get("/ops/connections").status_code == 303
    assert house.audited()[-1][:3] == ("operator", "sam@example.com", "operator.signed_out_everywhere")


def test_an_admin_ends_the_sessions_of_another(site: Site, house: House) -> None:
    kim = site.services.operators.create("kim@example.com", PASSWORD, Role.VIEWER)
    tokens = [site.services.sessions.open_operator(kim.id).reveal() for _ in range(2)]
    site.sign_in("/ops/sign-in", **SAM)
    page = site.client.get("/ops/operators")
    assert "2 browsers" in page.text
    csrf = form_of(page, "/ops/operators/end-sessions")["csrf_token"]
    data = {"csrf_token": csrf, "email": "kim@example.com"}
    after = site.client.post("/ops/operators/end-sessions", data=data, follow_redirects=True)
    assert "Signed out everywhere." in after.text
    assert [site.services.sessions.find(token) for token in tokens] == [None, None]
    assert "sam@example.com (admin)" in after.text
    data["email"] = "nobody@example.com"
    assert site.client.post("/ops/operators/end-sessions", data=data).status_code == 404


def test_secrets_of_a_sign_in_reach_no_log(
    house: House, tmp_path: Path, canned: responses.RequestsMock, capsys: pytest.CaptureFixture[str]
) -> None:
    app = built(house, tmp_path, sign_in=people(), log_level="DEBUG")
    site = Site(app, CannedProvider(ManualClock(START)).listen(canned))
    address = site.leave()
    site.client.get(address)
    denied = site.leave(client=app.test_client()).replace("code=", "error=x&error_description=")
    site.client.get(denied)
    written = "".join(capsys.readouterr())
    state = parse_qs(urlsplit(address).query)["state"][0]
    for secret in (CODE, state, site.there.nonce, site.there.id_token()[:60], site.there.forms[0]["code_verifier"]):
        assert secret not in written
    assert "sign_in.left" in written
    app.extensions["broker"].database.engine.dispose()
