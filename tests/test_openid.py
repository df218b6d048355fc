"""OpenID Connect: what is asked of a provider, and which ID tokens prove who came back. Mostly the ones that do not."""

from __future__ import annotations

import base64
import hmac
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import responses
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, RSAKey
from joserfc.jws import JWSRegistry

from broker.clock import ManualClock
from broker.errors import (
    IdentityUnproven,
    IssuerMismatch,
    SignInFailure,
    SignInMisconfigured,
    SignInUnavailable,
)
from broker.http import Http
from broker.oauth import OAuth
from broker.openid import KEYS_AGAIN_SECONDS, LEFT_ALONE_SECONDS, SKEW_SECONDS, OpenIdProvider, refusal
from broker.secret import Secret
from broker.settings.model import SIGNING_ALGORITHMS
from tests.house import START
from tests.openid import ACCESS, CLIENT, CLIENT_SECRET, CODE, ISSUER, CannedProvider, key, people

BACK = "https://connect.acme.example/sign-in/callback"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START)


@pytest.fixture
def canned() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


@pytest.fixture
def there(canned: responses.RequestsMock, clock: ManualClock) -> CannedProvider:
    return CannedProvider(clock).listen(canned)


def openid(clock: ManualClock, **changes: Any) -> OpenIdProvider:
    http = Http(allow_plain_loopback=False, user_agent="tests")
    return OpenIdProvider(people(**changes), oauth=OAuth(http, clock), http=http, clock=clock, production=True)


def come_back(provider: OpenIdProvider, there: CannedProvider, *, issuer: str | None = None) -> Any:
    left = provider.depart(BACK)
    there.consent(left.url)
    return provider.identify(
        code=Secret(CODE), redirect_uri=BACK, code_verifier=left.code_verifier, nonce=left.nonce, issuer=issuer
    )


def unproven(provider: OpenIdProvider, token: str, nonce: str = "n-1") -> str:
    with pytest.raises(IdentityUnproven) as raised:
        provider.proven(token, nonce=Secret(nonce))
    assert token[:40] not in f"{raised.value}{raised.value.__cause__}{raised.value.__context__}"
    return raised.value.detail


# --- leaving and coming back ------------------------------------------------------------------------------


def test_a_person_leaves_with_state_nonce_and_a_challenge(clock: ManualClock, there: CannedProvider) -> None:
    left = openid(clock).depart(BACK)
    assert left.url.startswith(f"{ISSUER}authorize?")
    asked = there.consent(left.url)
    assert asked["state"] == left.state.reveal()
    assert asked["nonce"] == left.nonce.reveal() != left.state.reveal()
    assert asked["code_challenge_method"] == "S256"
    assert left.code_verifier.reveal() not in left.url
    assert (asked["client_id"], asked["redirect_uri"], asked["response_type"]) == (CLIENT, BACK, "code")
    assert asked["scope"] == "openid email profile"
    assert "prompt" not in asked
    assert there.consent(openid(clock).depart(BACK, another=True).url)["prompt"] == "select_account"


def test_who_comes_back_is_told_by_the_id_token(clock: ManualClock, there: CannedProvider) -> None:
    there.claims = {"email": "jo@example.com", "aud": [CLIENT], "azp": CLIENT}
    claims = come_back(openid(clock), there, issuer=ISSUER)
    assert (claims["sub"], claims["email"]) == ("u-1", "jo@example.com")
    assert there.forms[0]["code"] == CODE
    assert there.forms[0]["redirect_uri"] == BACK
    assert there.forms[0]["code_verifier"]
    assert there.asked == ["discovery", "token", "keys"]


def test_endpoints_are_those_the_issuer_publishes_and_its_word_is_kept_for_an_hour(
    clock: ManualClock, there: CannedProvider
) -> None:
    provider = openid(clock)
    come_back(provider, there)
    come_back(provider, there)
    assert there.asked.count("discovery") == there.asked.count("keys") == 1
    clock.advance(3_601)
    come_back(provider, there)
    assert there.asked.count("discovery") == there.asked.count("keys") == 2


def test_a_provider_that_is_away_is_asked_once_in_a_while(
    clock: ManualClock, there: CannedProvider, canned: responses.RequestsMock
) -> None:
    address = f"{ISSUER}.well-known/openid-configuration"
    canned.replace("GET", address, status=503)
    provider = openid(clock)
    for _ in range(3):
        with pytest.raises(SignInUnavailable):
            provider.depart(BACK)
    assert len([call for call in canned.calls if call.request.url == address]) == 1
    clock.advance(LEFT_ALONE_SECONDS)
    with pytest.raises(SignInUnavailable):
        provider.depart(BACK)
    assert len([call for call in canned.calls if call.request.url == address]) == 2


def test_what_was_published_still_counts_while_the_provider_is_away(
    clock: ManualClock, there: CannedProvider, canned: responses.RequestsMock
) -> None:
    provider = openid(clock)
    provider.depart(BACK)
    canned.replace("GET", f"{ISSUER}.well-known/openid-configuration", status=502)
    clock.advance(7_200)
    assert provider.depart(BACK).url.startswith(ISSUER)
    clock.advance(86_400)
    with pytest.raises(SignInUnavailable):
        provider.depart(BACK)


@pytest.mark.parametrize("issuer", ["https://id.acme.example", "https://evil.example/", ""])
def test_an_answer_that_names_another_issuer_is_refused_before_anything_is_sent(
    issuer: str, clock: ManualClock, there: CannedProvider
) -> None:
    with pytest.raises(IssuerMismatch):
        come_back(openid(clock), there, issuer=issuer)
    assert "token" not in there.asked


def test_a_provider_that_always_names_itself_has_to(clock: ManualClock, there: CannedProvider) -> None:
    there.discovery = {"authorization_response_iss_parameter_supported": True}
    with pytest.raises(IssuerMismatch):
        come_back(openid(clock), there)
    assert come_back(openid(clock), there, issuer=ISSUER)["sub"] == "u-1"


def test_client_id_and_secret_go_the_way_the_provider_takes_them(clock: ManualClock, there: CannedProvider) -> None:
    come_back(openid(clock), there)
    assert "client_secret" not in there.forms[0]
    there.discovery = {"token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"]}
    come_back(openid(clock), there)
    assert there.forms[1]["client_secret"] == CLIENT_SECRET


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (400, {"error": "invalid_grant"}, IdentityUnproven),
        (401, {"error": "invalid_client"}, SignInMisconfigured),
        (503, {}, SignInUnavailable),
        (200, {"access_token": ACCESS}, IdentityUnproven),
        (200, {"id_token": 7}, IdentityUnproven),
        (200, {"id_token": "x" * 70_000}, IdentityUnproven),
        (200, {"id_token": "not.a.token"}, IdentityUnproven),
    ],
)
def test_an_exchange_that_fails_signs_nobody_in(
    status: int, body: dict[str, Any], expected: type[SignInFailure], clock: ManualClock, there: CannedProvider
) -> None:
    there.answers = lambda: (status, body)
    with pytest.raises(expected) as raised:
        come_back(openid(clock), there)
    assert type(raised.value) is expected
    assert len(there.forms) == 1
    for secret in (CODE, ACCESS, CLIENT_SECRET):
        assert secret not in f"{raised.value}{raised.value.__cause__}"


# --- ID tokens that prove nothing -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"iss": "https://evil.example/"}, "iss"),
        ({"iss": ISSUER.rstrip("/")}, "iss"),
        ({"iss": None}, "iss"),
        ({"aud": "another-client"}, "aud"),
        ({"aud": ["another-client"]}, "aud"),
        ({"aud": None}, "aud"),
        ({"aud": [CLIENT, "another-client"]}, "azp"),
        ({"aud": [CLIENT, "another-client"], "azp": "another-client"}, "azp"),
        ({"azp": "another-client"}, "azp"),
        ({"nonce": "of another sign-in"}, "nonce"),
        ({"nonce": ["n-1"]}, "nonce"),
        ({"nonce": None}, "nonce"),
        ({"nonce": ""}, "nonce"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "x" * 256}, "subject"),
        ({"sub": "u-1\x00"}, "subject"),
        ({"exp": None}, "exp"),
        ({"exp": "soon"}, "exp"),
        ({"iat": None}, "iat"),
        ({"iat": True}, "iat"),
    ],
)
def test_a_claim_that_is_not_as_it_must_be_proves_nothing(
    claims: dict[str, Any], why: str, clock: ManualClock, there: CannedProvider
) -> None:
    there.nonce = "n-1"
    detail = unproven(openid(clock), there.id_token(**claims))
    assert why in detail or "ClaimError" in detail


def test_times_may_differ_by_a_minute_and_no_more(clock: ManualClock, there: CannedProvider) -> None:
    there.nonce, now = "n-1", int(clock.now().timestamp())
    provider, nonce = openid(clock), Secret("n-1")
    for claims in ({"exp": now - SKEW_SECONDS + 1}, {"iat": now + SKEW_SECONDS}, {"nbf": now + SKEW_SECONDS}):
        assert provider.proven(there.id_token(**claims), nonce=nonce)
    for claims in ({"exp": now - SKEW_SECONDS}, {"iat": now + SKEW_SECONDS + 1}, {"nbf": now + SKEW_SECONDS + 1}):
        unproven(provider, there.id_token(**claims))
    assert "too long ago" in unproven(provider, there.id_token(iat=now - 1_000, exp=now + 1_000))


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()


def unsigned(there: CannedProvider) -> str:
    _, payload, _ = there.id_token().split(".")
    return f"{encoded({'alg': 'none'})}.{payload}."


def signed_with_the_public_key(there: CannedProvider) -> str:
    # By hand: joserfc refuses to make such a thing.
    signed = f"{encoded({'alg': 'HS256', 'kid': 'one'})}.{there.id_token().split('.')[1]}"
    digest = hmac.digest(key().as_pem(private=False), signed.encode(), "sha256")
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def signed_by_somebody_else(there: CannedProvider) -> str:
    stranger = RSAKey.generate_key(2048, {"kid": "one"})
    return jwt.encode({"alg": "RS256", "kid": "one"}, {"iss": ISSUER, "aud": CLIENT, "sub": "u-1"}, stranger)


def signed_by_a_key_in_its_own_header(there: CannedProvider) -> str:
    stranger = RSAKey.generate_key(2048, {"kid": "mine"})
    header = {"alg": "RS256", "kid": "mine", "jwk": stranger.as_dict(private=False)}
    return jwt.encode(header, {"iss": ISSUER, "aud": CLIENT, "sub": "u-1"}, stranger)


def altered(there: CannedProvider) -> str:
    header, payload, signature = there.id_token().split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    return f"{header}.{encoded(claims | {'sub': 'somebody-else'})}.{signature}"


def without_signature(there: CannedProvider) -> str:
    return there.id_token().rpartition(".")[0] + "."


def in_another_algorithm(there: CannedProvider) -> str:
    return jwt.encode(
        {"alg": "PS256", "kid": "one"}, {"sub": "u-1"}, RSAKey.import_key(key().as_pem(private=True)), ["PS256"]
    )


def a_list(there: CannedProvider) -> str:
    from joserfc import jws

    return jws.serialize_compact({"alg": "RS256", "kid": "one"}, b"[]", key())


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        signed_with_the_public_key,
        signed_by_somebody_else,
        signed_by_a_key_in_its_own_header,
        altered,
        without_signature,
        in_another_algorithm,
        a_list,
    ],
)
def test_a_forged_id_token_proves_nothing(
    forge: Callable[[CannedProvider], str], clock: ManualClock, there: CannedProvider
) -> None:
    there.nonce = "n-1"
    assert unproven(openid(clock), forge(there)).startswith("the ID token’s signature")


@pytest.mark.parametrize("token", ["", ".", "..", "a.b.c", "é.é.é", "\ud800.x.y", "a" * 5_000, "e30.e30.e30"])
def test_what_is_no_token_at_all_is_refused_and_never_crashes(
    token: str, clock: ManualClock, there: CannedProvider
) -> None:
    with pytest.raises(IdentityUnproven):
        openid(clock).proven(token, nonce=Secret("n-1"))


def test_a_shared_secret_among_the_published_keys_is_no_key(clock: ManualClock, there: CannedProvider) -> None:
    secret = OctKey.import_key(b"everybody can read this" * 2, {"kid": "shared"})
    there.published, there.nonce = [secret.as_dict(), key()], "n-1"
    provider = openid(clock)
    assert provider.look()[1] == 1
    forged = jwt.encode({"alg": "HS256", "kid": "shared"}, {"sub": "u-1"}, secret)
    unproven(provider, forged)
    there.published = [secret.as_dict()]
    with pytest.raises(SignInUnavailable, match="no key"):
        openid(clock).look()


def test_keys_for_other_uses_and_of_unknown_kinds_are_left_out(clock: ManualClock, there: CannedProvider) -> None:
    other = key("enc").as_dict(private=False) | {"use": "enc"}
    there.published, there.nonce = [other, {"kty": "lattice", "kid": "q"}, "nonsense", key()], "n-1"
    provider = openid(clock)
    assert provider.look()[1] == 1
    assert provider.proven(there.id_token(), nonce=Secret("n-1"))


# --- keys that change -------------------------------------------------------------------------------------


def test_a_new_key_is_looked_for_once_and_an_old_one_is_not_believed_any_more(
    clock: ManualClock, there: CannedProvider
) -> None:
    provider, nonce = openid(clock), Secret("n-1")
    there.nonce = "n-1"
    old = there.id_token()
    assert provider.proven(old, nonce=nonce)
    clock.advance(KEYS_AGAIN_SECONDS)
    there.signer, there.published = key("two"), [key("two")]
    assert provider.proven(there.id_token(), nonce=nonce)
    assert there.asked.count("keys") == 2
    unproven(provider, old)


def test_tokens_with_unknown_keys_do_not_make_us_ask_all_the_time(clock: ManualClock, there: CannedProvider) -> None:
    provider = openid(clock)
    there.nonce, there.signer = "n-1", key("two")
    for _ in range(5):
        unproven(provider, there.id_token())
    assert there.asked.count("keys") == 1
    clock.advance(KEYS_AGAIN_SECONDS)
    unproven(provider, there.id_token())
    assert there.asked.count("keys") == 2


def test_another_algorithm_is_used_where_the_settings_name_it(clock: ManualClock, there: CannedProvider) -> None:
    elliptic = ECKey.generate_key("P-256", {"kid": "ec"})
    there.published, there.nonce = [elliptic], "n-1"
    now = int(clock.now().timestamp())
    claims = {"iss": ISSUER, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + 60, "nonce": "n-1"}
    token = jwt.encode({"alg": "ES256", "kid": "ec"}, claims, elliptic)
    assert openid(clock, signing_algorithm="ES256").proven(token, nonce=Secret("n-1"))["sub"] == "u-1"
    unproven(openid(clock), token)


# --- what a provider publishes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("discovery", "why"),
    [
        ({"issuer": ISSUER.rstrip("/")}, "calls itself 'https://id.acme.example', the settings say"),
        ({"issuer": "https://evil.example/"}, "calls itself"),
        ({"issuer": None}, "calls itself"),
        ({"authorization_endpoint": "http://id.acme.example/authorize"}, "authorization_endpoint"),
        ({"token_endpoint": None}, "token_endpoint"),
        ({"token_endpoint": "https://a:b@id.acme.example/token"}, "token_endpoint"),
        ({"jwks_uri": "http://127.0.0.1/keys"}, "jwks_uri"),
        ({"jwks_uri": ["https://id.acme.example/keys"]}, "jwks_uri"),
    ],
)
def test_a_discovery_document_that_is_not_the_issuers_own_is_not_used(
    discovery: dict[str, Any], why: str, clock: ManualClock, there: CannedProvider
) -> None:
    there.discovery = discovery
    with pytest.raises(SignInMisconfigured, match=why):
        openid(clock).depart(BACK)


def test_an_endpoint_keeps_the_query_it_is_published_with(clock: ManualClock, there: CannedProvider) -> None:
    there.discovery = {"authorization_endpoint": "https://login.acme.example/authorize?p=policy"}
    asked = there.consent(openid(clock).depart(BACK).url)
    assert (asked["p"], asked["client_id"]) == ("policy", CLIENT)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (404, "", SignInMisconfigured),
        (500, "", SignInUnavailable),
        (302, "", SignInUnavailable),
        (200, "<html>", SignInUnavailable),
        (200, "[]", SignInUnavailable),
    ],
)
def test_a_provider_that_cannot_be_asked_is_told_from_a_wrong_setting(
    status: int, body: str, expected: type[SignInFailure], clock: ManualClock, canned: responses.RequestsMock
) -> None:
    canned.get(f"{ISSUER}.well-known/openid-configuration", status=status, body=body, headers={"Location": "/x"})
    with pytest.raises(expected):
        openid(clock).depart(BACK)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("access_denied", "sign_in_denied"),
        ("login_required", "sign_in_denied"),
        ("temporarily_unavailable", "sign_in_unavailable"),
        ("invalid_scope", "sign_in_misconfigured"),
        ("unheard_of", "sign_in_failed"),
    ],
)
def test_an_error_in_the_answer_has_a_meaning(error: str, code: str) -> None:
    assert refusal(error).code == code


def test_nothing_of_it_is_logged(
    clock: ManualClock, there: CannedProvider, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        provider = openid(clock)
        left = provider.depart(BACK)
        there.consent(left.url)
        provider.identify(
            code=Secret(CODE), redirect_uri=BACK, code_verifier=left.code_verifier, nonce=left.nonce, issuer=None
        )
        unproven(provider, altered(there))
    written = caplog.text + "".join(capsys.readouterr())
    secrets = (CODE, ACCESS, CLIENT_SECRET, left.state.reveal(), left.nonce.reveal(), left.code_verifier.reveal())
    for secret in (*secrets, there.id_token()[:40]):
        assert secret not in written
        assert secret not in repr(left)


def test_every_algorithm_that_settings_take_is_known_and_none_of_them_shares_a_secret() -> None:
    for name in SIGNING_ALGORITHMS:
        assert JWSRegistry(algorithms=[name]).get_alg(name).name == name
        assert not name.startswith(("HS", "none"))


def test_a_token_that_names_no_key_is_believed_only_where_there_is_one(
    clock: ManualClock, there: CannedProvider
) -> None:
    now = int(clock.now().timestamp())
    claims = {"iss": ISSUER, "aud": CLIENT, "sub": "u-1", "iat": now, "exp": now + 60, "nonce": "n-1"}
    token = jwt.encode({"alg": "RS256"}, claims, key())
    assert openid(clock).proven(token, nonce=Secret("n-1"))
    there.published = [key("two"), key()]
    unproven(openid(clock), token)
