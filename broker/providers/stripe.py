"""Stripe Connect OAuth for Standard accounts.

Source: docs.stripe.com/connect/oauth-reference and /connect/oauth-standard-accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from broker.errors import UnusableAnswer
from broker.http import Answer, readable
from broker.oauth import Grant, OAuthProfile
from broker.providers.base import (
    Account,
    Call,
    Finding,
    GrantIncomplete,
    Mode,
    Provider,
    ProviderRefused,
    RevocationRefused,
    clean,
    read_object,
)
from broker.secret import Secret
from broker.settings import AppOptions, HttpAddress, OAuthApp

DEAUTHORIZE = "POST /oauth/deauthorize"
# Stripe says both with the code `invalid_client`, so that only its description tells them apart.
NOT_CONNECTED = "not connected to stripe account"
NOT_DEAUTHORIZED_BY_US = "no_deauth_on_controlled_account"


SCOPES = frozenset({"read_only", "read_write"})


class StripeOptions(AppOptions):
    """Base addresses, and what the import carries."""

    connect_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "STRIPE_CONNECT_URL"})] = (
        "https://connect.stripe.com"
    )
    api_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "STRIPE_API_URL"})] = "https://api.stripe.com"
    # Handing the refresh token over makes Sequin the one that refreshes.
    import_refresh_token: bool = False


def _options(app: OAuthApp) -> StripeOptions:
    assert isinstance(app.options, StripeOptions)
    return app.options


def profile(app: OAuthApp) -> OAuthProfile:
    """Return the endpoints. The platform's secret key is the client secret, sent as Basic `sk_…:`."""
    connect = _options(app).connect_url
    return OAuthProfile(
        authorize_url=f"{connect}/oauth/authorize",
        token_url=f"{connect}/oauth/token",
        token_auth="secret_key_basic",
        client_id=app.client_id,
        client_secrets=app.client_secrets,
        # Without a scope Stripe falls back to read_only, which a platform may not have.
        scopes=app.scopes or PROVIDER.default_scopes,
        pkce=False,
        issuer=None,
    )


def identify(app: OAuthApp, grant: Grant, call: Call) -> tuple[Account, ...]:
    """Read the connected account and compare it with the one the grant names."""
    expected = grant.extra.get("stripe_user_id")
    if not isinstance(expected, str) or not expected.startswith("acct_"):
        raise UnusableAnswer("the token answer names no stripe_user_id")
    mode: Mode = "live" if grant.extra.get("livemode") is True else "test"
    found = _read_account(app, grant, expected, call)
    if found.get("id") != expected:
        raise UnusableAnswer("the account read is not the account granted")
    return (Account(id=expected, name=_display_name(found), type=clean(found.get("type")) or None, mode=mode),)


def _read_account(app: OAuthApp, grant: Grant, account_id: str, call: Call) -> dict[str, Any]:
    api = _options(app).api_url
    if grant.access_token is not None:
        return read_object(call("GET", f"{api}/v1/account", bearer=grant.access_token), what="GET /v1/account")
    # Newer platforms receive no token of the account; the platform's own key can still read it.
    platform = app.client_secrets[0]
    return read_object(call("GET", f"{api}/v1/accounts/{account_id}", bearer=platform), what="GET /v1/accounts")


def _display_name(account: dict[str, Any]) -> str:
    settings = account.get("settings")
    dashboard = settings.get("dashboard") if isinstance(settings, dict) else None
    business = account.get("business_profile")
    candidates = (
        dashboard.get("display_name") if isinstance(dashboard, dict) else None,
        business.get("name") if isinstance(business, dict) else None,
        account.get("email"),
    )
    return next((name for name in map(clean, candidates) if name), str(account["id"]))


def properties(app: OAuthApp, account: Account, grant: Grant | None) -> dict[str, object]:
    """Return a `stripe_oauth2` credential; `stripe_user_id` makes a re-import update instead of adding."""
    if grant is None:
        raise GrantIncomplete("the token was erased after its import was verified: the person has to reconnect")
    if grant.access_token is None:
        raise GrantIncomplete(
            "Stripe’s answer held no access token: this platform’s Connect OAuth no longer issues them. "
            "Register a Stripe App and use the provider stripe_app"
        )
    content: dict[str, object] = {
        "kind": PROVIDER.kind,
        "secret": grant.access_token.reveal(),
        "test": account.mode == "test",
        "name": account.name,
        "stripe_user_id": account.id,
    }
    if _options(app).import_refresh_token and grant.refresh_token is not None:
        content["refresh_token"] = grant.refresh_token.reveal()
        content["scope"] = " ".join(grant.scopes)
    return content


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"stripe_user_id": account.id, "test": account.mode == "test"}


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """Deauthorise the account with the platform's own key: it works after every token is gone."""
    answer = call(
        "POST",
        f"{_options(app).connect_url}/oauth/deauthorize",
        basic=(app.client_secrets[0].reveal(), Secret("")),
        form={"client_id": app.client_id, "stripe_user_id": account.id},
    )
    if answer.status in {400, 401}:
        return _already_ended(app, answer)
    if read_object(answer, what=DEAUTHORIZE).get("stripe_user_id") != account.id:
        raise UnusableAnswer(f"{DEAUTHORIZE}: the answer names another account")
    return True


def _already_ended(app: OAuthApp, answer: Answer) -> bool:
    """Tell apart what Stripe says with one code: nothing is left to end, it may not be ended, or we are wrong."""
    content = answer.json()
    told = content if isinstance(content, dict) else {}
    error = told.get("error")
    text = readable(told.get("error_description"), secrets=[secret.reveal() for secret in app.client_secrets])
    if NOT_DEAUTHORIZED_BY_US in f"{error} {text}":
        raise RevocationRefused(f"{DEAUTHORIZE}: {answer.status} {NOT_DEAUTHORIZED_BY_US}")
    if error == "invalid_client" and NOT_CONNECTED in text.lower():
        return True
    # Anything else must not pass for done: our key, its mode or the client id may be wrong.
    raise ProviderRefused(f"{DEAUTHORIZE}: {answer.status} {text}".rstrip())


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where the account's owner sees and removes connected platforms."""
    return "https://dashboard.stripe.com/settings/apps"


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the platform's secret key: its kind, its mode, and whether Stripe accepts it."""
    yield _key_mode(app)
    unknown = sorted(set(app.scopes) - SCOPES)
    if unknown:
        yield Finding("scopes", "fail", f"Stripe has no scope {', '.join(unknown)}.", "Use read_write or read_only.")
    else:
        yield Finding("scopes", "pass", f"Asks for {', '.join(app.scopes or PROVIDER.default_scopes)}.")
    answer = call("GET", f"{_options(app).api_url}/v1/account", bearer=app.client_secrets[0])
    if answer.status == 401:
        mend = "Copy the secret key of the platform account from Stripe’s dashboard, Developers, API keys."
        yield Finding("credentials", "fail", "Stripe does not accept the client secret.", mend)
    elif answer.status == 429 or answer.status >= 500:
        yield Finding("credentials", "warn", f"Stripe could not be asked: HTTP {answer.status}.", "Try again later.")
    else:
        # A restricted key may not read the account, and is known all the same.
        yield Finding("credentials", "pass", "Stripe accepts the client secret; the client id is not checked.")


def _key_mode(app: OAuthApp) -> Finding:
    key = app.client_secrets[0].reveal()
    if not key.startswith(("sk_", "rk_")):
        mend = "The client secret is the platform’s secret key; it begins with sk_live_ or sk_test_."
        return Finding("mode", "fail", "The client secret is not a secret key of Stripe’s.", mend)
    if "_live_" in key[:8]:
        if "test" in app.key:
            mend = "Use the test mode’s client id together with the test mode’s secret key, or rename the OAuth app."
            return Finding("mode", "warn", "Live secret key in an OAuth app that is called test.", mend)
        return Finding("mode", "pass", "Live keys.")
    return Finding("mode", "pass", "Test keys: real data will not appear.")


PROVIDER = Provider(
    name="stripe",
    title="Stripe",
    sequin_provider="stripe",
    kind="stripe_oauth2",
    options=StripeOptions,
    profile=profile,
    identify=identify,
    properties=properties,
    identity=identity,
    default_scopes=("read_write",),
    reads=("payments", "customers", "invoices and subscriptions", "balance and payouts"),
    never="see your password",
    caveat="Stripe has no read-only permission for this kind of connection: what you allow also covers changes.",
    no_pkce_because="Connect’s reference documents no code_challenge; its code is single-use and lives 5 minutes",
    requires_access_token=False,
    manage_url=manage_url,
    diagnose=diagnose,
    revoke=revoke,
    revoke_needs_grant=False,
)
