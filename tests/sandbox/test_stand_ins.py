"""Each provider's file against its stand-in, over real HTTP: what the smaller stand-ins and their providers promise."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from broker.clock import ManualClock
from broker.errors import BrokerError, ClientRefused, GrantRefused, OAuthUnavailable, UnusableAnswer
from broker.http import Http
from broker.oauth import Grant, OAuth, OAuthProfile, parse_grant
from broker.providers import discover as discover_providers
from broker.providers.base import Account, Provider, ProviderUnavailable, TokenRejected
from broker.sandbox import RunningSandbox, Secrets, running
from broker.sandbox.stand_in import StandIn
from broker.sandbox.stand_ins import discover
from broker.secret import Secret
from broker.settings import OAuthApp, generate_key, load_settings

CORE = {
    "BROKER_ENV": "development",
    "BROKER_PUBLIC_URL": "http://localhost:8000",
    "BROKER_SECRET_KEY": "Zq8-vT3kLw0_xYb6NcRj2sHf9uMe5aGpD1oKiQ7t",
    "BROKER_ENCRYPTION_KEYS": generate_key("k1"),
}
LIMIT = 5.0


@pytest.fixture(scope="module")
def served(secrets: Secrets) -> Iterator[tuple[RunningSandbox, ManualClock]]:
    """A sandbox for all tests here, and its clock."""
    clock = ManualClock()
    with running(secrets, clock=clock) as sandbox:
        yield sandbox, clock


@dataclass
class Visit:
    """A broker and a person, at one stand-in."""

    sandbox: RunningSandbox
    clock: ManualClock
    stand_in: StandIn
    provider: Provider
    app: OAuthApp
    http: Http

    @property
    def profile(self) -> OAuthProfile:
        return self.provider.profile(self.app)

    @property
    def callback(self) -> str:
        return f"http://localhost:8000/oauth/{self.provider.name}/callback"

    @property
    def account(self) -> str:
        return self.stand_in.rules.accounts[0].id

    @property
    def oauth(self) -> OAuth:
        return OAuth(self.http, self.clock)

    @property
    def call(self) -> Any:
        return functools.partial(self.http.request, deadline=LIMIT)

    def control(self, what: str, **body: object) -> None:
        requests.post(f"{self.sandbox.url}/control/{what}", json=body, timeout=LIMIT).raise_for_status()

    def go(self, consent: str = "allow") -> tuple[dict[str, list[str]], Secret, Secret | None]:
        """Go to the consent page, which the script answers; return the callback's query, our state and verifier."""
        self.control("consent", auto=consent, account=self.account)
        departure = self.oauth.depart(self.profile, redirect_uri=self.callback)
        answer = requests.get(departure.url, allow_redirects=False, timeout=LIMIT)
        assert answer.headers["Location"].startswith(self.callback), answer.text
        return parse_qs(urlsplit(answer.headers["Location"]).query), departure.state, departure.code_verifier

    def redeem(self, code: str, verifier: Secret | None, **other: Any) -> dict[str, object]:
        profile = replace(self.profile, **other)
        return self.oauth.redeem(
            profile, code=Secret(code), redirect_uri=self.callback, code_verifier=verifier, deadline=LIMIT
        )

    def connect(self) -> Grant:
        query, _, verifier = self.go()
        return self.read(self.redeem(query["code"][0], verifier))

    def read(self, answer: dict[str, object]) -> Grant:
        life = self.profile.access_seconds
        return parse_grant(answer, received_at=self.clock.now(), access_seconds=life)

    def refresh(self, grant: Grant) -> Grant:
        assert grant.refresh_token is not None
        answer = self.oauth.refresh(self.profile, refresh_token=grant.refresh_token, deadline=LIMIT)
        return grant.renewed(answer, received_at=self.clock.now(), access_seconds=self.profile.access_seconds)

    def who(self, grant: Grant) -> Account:
        (account,) = self.provider.identify(self.app, grant, self.call)
        return account


@pytest.fixture(params=sorted(discover()))
def visit(request: pytest.FixtureRequest, served: tuple[RunningSandbox, ManualClock]) -> Iterator[Visit]:
    sandbox, clock = served
    environment = CORE | dict(sandbox.environment)
    settings = load_settings(environment, {name: one.options for name, one in discover_providers().items()})
    provider = discover_providers()[request.param]
    http = Http(allow_plain_loopback=True, user_agent="broker-test")
    visit = Visit(sandbox, clock, discover()[request.param], provider, settings.apps[request.param], http)
    visit.control("reset")
    yield visit
    http.close()


def test_a_person_connects_and_sequin_takes_what_is_imported(visit: Visit) -> None:
    query, state, verifier = visit.go()
    assert query["state"] == [state.reveal()]
    grant = visit.read(visit.redeem(query["code"][0], verifier))
    account = visit.who(grant)
    assert visit.account.startswith(account.id)
    properties = visit.provider.properties(visit.app, account, grant)
    credentials = f"{visit.sandbox.environment['SEQUIN_API_URL']}/v1"
    headers = {"Authorization": f"Bearer {visit.sandbox.secrets.sequin_api_token}"}
    apps = requests.get(f"{credentials}/oauth-apps", headers=headers, timeout=LIMIT).json()["data"]
    (ours,) = [one["id"] for one in apps if one["client_id"] == visit.app.client_id]
    body = {"oauth_app_id": ours, "properties": properties}
    for _ in range(2):
        imported = requests.post(f"{credentials}/credentials", json=body, headers=headers, timeout=LIMIT)
        assert imported.status_code == 200, imported.text
    shown = requests.get(f"{credentials}/credentials", headers=headers, timeout=LIMIT).json()["data"]
    assert [visit.provider.identity(account).items() <= one["properties"].items() for one in shown] == [True]


def test_a_person_says_no(visit: Visit) -> None:
    query, state, _ = visit.go("deny")
    assert (query["error"], query["state"]) == (["access_denied"], [state.reveal()])
    assert "code" not in query


def test_the_page_asks_who_and_takes_the_answer(visit: Visit) -> None:
    address = visit.oauth.depart(visit.profile, redirect_uri=visit.callback).url
    page = requests.get(address, timeout=LIMIT)
    assert visit.stand_in.title in page.text
    assert "<script" not in page.text
    for decision, told in ("allow", "code="), ("deny", "error=access_denied"):
        answer = requests.post(
            address, data={"decision": decision, "account": visit.account}, allow_redirects=False, timeout=LIMIT
        )
        assert (answer.status_code, told in answer.headers["Location"]) == (303, True)


def test_a_request_that_is_wrong_is_refused_as_oauth_has_it(visit: Visit) -> None:
    address = visit.oauth.depart(visit.profile, redirect_uri=visit.callback).url
    strange = address.replace("localhost%3A8000", "evil.example")
    assert requests.get(strange, allow_redirects=False, timeout=LIMIT).status_code == 400
    for told, wrong in ("unsupported_response_type", "response_type=code"), ("invalid_scope", "scope="):
        spoilt = address.replace(wrong, f"{wrong}nothing-like-it")
        assert told in requests.get(spoilt, allow_redirects=False, timeout=LIMIT).headers["Location"]


def test_a_code_works_once_with_the_right_secret_and_the_right_verifier(visit: Visit) -> None:
    query, _, verifier = visit.go()
    code = query["code"][0]
    with pytest.raises(ClientRefused):
        visit.redeem(code, verifier, client_secrets=(Secret("another"),))
    other = "client_secret_post" if visit.profile.token_auth == "client_secret_basic" else "client_secret_basic"
    with pytest.raises(ClientRefused):
        visit.redeem(code, verifier, token_auth=other)
    if visit.profile.pkce:
        for wrong in None, Secret("x" * 43):
            with pytest.raises(GrantRefused):
                visit.redeem(code, wrong)
    visit.redeem(code, verifier)
    for spent in code, "never-issued":
        with pytest.raises(GrantRefused):
            visit.redeem(spent, verifier)


def test_a_code_is_worth_nothing_when_it_is_old(visit: Visit) -> None:
    query, _, verifier = visit.go()
    visit.clock.advance((visit.stand_in.rules.code_life + timedelta(seconds=1)).total_seconds())
    with pytest.raises(GrantRefused):
        visit.redeem(query["code"][0], verifier)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"fault": "status", "status": 200, "body": '{"error": "invalid_grant"}'}, GrantRefused),
        ({"fault": "status", "status": 200, "body": '{"token_type": "bearer"}'}, UnusableAnswer),
        ({"fault": "wrong_types", "when": "after"}, UnusableAnswer),
        ({"fault": "html"}, UnusableAnswer),
        ({"fault": "status", "status": 503}, OAuthUnavailable),
    ],
    ids=["200-with-error", "missing", "wrong-types", "html", "5xx"],
)
def test_whatever_the_token_endpoint_answers_is_told(
    visit: Visit, fault: dict[str, Any], kind: type[BrokerError]
) -> None:
    query, _, verifier = visit.go()
    visit.control("faults", on=f"{visit.provider.name}.token", times=1, **fault)
    with pytest.raises(kind):
        visit.read(visit.redeem(query["code"][0], verifier))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"fault": "wrong_types", "when": "after"}, BrokerError),
        ({"fault": "status", "status": 200, "body": "{}"}, UnusableAnswer),
        ({"fault": "status", "status": 503}, ProviderUnavailable),
        ({"fault": "status", "status": 429, "headers": {"Retry-After": "7"}}, ProviderUnavailable),
        ({"fault": "status", "status": 401}, TokenRejected),
    ],
    ids=["wrong-types", "missing", "5xx", "429", "401"],
)
def test_whatever_is_answered_about_the_account_is_told(
    visit: Visit, fault: dict[str, Any], kind: type[BrokerError]
) -> None:
    grant = visit.connect()
    visit.control("faults", on=f"{visit.provider.name}.account", times=1, **fault)
    with pytest.raises(kind):
        visit.who(grant)
    assert visit.account.startswith(visit.who(grant).id)


def test_a_refresh_replaces_the_access_token_and_maybe_the_refresh_token(visit: Visit) -> None:
    old = visit.connect()
    new = visit.refresh(old)
    assert new.access_token != old.access_token
    assert visit.who(new) == visit.who(visit.connect())
    with pytest.raises(TokenRejected):
        visit.who(old)
    rules = visit.stand_in.rules
    assert (new.refresh_token != old.refresh_token) is rules.rotates
    # Whoever lost the answer asks again: some give it once more for a while.
    if rules.grace or not rules.rotates:
        assert visit.refresh(old).refresh_token == new.refresh_token
    visit.clock.advance((rules.grace + timedelta(seconds=1)).total_seconds())
    if rules.rotates:
        with pytest.raises(GrantRefused):
            visit.refresh(old)
    assert visit.refresh(new).access_token


def test_a_refresh_token_has_an_end_where_the_provider_gives_it_one(visit: Visit) -> None:
    life = visit.stand_in.rules.refresh_life
    grant = visit.connect()
    assert (grant.refresh_expires_at is None) is (life is None)
    visit.clock.advance((life or timedelta(days=400)).total_seconds() + 1)
    if life is None:
        assert visit.refresh(grant).access_token
        return
    with pytest.raises(GrantRefused):
        visit.refresh(grant)


def test_a_disconnect_ends_the_tokens_and_may_be_repeated(visit: Visit) -> None:
    grant, other = visit.connect(), visit.connect()
    account = visit.who(grant)
    assert visit.provider.revoke is not None
    assert visit.provider.revoke(visit.app, account, grant, visit.call, visit.clock.now())
    with pytest.raises(TokenRejected):
        visit.who(grant)
    with pytest.raises(GrantRefused):
        visit.refresh(grant)
    visit.provider.revoke(visit.app, account, grant, visit.call, visit.clock.now())
    assert visit.provider.revoke(visit.app, account, None, visit.call, visit.clock.now()) is False
    # What somebody else was given is theirs.
    assert visit.who(other) == account
    assert visit.who(visit.connect()) == account


def test_what_the_owner_ends_over_there_is_over(visit: Visit) -> None:
    grant = visit.connect()
    visit.control("revoke", provider=visit.provider.name, account=visit.account)
    with pytest.raises(TokenRejected):
        visit.who(grant)
    with pytest.raises(GrantRefused):
        visit.refresh(grant)
    assert visit.who(visit.connect()).id


def test_the_doctor_tells_a_right_secret_from_a_wrong_one(visit: Visit) -> None:
    assert visit.provider.diagnose is not None
    found = list(visit.provider.diagnose(visit.app, visit.call, visit.clock.now()))
    assert {one.state for one in found} == {"pass"}
    wrong = replace(visit.app, client_secrets=(Secret("another"), *visit.app.client_secrets))
    states = [one.state for one in visit.provider.diagnose(wrong, visit.call, visit.clock.now())]
    assert states.count("fail") == 1
