"""Salesforce: where a token may be sent, sandboxes, names of scopes, and what an org says to a bad token."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from broker.apps import OfferedApp
from broker.errors import UnusableAnswer
from broker.providers.base import Account, GrantIncomplete, TokenRejected
from broker.providers.salesforce import PROVIDER
from tests.house import START, app_of
from tests.providers.case import Canned, body, granted
from tests.providers.salesforce import CASE

USER = body(__file__, "userinfo")


def who(instance: str, login: str = "https://login.salesforce.com") -> Account:
    app = app_of("salesforce", "salesforce", options={"login_url": login})
    call = Canned(USER)
    (account,) = PROVIDER.identify(app, granted(CASE, instance_url=instance), call)
    assert call.asked[0][1] == f"{instance.rstrip('/')}/services/oauth2/userinfo"
    return account


@pytest.mark.parametrize(
    ("instance", "login", "mode"),
    [
        ("https://northwind.my.salesforce.com", "https://login.salesforce.com", "live"),
        ("https://northwind.my.salesforce.com/", "https://northwind.my.salesforce.com", "live"),
        ("https://northwind--uat.sandbox.my.salesforce.com", "https://login.salesforce.com", "test"),
        ("https://northwind.my.salesforce.com", "https://test.salesforce.com", "test"),
        ("https://na139.salesforce.com", "https://login.salesforce.com", "live"),
        ("https://northwind.my.salesforce.mil", "https://login.salesforce.com", "live"),
    ],
)
def test_an_org_is_asked_at_its_own_address(instance: str, login: str, mode: str) -> None:
    account = who(instance, login)
    assert (account.mode, account.facts) == (mode, {"instance_url": instance.rstrip("/")})


@pytest.mark.parametrize(
    "instance",
    [
        None,
        "",
        7,
        "northwind.my.salesforce.com",
        "http://northwind.my.salesforce.com",
        "https://northwind.my.salesforce.com.evil.example",
        "https://evil.example/northwind.my.salesforce.com",
        "https://northwind.my.salesforce.com@evil.example",
        "https://northwind.my.salesforce.com:8443",
        "https://northwind.lightning.force.com",
        "https://northwind.lightning.salesforce.com",
        "https://northwind.my.salesforce.com/path",
        "https://northwind.my.salesforce.com?x=1",
        "https://[",
    ],
)
def test_a_token_is_sent_nowhere_else(instance: object) -> None:
    call = Canned(USER)
    with pytest.raises(UnusableAnswer):
        PROVIDER.identify(CASE.app, granted(CASE, instance_url=instance), call)
    assert call.asked == []


def test_people_do_not_sign_in_where_pages_are_shown() -> None:
    with pytest.raises(ValidationError, match=r"my\.salesforce\.com"):
        app_of("salesforce", "salesforce", options={"login_url": "https://northwind.lightning.force.com"})


def test_the_org_is_the_one_the_answer_names_in_either_length() -> None:
    short = {**USER, "organization_id": USER["organization_id"][:15]}
    for shown in (USER, short):
        (account,) = PROVIDER.identify(CASE.app, granted(CASE), Canned(shown))
        assert account.id == "00D5g000008iGzK"
    other = "https://login.salesforce.com/id/00D5g000009ZZZZEAU/005x"
    with pytest.raises(UnusableAnswer):
        PROVIDER.identify(CASE.app, granted(CASE, id=other), Canned(USER))


def test_a_bad_token_is_told_in_words_of_their_own() -> None:
    with pytest.raises(TokenRejected):
        PROVIDER.identify(CASE.app, granted(CASE), Canned(b"Bad_OAuth_Token", status=403))
    with pytest.raises(TokenRejected):
        PROVIDER.identify(CASE.app, granted(CASE), Canned([{"errorCode": "INVALID_SESSION_ID"}], status=401))


def test_a_scope_has_two_names_and_one_includes_most() -> None:
    offered = OfferedApp(CASE.app, PROVIDER)
    assert offered.missing(["api", "offline_access"]) == ()
    assert offered.missing(["full"]) == ("refresh_token",)
    assert offered.missing(["refresh_token"]) == ("api",)


def test_no_lifetime_is_told_and_none_is_made_up() -> None:
    assert granted(CASE).expires_at is None
    assert not OfferedApp(CASE.app, PROVIDER).refreshes


def test_without_offline_access_nothing_can_be_imported_and_the_doctor_says_so() -> None:
    account = who("https://northwind.my.salesforce.com")
    with pytest.raises(GrantIncomplete, match="refresh_token"):
        PROVIDER.properties(CASE.app, account, granted(CASE, refresh_token=None))
    assert PROVIDER.diagnose is not None
    app = app_of("salesforce", "salesforce", scopes=("api",))
    refused = Canned({"error": "invalid_client_id"}, status=400)
    found = {one.name: one.state for one in PROVIDER.diagnose(app, refused, START)}
    assert found == {"scopes": "pass", "registration": "fail", "offline": "fail"}


def test_a_token_that_sequin_has_replaced_ends_nothing() -> None:
    assert PROVIDER.revoke is not None
    account = who("https://northwind.my.salesforce.com")
    old = Canned({"error": "invalid_token"}, status=400)
    assert PROVIDER.revoke(CASE.app, account, granted(CASE), old, START) is False
    assert PROVIDER.revoke(CASE.app, account, granted(CASE), Canned(b""), START) is True


@pytest.mark.parametrize("told", ["javascript:alert(1)", "https://northwind.my.salesforce.com.evil.example", 7])
def test_nobody_is_led_to_an_address_that_is_not_salesforces(told: object) -> None:
    app = app_of("salesforce", "salesforce")
    account = Account("00D000000000001", "Northwind", "organization", "live", {"instance_url": told})
    assert PROVIDER.manage_url is not None
    assert PROVIDER.manage_url(app, account) == "https://login.salesforce.com"
