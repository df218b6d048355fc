"""Salesforce External Client Apps (and connected apps of before): a person lets the app into their org.

Source: help.salesforce.com, "OAuth 2.0 Web Server Flow", "OpenID Connect user info", "Revoke OAuth tokens".

Production, sandboxes and My Domain sign people in at hosts of their own: one OAuth app for each. Where the org's API
is stands in each token answer, as `instance_url`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from broker.errors import UnusableAnswer
from broker.oauth import Grant, OAuthProfile
from broker.providers import oauth_api
from broker.providers.base import Account, Call, Finding, Mode, Provider, TokenRejected, clean, read_object
from broker.settings import AppOptions, HttpAddress, OAuthApp

USERINFO = "GET /services/oauth2/userinfo"
HOST = re.compile(r"(?!.*\.lightning\.)[a-z0-9-]+(\.[a-z0-9-]+)*\.salesforce\.(com|mil)\Z")
NO_REFRESH_TOKEN = "add the scope refresh_token, to the app at Salesforce and here"
# Two names of one permission, and one that includes the others except offline access.
OFFLINE = frozenset({"refresh_token", "offline_access"})
FULL = "full"


def _no_lightning(url: str) -> str:
    if ".lightning." in (urlsplit(url).hostname or ""):
        raise ValueError("pages are at lightning.force.com, sign-in is not: use the address at my.salesforce.com")
    return url


class SalesforceOptions(AppOptions):
    """Where people sign in."""

    login_url: Annotated[
        HttpAddress,
        AfterValidator(_no_lightning),
        Field(
            description="Where people sign in: https://test.salesforce.com for sandboxes, or your My Domain "
            "(https://name.my.salesforce.com)."
        ),
    ] = "https://login.salesforce.com"


def _login(app: OAuthApp) -> str:
    assert isinstance(app.options, SalesforceOptions)
    return app.options.login_url


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. An answer without a lifetime is usual: the org's session settings know it."""
    return OAuthProfile(
        authorize_url=f"{_login(app)}/services/oauth2/authorize",
        token_url=f"{_login(app)}/services/oauth2/token",
        token_auth="client_secret_post",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        scopes=app.scopes or PROVIDER.default_scopes,
        pkce=True,
    )


def missing(app: OAuthApp, granted: tuple[str, ...]) -> tuple[str, ...]:
    """Return the scopes asked for and not granted."""
    held = set(granted) | (OFFLINE if OFFLINE & set(granted) else set())
    return tuple(scope for scope in profile(app).scopes if scope not in held and (FULL not in held or scope in OFFLINE))


def _instance(app: OAuthApp, told: object) -> str:
    """Return the org's own address, which the token is sent to: Salesforce's, or where people signed in."""
    address = told.rstrip("/") if isinstance(told, str) else ""
    try:
        parts, login = urlsplit(address), urlsplit(_login(app))
    except ValueError:
        raise UnusableAnswer("instance_url: not an address") from None
    theirs = parts.scheme == "https" and not parts.path and HOST.match(parts.netloc.lower()) is not None
    same = (parts.scheme, parts.netloc) == (login.scheme, login.netloc)
    if not (theirs or same) or not re.fullmatch(r"[\x21-\x7e]+", address) or parts.query or parts.fragment:
        raise UnusableAnswer("instance_url: not an address of Salesforce’s")
    return address


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the org that the person let the app into, named as the person is known there."""
    instance = _instance(app, grant.extra.get("instance_url"))
    answer = call("GET", f"{instance}/services/oauth2/userinfo", bearer=oauth_api.held_token(grant))
    if answer.status == 403 and b"Bad_OAuth_Token" in answer.body:
        raise TokenRejected(f"{USERINFO}: 403 Bad_OAuth_Token")
    found = read_object(answer, what=USERINFO)
    org = oauth_api.text_of(found, "organization_id", what=USERINFO)
    if not re.fullmatch(r"00D\w{12}(\w{3})?", org, re.ASCII) or not _is_granted(grant, org):
        raise UnusableAnswer("the org read is not the org granted")
    name = clean(found.get("preferred_username")) or urlsplit(instance).netloc
    mode: Mode = "test" if _is_sandbox(app, instance) else "live"
    return (Account(id=org[:15], name=name, type="organization", mode=mode, facts={"instance_url": instance}),)


def _is_granted(grant: Grant, org: str) -> bool:
    """Tell whether the answer's identity URL, …/id/<org>/<user>, names this org; 15 of its 18 characters tell."""
    told = grant.extra.get("id")
    return not isinstance(told, str) or f"/id/{org[:15]}" in told


def _is_sandbox(app: OAuthApp, instance: str) -> bool:
    return urlsplit(_login(app)).hostname == "test.salesforce.com" or ".sandbox." in instance


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return a `salesforce_oauth2` credential: with the refresh token, so that Sequin refreshes from then on."""
    token = oauth_api.refresh_token(grant, cure=NO_REFRESH_TOKEN)
    return {"kind": PROVIDER.kind, **identity(account), "refresh_token": token.reveal(), "name": account.name}


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"instance_url": account.facts["instance_url"]}


def keeps_grant(app: OAuthApp) -> bool:
    """Tell that the refresh token is kept: the access ends with it, unless the org replaces it at each use."""
    return True


def end_token(app: OAuthApp, grant: Grant, call: Call) -> None:
    """End the refresh token, and the access tokens that came of it."""
    revoke(app, None, grant, call, None)


def revoke(app: OAuthApp, account: Account | None, grant: Grant | None, call: Call, now: datetime | None) -> bool:
    """End this connection's tokens; False where Sequin was given others since, as an org may have it."""
    token = oauth_api.token_to_end(grant)
    if token is None:
        return False
    answer = call("POST", f"{_login(app)}/services/oauth2/revoke", form={"token": token[0].reveal()})
    return oauth_api.was_ended(answer, what="POST /services/oauth2/revoke")


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the org's address: which page lists a person's apps depends on the org."""
    told = account.facts["instance_url"]
    try:
        return _instance(app, told)
    except UnusableAnswer:
        # It may have moved in from elsewhere, and a person is to follow it.
        return _login(app)


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the registration and at what it asks for."""
    yield from oauth_api.about_registration(app, profile(app), call)
    if not OFFLINE & set(profile(app).scopes):
        mend = "Add refresh_token to SALESFORCE_SCOPES and to the app at Salesforce."
        yield Finding("offline", "fail", "No refresh token is asked for, and the import needs one.", mend)


PROVIDER = Provider(
    name="salesforce",
    title="Salesforce",
    sequin_provider="salesforce",
    kind="salesforce_oauth2",
    options=SalesforceOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    default_scopes=("api", "refresh_token"),
    missing=missing,
    reads=("the records that you can see in Salesforce",),
    never="see your password",
    caveat="Salesforce has no read-only permission for this kind of connection: what you allow also covers changes.",
    keeps_grant=keeps_grant,
    end_token=end_token,
    revoke=revoke,
    manage_url=manage_url,
    diagnose=diagnose,
)
