"""Stripe Connect's canned answers, from docs.stripe.com/connect/oauth-reference."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

from broker.errors import ClientRefused, GrantRefused, OAuthFailure
from broker.secret import Secret
from tests.connecting import ACCESS, REFRESH
from tests.house import stripe_app
from tests.providers.case import Case


def stripe_signs(body: bytes, secret: Secret, at: datetime) -> Mapping[str, str]:
    """Sign a webhook as Stripe does."""
    stamp = int(at.timestamp())
    made = hmac.new(secret.reveal().encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v0=older,v1={made}"}


ACCOUNT = {"id": "acct_1", "type": "standard", "settings": {"dashboard": {"display_name": "Acme"}}}
EVENT = {
    "id": "evt_1", "object": "event", "api_version": "2026-10-29", "created": 1_763_632_800, "livemode": False,
    "pending_webhooks": 1, "request": None, "account": "acct_1", "type": "account.application.deauthorized",
    "data": {"object": {"id": "ca_1", "object": "application", "name": "Broker"}},
}  # fmt: skip

CASE = Case(
    app=stripe_app("stripe"),
    authenticates="secret_key_basic",
    token={
        "access_token": ACCESS, "refresh_token": REFRESH, "token_type": "bearer", "scope": "read_write",
        "stripe_user_id": "acct_1", "livemode": False, "stripe_publishable_key": "pk_1",
    },
    answers={"https://api.stripe.com/v1/account": ACCOUNT},
    probe_answers={"https://api.stripe.com/v1/accounts/acct_1": ACCOUNT},
    as_ourselves=frozenset({"https://api.stripe.com/v1/accounts/acct_1"}),
    event=EVENT,
    signs=stripe_signs,
    accounts=("acct_1",),
    name_at=("https://api.stripe.com/v1/account", "settings", "dashboard", "display_name"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": f"does not exist: {ACCESS}"}, GrantRefused),
        (401, {"error": "invalid_client"}, ClientRefused),
        (401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, ClientRefused),
        (400, {"error": "invalid_scope"}, OAuthFailure),
    ),
)  # fmt: skip
