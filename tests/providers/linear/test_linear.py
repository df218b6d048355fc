"""Linear: scopes in two forms, GraphQL's ways to say no, and a workspace that must stay the same."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker.apps import OfferedApp
from broker.errors import BrokerError, UnusableAnswer
from broker.http import Http
from broker.oauth import OAuth
from broker.providers.base import Account, AccountGone, ProviderRefused, ProviderUnavailable, TokenRejected
from broker.providers.linear import PROVIDER
from tests.house import START, app_of
from tests.providers.case import Canned, granted
from tests.providers.linear import CASE, VIEWER


def said(code: str) -> dict[str, Any]:
    return {"errors": [{"message": "no", "extensions": {"code": code}}]}


def test_scopes_are_asked_for_with_commas_in_somebodys_name() -> None:
    app = app_of("linear", "linear", scopes=("read", "write"), options={"actor": "app"})
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    query = parse_qs(urlsplit(OAuth(http).depart(PROVIDER.profile(app), redirect_uri="https://b.example/").url).query)
    http.close()
    assert (query["scope"], query["actor"], query["prompt"]) == (["read,write"], ["app"], ["consent"])


@pytest.mark.parametrize("scope", ["read write", "read,write", ["read", "write"]])
def test_scopes_are_told_in_several_forms_and_imported_in_one(scope: object) -> None:
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned(VIEWER))
    assert PROVIDER.properties(CASE.app, account, granted(CASE, scope=scope))["scope"] == "read write"


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (said("AUTHENTICATION_ERROR"), TokenRejected),
        (said("RATELIMITED"), ProviderUnavailable),
        (said("FORBIDDEN"), ProviderRefused),
        ({"errors": ["?"]}, ProviderRefused),
        ({"errors": [{"extensions": {"code": 7}}]}, ProviderRefused),
    ],
)
def test_trouble_told_by_graphql_is_classified(status: int, told: dict[str, Any], kind: type[BrokerError]) -> None:
    with pytest.raises(kind):
        PROVIDER.identify(CASE.app, granted(CASE), Canned(told, status=status))


def test_a_workspace_without_a_name_is_called_by_its_address() -> None:
    organization = {"id": "w-1", "name": "", "urlKey": "north"}
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned({"data": {"organization": organization}}))
    assert account.name == "north"
    with pytest.raises(UnusableAnswer):
        PROVIDER.identify(CASE.app, granted(CASE), Canned({"data": {"organization": None}}))


def test_a_probe_that_meets_another_workspace_says_so() -> None:
    assert PROVIDER.probe is not None
    other = Account("another", "Other", "workspace", "live")
    with pytest.raises(AccountGone):
        PROVIDER.probe(CASE.app, other, granted(CASE), Canned(VIEWER), START)
    with pytest.raises(TokenRejected):
        PROVIDER.probe(CASE.app, other, None, Canned(VIEWER), START)


def test_the_broker_refreshes_and_ends_only_its_own_tokens() -> None:
    assert OfferedApp(CASE.app, PROVIDER).refreshes
    assert PROVIDER.end_token is not None
    for status in (200, 400, 401):
        call = Canned({}, status=status)
        PROVIDER.end_token(CASE.app, granted(CASE), call)
        ((_, url, sent),) = call.asked
        assert (url, sent["form"]["token_type_hint"]) == ("https://api.linear.app/oauth/revoke", "refresh_token")
    with pytest.raises(ProviderUnavailable):
        PROVIDER.end_token(CASE.app, granted(CASE), Canned({}, status=503))
