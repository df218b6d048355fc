"""Stripe Apps OAuth 2.0: what an account's owner installs, with the permissions of the app's manifest.

Source: docs.stripe.com/stripe-apps/api-authentication/oauth.

One OAuth app for each mode: Stripe gives test, live and every sandbox links, client ids and keys of their own, and the
callback does not say which of them it comes from. The callback's own path says it here, and the answer's `livemode`
must agree.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from pydantic import Field, field_validator

from broker.oauth import Grant, OAuthProfile
from broker.providers import stripe_api
from broker.providers.base import (
    Account,
    AccountGone,
    Call,
    Condition,
    Finding,
    Provider,
    ProviderRefused,
    TokenRejected,
)
from broker.settings import HttpAddress, OAuthApp
from broker.text import translatable

ACCOUNT = "GET /v1/account (permission connected_account_read)"


class StripeAppOptions(stripe_api.StripeOptions):
    """The install page, and how long a token lives."""

    marketplace_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "STRIPE_MARKETPLACE_URL"})] = (
        "https://marketplace.stripe.com"
    )
    install_link: Annotated[
        str,
        Field(
            description="The dashboard’s link for an app that is not published, of test mode, live mode or a sandbox: "
            "the whole address, or its part that begins with chnlink_. Empty for a published app."
        ),
    ] = ""
    access_seconds: Annotated[
        int, Field(ge=1, le=86_400, description="How long an access token lives; Stripe’s answer leaves it out.")
    ] = 3600

    @field_validator("install_link")
    @classmethod
    def _channel(cls, text: str) -> str:
        if not text:
            return ""
        found = re.search(r"(?:^|/)(chnlink_\w{1,80})(?:/|$)", text, re.ASCII)
        if found is None:
            raise ValueError("it holds no part that begins with chnlink_")
        return found[1]


def _options(app: OAuthApp) -> StripeAppOptions:
    assert isinstance(app.options, StripeAppOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. The developer's secret key is the client secret, sent as Basic `sk_…:`."""
    options = _options(app)
    link = f"{options.install_link}/" if options.install_link else ""
    return OAuthProfile(
        authorize_url=f"{options.marketplace_url}/oauth/v2/{link}authorize",
        token_url=f"{options.api_url}/v1/oauth/token",
        token_auth="secret_key_basic",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        # The manifest's permissions are asked for; a scope is no parameter here.
        scopes=(),
        pkce=False,
        issuer=None,
        access_seconds=options.access_seconds,
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Read the account the app was installed on and compare it with the one the grant names."""
    found = Account(stripe_api.granted_account(grant), "", None, stripe_api.grant_mode(app, grant))
    try:
        return (_read(app, found, grant, call),)
    except AccountGone as refusal:
        # Installed a moment ago: uninstalled again, or the app may not read accounts.
        raise ProviderRefused(refusal.detail) from None


def probe(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> Condition:
    """Read the account with its own token: one call."""
    if grant is None:
        raise TokenRejected("the token was handed over, or erased")
    return Condition(account=_read(app, account, grant, call))


def _read(app: OAuthApp, account: Account, grant: Grant, call: Call) -> Account:
    answer = call("GET", f"{_options(app).api_url}/v1/account", bearer=grant.access_token)
    return stripe_api.read_account(answer, account.id, account.mode, what=ACCOUNT)


def refreshes(app: OAuthApp) -> bool:
    """Tell whether tokens are refreshed here: not where an import hands the refresh token over."""
    return not _options(app).import_refresh_token


def stays(app: OAuthApp) -> str:
    """Return what a disconnect leaves at Stripe: it documents no way for a developer to uninstall an app."""
    return translatable("the installed app")


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the developer's secret key and at the link that people are sent to."""
    yield stripe_api.about_key(app, restricted_allowed=False)
    if app.scopes:
        mend = "Remove them; list the permissions in the app’s manifest."
        yield Finding("scopes", "warn", "Stripe Apps take no scopes.", mend)
    else:
        yield Finding("scopes", "pass", "Permissions come from the app’s manifest.")
    if _options(app).install_link:
        sentence = "People are sent to the link of an app that is not published; it works for invited testers."
    else:
        sentence = "People are sent to the published app’s link; it works once Stripe has published the app."
    yield Finding("install_link", "pass", sentence)
    yield from stripe_api.about_credentials(app, call)


PROVIDER = Provider(
    name="stripe_app",
    title="Stripe App",
    sequin_provider="stripe",
    kind=stripe_api.KIND,
    options=StripeAppOptions,
    profile=profile,
    identify=identify,
    properties=stripe_api.properties,
    identity=stripe_api.identity,
    reads=stripe_api.READS,
    never="see your password",
    caveat="Stripe’s own page lists exactly what the app may do.",
    no_pkce_because="Stripe Apps document no code_challenge; a code is single-use and lives 5 minutes",
    refreshes=refreshes,
    probe=probe,
    probes_per_second=5.0,
    webhook=stripe_api.webhook,
    manage_url=stripe_api.manage_url,
    stays=stays,
    diagnose=diagnose,
)
