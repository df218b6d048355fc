"""HubSpot apps: installed on a HubSpot account (a "hub", or portal).

Source: developers.hubspot.com, "Manage OAuth tokens" (2026-03) and the guide for moving there from version 1, which
ends on 2027-02-16 and carried tokens in addresses.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from pydantic import Field

from broker.errors import UnusableAnswer
from broker.oauth import Grant, OAuthProfile
from broker.providers import oauth_api
from broker.providers.base import Account, Call, Finding, Provider, TokenRejected, clean, read_object
from broker.settings import AppOptions, HttpAddress, OAuthApp
from broker.text import translatable

INTROSPECT = "POST /token/introspect"
NO_REFRESH_TOKEN = "look at the app’s settings at HubSpot"


class HubSpotOptions(AppOptions):
    """Where HubSpot is, and what is asked for besides the scopes."""

    url: HttpAddress = "https://app.hubspot.com"
    api_url: HttpAddress = "https://api.hubapi.com"
    api_version: str = Field(
        default="2026-03",
        pattern=r"^[0-9a-z-]{1,20}$",
        description="Version of the OAuth API, as it stands in its addresses.",
    )
    optional_scopes: tuple[str, ...] = Field(
        default=(), description="Scopes that accounts without them may leave out, separated by commas."
    )


def _options(app: OAuthApp) -> HubSpotOptions:
    assert isinstance(app.options, HubSpotOptions)
    return app.options


def _tokens(app: OAuthApp) -> str:
    return f"{_options(app).api_url}/oauth/{_options(app).api_version}/token"


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. Everything goes into the form, the secret too."""
    optional = " ".join(_options(app).optional_scopes)
    return OAuthProfile(
        authorize_url=f"{_options(app).url}/oauth/authorize",
        token_url=_tokens(app),
        token_auth="client_secret_post",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        scopes=app.scopes or PROVIDER.default_scopes,
        pkce=False,
        authorize_params={"optional_scope": optional} if optional else {},
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the HubSpot account, which only the token itself tells."""
    form = {"token": oauth_api.held_token(grant).reveal(), "token_type_hint": "access_token"}
    answer = oauth_api.ask_as_ourselves(call, f"{_tokens(app)}/introspect", app, "client_secret_post", form)
    found = read_object(answer, what=INTROSPECT)
    if found.get("active") is False:
        raise TokenRejected(f"{INTROSPECT}: not active")
    hub = found.get("hub_id")
    if not isinstance(hub, int) or isinstance(hub, bool) or not 0 < hub < 1 << 53:
        raise UnusableAnswer(f"{INTROSPECT}: no hub_id")
    granted = grant.extra.get("hub_id")
    if granted not in (None, hub):
        raise UnusableAnswer("the account read is not the account granted")
    domain = clean(found.get("hub_domain"))
    # Domains change, the number does not.
    return (Account(id=str(hub), name=domain or str(hub), type=None, mode="live", facts={"hub_domain": domain}),)


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return a `hubspot_oauth2` credential: with the refresh token, so that Sequin refreshes from then on."""
    token = oauth_api.refresh_token(grant, cure=NO_REFRESH_TOKEN)
    return {
        "kind": PROVIDER.kind,
        "hub_domain": account.facts.get("hub_domain") or account.name,
        "hub_id": int(account.id),
        "refresh_token": token.reveal(),
        "scopes": list(oauth_api.granted_scopes(profile(app), grant)),
    }


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"hub_id": int(account.id)}


def keeps_grant(app: OAuthApp) -> bool:
    """Tell that the refresh token is kept: the access ends with it."""
    return True


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """End the refresh token. The app stays installed: only somebody at HubSpot can uninstall it."""
    token = oauth_api.token_to_end(grant)
    if token is None:
        return False
    form = oauth_api.revocation_form(*token)
    answer = oauth_api.ask_as_ourselves(call, f"{_tokens(app)}/revoke", app, "client_secret_post", form)
    return oauth_api.was_ended(answer, what="POST /token/revoke")


def stays(app: OAuthApp) -> str:
    """Return what a disconnect leaves at HubSpot."""
    return translatable("the installed app")


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where an account's apps are seen and uninstalled."""
    return f"{_options(app).url}/connected-apps/{account.id}/installed"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the registration."""
    yield from oauth_api.about_registration(app, profile(app), call)
    if _options(app).api_version == "v1":
        mend = f"Leave HUBSPOT_API_VERSION at {HubSpotOptions.model_fields['api_version'].default}."
        yield Finding("api_version", "fail", "HubSpot ends version 1 of its OAuth API on 2027-02-16.", mend)


PROVIDER = Provider(
    name="hubspot",
    title="HubSpot",
    sequin_provider="hubspot",
    kind="hubspot_oauth2",
    options=HubSpotOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    default_scopes=("oauth", "crm.objects.contacts.read", "crm.objects.companies.read", "crm.objects.deals.read"),
    reads=("contacts, companies and deals", "whatever else HubSpot lists before you agree"),
    never="see your password",
    no_pkce_because="HubSpot’s guide documents no code_challenge; a code is single-use",
    # Tokens of one account and app hang together, so there is no ending those of one grant alone.
    keeps_grant=keeps_grant,
    revoke=revoke,
    stays=stays,
    manage_url=manage_url,
    diagnose=diagnose,
)
