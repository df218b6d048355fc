"""Airtable: names that need a scope, a refresh token that is handed over, an end that may not be there."""

from __future__ import annotations

from datetime import timedelta

import pytest

from broker.apps import OfferedApp
from broker.providers.airtable import PROVIDER
from broker.providers.base import Account, GrantIncomplete, RevocationRefused
from tests.house import START
from tests.providers.airtable import CASE
from tests.providers.case import Canned, granted

JO = Account("usrL2PNC5o3H4lBEi", "jo@northwind.example", None, "live")


def test_without_the_scope_for_it_an_account_is_called_by_its_id() -> None:
    (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned({"id": JO.id}))
    assert account.name == JO.id


def test_a_refresh_token_ends_after_sixty_days_without_use() -> None:
    assert granted(CASE).refresh_expires_at == START + timedelta(days=60)


def test_the_refresh_token_is_handed_over_and_then_nothing_is_kept() -> None:
    offered = OfferedApp(CASE.app, PROVIDER)
    assert (offered.refreshes, offered.keeps_grant) == (False, False)
    with pytest.raises(GrantIncomplete, match="no refresh token"):
        PROVIDER.properties(CASE.app, JO, granted(CASE, refresh_token=None))
    with pytest.raises(GrantIncomplete, match="erased"):
        PROVIDER.properties(CASE.app, JO, None)


def test_an_answer_that_names_no_scopes_grants_what_was_asked_for() -> None:
    properties = PROVIDER.properties(CASE.app, JO, granted(CASE, scope=None))
    assert properties["scope"] == "data.records:read schema.bases:read user.email:read"


def test_an_endpoint_that_is_not_there_leaves_the_end_to_the_owner() -> None:
    assert PROVIDER.revoke is not None
    with pytest.raises(RevocationRefused):
        PROVIDER.revoke(CASE.app, JO, granted(CASE), Canned(status=404), START)
    assert PROVIDER.revoke(CASE.app, JO, None, Canned(status=500), START) is False
