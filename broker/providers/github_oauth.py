"""GitHub OAuth Apps: the person's own token is imported, unlike with a GitHub App.

Sequin documents no credential of this kind; kind and property names are options.
Source: docs.github.com, "Authorizing OAuth apps", "Scopes for OAuth apps", "Token expiration and revocation".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import Field

from broker.errors import UnusableAnswer
from broker.oauth import Grant, OAuthProfile
from broker.providers.base import (
    Account,
    AccountGone,
    Call,
    Condition,
    Finding,
    GrantIncomplete,
    Provider,
    ProviderRefused,
    TokenRejected,
    clean,
    read_object,
)
from broker.providers.github_api import (
    GitHubAddresses,
    about_token,
    addresses,
    end_token,
    github_profile,
    is_id,
    login_of,
    person,
)
from broker.secret import Secret
from broker.settings import OAuthApp

DEFAULT_SCOPES = ("read:user", "read:org")
OFFLINE = "offline_access"
"""Asks for a token that expires and is renewed; GitHub records it as no scope, and older hosts ignore it."""
MOST_TOKENS = 10

# GitHub leaves out of its answer what another granted scope includes.
# Source: docs.github.com, "Scopes for OAuth apps", "Normalized scopes" and the indented rows of its table.
INCLUDED: dict[str, tuple[str, ...]] = {
    "repo": ("repo:status", "repo_deployment", "public_repo", "repo:invite", "security_events"),
    "user": ("read:user", "user:email", "user:follow"),
    "admin:org": ("write:org", "read:org", "manage_runners:org"),
    "write:org": ("read:org",),
    "admin:repo_hook": ("write:repo_hook", "read:repo_hook"),
    "write:repo_hook": ("read:repo_hook",),
    "admin:public_key": ("write:public_key", "read:public_key"),
    "write:public_key": ("read:public_key",),
    "admin:gpg_key": ("write:gpg_key", "read:gpg_key"),
    "write:gpg_key": ("read:gpg_key",),
    "write:packages": ("read:packages",),
    "project": ("read:project",),
    "write:discussion": ("read:discussion",),
    "admin:enterprise": ("manage_runners:enterprise", "manage_billing:enterprise", "read:enterprise"),
}


class GitHubOAuthOptions(GitHubAddresses):
    """How the token is asked for, and what the credential made of it looks like in Sequin."""

    expiring: bool = Field(default=False, description="Ask for tokens that expire; the broker then renews them.")
    kind: str = Field(
        default="github_oauth2",
        min_length=1,
        max_length=40,
        description="Sequin's kind of this credential, which Sequin does not document: ask for it.",
    )
    token_property: str = Field(
        default="access_token", min_length=1, description="Name of the property that holds the token."
    )
    scope_property: str = Field(
        default="scope", description="Name of the property for the scopes; `none` leaves it out."
    )
    login_property: str = Field(
        default="account_login", description="Name of the property for the account; `none` leaves it out."
    )


def _options(app: OAuthApp) -> GitHubOAuthOptions:
    assert isinstance(app.options, GitHubOAuthOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. A scope is always sent: without one the token gets all that was ever granted."""
    scopes = app.scopes or DEFAULT_SCOPES
    return github_profile(app, (*scopes, OFFLINE) if _options(app).expiring and OFFLINE not in scopes else scopes)


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the person behind the token."""
    return (_account(person(app, grant.access_token, call)),)


def _account(user: dict[str, Any]) -> Account:
    login = login_of(user)
    if not login:
        raise UnusableAnswer("no login")
    return Account(
        # The numeric id: logins can be renamed and taken by somebody else.
        id=str(user["id"]),
        name=login,
        type=clean(user.get("type"), limit=40) or None,
        mode="live",
        # As it was at the import, by which Sequin knows the credential; the name beside it follows a rename.
        facts={"login": login},
    )


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return the credential, under the names that the options give."""
    if grant is None or grant.access_token is None:
        raise GrantIncomplete("no access token")
    options = _options(app)
    named = {
        options.token_property: grant.access_token.reveal(),
        options.scope_property: ",".join(grant.scopes),
        options.login_property: account.facts["login"],
    }
    return {"kind": options.kind, **{name: value for name, value in named.items() if name not in ("", "none")}}


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account, under its usual name."""
    return {"account_login": account.facts["login"]}


def probe(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> Condition:
    """Ask whether the token still works, and for what; does not count against the person's rate limit.

    GitHub tells of no reason: revoked by the person, unused for a year, and pushed out by an eleventh token all look
    the same.
    """
    if grant is None or grant.access_token is None:
        raise TokenRejected("no token is kept")
    answer = about_token(app, "POST", grant.access_token, call)
    if answer.status == 404:
        if grant.expires_at is not None and grant.expires_at <= now:
            raise TokenRejected("the token has expired")
        raise AccountGone("GitHub no longer knows the token")
    shown = read_object(answer, what="POST /applications/token")
    user, scopes = shown.get("user"), shown.get("scopes")
    if not isinstance(user, dict) or not is_id(user.get("id")):
        raise UnusableAnswer("POST /applications/token: no user")
    if str(user["id"]) != account.id:
        raise AccountGone("the token belongs to another account")
    named = replace(account, name=login_of(user) or account.name)
    if not isinstance(scopes, list):
        return Condition(account=named)
    return Condition(account=named, scopes=tuple(clean(scope) for scope in scopes if isinstance(scope, str)))


def missing(app: OAuthApp, granted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scopes asked for and not granted; a person may take some back at any time."""
    held = set(granted)
    for scope in granted:
        held.update(INCLUDED.get(scope, ()))
    return tuple(scope for scope in app.scopes or DEFAULT_SCOPES if scope not in held and scope != OFFLINE)


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """End this connection's token. The person's grant stays: others of their tokens hang on it."""
    if grant is None or grant.access_token is None:
        return False
    end_token(app, grant, call)
    return True


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where the person reviews or ends what they granted."""
    return f"{addresses(app).url}/settings/connections/applications/{quote(app.client_id, safe='')}"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Ask about a token that does not exist: 404 says that GitHub accepts client id and secret."""
    asked = ", ".join(profile(app).scopes)
    yield Finding("scopes", "pass", f"Asks for {asked}.")
    try:
        answer = about_token(app, "POST", Secret("gho_does_not_exist"), call)
    except ProviderRefused:
        mend = "Compare client id and secret with the OAuth App’s settings at GitHub."
        yield Finding("registration", "fail", "GitHub does not accept the client secret.", mend)
        return
    if answer.status == 404:
        yield Finding("registration", "pass", "GitHub does not refuse the client id and secret.")
    else:
        read_object(answer, what="POST /applications/token")
    sentence = (
        f"GitHub keeps {MOST_TOKENS} tokens for a person with the same scopes: one more ends the oldest, "
        "which then reads “Access removed”."
    )
    yield Finding("token_cap", "pass", sentence)


def _always(_app: OAuthApp) -> bool:
    return True


def _kind(app: OAuthApp) -> str:
    return _options(app).kind


PROVIDER = Provider(
    name="github_oauth",
    title="GitHub (personal)",
    sequin_provider="github",
    kind="github_oauth2",
    kind_of=_kind,
    kind_documented=False,
    options=GitHubOAuthOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    probe=probe,
    # The token is what ends the access and what is asked about, for as long as the connection lives.
    keeps_grant=_always,
    # A token that does not expire gives nothing to refresh; an App can be set to expiring tokens at GitHub, too.
    refreshes=_always,
    missing=missing,
    revoke=revoke,
    end_token=end_token,
    ends_replaced=True,
    manage_url=manage_url,
    diagnose=diagnose,
    default_scopes=DEFAULT_SCOPES,
    reads=("your GitHub profile and the organisations you belong to", "whatever else GitHub lists before you agree"),
    never="see your password",
)
