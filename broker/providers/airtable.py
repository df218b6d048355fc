"""Airtable OAuth integrations: a person shares bases they pick themselves.

Source: airtable.com/developers/web/api/oauth-reference and Airtable's own example application.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from broker.oauth import Grant, OAuthProfile
from broker.providers import oauth_api
from broker.providers.base import Account, Call, Finding, Provider, clean, read_object
from broker.settings import AppOptions, HttpAddress, OAuthApp
from broker.text import translatable

WHOAMI = "GET /v0/meta/whoami"
NO_REFRESH_TOKEN = "look at the integration’s settings at Airtable"


class AirtableOptions(AppOptions):
    """Where Airtable is."""

    url: HttpAddress = "https://airtable.com"
    api_url: HttpAddress = "https://api.airtable.com"


def _options(app: OAuthApp) -> AirtableOptions:
    assert isinstance(app.options, AirtableOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. PKCE is required, and an integration with a secret proves it by Basic alone."""
    url = _options(app).url
    return OAuthProfile(
        authorize_url=f"{url}/oauth2/v1/authorize",
        token_url=f"{url}/oauth2/v1/token",
        token_auth="client_secret_basic",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        scopes=app.scopes or PROVIDER.default_scopes,
        pkce=True,
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Return the person behind the token; the e-mail is there with the scope user.email:read."""
    answer = call("GET", f"{_options(app).api_url}/v0/meta/whoami", bearer=oauth_api.held_token(grant))
    found = read_object(answer, what=WHOAMI)
    account_id = oauth_api.text_of(found, "id", what=WHOAMI)
    return (Account(id=account_id, name=clean(found.get("email")) or account_id, type=None, mode="live"),)


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return an `airtable_oauth2` credential: with the refresh token, so that Sequin refreshes from then on."""
    token = oauth_api.refresh_token(grant, cure=NO_REFRESH_TOKEN)
    return {
        "kind": PROVIDER.kind,
        "airtable_uid": account.id,
        "refresh_token": token.reveal(),
        "scope": " ".join(oauth_api.granted_scopes(profile(app), grant)),
    }


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"airtable_uid": account.id}


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """End the tokens while they are held: once Sequin has refreshed, ours are worth nothing.

    Clients use this endpoint and Airtable's reference does not name it: what else it ends is not known.
    """
    token = oauth_api.token_to_end(grant)
    if token is None:
        return False
    url, auth = f"{_options(app).url}/oauth2/v1/revoke", profile(app).token_auth
    answer = oauth_api.ask_as_ourselves(call, url, app, auth, oauth_api.revocation_form(*token))
    return oauth_api.was_ended(answer, what="POST /oauth2/v1/revoke")


def stays(app: OAuthApp) -> str:
    """Return what a disconnect leaves at Airtable."""
    return translatable("the integration in your Airtable account")


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where people see and remove integrations."""
    return f"{_options(app).url}/account"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the registration."""
    yield from oauth_api.about_registration(app, profile(app), call)


PROVIDER = Provider(
    name="airtable",
    title="Airtable",
    sequin_provider="airtable",
    kind="airtable_oauth2",
    options=AirtableOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    default_scopes=("data.records:read", "schema.bases:read", "user.email:read"),
    reads=("records and structure of the bases you pick", "your e-mail address"),
    never="see your password",
    revoke=revoke,
    stays=stays,
    manage_url=manage_url,
    diagnose=diagnose,
)
