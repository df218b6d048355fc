"""Stripe Connect: which account the grant is of, in which mode, and what is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import responses

from broker.errors import ClientRefused, UnusableAnswer
from broker.http import Http
from broker.oauth import Grant, parse_grant
from broker.providers.base import Account, AccountGone, GrantIncomplete, ProviderRefused
from broker.providers.stripe import PROVIDER, StripeOptions
from broker.secret import Secret
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


# --- modes, keys, probes --------------------------------------------------------------------------------

PLATFORM_READS = "https://api.stripe.com/v1/accounts/acct_1"
UNKNOWN_KEY = {"error": {"type": "invalid_request_error", "message": "Invalid API Key provided"}}


def keyed(*keys: str) -> Any:
    return replace(APP, client_secrets=tuple(map(Secret, keys)))


def probe(http: Http, app: Any = APP, mode: Any = "live") -> Account:
    assert PROVIDER.probe is not None
    found = PROVIDER.probe(app, Account("acct_1", "Old name", None, mode), None, http.request, START)
    assert found.account is not None
    return found.account


@pytest.mark.parametrize(("key", "livemode"), [("sk_live_x", False), ("sk_test_x", True)])
def test_a_grant_of_the_other_mode_than_the_key_is_a_setting_to_mend(
    network: responses.RequestsMock, http: Http, key: str, livemode: bool
) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    with pytest.raises(ProviderRefused, match="mode"):
        PROVIDER.identify(keyed(key), grant(livemode=livemode), http.request)
    assert len(network.calls) == 0


def test_without_livemode_the_keys_mode_counts(network: responses.RequestsMock, http: Http) -> None:
    network.get(STRIPE_ACCOUNT, json={"id": "acct_1"})
    (account,) = PROVIDER.identify(keyed("sk_live_x"), grant(livemode=...), http.request)
    assert account.mode == "live"


def test_a_probe_reads_the_account_with_the_platforms_key(network: responses.RequestsMock, http: Http) -> None:
    network.get(PLATFORM_READS, json={"id": "acct_1", "email": "new@acme.example"})
    assert probe(http).name == "new@acme.example"
    assert network.calls[0].request.headers["Authorization"] == "Bearer sk_never_to_be_seen"


def test_an_account_that_removed_us_is_gone(network: responses.RequestsMock, http: Http) -> None:
    network.get(PLATFORM_READS, status=403, json={"error": {"code": "account_invalid"}})
    with pytest.raises(AccountGone):
        probe(http)


def test_a_key_that_may_not_read_the_account_says_nothing_about_it(network: responses.RequestsMock, http: Http) -> None:
    network.get(PLATFORM_READS, status=403, json={"error": {"code": "more_permissions_required"}})
    with pytest.raises(ProviderRefused):
        probe(http)


def test_a_key_that_stripe_does_not_know_is_never_the_accounts_fault(
    network: responses.RequestsMock, http: Http
) -> None:
    network.get(PLATFORM_READS, status=401, json=UNKNOWN_KEY)
    with pytest.raises(ClientRefused):
        probe(http)


def test_a_key_of_the_other_mode_is_not_even_tried(network: responses.RequestsMock, http: Http) -> None:
    with pytest.raises(ProviderRefused, match="mode"):
        probe(http, keyed("sk_test_x"))
    assert len(network.calls) == 0


def test_while_a_key_is_replaced_the_next_one_is_tried(network: responses.RequestsMock, http: Http) -> None:
    network.get(PLATFORM_READS, status=401, json=UNKNOWN_KEY)
    network.get(PLATFORM_READS, json={"id": "acct_1"})
    assert probe(http, keyed("sk_live_old", "sk_live_new")).id == "acct_1"
    tried = [call.request.headers["Authorization"] for call in network.calls]
    assert tried == ["Bearer sk_live_old", "Bearer sk_live_new"]


def test_a_refused_deauthorization_is_not_repeated_with_another_key(
    network: responses.RequestsMock, http: Http
) -> None:
    said = {"error": "invalid_client", "error_description": "This application is not connected to stripe account x"}
    network.post("https://connect.stripe.com/oauth/deauthorize", status=401, json=said)
    assert PROVIDER.revoke is not None
    account = Account("acct_1", "Acme", None, "live")
    assert PROVIDER.revoke(keyed("sk_live_old", "sk_live_new"), account, None, http.request, START) is True
    assert len(network.calls) == 1
