"""HubSpot: who a token is of, optional scopes, versions of the API, and where secrets may stand."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.apps import OfferedApp
from broker.errors import UnusableAnswer
from broker.http import Http
from broker.oauth import OAuth
from broker.providers.base import TokenRejected
from broker.providers.hubspot import PROVIDER, HubSpotOptions
from broker.secret import Secret
from tests.connecting import ACCESS, REFRESH
from tests.house import START, app_of
from tests.providers.case import Canned, body, granted
from tests.providers.hubspot import CASE, INTROSPECT

SHOWN = body(__file__, "introspection")


def test_scopes_come_as_an_array_and_are_kept_over_a_refresh() -> None:
    grant = granted(CASE)
    assert grant.scopes == PROVIDER.default_scopes
    assert OfferedApp(CASE.app, PROVIDER).missing(grant.scopes) == ()
    renewed = grant.renewed({"access_token": "a", "scopes": ["oauth"]}, received_at=START)
    assert (renewed.scopes, renewed.refresh_token) == (("oauth",), Secret(REFRESH))


def test_the_account_is_the_one_the_token_is_of() -> None:
    call = Canned(SHOWN)
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), call)
    assert (account.id, account.name) == ("4411223", "northwind.example")
    ((method, url, sent),) = call.asked
    assert (method, url, sent["form"]["token"]) == ("POST", INTROSPECT, ACCESS)
    with pytest.raises(TokenRejected):
        PROVIDER.identify(CASE.app, granted(CASE), Canned({"active": False}))
    with pytest.raises(UnusableAnswer):
        PROVIDER.identify(CASE.app, granted(CASE, hub_id=5), Canned(SHOWN))


def test_an_account_without_a_domain_is_called_by_its_number() -> None:
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned({**SHOWN, "hub_domain": None}))
    assert account.name == "4411223"
    assert PROVIDER.properties(CASE.app, account, granted(CASE))["hub_domain"] == "4411223"


def test_while_a_secret_is_replaced_the_next_one_is_tried() -> None:
    app = replace(CASE.app, client_secrets=(Secret("old"), Secret("new")))
    call = Canned({}, status=401)
    with pytest.raises(TokenRejected):
        PROVIDER.identify(app, granted(CASE), call)
    assert [sent["form"]["client_secret"] for _, _, sent in call.asked] == ["old", "new"]


def test_optional_scopes_are_asked_for_apart_and_never_missed() -> None:
    app = app_of("hubspot", "hubspot", options={"optional_scopes": "tickets, e-commerce"})
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    query = parse_qs(urlsplit(OAuth(http).depart(PROVIDER.profile(app), redirect_uri="https://b.example/").url).query)
    http.close()
    assert query["optional_scope"] == ["tickets e-commerce"]
    assert OfferedApp(app, PROVIDER).missing(PROVIDER.default_scopes) == ()


def test_the_doctor_warns_of_the_version_that_ends() -> None:
    assert PROVIDER.diagnose is not None
    refused = Canned({"error": "invalid_grant"}, status=400)
    app = replace(CASE.app, options=HubSpotOptions(api_version="v1"))
    found = {one.name: one.state for one in PROVIDER.diagnose(app, refused, START)}
    assert found == {"scopes": "pass", "registration": "pass", "api_version": "fail"}


def test_ending_says_false_where_there_is_nothing_to_end() -> None:
    assert PROVIDER.revoke is not None
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned(SHOWN))
    gone = Canned({"error": "invalid_grant"}, status=400)
    assert PROVIDER.revoke(CASE.app, account, granted(CASE), gone, START) is False
    assert PROVIDER.revoke(CASE.app, account, granted(CASE), Canned({}), START) is True
