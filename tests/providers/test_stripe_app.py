"""Stripe Apps: links, modes, who refreshes, and what remains after a disconnect."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import responses
from pydantic import ValidationError

from broker.apps import OfferedApp
from broker.http import Http
from broker.oauth import Grant, parse_grant
from broker.providers.base import Account, AccountGone, ProviderRefused, TokenRejected
from broker.providers.stripe_app import PROVIDER, StripeAppOptions
from broker.secret import Secret
from tests.connecting import ACCESS, REFRESH, STRIPE_ACCOUNT
from tests.house import START, app_of
from tests.providers.cases import CASES

APP = app_of("stripe_app", "stripe_app")
TOKEN = CASES["stripe_app"].token


@pytest.fixture
def network() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def http() -> Iterator[Http]:
    door = Http(allow_plain_loopback=False, user_agent="broker-test")
    yield door
    door.close()


def grant(**changes: Any) -> Grant:
    return parse_grant({**TOKEN, **changes}, received_at=START, access_seconds=PROVIDER.profile(APP).access_seconds)


def probe(http: Http, given: Grant | None = None) -> Account:
    assert PROVIDER.probe is not None
    found = PROVIDER.probe(APP, Account("acct_1", "Old", None, "test"), given or grant(), http.request, START)
    assert found.account is not None
    return found.account


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("", "/oauth/v2/authorize"),
        ("chnlink_61AbC", "/oauth/v2/chnlink_61AbC/authorize"),
        (
            "https://marketplace.stripe.com/oauth/v2/chnlink_61AbC/authorize?client_id=ca_1&redirect_uri=x",
            "/oauth/v2/chnlink_61AbC/authorize",
        ),
    ],
)
def test_the_link_of_each_mode_is_where_people_are_sent(written: str, path: str) -> None:
    app = replace(APP, options=StripeAppOptions(install_link=written))
    assert PROVIDER.profile(app).authorize_url == f"https://marketplace.stripe.com{path}"


@pytest.mark.parametrize("written", ["test", "https://marketplace.stripe.com/oauth/v2/authorize", "chnlink_a/../x y"])
def test_another_link_is_refused_at_start(written: str) -> None:
    with pytest.raises(ValidationError):
        StripeAppOptions(install_link=f"x{written}")


def test_a_token_is_known_to_end_after_an_hour_although_the_answer_does_not_say() -> None:
    assert "expires_in" not in TOKEN
    assert grant().expires_at == START + timedelta(hours=1)


def test_tokens_are_refreshed_here_unless_sequin_gets_the_refresh_token(
    network: responses.RequestsMock, http: Http
) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    (account,) = PROVIDER.identify(APP, grant(), http.request)
    assert OfferedApp(APP, PROVIDER).refreshes
    assert OfferedApp(APP, PROVIDER).keeps_grant
    assert "refresh_token" not in PROVIDER.properties(APP, account, grant())
    handing_over = replace(APP, options=StripeAppOptions(import_refresh_token=True))
    assert not OfferedApp(handing_over, PROVIDER).keeps_grant
    sent = PROVIDER.properties(handing_over, account, grant())
    assert sent == {
        "kind": "stripe_oauth2", "secret": ACCESS, "test": True, "name": "acct_1", "stripe_user_id": "acct_1",
        "refresh_token": REFRESH, "scope": "stripe_apps",
    }  # fmt: skip


@pytest.mark.parametrize(("key", "livemode"), [("sk_live_x", False), ("sk_test_x", True)])
def test_the_answers_mode_must_be_the_keys(
    network: responses.RequestsMock, http: Http, key: str, livemode: bool
) -> None:
    with pytest.raises(ProviderRefused, match="mode"):
        PROVIDER.identify(replace(APP, client_secrets=(Secret(key),)), grant(livemode=livemode), http.request)
    assert len(network.calls) == 0


def test_a_probe_asks_with_the_accounts_own_token(network: responses.RequestsMock, http: Http) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1", "email": "new@acme.example"})
    assert probe(http).name == "new@acme.example"
    assert network.calls[0].request.headers["Authorization"] == f"Bearer {ACCESS}"


@pytest.mark.parametrize(
    ("status", "error", "kind"),
    [
        (401, {"message": "Expired API Key provided"}, TokenRejected),
        (403, {"code": "account_invalid"}, AccountGone),
        (403, {"code": "", "message": "permission"}, ProviderRefused),
    ],
)
def test_what_a_probe_is_told_is_told_apart(
    network: responses.RequestsMock, http: Http, status: int, error: Any, kind: type[Exception]
) -> None:
    network.get(STRIPE_ACCOUNT, status=status, json={"error": error})
    with pytest.raises(kind):
        probe(http)


def test_a_disconnect_leaves_the_app_installed_and_says_so() -> None:
    assert PROVIDER.revoke is None
    assert PROVIDER.stays is not None
    assert PROVIDER.stays(APP) == "the installed app"


@pytest.mark.parametrize(
    ("key", "state"), [("sk_test_x", "pass"), ("sk_live_x", "pass"), ("rk_live_x", "fail"), ("whatever", "fail")]
)
def test_the_doctor_looks_at_the_key(network: responses.RequestsMock, http: Http, key: str, state: str) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_dev"})
    assert PROVIDER.diagnose is not None
    app = replace(APP, client_secrets=(Secret(key),))
    found = {each.name: each.state for each in PROVIDER.diagnose(app, http.request, START)}
    assert found == {"mode": state, "scopes": "pass", "install_link": "pass", "credentials": "pass"}
