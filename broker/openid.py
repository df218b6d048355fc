"""OpenID Connect: where to send somebody who signs in, and the proof of who came back.

The endpoints are those that the configured issuer itself publishes; nothing in an answer can name others. joserfc
verifies signatures and times. What an ID token says beyond that is judged here, after OpenID Connect Core 3.1.3.7.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from broker.clock import Clock
from broker.errors import (
    ClientRefused,
    GrantRefused,
    IdentityUnproven,
    IssuerMismatch,
    NetworkError,
    OAuthFailure,
    OAuthUnavailable,
    SignInDenied,
    SignInFailure,
    SignInMisconfigured,
    SignInUnavailable,
    UnusableAnswer,
)
from broker.http import Http
from broker.oauth import OAuth, OAuthProfile, TokenAuth
from broker.secret import Secret, random_token
from broker.settings import SignIn, addresses
from broker.settings.report import Report, Wrong
from broker.text import storable

CALL_SECONDS = 5.0
"""For each call; three of them, at worst, stand between a person and the next page."""
FRESH_SECONDS = 3_600.0
"""How long what a provider publishes is taken to be so."""
STALE_SECONDS = 86_400.0
"""How long it still does when the provider cannot be asked."""
LEFT_ALONE_SECONDS = 5.0
"""How long a provider that could not be asked is left alone: nobody waits for it meanwhile, and no thread is held."""
KEYS_AGAIN_SECONDS = 5.0
"""How soon the keys are asked for again because an ID token names another one."""
SKEW_SECONDS = 60
"""How far two clocks may be apart."""
OLDEST_SECONDS = 600
"""When an ID token that was issued for a code just now is not what it says."""
LARGEST_TOKEN = 64 * 1024
LONGEST_SUBJECT = 255
MOST_KEYS = 100

DENIED = frozenset({"access_denied", "consent_required", "interaction_required", "login_required"})

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Published:
    """What an OpenID provider publishes about itself, as far as it is used."""

    authorize_url: str
    token_url: str
    keys_url: str
    token_auth: TokenAuth
    names_itself: bool
    """Whether its answers always carry `iss` (RFC 9207)."""
    algorithms: tuple[str, ...]
    """What it signs ID tokens with."""
    takes_pkce: bool
    """Whether it says that it understands S256; it is used all the same."""


@dataclass(frozen=True, repr=False)
class Departure:
    """Where to send the person, and what has to be remembered until they are back."""

    url: str
    state: Secret
    code_verifier: Secret
    nonce: Secret

    def __repr__(self) -> str:
        # The address holds the state.
        return "Departure(•••)"


@dataclass(frozen=True)
class _Kept:
    content: Any
    at: float


class OpenIdProvider:
    """One registration at an OpenID provider. One per process is enough: it is thread-safe and survives a fork."""

    def __init__(self, config: SignIn, *, oauth: OAuth, http: Http, clock: Clock, production: bool) -> None:
        self.config = config
        self._oauth = oauth
        self._http = http
        self._clock = clock
        self._production = production
        self._published: _Kept | None = None
        self._keys: _Kept | None = None
        self._away: _Kept | None = None

    # --- leaving and coming back ------------------------------------------------------------------------

    def depart(self, redirect_uri: str, *, another: bool = False) -> Departure:
        """Return the address to send the person to; with `another` they are asked which account it is to be.

        Raises SignInUnavailable or SignInMisconfigured.
        """
        nonce = Secret(random_token())
        prompt = "select_account" if another else None
        profile = self._profile(self._known())
        left = self._oauth.depart(profile, redirect_uri=redirect_uri, nonce=nonce.reveal(), prompt=prompt)
        assert left.code_verifier is not None
        return Departure(left.url, left.state, left.code_verifier, nonce)

    def require_issuer(self, issuer: str | None) -> None:
        """Raise IssuerMismatch when an answer with this `iss` cannot come from this provider. Makes no request."""
        if issuer is None and not (self._published is not None and self._published.content.names_itself):
            return
        if issuer is None or not hmac.compare_digest(issuer.encode(), self.config.issuer.encode()):
            raise IssuerMismatch

    def identify(
        self, *, code: Secret, redirect_uri: str, code_verifier: Secret, nonce: Secret, issuer: str | None
    ) -> Mapping[str, object]:
        """Exchange the code, with exactly one request, and return the claims of the ID token, all of them proven.

        `issuer` is the `iss` of the answer. Raises IssuerMismatch, SignInUnavailable, SignInMisconfigured or
        IdentityUnproven.
        """
        published = self._known()
        # Only now it is certain that the provider was asked whether it always sends one.
        self.require_issuer(issuer)
        try:
            answer = self._oauth.redeem(
                self._profile(published), code=code, redirect_uri=redirect_uri, code_verifier=code_verifier,
                deadline=CALL_SECONDS,
            )  # fmt: skip
        except (OAuthFailure, NetworkError) as failure:
            raise _of_exchange(failure) from None
        token = answer.get("id_token")
        if not isinstance(token, str) or not 0 < len(token) <= LARGEST_TOKEN:
            raise IdentityUnproven("the token endpoint sent no ID token")
        return self.proven(token, nonce=nonce)

    def proven(self, token: str, *, nonce: Secret) -> Mapping[str, object]:
        """Return the claims of an ID token that this provider made for us, now and for this sign-in.

        Raises IdentityUnproven, or SignInUnavailable when the provider's keys cannot be had.
        """
        claims = self._verified(token)
        config, now = self.config, int(self._clock.now().timestamp())
        registry = jwt.JWTClaimsRegistry(
            now=now,
            leeway=SKEW_SECONDS,
            iss={"essential": True, "value": config.issuer},
            aud={"essential": True, "value": config.client_id},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
            nonce={"essential": True},
        )
        try:
            registry.validate(claims)
        except JoseError as error:
            raise IdentityUnproven(_told(error)) from None
        if now - claims["iat"] > OLDEST_SECONDS + SKEW_SECONDS:
            raise IdentityUnproven("the ID token was issued too long ago")
        if len(claims["sub"]) > LONGEST_SUBJECT or not storable(claims["sub"]):
            raise IdentityUnproven("the subject is too long, or holds a character that cannot be stored")
        audience = claims["aud"]
        alone = audience in (config.client_id, [config.client_id])
        if claims.get("azp", config.client_id if alone else None) != config.client_id:
            raise IdentityUnproven("the ID token was made for another client (azp)")
        if not isinstance(claims["nonce"], str) or not hmac.compare_digest(
            claims["nonce"].encode(errors="replace"), nonce.reveal().encode()
        ):
            raise IdentityUnproven("the nonce is another one")
        return MappingProxyType(claims)

    def look(self) -> tuple[Published, int]:
        """Ask afresh what the provider publishes and how many usable keys it has, for the doctor.

        Raises SignInUnavailable or SignInMisconfigured.
        """
        published = self._published_now()
        return published, len(self._keys_now(published).keys)

    # --- the ID token's signature -----------------------------------------------------------------------

    def _verified(self, token: str) -> dict[str, Any]:
        """Return what a token says whose signature is good. A key not known yet is looked for once."""
        published = self._known()
        keys, fresh = self._known_keys(published)
        try:
            return self._decoded(token, keys)
        except IdentityUnproven:
            if fresh or not self._may_ask_again():
                raise
        return self._decoded(token, self._keys_now(published))

    def _decoded(self, token: str, keys: KeySet) -> dict[str, Any]:
        try:
            # The one algorithm named in the settings, whatever the token's header says.
            return jwt.decode(token, keys, algorithms=[self.config.signing_algorithm]).claims
        except (JoseError, ValueError, TypeError, KeyError, UnicodeError, RecursionError) as error:
            # `from None`: the token is in there.
            raise IdentityUnproven(f"the ID token’s signature: {_told(error)}") from None

    # --- what the provider publishes --------------------------------------------------------------------

    def _profile(self, published: Published) -> OAuthProfile:
        config = self.config
        return OAuthProfile(
            authorize_url=published.authorize_url,
            token_url=published.token_url,
            token_auth=published.token_auth,
            client_id=config.client_id,
            client_secrets=(config.client_secret,),
            scopes=config.scopes,
            pkce=True,
            issuer=config.issuer,
        )

    def _known(self) -> Published:
        kept = self._published
        if kept is not None and self._age(kept) < FRESH_SECONDS:
            return kept.content  # type: ignore[no-any-return]
        away = self._away
        if away is not None and self._age(away) < LEFT_ALONE_SECONDS:
            failure = SignInUnavailable(away.content)
        else:
            try:
                return self._published_now()
            except SignInUnavailable as raised:
                failure = raised
                self._away = _Kept(failure.detail, self._clock.monotonic())
        if kept is None or self._age(kept) >= STALE_SECONDS:
            raise failure
        return kept.content  # type: ignore[no-any-return]

    def _published_now(self) -> Published:
        address = f"{self.config.issuer.rstrip('/')}/.well-known/openid-configuration"
        found = published(self._object(address), self.config, production=self._production)
        self._published = _Kept(found, self._clock.monotonic())
        return found

    def _known_keys(self, published: Published) -> tuple[KeySet, bool]:
        """Return the provider's keys, and whether they were asked for just now."""
        kept = self._keys
        if kept is not None and self._age(kept) < FRESH_SECONDS:
            return kept.content, False
        return self._keys_now(published), True

    def _may_ask_again(self) -> bool:
        return self._keys is None or self._age(self._keys) >= KEYS_AGAIN_SECONDS

    def _keys_now(self, published: Published) -> KeySet:
        keys = key_set(self._object(published.keys_url))
        self._keys = _Kept(keys, self._clock.monotonic())
        return keys

    def _age(self, kept: _Kept) -> float:
        return self._clock.monotonic() - kept.at

    def _object(self, address: str) -> Mapping[str, object]:
        """Return the JSON object at an address. Raises SignInUnavailable or SignInMisconfigured."""
        try:
            answer = self._http.request("GET", address, headers={"Accept": "application/json"}, deadline=CALL_SECONDS)
            where = f"{address}: HTTP {answer.status}"
            if answer.status in {404, 410}:
                raise SignInMisconfigured(where)
            if answer.status != 200:
                raise SignInUnavailable(where)
            content = answer.json()
        except NetworkError as failure:
            raise SignInUnavailable(failure.detail) from None
        if not isinstance(content, dict):
            raise SignInUnavailable(f"{address}: not a JSON object")
        return content


def published(content: Mapping[str, object], config: SignIn, *, production: bool) -> Published:
    """Return what a discovery document says (OpenID Connect Discovery 1.0). Raises SignInMisconfigured."""
    if content.get("issuer") != config.issuer:
        # It is public, and the one thing that mends this.
        told = str(content.get("issuer"))[:200]
        raise SignInMisconfigured(f"the provider calls itself {told!a}, the settings say {config.issuer!a}")
    report = Report(production=production)

    def endpoint(name: str) -> str:
        address = content.get(name)
        try:
            return addresses.link(address if isinstance(address, str) else "", report)
        except Wrong as wrong:
            raise SignInMisconfigured(f"{name} of {config.issuer} {wrong.complaint}") from None

    # Core 9: what is not said is client_secret_basic.
    proofs = _texts(content.get("token_endpoint_auth_methods_supported")) or ("client_secret_basic",)
    return Published(
        authorize_url=endpoint("authorization_endpoint"),
        token_url=endpoint("token_endpoint"),
        keys_url=endpoint("jwks_uri"),
        token_auth="client_secret_basic" if "client_secret_basic" in proofs else "client_secret_post",
        names_itself=content.get("authorization_response_iss_parameter_supported") is True,
        algorithms=_texts(content.get("id_token_signing_alg_values_supported")),
        takes_pkce="S256" in _texts(content.get("code_challenge_methods_supported")),
    )


def key_set(content: Mapping[str, object]) -> KeySet:
    """Return the keys of a JWKS that signatures can be verified with. Raises SignInUnavailable when there is none."""
    found = content.get("keys")
    keys = []
    for entry in found[:MOST_KEYS] if isinstance(found, list) else []:
        # A shared secret has no place there, and would let anybody sign who can read the page.
        if not isinstance(entry, dict) or entry.get("kty") == "oct" or entry.get("use", "sig") != "sig":
            continue
        try:
            keys += KeySet.import_key_set({"keys": [entry]}).keys
        except (JoseError, ValueError, TypeError, KeyError):
            # Of a kind not known here; the others do.
            log.debug("openid.key_skipped", kind=str(entry.get("kty"))[:20])
    if not keys:
        raise SignInUnavailable("the provider publishes no key that signatures can be verified with")
    return KeySet(keys)


def refusal(error: str) -> SignInFailure:
    """Return what an authorization answer with an error means."""
    if error in DENIED:
        return SignInDenied(error)
    if error in {"server_error", "temporarily_unavailable"}:
        return SignInUnavailable(error)
    if error in {"unauthorized_client", "invalid_scope", "invalid_request", "unsupported_response_type"}:
        return SignInMisconfigured(error)
    return SignInFailure(error)


def _of_exchange(failure: OAuthFailure | NetworkError) -> SignInFailure:
    if isinstance(failure, ClientRefused):
        return SignInMisconfigured(failure.detail)
    if isinstance(failure, OAuthUnavailable) or (
        isinstance(failure, NetworkError) and not isinstance(failure, UnusableAnswer)
    ):
        return SignInUnavailable(failure.detail)
    if isinstance(failure, GrantRefused):
        return IdentityUnproven(failure.detail)
    return SignInFailure(failure.detail)


def _texts(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str)) if isinstance(value, list) else ()


def _told(error: Exception) -> str:
    """Return what went wrong, without anything of the token: the kind of error, and the claim where there is one."""
    named = getattr(error, "claim", None) or getattr(error, "claim_name", None)
    return f"{type(error).__name__}: {named}" if isinstance(named, str) else type(error).__name__
