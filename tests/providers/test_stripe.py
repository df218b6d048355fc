"""Stripe Connect: which account the grant is of, in which mode, and what is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import responses

from broker.errors import UnusableAnswer
from broker.http import Http
from broker.oauth import Grant, parse_grant
from broker.providers.base import Account, GrantIncomplete, ProviderRefused
from broker.providers.stripe import PROVIDER, StripeOptions
from tests.connecting import ACCESS, REFRESH, STRIPE_ACCOUNT
from tests.house import START, stripe_app
from tests.providers.cases import CASES

APP = stripe_app("stripe")
TOKEN = CASES["stripe"].token


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
    answer = {name: value for name, value in {**TOKEN, **changes}.items() if value is not ...}
    return parse_grant(answer, received_at=START, requires_access_token=False)


def identify(http: Http, given: Grant | None = None) -> Account:
    (account,) = PROVIDER.identify(APP, given or grant(), http.request)
    return account


@pytest.mark.parametrize(("livemode", "mode"), [(True, "live"), (False, "test"), (..., "test"), ("true", "test")])
def test_the_grant_says_which_mode_it_is(
    network: responses.RequestsMock, http: Http, livemode: object, mode: str
) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    account = identify(http, grant(livemode=livemode))
    assert account.mode == mode
    assert PROVIDER.properties(APP, account, grant())["test"] is (mode == "test")


@pytest.mark.parametrize(
    ("shown", "name"),
    [
        ({"settings": {"dashboard": {"display_name": "Dash"}}, "business_profile": {"name": "Biz"}}, "Dash"),
        ({"settings": {"dashboard": {"display_name": " "}}, "business_profile": {"name": "Biz"}}, "Biz"),
        ({"settings": None, "business_profile": {"name": None}, "email": "jo@acme.example"}, "jo@acme.example"),
        ({"settings": {"dashboard": None}, "business_profile": [], "email": 7}, "acct_1"),
        ({}, "acct_1"),
    ],
)
def test_an_account_is_called_what_its_owner_calls_it(
    network: responses.RequestsMock, http: Http, shown: dict[str, Any], name: str
) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"} | shown)
    assert identify(http).name == name


@pytest.mark.parametrize("named", [..., None, "", 7, "cus_1", ["acct_1"]])
def test_a_grant_that_names_no_account_cannot_be_used(
    network: responses.RequestsMock, http: Http, named: object
) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    with pytest.raises(UnusableAnswer):
        identify(http, grant(stripe_user_id=named))
    assert len(network.calls) == 0


def test_the_account_read_must_be_the_account_granted(network: responses.RequestsMock, http: Http) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_2"})
    with pytest.raises(UnusableAnswer):
        identify(http)


def test_without_an_access_token_the_platforms_own_key_reads_the_account(
    network: responses.RequestsMock, http: Http
) -> None:
    network.get("https://api.stripe.com/v1/accounts/acct_1", json={"id": "acct_1", "type": "standard"})
    given = grant(access_token=..., refresh_token=..., stripe_publishable_key=...)
    assert identify(http, given).id == "acct_1"
    assert network.calls[0].request.headers["Authorization"] == "Bearer sk_never_to_be_seen"


def test_the_platforms_own_key_is_never_imported(network: responses.RequestsMock, http: Http) -> None:
    network.get("https://api.stripe.com/v1/accounts/acct_1", json={"id": "acct_1"})
    given = grant(access_token=..., refresh_token=...)
    account = identify(http, given)
    with pytest.raises(GrantIncomplete, match="stripe_app"):
        PROVIDER.properties(APP, account, given)
    with pytest.raises(GrantIncomplete, match="erased"):
        PROVIDER.properties(APP, account, None)


def test_a_platform_key_that_may_not_read_accounts_is_a_setting_to_mend(
    network: responses.RequestsMock, http: Http
) -> None:
    network.get("https://api.stripe.com/v1/accounts/acct_1", status=403, json={"error": {"type": "x"}})
    with pytest.raises(ProviderRefused):
        identify(http, grant(access_token=..., refresh_token=...))


def test_the_refresh_token_stays_here_unless_sequin_is_to_refresh(network: responses.RequestsMock, http: Http) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    account = identify(http)
    assert REFRESH not in str(PROVIDER.properties(APP, account, grant()))
    handing_over = replace(APP, options=StripeOptions(import_refresh_token=True))
    sent = PROVIDER.properties(handing_over, account, grant())
    assert (sent["refresh_token"], sent["scope"], sent["secret"]) == (REFRESH, "read_write", ACCESS)
    without = PROVIDER.properties(handing_over, account, grant(refresh_token=...))
    assert not {"refresh_token", "scope"} & set(without)


def test_a_scope_is_always_asked_for() -> None:
    assert PROVIDER.profile(APP).scopes == ("read_write",)
    assert PROVIDER.profile(replace(APP, scopes=("read_only",))).scopes == ("read_only",)


def test_other_addresses_can_be_configured(network: responses.RequestsMock, http: Http) -> None:
    options = StripeOptions(connect_url="https://connect.example", api_url="https://api.example")
    app = replace(APP, options=options)
    assert PROVIDER.profile(app).authorize_url == "https://connect.example/oauth/authorize"
    assert PROVIDER.profile(app).token_url == "https://connect.example/oauth/token"
    network.get("https://api.example/v1/account", json={"id": "acct_1"})
    assert PROVIDER.identify(app, grant(), http.request)[0].id == "acct_1"
