"""What providers share that keep to OAuth 2.0: the refresh token an import hands over, ending tokens, and the doctor.

Not a provider itself. Source: RFC 6749 and RFC 7009; what a provider does differently is in its own file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from broker.errors import UnusableAnswer
from broker.http import Answer
from broker.oauth import Grant, OAuthProfile, error_code
from broker.providers.base import (
    Call,
    Finding,
    GrantIncomplete,
    ProviderRefused,
    RevocationRefused,
    TokenRejected,
    read_object,
)
from broker.secret import Secret
from broker.settings import OAuthApp

Hint = Literal["access_token", "refresh_token"]
NO_SUCH_TOKEN = frozenset({"invalid_token", "invalid_grant", "unsupported_token_type"})
"""How an answer says that there is nothing (left) to end."""
NEVER_ISSUED = Secret("never-issued-asked-by-the-doctor")
ERASED = "the token was erased after its import was verified: the person has to connect again"


# --- what an import needs -------------------------------------------------------------------------------


def access_token(grant: Grant | None) -> Secret:
    """Return the grant's access token. Raises GrantIncomplete."""
    if grant is None or grant.access_token is None:
        raise GrantIncomplete(ERASED)
    return grant.access_token


def refresh_token(grant: Grant | None, *, cure: str) -> Secret:
    """Return the grant's refresh token. Raises GrantIncomplete, with `cure` where the provider gave none."""
    if grant is None:
        raise GrantIncomplete(ERASED)
    if grant.refresh_token is None:
        raise GrantIncomplete(f"the provider’s answer held no refresh token: {cure}")
    return grant.refresh_token


def held_token(grant: Grant | None) -> Secret:
    """Return the access token to ask the provider with. Raises TokenRejected when none is held."""
    if grant is None or grant.access_token is None:
        raise TokenRejected("no token is kept")
    return grant.access_token


def granted_scopes(profile: OAuthProfile, grant: Grant | None) -> tuple[str, ...]:
    """Return what was granted; an answer that does not say grants what was asked for (RFC 6749, 5.1)."""
    return (grant.scopes if grant else ()) or profile.scopes


# --- proving who we are ---------------------------------------------------------------------------------


def ask_as_ourselves(call: Call, url: str, app: OAuthApp, auth: str, form: Mapping[str, str]) -> Answer:
    """Post a form with our client id and secret, proven as at the token endpoint.

    With the next secret where one is refused: it may be on its way out.
    """
    *others, last = app.client_secrets
    for secret in others:
        answer = _post(call, url, app.client_id, secret, auth, form)
        if answer.status != 401:
            return answer
    return _post(call, url, app.client_id, last, auth, form)


def _post(call: Call, url: str, client_id: str, secret: Secret, auth: str, form: Mapping[str, str]) -> Answer:
    if auth == "client_secret_basic":
        return call("POST", url, basic=(client_id, secret), form=form)
    return call("POST", url, form={**form, "client_id": client_id, "client_secret": secret.reveal()})


# --- ending tokens --------------------------------------------------------------------------------------


def token_to_end(grant: Grant | None) -> tuple[Secret, Hint] | None:
    """Return the token whose end takes the others with it: the refresh token where there is one."""
    if grant is not None and grant.refresh_token is not None:
        return grant.refresh_token, "refresh_token"
    if grant is not None and grant.access_token is not None:
        return grant.access_token, "access_token"
    return None


def revocation_form(token: Secret, hint: Hint) -> dict[str, str]:
    """Return the form of a revocation request (RFC 7009, 2.1)."""
    return {"token": token.reveal(), "token_type_hint": hint}


def was_ended(answer: Answer, *, what: str) -> bool:
    """Read a revocation's answer: False where the token was not, or no longer, one of the provider's.

    Raises RevocationRefused where there is no such endpoint, ProviderRefused where it is we who are wrong, and
    ProviderUnavailable.
    """
    if answer.status == 404:
        raise RevocationRefused(f"{what}: 404")
    if answer.status in (400, 401):
        error = error_of(answer)
        if error in NO_SUCH_TOKEN:
            return False
        raise ProviderRefused(f"{what}: {answer.status} {error}".rstrip())
    if answer.status >= 300:
        read_object(answer, what=what)
    return True


def error_of(answer: Answer) -> str:
    """Return the OAuth error code of an answer; empty where it holds none."""
    try:
        content = answer.json()
    except UnusableAnswer:
        return ""
    found = content.get("error") if isinstance(content, dict) else None
    return error_code(found) if isinstance(found, str) else ""


# --- the doctor -----------------------------------------------------------------------------------------


def about_registration(app: OAuthApp, profile: OAuthProfile, call: Call) -> Iterator[Finding]:
    """Spend a refresh token that was never issued: that it is refused as such means that we are known.

    Raises NetworkError.
    """
    yield Finding("scopes", "pass", f"Asks for {', '.join(profile.scopes)}.")
    form = {"grant_type": "refresh_token", "refresh_token": NEVER_ISSUED.reveal()}
    for number, secret in enumerate(app.client_secrets, 1):
        which = "the client secret" if len(app.client_secrets) == 1 else f"client secret {number}"
        answer = _post(call, profile.token_url, app.client_id, secret, profile.token_auth, form)
        if answer.status == 429 or answer.status >= 500:
            sentence = f"The provider could not be asked: HTTP {answer.status}."
            yield Finding("registration", "warn", sentence, "Try again later.")
        elif answer.status == 401 or "client" in error_of(answer):
            mend = "Compare client id and secret with the OAuth app’s settings at the provider."
            yield Finding("registration", "fail", f"The provider does not accept {which}.", mend)
        else:
            yield Finding("registration", "pass", f"The provider does not refuse {which}.")


def text_of(found: Mapping[str, Any], name: str, *, what: str) -> str:
    """Return a member that must be text of at most 255 plain characters, such as an id. Raises UnusableAnswer."""
    value = found.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 255 or not value.isascii() or not value.isprintable():
        raise UnusableAnswer(f"{what}: no {name}")
    return value
