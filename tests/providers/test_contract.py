"""What holds for every provider; a new one is held to it for free and brings only its canned answers."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlsplit

import pytest
import responses

from broker.apps import OfferedApp
from broker.clock import ManualClock
from broker.errors import (
    BrokerError,
    ClientRefused,
    GrantRefused,
    OAuthUnavailable,
    RedirectRefused,
    UnusableAnswer,
    Verdict,
)
from broker.http import Http
from broker.oauth import Grant, OAuth, OAuthProfile, parse_grant
from broker.providers import discover
from broker.providers.base import (
    NAME_LIMIT,
    Account,
    Call,
    Condition,
    Notice,
    NoticeKind,
    Provider,
    ProviderUnavailable,
    TokenRejected,
    WebhookInvalid,
    WebhookRefused,
)
from broker.secret import Secret
from broker.settings import OAuthApp
from broker.text import storable
from tests.connecting import ACCESS, CODE, REFRESH
from tests.house import START
from tests.providers.case import Case
from tests.providers.cases import CASES

CALLBACK = "https://broker.example/oauth/app/callback"
HOSTILE = "A\x00c\ud800m\u202ee\n<b>" + "é" * 300

Fields = dict[str, type]
# Sequin's credential kinds: required members, then optional ones (reference/sequin.md 4).
KINDS: dict[str, tuple[Fields, Fields]] = {
    "stripe_key": ({"secret": str, "test": bool}, {"name": str}),
    "stripe_oauth2": (
        {"secret": str, "test": bool, "name": str},
        {"refresh_token": str, "stripe_user_id": str, "scope": str},
    ),
    "github_app": ({"account_type": str, "account_login": str, "installation_id": int}, {}),
    "airtable_oauth2": ({"refresh_token": str, "scope": str}, {"airtable_uid": str}),
    "hubspot_oauth2": (
        {"hub_domain": str, "hub_id": int, "refresh_token": str, "scopes": list},
        {"hubspot_user": str, "hubspot_user_id": int, "name": str},
    ),
    "linear_oauth2": ({"access_token": str, "scope": str, "linear_org_id": str, "linear_org_name": str}, {}),
    "salesforce_oauth2": ({"instance_url": str, "refresh_token": str}, {"name": str}),
}
SLUGS = {
    "airtable", "auth0", "hubspot", "github", "linear", "marketo", "netsuite", "quickbooks", "salesforce", "sendgrid",
    "servicenow", "shopify", "stripe", "workday",
}  # fmt: skip


@dataclass
class Stand:
    """One provider with its canned answers behind the real network door."""

    provider: Provider
    case: Case
    network: responses.RequestsMock
    http: Http

    @property
    def profile(self) -> OAuthProfile:
        return self.provider.profile(self.case.app)

    @property
    def oauth(self) -> OAuth:
        return OAuth(self.http, ManualClock(START))

    def answer(self, answers: Mapping[str, Any]) -> None:
        for url, body in answers.items():
            self.network.upsert(self.method(url), url, json=body)

    def method(self, url: str) -> str:
        """Return how an address is asked while accounts are read."""
        return "POST" if url in self.case.posts else "GET"

    @property
    def read(self) -> Mapping[str, Any]:
        """What is answered while accounts are read, by address."""
        return {**self.case.answers, **self.case.posts}

    @property
    def members(self) -> tuple[Fields, Fields]:
        """The members of the credential imported: required ones, then optional ones."""
        required, optional = (
            KINDS[self.provider.kind] if self.provider.kind_documented else self.case.members or ({}, {})
        )
        return dict(required), dict(optional)

    def redeem(self) -> dict[str, object]:
        verifier = Secret("SENTINEL-VERIFIER") if self.profile.pkce else None
        return self.oauth.redeem(
            self.profile, code=Secret(CODE), redirect_uri=CALLBACK, code_verifier=verifier, deadline=5
        )

    def grant(self) -> Grant:
        return parse_grant(
            self.case.token,
            received_at=START,
            requires_access_token=self.provider.requires_access_token,
            access_seconds=self.profile.access_seconds,
        )

    def identify(self) -> tuple[Account, ...]:
        return self.provider.identify(self.case.app, self.grant(), self.http.request)

    def properties(self, account: Account, grant: Grant) -> dict[str, object]:
        used = grant if self.provider.import_needs_grant else None
        return self.provider.properties(self.case.app, account, used)


@pytest.fixture(params=sorted(discover()))
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    assert request.param in CASES, f"add canned answers for {request.param}: tests/providers/{request.param}/"
    http = Http(allow_plain_loopback=False, user_agent="broker-test")
    with responses.RequestsMock(assert_all_requests_are_fired=False) as network:
        opened = Stand(discover()[request.param], CASES[request.param], network, http)
        opened.answer(opened.read)
        for url, body in opened.case.probe_posts.items():
            network.upsert("POST", url, json=body)
        yield opened
    http.close()


def test_every_case_belongs_to_a_provider() -> None:
    assert set(CASES) <= set(discover())


# --- data -----------------------------------------------------------------------------------------------


def test_its_data_is_complete(stand: Stand) -> None:
    provider = stand.provider
    assert re.fullmatch(r"[a-z][a-z0-9_]{1,39}", provider.name)
    assert provider.title
    assert provider.sequin_provider in SLUGS
    # Where Sequin documents no kind, the case says what is imported.
    assert (provider.kind in KINDS) is provider.kind_documented
    assert (stand.case.members is None) is provider.kind_documented
    assert provider.reads
    assert provider.never
    assert all(text.strip() == text for text in (*provider.reads, provider.never))


def test_its_addresses_are_https(stand: Stand) -> None:
    for url in (stand.profile.authorize_url, stand.profile.token_url, stand.profile.issuer):
        assert url is None or urlsplit(url).scheme == "https"


# --- leaving --------------------------------------------------------------------------------------------


def test_the_authorize_address_carries_what_makes_a_flow_safe(stand: Stand) -> None:
    departure = stand.oauth.depart(stand.profile, redirect_uri=CALLBACK)
    query = parse_qs(urlsplit(departure.url).query, strict_parsing=True)
    assert query["client_id"] == [stand.case.app.client_id]
    assert query["redirect_uri"] == [CALLBACK]
    assert query["response_type"] == ["code"]
    assert query["state"] == [departure.state.reveal()]
    assert len(departure.state) >= 22
    assert all(len(values) == 1 for values in query.values())
    asked = stand.profile.scope_separator.join(stand.profile.scopes)
    assert query.get("scope", []) == ([asked] if asked else [])
    for secret in stand.case.app.client_secrets:
        assert secret.reveal() not in departure.url


def test_it_uses_pkce_or_says_why_not(stand: Stand) -> None:
    departure = stand.oauth.depart(stand.profile, redirect_uri=CALLBACK)
    query = parse_qs(urlsplit(departure.url).query)
    if not stand.profile.pkce:
        assert len(stand.provider.no_pkce_because) > 20
        assert departure.code_verifier is None
        assert not {"code_challenge", "code_challenge_method"} & set(query)
        return
    assert not stand.provider.no_pkce_because
    assert departure.code_verifier is not None
    verifier = departure.code_verifier.reveal()
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    assert query["code_challenge"] == [challenge]
    assert query["code_challenge_method"] == ["S256"]
    assert 43 <= len(verifier) <= 128
    assert verifier not in departure.url


def test_the_configured_scopes_are_asked_for_else_the_defaults(stand: Stand) -> None:
    offered = OfferedApp(stand.case.app, stand.provider)
    assert set(stand.profile.scopes) <= set(offered.scopes)


# --- the token request ----------------------------------------------------------------------------------


def test_the_token_request_proves_who_we_are_as_the_provider_wants_it(stand: Stand) -> None:
    stand.network.post(stand.profile.token_url, json=stand.case.token)
    assert stand.redeem() == stand.case.token
    (call,) = stand.network.calls
    form = parse_qs(str(call.request.body), strict_parsing=True)
    assert (form["grant_type"], form["code"], form["redirect_uri"]) == (["authorization_code"], [CODE], [CALLBACK])
    assert ("code_verifier" in form) is stand.profile.pkce
    assert call.request.headers["Accept"] == "application/json"
    client, secret = stand.case.app.client_id, stand.case.app.client_secrets[0].reveal()
    header = call.request.headers.get("Authorization")
    if stand.case.authenticates == "client_secret_post":
        assert (form["client_id"], form["client_secret"], header) == ([client], [secret], None)
        return
    assert header is not None
    assert "client_secret" not in form
    user, _, password = base64.b64decode(header.removeprefix("Basic ")).decode().partition(":")
    if stand.case.authenticates == "secret_key_basic":
        assert (user, password) == (secret, "")
    else:
        assert (unquote_plus(user), unquote_plus(password)) == (client, secret)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_of_the_token_request_is_followed(stand: Stand, status: int) -> None:
    stand.network.post(stand.profile.token_url, status=status, headers={"Location": "https://evil.example/"})
    with pytest.raises(RedirectRefused):
        stand.redeem()
    assert len(stand.network.calls) == 1


COMMON: list[tuple[dict[str, Any], type[BrokerError]]] = [
    ({"status": 400, "json": {"error": "invalid_grant"}}, GrantRefused),
    ({"status": 401, "json": {"error": "invalid_client"}}, ClientRefused),
    ({"status": 400, "json": {"error": "unauthorized_client"}}, ClientRefused),
    ({"status": 429, "headers": {"Retry-After": "9"}, "json": {}}, OAuthUnavailable),
    ({"status": 503, "json": {"error": "invalid_grant"}}, OAuthUnavailable),
    ({"status": 200, "json": {"error": "invalid_grant"}}, GrantRefused),
    ({"status": 200, "body": "<html>"}, UnusableAnswer),
    ({"status": 200, "json": {}}, UnusableAnswer),
    ({"status": 200, "json": ["x"]}, UnusableAnswer),
]


@pytest.mark.parametrize(("answer", "kind"), COMMON)
def test_token_errors_are_classified_after_one_request(
    stand: Stand, answer: dict[str, Any], kind: type[BrokerError]
) -> None:
    stand.network.post(stand.profile.token_url, **answer)
    with pytest.raises(kind) as caught:
        stand.redeem()
    assert len(stand.network.calls) == 1
    assert "SENTINEL" not in str(caught.value)


def test_its_own_dialect_of_token_errors_is_understood(stand: Stand) -> None:
    for status, body, kind in stand.case.refusals:
        stand.network.upsert("POST", stand.profile.token_url, status=status, json=body)
        with pytest.raises(BrokerError) as caught:
            stand.redeem()
        assert caught.type is kind, body
        secret = stand.case.app.client_secrets[0].reveal()
        assert secret not in str(caught.value)


# --- the grant ------------------------------------------------------------------------------------------


def test_a_grant_survives_being_sealed_with_all_that_the_provider_said(stand: Stand) -> None:
    grant = stand.grant()
    again = Grant.from_json(grant.to_json())
    assert again == grant
    assert (grant.access_token, grant.refresh_token) == (Secret(ACCESS), Secret(REFRESH))
    for account in stand.identify():
        assert stand.properties(account, again) == stand.properties(account, grant)


def test_a_grant_shows_no_token(stand: Stand) -> None:
    for text in (repr(stand.grant()), str(stand.grant()), f"{stand.grant()}"):
        assert "SENTINEL" not in text


def test_a_refresh_replaces_what_its_answer_holds_and_keeps_the_rest(stand: Stand) -> None:
    grant, life = stand.grant(), stand.profile.access_seconds
    for told, kept in ({"refresh_token": "SENTINEL-NEXT"}, "SENTINEL-NEXT"), ({}, REFRESH):
        answer = {"access_token": "SENTINEL-RENEWED", "token_type": "bearer", **told}
        stand.network.upsert("POST", stand.profile.token_url, json=answer)
        received = stand.oauth.refresh(stand.profile, refresh_token=Secret(REFRESH), deadline=5)
        renewed = grant.renewed(received, received_at=START, access_seconds=life)
        assert (renewed.access_token, renewed.refresh_token) == (Secret("SENTINEL-RENEWED"), Secret(kept))
        assert renewed.scopes == grant.scopes
        assert {name: renewed.extra[name] for name in grant.extra} == grant.extra
        assert [account.id for account in stand.identify()] == list(stand.case.accounts)


# --- who is it? -----------------------------------------------------------------------------------------


def test_the_accounts_are_read_from_the_provider_and_no_token_stands_in_an_address(stand: Stand) -> None:
    accounts = stand.identify()
    assert tuple(account.id for account in accounts) == stand.case.accounts
    assert stand.network.calls
    for call in stand.network.calls:
        url = str(call.request.url).partition("?")[0]
        assert call.request.method == stand.method(url)
        assert ACCESS not in str(call.request.url)
        if url in stand.case.introspects:
            body = call.request.body
            form = parse_qs(body.decode() if isinstance(body, bytes) else str(body))
            assert (form["token"], form["client_id"]) == ([ACCESS], [stand.case.app.client_id])
            continue
        assert call.request.headers["Authorization"] == f"Bearer {ACCESS}"
        assert ACCESS not in repr(call.request.body)


def test_accounts_fit_their_columns_and_hold_no_secret(stand: Stand) -> None:
    for account in stand.identify():
        assert 0 < len(account.id) <= 255
        assert 0 < len(account.name) <= NAME_LIMIT
        assert account.mode in ("test", "live")
        assert len(account.type or "") <= 40
        assert len(account.selector) <= 64
        assert json.loads(json.dumps(account.facts)) == account.facts
        assert "SENTINEL" not in repr(account)


def test_names_are_cleaned(stand: Stand) -> None:
    url, *way = stand.case.name_at
    answers = copy.deepcopy(dict(stand.read))
    place = answers[str(url)]
    for step in way[:-1]:
        place = place[step]
    place[way[-1]] = HOSTILE
    stand.answer(answers)
    account = stand.identify()[0]
    for text in (account.name, *(fact for fact in account.facts.values() if isinstance(fact, str))):
        assert text.isprintable()
        assert storable(text)
        assert len(text) <= NAME_LIMIT
    assert account.name.startswith("A c m e <b>")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"status": 401, "json": {}}, TokenRejected),
        ({"status": 429, "headers": {"Retry-After": "9"}}, ProviderUnavailable),
        ({"status": 403, "headers": {"Retry-After": "9"}, "json": {}}, ProviderUnavailable),
        ({"status": 500}, ProviderUnavailable),
        ({"status": 503}, ProviderUnavailable),
        ({"status": 302, "headers": {"Location": "https://evil.example/"}}, RedirectRefused),
        ({"body": "<html>"}, UnusableAnswer),
        ({"json": []}, UnusableAnswer),
        ({"json": None}, UnusableAnswer),
        ({"json": {}}, UnusableAnswer),
        ({"json": {"id": {"nested": True}}}, UnusableAnswer),
    ],
)
def test_trouble_while_reading_the_account_is_classified(
    stand: Stand, answer: dict[str, Any], kind: type[BrokerError]
) -> None:
    stand.identify()
    asked = {str(call.request.url).partition("?")[0] for call in stand.network.calls}
    for url in asked:
        stand.network.upsert(stand.method(url), url, **answer)
        with pytest.raises(kind) as caught:
            stand.identify()
        assert "SENTINEL" not in str(caught.value)
        assert getattr(caught.value, "retry_after", None) == (9 if "Retry-After" in answer.get("headers", {}) else None)
        stand.answer({url: stand.read[url]})


def test_wrong_types_anywhere_in_an_answer_never_fail_in_an_unforeseen_way(stand: Stand) -> None:
    for url, body in stand.read.items():
        for spoilt in spoilings(body):
            stand.answer({url: spoilt})
            # Every error of ours is foreseen; a KeyError or TypeError would fail this test.
            with suppress(BrokerError):
                for account in stand.identify():
                    if stand.provider.confirm is not None:
                        stand.provider.confirm(stand.case.app, account, stand.grant(), stand.http.request, START)
                    stand.properties(account, stand.grant())
        stand.answer({url: body})


def spoilings(body: Any) -> Iterator[Any]:
    """Yield `body` with itself or one member, at any depth, replaced by a value of another type."""
    yield from (None, True, 7, -1.5, "text", [], {}, [None], {"a": 1})
    if isinstance(body, dict):
        for key, value in body.items():
            yield from ({**body, key: spoilt} for spoilt in spoilings(value))
    elif isinstance(body, list):
        for index, value in enumerate(body):
            yield from ([*body[:index], spoilt, *body[index + 1 :]] for spoilt in spoilings(value))


# --- proof ----------------------------------------------------------------------------------------------


def test_a_person_who_may_connect_an_account_is_confirmed(stand: Stand) -> None:
    accounts = stand.identify()
    before = len(stand.network.calls)
    for account in accounts:
        if stand.provider.confirm is not None:
            stand.provider.confirm(stand.case.app, account, stand.grant(), stand.http.request, START)
    asked = [call.request for call in stand.network.calls][before:]
    for request in asked:
        ourselves = str(request.url) in stand.case.as_ourselves
        assert (request.headers["Authorization"] == f"Bearer {ACCESS}") is not ourselves


# --- the import -----------------------------------------------------------------------------------------


def test_the_properties_are_those_of_sequins_kind(stand: Stand) -> None:
    required, optional = stand.members
    for account in stand.identify():
        properties = stand.properties(account, stand.grant())
        assert properties.pop("kind") == stand.provider.kind
        assert set(required) <= set(properties) <= set(required) | set(optional)
        for name, value in properties.items():
            assert type(value) is (required | optional)[name], name
            assert value != ""
        assert json.loads(json.dumps(properties)) == properties


def test_what_identifies_a_credential_is_part_of_what_is_imported_and_no_secret(stand: Stand) -> None:
    for account in stand.identify():
        identity = stand.provider.identity(account)
        assert identity
        assert identity.items() <= stand.properties(account, stand.grant()).items()
        assert "SENTINEL" not in repr(identity)


def test_an_import_that_needs_no_grant_holds_no_token(stand: Stand) -> None:
    if stand.provider.import_needs_grant:
        return
    for account in stand.identify():
        assert "SENTINEL" not in json.dumps(stand.properties(account, stand.grant()))


def test_its_own_page_about_a_connection_is_a_safe_address(stand: Stand) -> None:
    if stand.provider.manage_url is None:
        return
    for account in stand.identify():
        url = stand.provider.manage_url(stand.case.app, account)
        assert urlsplit(url).scheme == "https"
        assert url.isprintable()
        assert " " not in url


def test_an_installation_page_carries_the_state(stand: Stand) -> None:
    if stand.provider.install_url is None:
        return
    url = urlsplit(stand.provider.install_url(stand.case.app, Secret("st/ate&x=1")))
    assert url.scheme == "https"
    assert parse_qs(url.query)["state"] == ["st/ate&x=1"]


# --- how is it now? -------------------------------------------------------------------------------------


def probed(stand: Stand, account: Account) -> Condition:
    assert stand.provider.probe is not None
    stand.answer(stand.case.probe_answers)
    grant = stand.grant() if stand.provider.probe_needs_grant else None
    return stand.provider.probe(stand.case.app, account, grant, stand.http.request, START)


def test_a_probe_asks_about_one_account_and_shows_no_token_in_an_address(stand: Stand) -> None:
    if stand.provider.probe is None:
        return
    for account in stand.identify():
        before = len(stand.network.calls)
        condition = probed(stand, account)
        assert condition.account is None or condition.account.id == account.id
        asked = [call.request for call in stand.network.calls][before:]
        assert 1 <= len(asked) <= 2
        assert all("SENTINEL" not in str(request.url) for request in asked)


PROBE_ANSWERS: list[Any] = [{}, [], {"error": {"code": "account_invalid"}}, {"error": "x"}, {"message": "x"}]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_whatever_a_probe_is_answered_is_foreseen(stand: Stand, status: int) -> None:
    if stand.provider.probe is None:
        return
    (account, *_) = stand.identify()
    grant = stand.grant() if stand.provider.probe_needs_grant else None
    for body in PROBE_ANSWERS:
        for url in {**stand.case.answers, **stand.case.probe_answers}:
            stand.network.upsert("GET", url, status=status, json=body)
        for url in stand.case.probe_posts:
            stand.network.upsert("POST", url, status=status, json=body)
        with pytest.raises(BrokerError) as caught:
            stand.provider.probe(stand.case.app, account, grant, stand.http.request, START)
        if status >= 429:
            # A provider that is away says nothing about anybody's connection.
            assert caught.value.verdict is Verdict.RETRY


def test_a_grant_that_is_refreshed_here_keeps_its_refresh_token_out_of_the_import(stand: Stand) -> None:
    offered = OfferedApp(stand.case.app, stand.provider)
    if offered.refreshes:
        assert offered.keeps_grant
        for account in stand.identify():
            assert "refresh_token" not in stand.properties(account, stand.grant())


# --- the end --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 204, 400, 401, 403, 404, 429, 500, 503])
def test_whatever_ending_access_is_answered_is_foreseen_and_no_token_stands_in_an_address(
    stand: Stand, status: int
) -> None:
    (account, *_) = stand.identify()
    before = len(stand.network.calls)
    for method in ("POST", "DELETE"):
        stand.network.add(method, re.compile("https://.*"), status=status, json={"error": "invalid_token"})
    for end in (stand.provider.revoke, stand.provider.end_token and ended_by_token(stand.provider)):
        if end is None:
            continue
        grant = stand.grant() if stand.provider.revoke_needs_grant or end is not stand.provider.revoke else None
        refusal = refusal_of(partial(end, stand.case.app, account, grant, stand.http.request, START))
        assert "SENTINEL" not in str(refusal)
        if status >= 429:
            # Never taken for done, and never for good.
            assert refusal is not None
            assert refusal.verdict is Verdict.RETRY
    assert all("SENTINEL" not in str(call.request.url) for call in [*stand.network.calls][before:])


def refusal_of(end: Callable[[], object]) -> BrokerError | None:
    try:
        end()
    except BrokerError as refusal:
        return refusal
    return None


def ended_by_token(provider: Provider) -> Callable[..., bool | None]:
    def end(app: OAuthApp, _account: Account, grant: Grant | None, call: Call, _now: datetime) -> None:
        assert provider.end_token is not None
        assert grant is not None
        provider.end_token(app, grant, call)

    return end


# --- webhooks -------------------------------------------------------------------------------------------


def heard(stand: Stand, body: bytes, headers: Mapping[str, str], secrets: tuple[Secret, ...] = ()) -> Notice:
    assert stand.provider.webhook is not None
    app = replace(stand.case.app, webhook_secrets=secrets or (Secret("whsec_one"),))
    return stand.provider.webhook(app, headers, body, START)


def signed(stand: Stand, body: bytes, secret: str = "whsec_one", at: datetime = START) -> Mapping[str, str]:
    assert stand.case.signs is not None, "say in cases.py how this provider signs"
    return stand.case.signs(body, Secret(secret), at)


def test_a_webhook_is_taken_with_any_of_the_secrets(stand: Stand) -> None:
    if stand.provider.webhook is None:
        return
    body = json.dumps(stand.case.event).encode()
    for secret in ("whsec_one", "whsec_two"):
        notice = heard(stand, body, signed(stand, body, secret), (Secret("whsec_one"), Secret("whsec_two")))
        assert notice.kind is not NoticeKind.NOTHING
        assert 0 < len(notice.delivery_id) <= 128
        assert 0 < len(notice.name) <= 80
        assert notice.occurred_at is None or notice.occurred_at.tzinfo is not None


def test_a_webhook_without_a_right_signature_is_refused_before_it_is_read(stand: Stand) -> None:
    if stand.provider.webhook is None:
        return
    body = json.dumps(stand.case.event).encode()
    good = signed(stand, body)
    spoilt = {name: value[:-1] + ("0" if value[-1] != "0" else "1") for name, value in good.items()}
    wrong = [{}, dict.fromkeys(good, ""), dict.fromkeys(good, "x"), spoilt, signed(stand, body, "whsec_other")]
    for headers in wrong:
        for sent in (body, b"", b"not json", b"\xff"):
            with pytest.raises(WebhookRefused):
                heard(stand, sent, headers)
    with pytest.raises(WebhookRefused):
        heard(stand, body + b" ", good)
    with pytest.raises(WebhookRefused):
        stand.provider.webhook(replace(stand.case.app, webhook_secrets=()), good, body, START)


def test_a_signed_webhook_that_makes_no_sense_never_fails_in_an_unforeseen_way(stand: Stand) -> None:
    if stand.provider.webhook is None:
        return
    for spoilt in spoilings(stand.case.event):
        body = json.dumps(spoilt).encode()
        with suppress(WebhookInvalid):
            heard(stand, body, signed(stand, body))
    for body in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1e999"):
        with pytest.raises(WebhookInvalid):
            heard(stand, body, signed(stand, body))
