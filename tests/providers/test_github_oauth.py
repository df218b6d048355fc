"""GitHub OAuth Apps: the person's token, what it may do, and how it looks once it is gone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import responses

from broker.apps import OfferedApp
from broker.clock import ManualClock
from broker.errors import BrokerError, UnusableAnswer, Verdict
from broker.http import Http
from broker.oauth import Grant, OAuth
from broker.providers.base import Account, AccountGone, Condition, GrantIncomplete, ProviderRefused, TokenRejected
from broker.providers.github_oauth import PROVIDER, missing
from broker.secret import Secret
from broker.settings import OAuthApp
from tests.connecting import ACCESS, GITHUB_API, PERSON, github_oauth_app
from tests.house import START

GRANT = Grant(Secret(ACCESS), None, "bearer", ("read:user", "read:org"), None, None)
TOKEN = f"{GITHUB_API}/applications/Ov23.acme/token"
ACCOUNT = Account(str(PERSON), "jo", "User", "live", {"login": "jo"})


@dataclass
class GitHub:
    """GitHub's canned answers, and the provider's functions on them."""

    network: responses.RequestsMock
    http: Http
    app: OAuthApp = field(default_factory=github_oauth_app)

    def checked(self, status: int = 200, **changes: Any) -> None:
        body = {"user": {"id": PERSON, "login": "jo"}, "scopes": ["read:user", "read:org"]} | changes
        self.network.upsert("POST", TOKEN, status=status, json=body)

    def probe(self, grant: Grant | None = GRANT) -> Condition:
        assert PROVIDER.probe is not None
        return PROVIDER.probe(self.app, ACCOUNT, grant, self.http.request, START)

    def properties(self, grant: Grant | None = GRANT) -> dict[str, object]:
        return PROVIDER.properties(self.app, ACCOUNT, grant)


@pytest.fixture
def github() -> Iterator[GitHub]:
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as network:
        yield GitHub(network, http)
    http.close()


def scope_asked(app: OAuthApp) -> list[str]:
    address = OAuth(Http(allow_plain_loopback=False, user_agent="x"), ManualClock(START)).depart(
        PROVIDER.profile(app), redirect_uri="https://broker.example/oauth/github_oauth/callback"
    )
    return parse_qs(urlsplit(address.url).query)["scope"][0].split(" ")


# --- asking -------------------------------------------------------------------------------------------------


def test_a_scope_is_always_sent_because_without_one_all_earlier_ones_come_back() -> None:
    assert scope_asked(github_oauth_app()) == ["read:user", "read:org"]
    assert scope_asked(replace(github_oauth_app(), scopes=("repo",))) == ["repo"]


def test_expiring_tokens_are_asked_for_by_a_scope_of_their_own() -> None:
    assert scope_asked(github_oauth_app(expiring=True)) == ["read:user", "read:org", "offline_access"]
    assert missing(github_oauth_app(expiring=True), ("read:user", "read:org")) == ()


def test_the_grant_is_kept_and_refreshed_because_it_is_what_ends_the_access() -> None:
    offered = OfferedApp(github_oauth_app(), PROVIDER)
    assert (offered.keeps_grant, offered.refreshes) == (True, True)


@pytest.mark.parametrize(
    ("asked", "granted", "lacking"),
    [
        (("user", "gist", "user:email"), ("user", "gist"), ()),
        (("repo", "read:org"), ("admin:org", "repo"), ()),
        (("public_repo",), ("repo",), ()),
        (("repo", "read:org"), ("read:org",), ("repo",)),
        (("user",), ("read:user",), ("user",)),
        (("repo",), (), ("repo",)),
    ],
)
def test_scopes_are_compared_by_what_they_mean(
    asked: tuple[str, ...], granted: tuple[str, ...], lacking: tuple[str, ...]
) -> None:
    assert OfferedApp(replace(github_oauth_app(), scopes=asked), PROVIDER).missing(granted) == lacking


# --- the import ---------------------------------------------------------------------------------------------


def test_the_credential_has_the_assumed_kind_and_names(github: GitHub) -> None:
    assert github.properties() == {
        "kind": "github_oauth2", "access_token": ACCESS, "scope": "read:user,read:org", "account_login": "jo",
    }  # fmt: skip


def test_kind_and_names_are_what_the_options_say(github: GitHub) -> None:
    github.app = github_oauth_app(kind="github_user", token_property="token", scope_property="none")
    assert github.properties() == {"kind": "github_user", "token": ACCESS, "account_login": "jo"}
    assert OfferedApp(github.app, PROVIDER).kind == "github_user"


def test_without_a_token_there_is_nothing_to_import(github: GitHub) -> None:
    for grant in (None, replace(GRANT, access_token=None)):
        with pytest.raises(GrantIncomplete):
            github.properties(grant)


# --- how it is ----------------------------------------------------------------------------------------------


def test_a_probe_is_one_call_as_the_client_and_tells_scopes_and_name(github: GitHub) -> None:
    github.checked(user={"id": PERSON, "login": "jo-renamed"}, scopes=["read:user"])
    found = github.probe()
    assert found.scopes == ("read:user",)
    assert found.account == replace(ACCOUNT, name="jo-renamed")
    (call,) = github.network.calls
    proof = base64.b64decode(call.request.headers["Authorization"].removeprefix("Basic ")).decode()
    assert proof == "Ov23.acme:github_oauth_never_to_be_seen"
    assert json.loads(call.request.body or "") == {"access_token": ACCESS}


def test_a_token_that_github_no_longer_knows_is_gone_whatever_ended_it(github: GitHub) -> None:
    github.checked(404)
    with pytest.raises(AccountGone):
        github.probe()


def test_a_token_that_has_only_expired_is_to_be_refreshed(github: GitHub) -> None:
    github.checked(404)
    with pytest.raises(TokenRejected):
        github.probe(replace(GRANT, expires_at=START - timedelta(seconds=1)))
    with pytest.raises(AccountGone):
        github.probe(replace(GRANT, expires_at=START + timedelta(hours=1)))


def test_a_token_of_somebody_else_is_not_this_account(github: GitHub) -> None:
    github.checked(user={"id": PERSON + 1, "login": "jo"})
    with pytest.raises(AccountGone):
        github.probe()


@pytest.mark.parametrize("user", [None, {}, {"id": "7"}, {"id": True}, []])
def test_an_answer_without_a_person_says_nothing(github: GitHub, user: object) -> None:
    github.checked(user=user)
    with pytest.raises(UnusableAnswer):
        github.probe()


def test_a_refused_client_is_a_setting_to_mend_and_no_persons_fault(github: GitHub) -> None:
    github.checked(401)
    with pytest.raises(BrokerError) as caught:
        github.probe()
    assert isinstance(caught.value, ProviderRefused)
    assert caught.value.verdict is Verdict.CONFIGURATION


def test_while_a_client_secret_is_replaced_the_other_one_is_tried(github: GitHub) -> None:
    github.app = replace(github.app, client_secrets=(Secret("new"), Secret("old")))

    def answer(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        proof = base64.b64decode(str(request.headers["Authorization"]).removeprefix("Basic ")).decode()
        return (200 if proof.endswith(":old") else 401), {}, json.dumps({"user": {"id": PERSON}, "scopes": []})

    github.network.add_callback("POST", TOKEN, callback=answer)
    assert github.probe().scopes == ()
    assert len(github.network.calls) == 2


# --- the end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [204, 404, 422])
def test_a_disconnect_ends_this_token_and_not_the_persons_grant(github: GitHub, status: int) -> None:
    assert PROVIDER.revoke is not None
    github.network.delete(TOKEN, status=status, json={} if status != 204 else None)
    assert PROVIDER.revoke(github.app, ACCOUNT, GRANT, github.http.request, START)
    assert [call.request.method for call in github.network.calls] == ["DELETE"]


def test_the_doctor_says_what_is_asked_for_and_that_tokens_push_each_other_out(github: GitHub) -> None:
    assert PROVIDER.diagnose is not None
    github.checked(404)
    found = {each.name: each for each in PROVIDER.diagnose(github.app, github.http.request, START)}
    assert "read:org" in found["scopes"].sentence
    assert found["registration"].state == "pass"
    assert "10 tokens" in found["token_cap"].sentence
    github.checked(401)
    found = {each.name: each for each in PROVIDER.diagnose(github.app, github.http.request, START)}
    assert found["registration"].state == "fail"


def test_enterprise_addresses_are_used_throughout(github: GitHub) -> None:
    github.app = github_oauth_app(url="https://ghe.example", api_url="https://ghe.example/api/v3")
    profile = PROVIDER.profile(github.app)
    assert profile.token_url == "https://ghe.example/login/oauth/access_token"
    assert profile.issuer == "https://ghe.example/login/oauth"
    assert PROVIDER.profile(github_oauth_app(issuer="https://ghe.example")).issuer == "https://ghe.example"
