"""Stripe Apps' canned answers, from docs.stripe.com/stripe-apps/api-authentication/oauth."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused
from tests.connecting import ACCESS, REFRESH
from tests.house import app_of
from tests.providers.case import Case
from tests.providers.stripe import ACCOUNT, EVENT, stripe_signs

CASE = Case(
    app=app_of("stripe_app", "stripe_app"),
    authenticates="secret_key_basic",
    token={
        "access_token": ACCESS, "refresh_token": REFRESH, "token_type": "bearer", "scope": "stripe_apps",
        "stripe_user_id": "acct_1", "livemode": False, "stripe_publishable_key": "pk_1",
    },
    answers={"https://api.stripe.com/v1/account": ACCOUNT},
    accounts=("acct_1",),
    name_at=("https://api.stripe.com/v1/account", "settings", "dashboard", "display_name"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": f"does not exist: {ACCESS}"}, GrantRefused),
        (401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, ClientRefused),
        # A restricted key, or a token in a key's place.
        (403, {"error": {"type": "invalid_request_error", "message": "permissions"}}, ClientRefused),
    ),
    event=EVENT,
    signs=stripe_signs,
)  # fmt: skip
