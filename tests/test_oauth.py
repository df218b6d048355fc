"""The OAuth protocol: what is sent, how every kind of answer is judged, and what stays secret."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from urllib.parse import parse_qs, quote_plus, urlsplit

import pytest
import requests
import responses

from broker.clock import ManualClock
from broker.errors import (
    AnswerTooLarge,
    BrokerError,
    ClientRefused,
    ConnectionBroken,
    DeadlineExceeded,
    GrantRefused,
    NetworkError,
    OAuthFailure,
    OAuthUnavailable,
    RedirectRefused,
    Unreadable,
    UnusableAnswer,
)
from broker.http import Http
from broker.oauth import Grant, OAuth, OAuthProfile, TokenAuth, error_code, parse_grant
from broker.secret import Secret

TOKEN_URL = "https://provider.example/oauth/token"
CALLBACK = "https://broker.example/oauth/acme/callback"
CODE = "SENTINEL-CODE/+="
VERIFIER = "SENTINEL-VERIFIER"
CLIENT_SECRET = "SENTINEL-CLIENT-SECRET"
REFRESH = "SENTINEL-REFRESH"
NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
GOOD = {"access_token": "SENTINEL-ACCESS", "token_type": "bearer", "scope": "repo,gist"}


def profile(**changes: Any) -> OAuthProfile:
    """An OAuth app at a made-up provider."""
    facts: dict[str, Any] = {
        "authorize_url": "https://provider.example/oauth/authorize?tenant=1",
        "token_url": TOKEN_URL,
        "token_auth": "client_secret_post",
        "client_id": "client-1",
        "client_secrets": (Secret(CLIENT_SECRET),),
        "scopes": ("repo", "gist"),
        "pkce": True,
    }
    return OAuthProfile(**{**facts, **changes})


@pytest.fixture
def http() -> Iterator[Http]:
    door = Http(allow_plain_loopback=True, user_agent="broker-test")
    yield door
    door.close()


@pytest.fixture
def oauth(http: Http) -> OAuth:
    return OAuth(http, ManualClock(NOW))


@pytest.fixture
def network() -> Iterator[responses.RequestsMock]:
    """A stand-in for the network that answers what each test adds."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def redeem(oauth: OAuth, used: OAuthProfile | None = None) -> dict[str, object]:
    return oauth.redeem(
        used or profile(), code=Secret(CODE), redirect_uri=CALLBACK, code_verifier=Secret(VERIFIER), deadline=5
    )


def form_of(network: responses.RequestsMock) -> dict[str, list[str]]:
    body = network.calls[0].request.body
    return parse_qs(body.decode() if isinstance(body, bytes) else str(body), keep_blank_values=True)


def refused(network: responses.RequestsMock, oauth: OAuth, **answer: Any) -> Any:
    """Return how a redemption fails when the token endpoint answers like this, after one request."""
    network.post(TOKEN_URL, **answer)
    with pytest.raises(BrokerError) as caught:
        redeem(oauth)
    assert len(network.calls) == 1
    return caught.value


# --- departing ----------------------------------------------------------------------------------------


def query(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query, strict_parsing=True)


def test_a_departure_carries_everything_the_provider_needs(oauth: OAuth) -> None:
    left = oauth.depart(profile(), redirect_uri=CALLBACK)
    assert left.code_verifier is not None
    challenge = base64.urlsafe_b64encode(hashlib.sha256(left.code_verifier.reveal().encode()).digest()).rstrip(b"=")
    assert left.url.startswith("https://provider.example/oauth/authorize?")
    assert query(left.url) == {
        "tenant": ["1"],
        "response_type": ["code"],
        "client_id": ["client-1"],
        "redirect_uri": [CALLBACK],
        "scope": ["repo gist"],
        "state": [left.state.reveal()],
        "code_challenge": [challenge.decode()],
        "code_challenge_method": ["S256"],
    }


def test_state_and_verifier_are_long_random_and_unlike_each_other(oauth: OAuth) -> None:
    departures = [oauth.depart(profile(), redirect_uri=CALLBACK) for _ in range(50)]
    states = {left.state.reveal() for left in departures}
    verifiers = {left.code_verifier.reveal() for left in departures if left.code_verifier}
    assert len(states) == len(verifiers) == 50
    assert all(len(state) >= 22 for state in states)
    assert all(re.fullmatch(r"[A-Za-z0-9._~-]{43,128}", verifier) for verifier in verifiers)
    assert not states & verifiers


def test_the_verifier_and_the_client_secret_are_in_no_address(oauth: OAuth) -> None:
    left = oauth.depart(profile(), redirect_uri=CALLBACK)
    assert left.code_verifier is not None
    assert left.code_verifier.reveal() not in left.url
    assert CLIENT_SECRET not in left.url


def test_a_departure_prints_neither_state_nor_verifier(oauth: OAuth) -> None:
    left = oauth.depart(profile(), redirect_uri=CALLBACK)
    assert left.state.reveal() not in f"{left!r}{left}"


def test_a_provider_without_pkce_gets_no_challenge(oauth: OAuth) -> None:
    left = oauth.depart(profile(pkce=False), redirect_uri=CALLBACK)
    assert left.code_verifier is None
    assert "code_challenge" not in query(left.url)


def test_without_scopes_none_are_sent_and_the_separator_is_the_providers(oauth: OAuth) -> None:
    bare = oauth.depart(profile(scopes=()), redirect_uri=CALLBACK)
    commas = oauth.depart(profile(scope_separator=","), redirect_uri=CALLBACK)
    assert "scope" not in query(bare.url)
    assert query(commas.url)["scope"] == ["repo,gist"]


def test_a_given_state_is_used_and_a_calls_parameters_go_before_the_profiles(oauth: OAuth) -> None:
    used = profile(authorize_params={"prompt": "none", "allow_signup": "false", "gone": "x"})
    extra: dict[str, Any] = {"prompt": "select_account", "stripe_user[email]": "a@b.example", "gone": None}
    sent = query(oauth.depart(used, redirect_uri=CALLBACK, state=Secret("mine"), **extra).url)
    assert sent["state"] == ["mine"]
    assert sent["prompt"] == ["select_account"]
    assert sent["allow_signup"] == ["false"]
    assert sent["stripe_user[email]"] == ["a@b.example"]
    assert "gone" not in sent


@pytest.mark.parametrize("name", ["client_id", "response_type", "scope", "code_challenge", "code_challenge_method"])
def test_extra_parameters_cannot_replace_what_makes_a_flow_safe(oauth: OAuth, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        oauth.depart(profile(authorize_params={name: "x"}), redirect_uri=CALLBACK)


# --- redeeming: what is sent --------------------------------------------------------------------------


def test_a_code_is_redeemed_with_one_request_that_carries_everything(
    oauth: OAuth, network: responses.RequestsMock
) -> None:
    network.post(TOKEN_URL, json=GOOD)
    assert redeem(oauth) == GOOD
    request = network.calls[0].request
    assert len(network.calls) == 1
    assert request.headers["Accept"] == "application/json"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["Content-Type"].startswith("application/x-www-form-urlencoded")
    assert "Authorization" not in request.headers
    assert request.url == TOKEN_URL
    assert form_of(network) == {
        "grant_type": ["authorization_code"],
        "code": [CODE],
        "redirect_uri": [CALLBACK],
        "code_verifier": [VERIFIER],
        "client_id": ["client-1"],
        "client_secret": [CLIENT_SECRET],
    }


@pytest.mark.parametrize(
    ("token_auth", "user_and_password"),
    [("client_secret_basic", f"client-1:{CLIENT_SECRET}"), ("secret_key_basic", f"{CLIENT_SECRET}:")],
)
def test_basic_ways_keep_the_secret_out_of_the_body(
    oauth: OAuth, network: responses.RequestsMock, token_auth: TokenAuth, user_and_password: str
) -> None:
    network.post(TOKEN_URL, json=GOOD)
    redeem(oauth, profile(token_auth=token_auth))
    sent = str(network.calls[0].request.headers["Authorization"])
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == user_and_password
    assert "client_secret" not in form_of(network)


@pytest.mark.parametrize("token_auth", get_args(TokenAuth))
@pytest.mark.parametrize("secret", ["ключ", "a b+c&d=e%f", "päss:wörd", "x" * 3000])
def test_a_client_secret_of_any_alphabet_arrives(
    oauth: OAuth, network: responses.RequestsMock, token_auth: TokenAuth, secret: str
) -> None:
    network.post(TOKEN_URL, json=GOOD)
    redeem(oauth, profile(token_auth=token_auth, client_secrets=(Secret(secret),)))
    request = network.calls[0].request
    if token_auth == "client_secret_post":
        assert form_of(network)["client_secret"] == [secret]
    else:
        found = base64.b64decode(str(request.headers["Authorization"]).removeprefix("Basic ")).decode()
        expected = f"client-1:{quote_plus(secret)}" if "client" in token_auth else f"{secret}:"
        assert found == expected


def test_a_code_without_a_verifier_is_redeemed_without_one(oauth: OAuth, network: responses.RequestsMock) -> None:
    network.post(TOKEN_URL, json=GOOD)
    oauth.redeem(profile(), code=Secret(CODE), redirect_uri=CALLBACK, code_verifier=None)
    assert "code_verifier" not in form_of(network)


def test_the_answer_comes_back_as_it_was_sent(oauth: OAuth, network: responses.RequestsMock) -> None:
    answer = {**GOOD, "expires_in": "3600.5", "stripe_user_id": "acct_1", "nested": {"a": [1, None]}, "error": None}
    network.post(TOKEN_URL, json=answer)
    assert redeem(oauth) == answer


def test_an_odd_token_answer_is_handed_over_so_that_it_can_be_sealed(
    oauth: OAuth, network: responses.RequestsMock
) -> None:
    network.post(TOKEN_URL, json={"access_token": 7, "token_type": "mac", "expires_in": "soon"})
    assert redeem(oauth)["access_token"] == 7


def test_a_request_that_cannot_be_written_was_not_sent_and_quotes_nothing(oauth: OAuth) -> None:
    with pytest.raises(NetworkError) as caught:
        oauth.redeem(profile(), code=Secret("SENTINEL\ud800"), redirect_uri=CALLBACK, code_verifier=None)
    assert not caught.value.sent
    assert "SENTINEL" not in str(caught.value)


# --- redeeming: how answers are judged ----------------------------------------------------------------

CASES: list[tuple[type[OAuthFailure], int, dict[str, Any], str]] = [
    (GrantRefused, 400, {"error": "invalid_grant"}, "invalid_grant"),
    (GrantRefused, 200, {"error": "bad_verification_code"}, "bad_verification_code"),
    (GrantRefused, 200, {"error": "bad_refresh_token"}, "bad_refresh_token"),
    (GrantRefused, 400, {"error": "expired_token"}, "expired_token"),
    (GrantRefused, 200, {"error": "INVALID_GRANT", **GOOD}, "invalid_grant"),
    (ClientRefused, 401, {"error": "invalid_client"}, "invalid_client"),
    (ClientRefused, 200, {"error": "incorrect_client_credentials"}, "incorrect_client_credentials"),
    (ClientRefused, 400, {"error": "unauthorized_client"}, "unauthorized_client"),
    (ClientRefused, 200, {"error": "redirect_uri_mismatch"}, "redirect_uri_mismatch"),
    (ClientRefused, 400, {"error": "unsupported_grant_type"}, "unsupported_grant_type"),
    (ClientRefused, 200, {"error": "application_suspended"}, "application_suspended"),
    (ClientRefused, 401, {"error": {"type": "invalid_request_error", "message": "No"}}, "invalid_request_error"),
    (ClientRefused, 403, {"error": {"type": "permission_error"}}, "permission_error"),
    (ClientRefused, 404, {"error": "Not Found"}, "not_found"),
    (ClientRefused, 401, {}, "http_401"),
    (OAuthUnavailable, 429, {"error": {"type": "rate_limit_error", "code": "rate_limit"}}, "rate_limit"),
    (OAuthUnavailable, 429, {"error": "slow"}, "slow"),
    (OAuthUnavailable, 500, {"error": "invalid_grant"}, "invalid_grant"),
    (OAuthUnavailable, 503, {}, "http_503"),
    (OAuthUnavailable, 400, {"error": "temporarily_unavailable"}, "temporarily_unavailable"),
    (OAuthFailure, 400, {"error": "access_denied"}, "access_denied"),
    (OAuthFailure, 200, {"error": "unverified_user_email"}, "unverified_user_email"),
    (OAuthFailure, 400, {"error": "invalid_request"}, "invalid_request"),
    (OAuthFailure, 400, {"message": "no"}, "http_400"),
    (OAuthFailure, 400, {"error": ["a"]}, "unknown"),
    (OAuthFailure, 400, {"error": {"type": {"a": 1}, "message": 7}}, "unknown"),
    (OAuthFailure, 200, {"error": 7}, "unknown"),
]


@pytest.mark.parametrize(("kind", "status", "body", "code"), CASES)
def test_a_refusal_is_classified_by_its_code_wherever_it_stands(
    oauth: OAuth,
    network: responses.RequestsMock,
    kind: type[OAuthFailure],
    status: int,
    body: dict[str, Any],
    code: str,
) -> None:
    error = refused(network, oauth, json=body, status=status)
    assert type(error) is kind
    assert error.error == code
    assert f"HTTP {status}" in error.detail


@pytest.mark.parametrize(("status", "kind"), [(500, OAuthUnavailable), (401, ClientRefused), (400, OAuthFailure)])
def test_an_error_page_is_judged_by_its_status(
    oauth: OAuth, network: responses.RequestsMock, status: int, kind: type[OAuthFailure]
) -> None:
    error = refused(network, oauth, body="<html>bad gateway</html>", status=status)
    assert type(error) is kind
    assert error.error == f"http_{status}"


@pytest.mark.parametrize(
    "body", ["{}", "", "<html>ok</html>", "[]", "null", '"x"', "7", '{"a": NaN}', "access_token=x"]
)
def test_a_success_that_is_no_json_object_with_members_is_unusable(
    oauth: OAuth, network: responses.RequestsMock, body: str
) -> None:
    error = refused(network, oauth, body=body, status=200)
    assert type(error) is UnusableAnswer
    assert error.sent


@pytest.mark.parametrize(("value", "seconds"), [("30", 30.0), ("Sun, 22 Nov 2026 12:01:00 GMT", 60.0), ("x", None)])
def test_how_long_to_wait_is_passed_on(
    oauth: OAuth, network: responses.RequestsMock, value: str, seconds: float | None
) -> None:
    assert refused(network, oauth, status=429, headers={"Retry-After": value}).retry_after == seconds


def test_a_secondary_limit_that_answers_403_is_a_limit(oauth: OAuth, network: responses.RequestsMock) -> None:
    error = refused(network, oauth, json={"message": "limit"}, status=403, headers={"Retry-After": "60"})
    assert type(error) is OAuthUnavailable


@pytest.mark.parametrize("status", [302, 307, 308])
def test_a_redirect_of_the_token_endpoint_is_refused(
    oauth: OAuth, network: responses.RequestsMock, status: int
) -> None:
    network.post("https://evil.example/", json=GOOD)
    network.get("https://evil.example/", json=GOOD)
    error = refused(network, oauth, status=status, headers={"Location": "https://evil.example/"})
    assert type(error) is RedirectRefused


def test_a_huge_answer_is_refused(oauth: OAuth, network: responses.RequestsMock) -> None:
    assert type(refused(network, oauth, json={**GOOD, "x": "a" * 2_000_000})) is AnswerTooLarge


def test_an_ambiguous_failure_says_that_the_code_may_be_spent(oauth: OAuth, network: responses.RequestsMock) -> None:
    error = refused(network, oauth, body=requests.exceptions.ReadTimeout("no"))
    assert type(error) is DeadlineExceeded
    assert error.sent


@pytest.mark.network
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"])
def test_a_token_request_is_never_repeated_on_a_broken_connection(oauth: OAuth, answer: bytes) -> None:
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.settimeout(0.3)
            try:
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        heard.append(sock.recv(65536))
                        sock.sendall(answer)
            except OSError:
                return

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        with pytest.raises(ConnectionBroken) as caught:
            redeem(oauth, profile(token_url=address))
        thread.join()
    assert len(heard) == 1
    assert caught.value.sent
    assert CODE not in str(caught.value)


# --- secrets stay secret ------------------------------------------------------------------------------

ECHO = (
    f"Authorization code does not exist: {CODE} SENTINEL-CODE%2F%2B%3D {VERIFIER} {CLIENT_SECRET}\x00\n\ud800"
    + "x" * 999
)


@pytest.mark.parametrize(
    "body",
    [
        {"error": "invalid_grant", "error_description": ECHO},
        {"error": {"type": "x", "message": ECHO}},
        {"error": "access_denied", "error_description": ECHO},
        {"error": f"no {CODE}", "error_description": ECHO},
    ],
)
def test_what_a_provider_echoes_is_masked_cleaned_and_cut(
    oauth: OAuth, network: responses.RequestsMock, body: dict[str, Any]
) -> None:
    error = refused(network, oauth, json=body, status=400)
    assert "SENTINEL" not in str(error)
    assert "sentinel" not in error.error
    assert "Authorization code does not exist: •••" in str(error)
    assert str(error).isprintable()
    assert len(str(error)) < 300
    assert "exist" not in error.heading + error.advice + error.cure


def test_an_error_code_is_reduced_to_a_few_characters() -> None:
    assert error_code("Invalid Grant!") == "invalid_grant"
    assert error_code("<script>") == "script"
    assert error_code("a" * 500) == "a" * 64
    odds: list[object] = [None, 7, {}, "", "\x00", "é"]
    for odd in odds:
        assert error_code(odd) == "unknown"


def test_nothing_secret_reaches_the_log_at_debug(
    oauth: OAuth, network: responses.RequestsMock, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "authlib", "urllib3", "requests", "authlib.integrations.base_client.sync_app"):
        caplog.set_level(logging.DEBUG, logger=name)
    logging.getLogger("authlib.integrations.base_client.sync_app").debug("Using code_verifier: SENTINEL")
    network.post(TOKEN_URL, json=GOOD)
    left = oauth.depart(profile(), redirect_uri=CALLBACK)
    redeem(oauth)
    oauth.refresh(profile(), refresh_token=Secret(REFRESH))
    assert "SENTINEL" not in caplog.text
    assert left.state.reveal() not in caplog.text


def test_a_profile_prints_no_secret() -> None:
    assert CLIENT_SECRET not in repr(profile())


# --- refreshing ---------------------------------------------------------------------------------------


def test_a_refresh_sends_no_scope_and_keeps_what_the_answer_says(oauth: OAuth, network: responses.RequestsMock) -> None:
    network.post(TOKEN_URL, json=GOOD)
    assert oauth.refresh(profile(), refresh_token=Secret(REFRESH)) == GOOD
    assert form_of(network) == {
        "grant_type": ["refresh_token"],
        "refresh_token": [REFRESH],
        "client_id": ["client-1"],
        "client_secret": [CLIENT_SECRET],
    }


def test_a_refused_refresh_does_not_show_the_token(oauth: OAuth, network: responses.RequestsMock) -> None:
    network.post(
        TOKEN_URL, json={"error": "invalid_grant", "error_description": f"no such token {REFRESH}"}, status=400
    )
    with pytest.raises(GrantRefused) as caught:
        oauth.refresh(profile(), refresh_token=Secret(REFRESH))
    assert REFRESH not in str(caught.value)


TWO_SECRETS = (Secret("SENTINEL-OLD-SECRET"), Secret("SENTINEL-NEW-SECRET"))


def secrets_sent(network: responses.RequestsMock) -> list[str]:
    return [parse_qs(str(call.request.body))["client_secret"][0] for call in network.calls]


def test_while_a_client_secret_is_replaced_a_refused_one_costs_a_refresh_nothing(
    oauth: OAuth, network: responses.RequestsMock
) -> None:
    old, new = (secret.reveal() for secret in TWO_SECRETS)
    network.post(TOKEN_URL, json={"error": "invalid_client"}, status=401)
    network.post(TOKEN_URL, json=GOOD)

    for _ in range(2):
        assert oauth.refresh(profile(client_secrets=TWO_SECRETS), refresh_token=Secret(REFRESH)) == GOOD

    # From then on the good one goes first.
    assert secrets_sent(network) == [old, new, new]


def test_a_code_is_sent_once_even_when_the_client_secret_is_refused_but_the_next_goes_with_the_other(
    oauth: OAuth, network: responses.RequestsMock
) -> None:
    old, new = (secret.reveal() for secret in TWO_SECRETS)
    network.post(TOKEN_URL, json={"error": "invalid_client"}, status=401)
    network.post(TOKEN_URL, json=GOOD)

    with pytest.raises(ClientRefused):
        redeem(oauth, profile(client_secrets=TWO_SECRETS))
    assert secrets_sent(network) == [old]

    redeem(oauth, profile(client_secrets=TWO_SECRETS))
    assert secrets_sent(network) == [old, new]


def test_a_lifetime_the_provider_does_not_tell_is_filled_in() -> None:
    assert parse_grant({"access_token": "t"}, received_at=NOW, access_seconds=3600).expires_at == NOW + timedelta(
        hours=1
    )
    told = parse_grant({"access_token": "t", "expires_in": 60}, received_at=NOW, access_seconds=3600)
    assert told.expires_at == NOW + timedelta(minutes=1)


# --- grants -------------------------------------------------------------------------------------------


def test_a_grant_is_read_from_an_answer() -> None:
    answer = {
        **GOOD,
        "token_type": "Bearer",
        "refresh_token": "r" * 5000,
        "expires_in": "28800",
        "refresh_token_expires_in": 15897600,
        "stripe_user_id": "acct_1",
        "livemode": False,
    }
    grant = parse_grant(answer, received_at=NOW)
    assert grant.access_token == Secret("SENTINEL-ACCESS")
    assert grant.refresh_token == Secret("r" * 5000)
    assert (grant.token_type, grant.scopes) == ("bearer", ("repo", "gist"))
    assert grant.expires_at == NOW + timedelta(hours=8)
    assert grant.refresh_expires_at == NOW + timedelta(days=184)
    assert grant.extra == {"stripe_user_id": "acct_1", "livemode": False}


@pytest.mark.parametrize(
    ("scope", "scopes"),
    [
        ("a b", ("a", "b")),
        ("a,b, c", ("a", "b", "c")),
        ("", ()),
        (None, ()),
        (["a", "b"], ("a", "b")),
        ("b a b", ("b", "a")),
    ],
)
def test_scopes_are_split_on_spaces_and_commas(scope: object, scopes: tuple[str, ...]) -> None:
    assert parse_grant({"access_token": "t", "scope": scope}, received_at=NOW).scopes == scopes


@pytest.mark.parametrize(
    ("value", "seconds"), [(1, 1), ("60", 60), (3600.0, 3600), ("3600.5", 3600), (315705599, 315705599)]
)
def test_a_lifetime_is_read_as_number_or_text(value: object, seconds: int) -> None:
    grant = parse_grant({"access_token": "t", "expires_in": value}, received_at=NOW)
    assert grant.expires_at == NOW + timedelta(seconds=seconds)


def test_what_an_answer_leaves_out_is_unknown() -> None:
    grant = parse_grant({"access_token": "t", "refresh_token": "", "expires_in": None}, received_at=NOW)
    assert (grant.refresh_token, grant.expires_at, grant.refresh_expires_at, grant.token_type) == (
        None,
        None,
        None,
        "bearer",
    )


@pytest.mark.parametrize(
    ("change", "member"),
    [
        ({"access_token": None}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"access_token": "   "}, "access_token"),
        ({"access_token": 7}, "access_token"),
        ({"access_token": ["t"]}, "access_token"),
        ({"access_token": "SENTINEL\r\nX: y"}, "access_token"),
        ({"access_token": "SENTINEL\ud800"}, "access_token"),
        ({"refresh_token": 7}, "refresh_token"),
        ({"token_type": "mac"}, "token_type"),
        ({"token_type": 7}, "token_type"),
        ({"scope": 7}, "scope"),
        ({"scope": [7]}, "scope"),
        ({"expires_in": 0}, "expires_in"),
        ({"expires_in": -1}, "expires_in"),
        ({"expires_in": "soon"}, "expires_in"),
        ({"expires_in": True}, "expires_in"),
        ({"expires_in": 1e300}, "expires_in"),
        ({"expires_in": float("nan")}, "expires_in"),
        ({"expires_in": 10**11}, "expires_in"),
        ({"expires_in": {}}, "expires_in"),
        ({"expires_in": "٣"}, "expires_in"),
        ({"refresh_token_expires_in": "x"}, "refresh_token_expires_in"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_refused_without_quoting_it(change: dict[str, object], member: str) -> None:
    with pytest.raises(UnusableAnswer, match=f"^{member}: ") as caught:
        parse_grant({**GOOD, **change}, received_at=NOW)
    assert "SENTINEL" not in str(caught.value)


def test_an_answer_without_a_token_is_a_grant_where_none_is_required() -> None:
    grant = parse_grant({"stripe_user_id": "acct_1"}, received_at=NOW, requires_access_token=False)
    assert grant.access_token is None
    assert grant.extra == {"stripe_user_id": "acct_1"}


FULL = Grant(
    access_token=Secret("SENTINEL-A"),
    refresh_token=Secret("SENTINEL-R"),
    token_type="bearer",
    scopes=("a", "b"),
    expires_at=NOW,
    refresh_expires_at=NOW + timedelta(days=1),
    extra={"id": "acct_1", "odd": "\ud800\x00", "n": [1, None]},
)


@pytest.mark.parametrize("grant", [FULL, Grant(None, None, "bearer", (), None, None)])
def test_a_grant_survives_being_sealed(grant: Grant) -> None:
    assert Grant.from_json(grant.to_json()) == grant


@pytest.mark.parametrize("text", [b"", b"{}", b"[]", b"null", b'{"access_token": 7}', b"\xff"])
def test_what_is_no_sealed_grant_is_unreadable(text: bytes) -> None:
    with pytest.raises(Unreadable) as caught:
        Grant.from_json(text)
    assert caught.value.__cause__ is None


def test_a_grant_prints_no_token() -> None:
    shown = f"{FULL!r} {FULL} {Grant(Secret('SENTINEL'), None, 'bearer', (), None, None, {'id_token': 'SENTINEL'})}"
    assert "SENTINEL" not in shown
    assert "id_token" in shown


def test_a_renewed_grant_keeps_what_the_answer_leaves_out() -> None:
    grant = FULL.renewed({"access_token": "new", "expires_in": 60, "fresh": 1}, received_at=NOW)
    assert grant.access_token == Secret("new")
    assert grant.refresh_token == FULL.refresh_token
    assert grant.refresh_expires_at == FULL.refresh_expires_at
    assert grant.scopes == FULL.scopes
    assert grant.expires_at == NOW + timedelta(seconds=60)
    assert grant.extra == {**FULL.extra, "fresh": 1}


def test_a_rotated_refresh_token_replaces_the_old_one_and_its_end() -> None:
    grant = FULL.renewed({"access_token": "new", "refresh_token": "r2", "scope": "c"}, received_at=NOW)
    assert grant.refresh_token == Secret("r2")
    assert grant.refresh_expires_at is None
    assert grant.expires_at is None
    assert grant.scopes == ("c",)


def test_a_sealed_grant_is_plain_json() -> None:
    assert json.loads(FULL.to_json())["refresh_token"] == "SENTINEL-R"
