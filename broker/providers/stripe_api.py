"""What Stripe Connect and Stripe Apps share: the secret key's mode, the account, the credential and the webhooks.

Not a provider itself. Source: docs.stripe.com/api/accounts, /keys, /webhooks and /connect/webhooks.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field

from broker.errors import UnusableAnswer
from broker.http import Answer
from broker.oauth import Grant
from broker.providers.base import (
    Account,
    AccountGone,
    Call,
    Finding,
    GrantIncomplete,
    Mode,
    Notice,
    NoticeKind,
    ProviderRefused,
    WebhookInvalid,
    WebhookRefused,
    clean,
    is_limited,
    read_object,
)
from broker.secret import Secret
from broker.settings import AppOptions, HttpAddress, OAuthApp

KIND = "stripe_oauth2"
READS = ("payments", "customers", "invoices and subscriptions", "balance and payouts")
TOLERANCE = timedelta(seconds=300)
"""How old a signed webhook may be; what comes from a clock ahead of ours is taken, as Stripe's own library does."""

MEANINGS: Mapping[str, NoticeKind] = {
    "account.application.deauthorized": NoticeKind.REVOKED,
    "account.updated": NoticeKind.CHANGED,
}


class StripeOptions(AppOptions):
    """The API's address, and what the import carries."""

    api_url: Annotated[HttpAddress, Field(json_schema_extra={"env": "STRIPE_API_URL"})] = "https://api.stripe.com"
    import_refresh_token: Annotated[
        bool, Field(description="Whether to hand the refresh token over, so that Sequin is the one that refreshes.")
    ] = False


def options(app: OAuthApp) -> StripeOptions:
    """Return the options of an app of either provider."""
    assert isinstance(app.options, StripeOptions)
    return app.options


# --- keys and modes -------------------------------------------------------------------------------------


def key_mode(app: OAuthApp) -> Mode | None:
    """Return the mode that the secret key is of, None where it does not say; a sandbox's keys are test keys."""
    found = re.match(r"[sr]k_(live|test)_", app.client_secrets[0].reveal())
    return None if found is None else ("live" if found[1] == "live" else "test")


def grant_mode(app: OAuthApp, grant: Grant) -> Mode:
    """Return the mode of what was granted. Raises ProviderRefused when it is not the secret key's."""
    told, keyed = grant.extra.get("livemode"), key_mode(app)
    if not isinstance(told, bool):
        return keyed or "test"
    mode: Mode = "live" if told else "test"
    if keyed not in (None, mode):
        raise ProviderRefused(f"the secret key is of {keyed} mode, the grant of {mode} mode")
    return mode


def ask_as_ourselves(app: OAuthApp, ask: Callable[[Secret], Answer]) -> Answer:
    """Ask with our secret key, with the next one where Stripe does not know it: one may be on its way out."""
    answer = ask(app.client_secrets[0])
    for key in app.client_secrets[1:]:
        if not is_unknown_key(answer):
            break
        answer = ask(key)
    return answer


def is_unknown_key(answer: Answer) -> bool:
    """Tell whether Stripe does not know our key. Its OAuth endpoints say 401 to other things too, with a string."""
    if answer.status != 401:
        return False
    try:
        content = answer.json()
    except UnusableAnswer:
        return True
    return not isinstance(content, dict) or not isinstance(content.get("error"), str)


# --- the account ----------------------------------------------------------------------------------------


def granted_account(grant: Grant) -> str:
    """Return the id of the account that a grant names. Raises UnusableAnswer."""
    named = grant.extra.get("stripe_user_id")
    if not isinstance(named, str) or not re.fullmatch(r"acct_\w{1,64}", named, re.ASCII):
        raise UnusableAnswer("the token answer names no stripe_user_id")
    return named


def read_account(answer: Answer, account_id: str, mode: Mode, *, what: str) -> Account:
    """Return the account that an answer shows, which must be this one. Raises AccountGone and as `read_object`."""
    if answer.status == 403 and not is_limited(answer):
        code = _refusal(answer)
        raise (AccountGone if code == "account_invalid" else ProviderRefused)(f"{what}: 403 {code}".rstrip())
    found = read_object(answer, what=what)
    if found.get("id") != account_id:
        raise UnusableAnswer("the account read is not the account granted")
    return Account(id=account_id, name=_display_name(found), type=clean(found.get("type")) or None, mode=mode)


def _refusal(answer: Answer) -> str:
    try:
        content = answer.json()
    except UnusableAnswer:
        return ""
    error = content.get("error") if isinstance(content, dict) else None
    return clean(error.get("code"), limit=60) if isinstance(error, dict) else ""


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


def manage_url(app: OAuthApp, account: Account) -> str:
    """Return the page where the account's owner sees and removes connected platforms and apps."""
    return "https://dashboard.stripe.com/settings/apps"


# --- the credential -------------------------------------------------------------------------------------


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
        "kind": KIND,
        "secret": grant.access_token.reveal(),
        "test": account.mode == "test",
        "name": account.name,
        "stripe_user_id": account.id,
    }
    if options(app).import_refresh_token and grant.refresh_token is not None:
        content["refresh_token"] = grant.refresh_token.reveal()
        content["scope"] = " ".join(grant.scopes)
    return content


def identity(account: Account) -> dict[str, object]:
    """Return what an imported credential says of its account."""
    return {"stripe_user_id": account.id, "test": account.mode == "test"}


# --- the doctor -----------------------------------------------------------------------------------------


def about_key(app: OAuthApp, *, restricted_allowed: bool = True) -> Finding:
    """Look at the secret key's kind and mode."""
    key, mode = app.client_secrets[0].reveal(), key_mode(app)
    if mode is None:
        mend = "The client secret is the account’s secret key; it begins with sk_live_ or sk_test_."
        return Finding("mode", "fail", "The client secret is not a secret key of Stripe’s.", mend)
    if key.startswith("rk_") and not restricted_allowed:
        mend = "Stripe takes the whole secret key here, sk_…, not a restricted one."
        return Finding("mode", "fail", "The client secret is a restricted key.", mend)
    if mode == "live" and "test" in app.key:
        mend = "Use the test mode’s client id together with the test mode’s secret key, or rename the OAuth app."
        return Finding("mode", "warn", "Live secret key in an OAuth app that is called test.", mend)
    return Finding("mode", "pass", "Live keys." if mode == "live" else "Test keys: real data will not appear.")


def about_credentials(app: OAuthApp, call: Call) -> Iterator[Finding]:
    """Ask Stripe whether it knows each of our secret keys. Raises NetworkError."""
    url = f"{options(app).api_url}/v1/account"
    for number, key in enumerate(app.client_secrets, 1):
        which = "the client secret" if len(app.client_secrets) == 1 else f"client secret {number}"
        answer = call("GET", url, bearer=key)
        if answer.status == 401:
            mend = "Copy the account’s secret key from Stripe’s dashboard, Developers, API keys."
            yield Finding("credentials", "fail", f"Stripe does not accept {which}.", mend)
        elif answer.status == 429 or answer.status >= 500:
            yield Finding(
                "credentials", "warn", f"Stripe could not be asked: HTTP {answer.status}.", "Try again later."
            )
        else:
            # A restricted key may not read the account, and is known all the same.
            yield Finding("credentials", "pass", f"Stripe accepts {which}; the client id is not checked.")


# --- webhooks -------------------------------------------------------------------------------------------


def webhook(app: OAuthApp, headers: Mapping[str, str], body: bytes, now: datetime) -> Notice:
    """Verify an event and say what it means. Raises WebhookRefused or WebhookInvalid."""
    verify(headers.get("Stripe-Signature", ""), body, app.webhook_secrets, now)
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        raise WebhookInvalid("the body is not JSON") from None
    if not isinstance(event, dict):
        raise WebhookInvalid("the body is not an object")
    delivery_id, name = event.get("id"), clean(event.get("type"), limit=80)
    if not isinstance(delivery_id, str) or not re.fullmatch(r"\w{1,128}", delivery_id, re.ASCII) or not name:
        raise WebhookInvalid("an event has an id and a type")
    livemode, created = event.get("livemode"), event.get("created")
    if not isinstance(livemode, bool) or not isinstance(created, int) or not 0 <= created < 1 << 33:
        raise WebhookInvalid("an event has livemode and created")
    # The account stands at the top: what the data holds is the application. Without one it is about ourselves.
    account = event.get("account")
    about = account if isinstance(account, str) and re.fullmatch(r"acct_\w{1,64}", account, re.ASCII) else None
    return Notice(
        kind=MEANINGS.get(name, NoticeKind.NOTHING) if about else NoticeKind.NOTHING,
        name=name,
        delivery_id=delivery_id,
        account_id=about,
        mode="live" if livemode else "test",
        occurred_at=datetime.fromtimestamp(created, UTC),
    )


def verify(header: str, body: bytes, secrets: tuple[Secret, ...], now: datetime) -> None:
    """Raise WebhookRefused unless one of the signatures was made with one of the secrets, not too long ago."""
    parts = [part.strip().partition("=") for part in header.split(",")]
    stamps = [value for name, _, value in parts if name == "t"]
    given = [value.encode() for name, _, value in parts if name == "v1"]
    if len(stamps) != 1 or not re.fullmatch(r"\d{1,12}", stamps[0], re.ASCII) or not given:
        raise WebhookRefused("the Stripe-Signature header is missing or not in its form")
    signed = stamps[0].encode() + b"." + body
    wanted = [hmac.new(secret.reveal().encode(), signed, hashlib.sha256).hexdigest().encode() for secret in secrets]
    # Every pair is compared, so that the time it takes says nothing.
    if not any([hmac.compare_digest(one, other) for one in wanted for other in given]):  # noqa: C419
        raise WebhookRefused("no signature was made with a webhook secret of this OAuth app")
    if now.timestamp() - int(stamps[0]) > TOLERANCE.total_seconds():
        raise WebhookRefused("the signature is older than five minutes")
