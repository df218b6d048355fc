"""The OAuth protocol: where to send a person, and one token request per code. The only importer of Authlib here.

Authlib writes the requests; the answers are judged here, since its own reading accepts `{}`, follows redirects,
raises a dict as an error code and fails on a fractional `expires_in` (all measured on 1.9.9).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, NoReturn
from urllib.parse import quote_plus, urlencode

from authlib.common.errors import AuthlibBaseError
from authlib.oauth2 import ClientAuth
from authlib.oauth2 import TokenAuth as BearerAuth
from authlib.oauth2.base import OAuth2Error
from authlib.oauth2.client import OAuth2Client

from broker.clock import Clock, SystemClock
from broker.errors import (
    ClientRefused,
    GrantRefused,
    OAuthFailure,
    OAuthUnavailable,
    RequestUnsendable,
    Unreadable,
    UnusableAnswer,
)
from broker.http import Answer, Deadline, Http, basic_auth, hush, readable, retry_after
from broker.secret import MASK, Secret, digest, random_token

# Authlib's loggers write the PKCE verifier at DEBUG.
hush("authlib", "authlib.integrations.base_client.sync_app", "authlib.integrations.base_client.async_app")
hush("authlib.oauth2.rfc7523.client")

TokenAuth = Literal["client_secret_post", "client_secret_basic", "secret_key_basic"]

REFUSED_GRANT = frozenset(
    {"invalid_grant", "bad_verification_code", "bad_refresh_token", "expired_token", "bad_auth_code"}
)
REFUSED_CLIENT = frozenset(
    {
        "invalid_client",
        "invalid_client_id",
        "bad_client_id",
        "bad_client_secret",
        "incorrect_client_credentials",
        "unauthorized_client",
        "redirect_uri_mismatch",
        "unsupported_grant_type",
        "application_suspended",
    }
)
PASSING = frozenset({"temporarily_unavailable", "server_error", "rate_limit", "slow_down"})
# A caller's extra parameters must not replace what makes a flow safe.
RESERVED = frozenset(
    {"client_id", "redirect_uri", "response_type", "scope", "state", "code_challenge", "code_challenge_method"}
)
EARLIEST, LATEST = 0.6, 0.8
"""A token is refreshed between these shares of its life, so that those made together spread out."""
SOONEST_REFRESH = 0.2
# Some providers write "never" as ten years and more.
LONGEST_LIFE = 100 * 366 * 24 * 3600


# --- what a provider tells us -------------------------------------------------------------------------


@dataclass(frozen=True)
class OAuthProfile:
    """One OAuth app at its provider: endpoints, our registration, and how it wants to be spoken to."""

    authorize_url: str
    token_url: str
    token_auth: TokenAuth
    """How we prove who we are; `secret_key_basic` is Stripe's `secret:` with an empty password."""
    client_id: str
    client_secrets: tuple[Secret, ...]
    """In the order in which they are tried; more than one while a secret is being replaced."""
    scopes: tuple[str, ...]
    pkce: bool
    scope_separator: str = " "
    issuer: str | None = None
    """What `iss` in a callback must equal, when it is sent (RFC 9207)."""
    authorize_params: Mapping[str, str] = field(default_factory=dict)
    access_seconds: int | None = None
    """How long an access token lives where the provider limits it without saying so in its answer."""


@dataclass(frozen=True)
class Departure:
    """Where to send the person, and what has to be remembered until they are back."""

    url: str
    state: Secret
    code_verifier: Secret | None

    def __repr__(self) -> str:
        # The address holds the state.
        return f"Departure({MASK})"


# --- the protocol -------------------------------------------------------------------------------------


class OAuth:
    """Speaks the authorization code flow with any provider."""

    def __init__(self, http: Http, clock: Clock | None = None) -> None:
        self._http = http
        self._clock = clock or SystemClock()
        # Digests of client secrets that were refused: while one is being replaced, the other goes first.
        self._refused: set[str] = set()

    def depart(
        self, profile: OAuthProfile, *, redirect_uri: str, state: Secret | None = None, **params: str | None
    ) -> Departure:
        """Return the authorize address with a fresh state and, where the provider takes it, a PKCE challenge.

        `params` go before the profile's own `authorize_params`; None leaves one out. A given `state` replaces the
        fresh one. Makes no request.
        """
        extra = {**profile.authorize_params, **params}
        if clash := RESERVED & extra.keys():
            raise ValueError(f"not an extra parameter: {', '.join(sorted(clash))}")
        state = state or Secret(random_token())
        verifier = Secret(random_token(384)) if profile.pkce else None
        url, _ = self._client(profile, profile.client_secrets[0], deadline=0).create_authorization_url(
            profile.authorize_url,
            state=state.reveal(),
            code_verifier=verifier.reveal() if verifier else None,
            redirect_uri=redirect_uri,
            scope=profile.scope_separator.join(profile.scopes) or None,
            **extra,
        )
        return Departure(url, state, verifier)

    def redeem(
        self,
        profile: OAuthProfile,
        *,
        code: Secret,
        redirect_uri: str,
        code_verifier: Secret | None,
        deadline: float = 10.0,
    ) -> dict[str, object]:
        """Exchange a code, with exactly one request, and return the provider's JSON object as it came.

        Nothing in it is interpreted, so that the caller can seal it first. Raises GrantRefused, ClientRefused,
        OAuthUnavailable or OAuthFailure when the provider said no, and NetworkError otherwise; its `sent` says
        whether the code may be spent. Never call it twice with one code: Stripe then revokes the connection.
        """
        form = {"code": code.reveal(), "redirect_uri": redirect_uri}
        if code_verifier is not None:
            form["code_verifier"] = code_verifier.reveal()
        with self._trying(self._in_order(profile)[0]) as secret:
            client = self._client(profile, secret, deadline)
            with _failures(profile, client):
                client.fetch_token(profile.token_url, grant_type="authorization_code", **form)
            return self._judge(profile, client, code, code_verifier)

    def refresh(self, profile: OAuthProfile, *, refresh_token: Secret, deadline: float = 10.0) -> dict[str, object]:
        """Spend a refresh token and return the provider's JSON object as it came.

        A refused client has spent nothing, so that another client secret is then tried; besides that there is
        exactly one request. The scope is not sent: GitHub refuses it and others narrow by it. Raises as `redeem` does.
        """
        *others, last = self._in_order(profile)
        budget = Deadline(deadline)
        for secret in others:
            with suppress(ClientRefused):
                return self._refresh(profile, secret, refresh_token, budget.remaining())
        budget.check()
        return self._refresh(profile, last, refresh_token, budget.remaining())

    def _refresh(
        self, profile: OAuthProfile, secret: Secret, refresh_token: Secret, deadline: float
    ) -> dict[str, object]:
        with self._trying(secret):
            client = self._client(profile, secret, deadline)
            with _failures(profile, client):
                client.refresh_token(profile.token_url, refresh_token=refresh_token.reveal())
            return self._judge(profile, client, refresh_token)

    def _in_order(self, profile: OAuthProfile) -> list[Secret]:
        """Return the client secrets to try, those that were refused last."""
        return sorted(profile.client_secrets, key=lambda secret: digest(secret.reveal()) in self._refused)

    @contextmanager
    def _trying(self, secret: Secret) -> Iterator[Secret]:
        """Remember whether a client secret was taken."""
        name = digest(secret.reveal())
        try:
            yield secret
        except ClientRefused:
            self._refused.add(name)
            raise
        self._refused.discard(name)

    def _client(self, profile: OAuthProfile, client_secret: Secret, deadline: float) -> _Client:
        return _Client(profile, client_secret, _Session(self._http, deadline))

    def _judge(self, profile: OAuthProfile, client: _Client, *sent: Secret | None) -> dict[str, object]:
        if client.session.answer is None:
            raise UnusableAnswer("the token endpoint's answer was never read")
        known = [secret.reveal() for secret in (*sent, *profile.client_secrets) if secret]
        return _judge(client.session.answer, self._clock.now(), known)


class _Session:
    """What Authlib takes for a session: one token request through our door. No cookie and no token outlives it."""

    def __init__(self, http: Http, deadline: float) -> None:
        self._http = http
        self._deadline = deadline
        self.answer: Answer | None = None

    def post(self, url: str, *, data: Mapping[str, str], headers: Mapping[str, str], auth: ClientAuth) -> Answer:
        """Send the form with the proof of who we are."""
        url, headers, body = auth.prepare("POST", url, dict(headers), urlencode(data))
        self.answer = self._http.request("POST", url, headers=headers, form=body, deadline=self._deadline)
        return self.answer


class _Client(OAuth2Client):  # type: ignore[misc]
    """One token request, in Authlib's words."""

    client_auth_class = ClientAuth
    token_auth_class = BearerAuth
    oauth_error_class = OAuth2Error
    SESSION_REQUEST_PARAMS = ()
    session: _Session

    def __init__(self, profile: OAuthProfile, client_secret: Secret, session: _Session) -> None:
        super().__init__(
            session,
            client_id=profile.client_id,
            client_secret=client_secret.reveal(),
            token_endpoint_auth_method=profile.token_auth,
            code_challenge_method="S256",
            # After a refresh Authlib writes into this; left None it would fail there.
            token={},
        )
        for name, prove in _PROOFS.items():
            self.register_client_auth_method((name, prove))

    def parse_response_token(self, _answer: Answer) -> dict[str, object]:
        """Leave the answer to be judged by us, once Authlib is done."""
        return {}


def _basic(client: Any, _method: str, uri: str, headers: Any, body: Any) -> tuple[Any, Any, Any]:
    # RFC 6749 2.3.1: both parts form-encoded first. Authlib leaves that out and fails outside latin-1.
    headers["Authorization"] = basic_auth(quote_plus(client.client_id), quote_plus(client.client_secret))
    return uri, headers, body


def _secret_key(client: Any, _method: str, uri: str, headers: Any, body: Any) -> tuple[Any, Any, Any]:
    headers["Authorization"] = basic_auth(client.client_secret, "")
    return uri, headers, body


# `client_secret_post` is Authlib's own.
_PROOFS = {"client_secret_basic": _basic, "secret_key_basic": _secret_key}


@contextmanager
def _failures(profile: OAuthProfile, client: _Client) -> Iterator[None]:
    try:
        yield
    except (AuthlibBaseError, ValueError, TypeError) as error:
        # Nothing of Authlib should fail once an answer is there; if it does, the code is spent.
        kind = UnusableAnswer if client.session.answer is not None else RequestUnsendable
        where = readable(profile.token_url.partition("?")[0])
        # `from None`: Authlib quotes the whole form, secrets included.
        raise kind(f"{where}: {type(error).__name__}") from None


# --- judging an answer --------------------------------------------------------------------------------


def _judge(answer: Answer, now: datetime, secrets: list[str]) -> dict[str, object]:
    status = answer.status
    where = f"HTTP {status}"
    wait = retry_after(answer.headers, now)
    content = _object(answer)
    found, text = _error_of(content)
    # A code may echo what we sent as well as a description may.
    error = error_code(readable(found, secrets=secrets)) if found else ""
    detail = ": ".join(part for part in (where, readable(text, secrets=secrets)) if part)
    if _is_passing(answer, error, wait):
        raise OAuthUnavailable(error or f"http_{status}", detail, wait)
    if status >= 400 or error:
        _refuse(status, error, detail, is_api_error=isinstance((content or {}).get("error"), Mapping))
    if not content:
        raise UnusableAnswer(f"{where}: the token endpoint's answer is not a JSON object with members")
    return content


def _object(answer: Answer) -> dict[str, object] | None:
    try:
        content = answer.json()
    except UnusableAnswer:
        return None
    return content if isinstance(content, dict) else None


def _error_of(content: dict[str, object] | None) -> tuple[object, str]:
    """Return error code and text. GitHub sends them with 200; Stripe's API puts an object where OAuth has a code.

    HubSpot's older answers name the code `status` and the text `message`.
    """
    said = content or {}
    found = said.get("error")
    if isinstance(found, Mapping):
        return found.get("code") or found.get("type") or "api_error", str(found.get("message") or "")
    if not found and str(said.get("status")).startswith("BAD_"):
        return said["status"], str(said.get("message") or "")
    return found, str(said.get("error_description") or "")


def error_code(value: object) -> str:
    """Reduce a provider's error code to `[a-z0-9_.-]{1,64}`, so that it is safe to show, store and count."""
    text = value.lower() if isinstance(value, str) else ""
    return re.sub(r"[^a-z0-9_.-]+", "_", text)[:64].strip("_") or "unknown"


def _is_passing(answer: Answer, error: str, wait: float | None) -> bool:
    status = answer.status
    if status in {408, 425, 429} or status >= 500 or error in PASSING:
        return True
    # GitHub's secondary limits answer 403.
    return status == 403 and (wait is not None or answer.headers.get("x-ratelimit-remaining") == "0")


def _refuse(status: int, error: str, detail: str, *, is_api_error: bool) -> NoReturn:
    if error in REFUSED_GRANT:
        raise GrantRefused(error, detail)
    # 401 means us by definition; Stripe says 403 to a key of the wrong kind; GitHub says 404 to an unknown client id.
    if error in REFUSED_CLIENT or status in {401, 404} or (is_api_error and status == 403):
        raise ClientRefused(error or f"http_{status}", detail)
    raise OAuthFailure(error or f"http_{status}", detail)


# --- the grant ----------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Grant:
    """What a provider gave: tokens, what they may do, how long they last, and whatever else it said."""

    access_token: Secret | None
    refresh_token: Secret | None
    token_type: str
    scopes: tuple[str, ...]
    expires_at: datetime | None
    refresh_expires_at: datetime | None
    extra: Mapping[str, object] = field(default_factory=dict)
    """Every other member of the answer, such as `stripe_user_id`."""

    def __repr__(self) -> str:
        # `extra` may hold tokens too (`id_token`): its names only.
        tokens = (
            f"access_token={MASK if self.access_token else None}, refresh_token={MASK if self.refresh_token else None}"
        )
        return f"Grant({tokens}, scopes={self.scopes}, expires_at={self.expires_at}, extra={sorted(self.extra)})"

    def to_json(self) -> bytes:
        """Return everything, secrets included, for sealing."""
        return json.dumps(
            {
                "access_token": self.access_token.reveal() if self.access_token else None,
                "refresh_token": self.refresh_token.reveal() if self.refresh_token else None,
                "token_type": self.token_type,
                "scopes": list(self.scopes),
                "expires_at": self.expires_at.isoformat() if self.expires_at else None,
                "refresh_expires_at": self.refresh_expires_at.isoformat() if self.refresh_expires_at else None,
                "extra": dict(self.extra),
            },
            separators=(",", ":"),
        ).encode("ascii")

    @classmethod
    def from_json(cls, text: bytes) -> Grant:
        """Return what `to_json` wrote. Raises Unreadable for anything else."""
        try:
            kept = json.loads(text)
            return cls(
                access_token=_secret(kept["access_token"]),
                refresh_token=_secret(kept["refresh_token"]),
                token_type=kept["token_type"],
                scopes=tuple(kept["scopes"]),
                expires_at=_moment(kept["expires_at"]),
                refresh_expires_at=_moment(kept["refresh_expires_at"]),
                extra=kept["extra"],
            )
        except (ValueError, KeyError, TypeError):
            # `from None`: the decoder's error carries the document.
            raise Unreadable("what was sealed is not a grant") from None

    def refresh_after(self, now: datetime, jitter: float) -> timedelta | None:
        """Return how long to wait before refreshing it; None where it does not end or cannot be refreshed.

        `jitter` is between 0 and 1.
        """
        if self.refresh_token is None or self.expires_at is None:
            return None
        life = (self.expires_at - now).total_seconds()
        return timedelta(seconds=max(SOONEST_REFRESH, life * (EARLIEST + (LATEST - EARLIEST) * jitter)))

    def renewed(
        self, answer: Mapping[str, object], *, received_at: datetime, access_seconds: int | None = None
    ) -> Grant:
        """Return the grant after a refresh: what the answer leaves out (refresh token, scopes, account) is kept.

        Raises UnusableAnswer.
        """
        new = parse_grant(answer, received_at=received_at, access_seconds=access_seconds)
        rotated = new.refresh_token is not None
        return Grant(
            access_token=new.access_token,
            refresh_token=new.refresh_token or self.refresh_token,
            token_type=new.token_type,
            scopes=self.scopes if _scope_member(answer) is None else new.scopes,
            expires_at=new.expires_at,
            refresh_expires_at=new.refresh_expires_at or (None if rotated else self.refresh_expires_at),
            extra={**self.extra, **new.extra},
        )


REFRESH_LIFE = ("refresh_token_expires_in", "refresh_expires_in", "x_refresh_token_expires_in")
UNDERSTOOD = frozenset({"access_token", "refresh_token", "token_type", "scope", "scopes", "expires_in", *REFRESH_LIFE})


def parse_grant(
    answer: Mapping[str, object],
    *,
    received_at: datetime,
    requires_access_token: bool = True,
    access_seconds: int | None = None,
) -> Grant:
    """Read a token answer. Raises UnusableAnswer, which names the member that is wrong and never its value.

    `access_seconds` is how long the access token lives where the answer does not say.
    """
    access_token = _token(answer, "access_token")
    if answer.get("expires_in") is None and access_seconds is not None:
        answer = {**answer, "expires_in": access_seconds}
    if access_token is None and requires_access_token:
        raise UnusableAnswer("access_token: missing from the token answer")
    lives = (_expiry(answer, name, received_at) for name in REFRESH_LIFE)
    return Grant(
        access_token=access_token,
        refresh_token=_token(answer, "refresh_token"),
        token_type=_token_type(answer),
        scopes=_scopes(answer),
        expires_at=_expiry(answer, "expires_in", received_at),
        refresh_expires_at=next((moment for moment in lives if moment), None),
        extra={name: value for name, value in answer.items() if name not in UNDERSTOOD},
    )


def _token(answer: Mapping[str, object], name: str) -> Secret | None:
    value = answer.get(name)
    if value is None or (value == "" and name == "refresh_token"):
        return None
    # Any length, any alphabet that a header can carry.
    if not isinstance(value, str) or not re.fullmatch(r"[\x21-\x7e]+", value):
        raise UnusableAnswer(f"{name}: not a usable token")
    return Secret(value)


def _token_type(answer: Mapping[str, object]) -> str:
    # Some leave it out (Shopify); any other kind of token would need a signature or a key of its own.
    value = answer.get("token_type")
    if value is not None and not (isinstance(value, str) and value.lower() == "bearer"):
        raise UnusableAnswer("token_type: not bearer")
    return "bearer"


def _scope_member(answer: Mapping[str, object]) -> object:
    # HubSpot's answer has `scopes`, an array.
    return answer["scope"] if answer.get("scope") is not None else answer.get("scopes")


def _scopes(answer: Mapping[str, object]) -> tuple[str, ...]:
    value = _scope_member(answer)
    if value is None:
        return ()
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise UnusableAnswer("scope: not text")
    # GitHub separates by commas what it was asked for with spaces.
    return tuple(dict.fromkeys(readable(part) for part in re.split(r"[\s,]+", value) if part))


def _expiry(answer: Mapping[str, object], name: str, received_at: datetime) -> datetime | None:
    value = answer.get(name)
    if value is None:
        return None
    text = str(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else ""
    # A fraction is harmless and refusing it would lose a code already spent.
    if not re.fullmatch(r"\d{1,12}(\.\d{1,12})?", text, re.ASCII) or not 1 <= float(text) <= LONGEST_LIFE:
        raise UnusableAnswer(f"{name}: not a sane number of seconds")
    return received_at + timedelta(seconds=int(float(text)))


def _secret(value: object) -> Secret | None:
    if value is not None and not isinstance(value, str):
        raise TypeError("not text")
    return None if value is None else Secret(value)


def _moment(value: str | None) -> datetime | None:
    return None if value is None else datetime.fromisoformat(value)
