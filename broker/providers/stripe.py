"""Stripe Connect OAuth for Standard accounts.

Source: docs.stripe.com/connect/oauth-reference and /connect/oauth-standard-accounts.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from pydantic import Field

from broker.errors import ClientRefused, UnusableAnswer
from broker.http import Answer, readable
from broker.oauth import Grant, OAuthProfile
from broker.providers import stripe_api
from broker.providers.base import (
    Account,
    AccountGone,
    Call,
    Condition,
    Finding,
    Mode,
    Provider,
    ProviderRefused,
    RevocationRefused,
    read_object,
)
from broker.secret import Secret
from broker.settings import HttpAddress, OAuthApp

DEAUTHORIZE = "POST /oauth/deauthorize"
ACCOUNTS = "GET /v1/accounts"
# Stripe says both with the code `invalid_client`, so that only its description tells them apart.
NOT_CONNECTED = "not connected to stripe account"
NOT_DEAUTHORIZED_BY_US = "no_deauth_on_controlled_account"


SCOPES = frozenset({"read_only", "read_write"})


class StripeOptions(stripe_api.StripeOptions):
    """The consent page's address too."""

    connect_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "STRIPE_CONNECT_URL"})] = (
        "https://connect.stripe.com"
    )


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
    account_id, mode = stripe_api.granted_account(grant), stripe_api.grant_mode(app, grant)
    if grant.access_token is not None:
        answer = call("GET", f"{_options(app).api_url}/v1/account", bearer=grant.access_token)
        return (stripe_api.read_account(answer, account_id, mode, what="GET /v1/account"),)
    # Newer platforms receive no token of the account; the platform's own key can still read it.
    answer = _ask_platform(app, account_id, call)
    if answer.status == 401:
        raise ProviderRefused(f"{ACCOUNTS}: 401, Stripe does not accept the platform’s secret key")
    try:
        return (stripe_api.read_account(answer, account_id, mode, what=ACCOUNTS),)
    except AccountGone as refusal:
        # Granted a moment ago: it is the key that may not see it.
        raise ProviderRefused(refusal.detail) from None


def _ask_platform(app: OAuthApp, account_id: str, call: Call) -> Answer:
    url = f"{_options(app).api_url}/v1/accounts/{account_id}"
    return stripe_api.ask_as_ourselves(app, lambda key: call("GET", url, bearer=key))


def probe(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> Condition:
    """Read the account with the platform's own key: one call, and no token is needed for it."""
    _require_mode(app, account.mode)
    answer = _ask_platform(app, account.id, call)
    if answer.status == 401:
        # Our key, not this account: nobody's connection is to blame.
        raise ClientRefused("invalid_client", f"{ACCOUNTS}: 401")
    return Condition(account=stripe_api.read_account(answer, account.id, account.mode, what=ACCOUNTS))


def _require_mode(app: OAuthApp, mode: Mode) -> None:
    # To a key of the other mode Stripe would say that the account does not exist.
    if stripe_api.key_mode(app) not in (None, mode):
        raise ProviderRefused(f"{ACCOUNTS}: the secret key is of the other mode than the account")


def revoke(app: OAuthApp, account: Account, grant: Grant | None, call: Call, now: datetime) -> bool:
    """Deauthorise the account with the platform's own key: it works after every token is gone."""
    form = {"client_id": app.client_id, "stripe_user_id": account.id}
    url = f"{_options(app).connect_url}/oauth/deauthorize"
    answer = stripe_api.ask_as_ourselves(
        app, lambda key: call("POST", url, basic=(key.reveal(), Secret("")), form=form)
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


def diagnose(app: OAuthApp, call: Call, now: datetime) -> Iterator[Finding]:
    """Look at the platform's secret key: its kind, its mode, and whether Stripe accepts it."""
    yield stripe_api.about_key(app)
    unknown = sorted(set(app.scopes) - SCOPES)
    if unknown:
        yield Finding("scopes", "fail", f"Stripe has no scope {', '.join(unknown)}.", "Use read_write or read_only.")
    else:
        yield Finding("scopes", "pass", f"Asks for {', '.join(app.scopes or PROVIDER.default_scopes)}.")
    yield from stripe_api.about_credentials(app, call)


PROVIDER = Provider(
    name="stripe",
    title="Stripe",
    sequin_provider="stripe",
    kind=stripe_api.KIND,
    options=StripeOptions,
    profile=profile,
    identify=identify,
    properties=stripe_api.properties,
    identity=stripe_api.identity,
    default_scopes=("read_write",),
    reads=stripe_api.READS,
    never="see your password",
    caveat="Stripe has no read-only permission for this kind of connection: what you allow also covers changes.",
    no_pkce_because="Connect’s reference documents no code_challenge; its code is single-use and lives 5 minutes",
    requires_access_token=False,
    manage_url=stripe_api.manage_url,
    diagnose=diagnose,
    revoke=revoke,
    revoke_needs_grant=False,
    probe=probe,
    probe_needs_grant=False,
    # A sandbox takes 25 reads a second, live mode 100, and people connecting need some of them.
    probes_per_second=5.0,
    webhook=stripe_api.webhook,
)
