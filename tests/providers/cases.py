"""What each provider says, canned: all that a new provider has to add to be held to the contract."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from broker.errors import BrokerError, ClientRefused, GrantRefused, OAuthFailure
from broker.secret import Secret
from broker.settings import OAuthApp
from tests.connecting import (
    ACCESS,
    GITHUB_API,
    PERSON,
    REFRESH,
    github_app,
    github_oauth_app,
    installation,
    person_installation,
)
from tests.house import app_of, stripe_app


@dataclass(frozen=True)
class Case:
    """One provider's canned answers, and what they mean."""

    app: OAuthApp
    # How the token request proves who we are, as the provider's own reference says.
    authenticates: str
    token: Mapping[str, Any]
    # What the API answers to GET, by address.
    answers: Mapping[str, Any]
    # The ids of the accounts that the grant reaches.
    accounts: tuple[str, ...]
    # Where a name stands: address, then the way to it.
    name_at: tuple[str | int, ...]
    # Provider dialects besides the ones of RFC 6749: status, body, how it is judged.
    refusals: tuple[tuple[int, Any, type[BrokerError]], ...] = ()
    # Addresses asked as ourselves, not as the person.
    as_ourselves: frozenset[str] = field(default_factory=frozenset)
    # What the API answers to GET besides, when it is asked about a connected account.
    probe_answers: Mapping[str, Any] = field(default_factory=dict)
    # What it answers to POST then.
    probe_posts: Mapping[str, Any] = field(default_factory=dict)
    # A webhook that means something here, and the headers that come with a body signed with a secret.
    event: Mapping[str, Any] = field(default_factory=dict)
    signs: Callable[[bytes, Secret, datetime], Mapping[str, str]] | None = None


def stripe_signs(body: bytes, secret: Secret, at: datetime) -> Mapping[str, str]:
    """Sign a webhook as Stripe does."""
    stamp = int(at.timestamp())
    made = hmac.new(secret.reveal().encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"Stripe-Signature": f"t={stamp},v0=older,v1={made}"}


def github_signs(body: bytes, secret: Secret, at: datetime) -> Mapping[str, str]:
    """Sign a webhook as GitHub does, with the headers that it needs besides."""
    made = hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={made}", "X-GitHub-Event": "installation", "X-GitHub-Delivery": "d-1"}


_STRIPE_ACCOUNT = {"id": "acct_1", "type": "standard", "settings": {"dashboard": {"display_name": "Acme"}}}
_STRIPE_EVENT = {
    "id": "evt_1", "object": "event", "api_version": "2026-10-29", "created": 1_763_632_800, "livemode": False,
    "pending_webhooks": 1, "request": None, "account": "acct_1", "type": "account.application.deauthorized",
    "data": {"object": {"id": "ca_1", "object": "application", "name": "Broker"}},
}  # fmt: skip
_ORG = installation(40, 400, "acme")

CASES: Mapping[str, Case] = {
    "stripe": Case(
        app=stripe_app("stripe"),
        authenticates="secret_key_basic",
        token={
            "access_token": ACCESS, "refresh_token": REFRESH, "token_type": "bearer", "scope": "read_write",
            "stripe_user_id": "acct_1", "livemode": False, "stripe_publishable_key": "pk_1",
        },
        answers={"https://api.stripe.com/v1/account": _STRIPE_ACCOUNT},
        probe_answers={"https://api.stripe.com/v1/accounts/acct_1": _STRIPE_ACCOUNT},
        as_ourselves=frozenset({"https://api.stripe.com/v1/accounts/acct_1"}),
        event=_STRIPE_EVENT,
        signs=stripe_signs,
        accounts=("acct_1",),
        name_at=("https://api.stripe.com/v1/account", "settings", "dashboard", "display_name"),
        refusals=(
            (400, {"error": "invalid_grant", "error_description": f"does not exist: {ACCESS}"}, GrantRefused),
            (401, {"error": "invalid_client"}, ClientRefused),
            (401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, ClientRefused),
            (400, {"error": "invalid_scope"}, OAuthFailure),
        ),
    ),
    "stripe_app": Case(
        app=app_of("stripe_app", "stripe_app"),
        authenticates="secret_key_basic",
        token={
            "access_token": ACCESS, "refresh_token": REFRESH, "token_type": "bearer", "scope": "stripe_apps",
            "stripe_user_id": "acct_1", "livemode": False, "stripe_publishable_key": "pk_1",
        },
        answers={"https://api.stripe.com/v1/account": _STRIPE_ACCOUNT},
        accounts=("acct_1",),
        name_at=("https://api.stripe.com/v1/account", "settings", "dashboard", "display_name"),
        refusals=(
            (400, {"error": "invalid_grant", "error_description": f"does not exist: {ACCESS}"}, GrantRefused),
            (401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, ClientRefused),
            # A restricted key, or a token in a key's place.
            (403, {"error": {"type": "invalid_request_error", "message": "permissions"}}, ClientRefused),
        ),
        event=_STRIPE_EVENT,
        signs=stripe_signs,
    ),
    "github": Case(
        app=github_app(),
        authenticates="client_secret_post",
        token={
            "access_token": ACCESS, "expires_in": 28800, "refresh_token": REFRESH,
            "refresh_token_expires_in": "15897600", "scope": "", "token_type": "bearer",
        },
        answers={
            f"{GITHUB_API}/user": {"id": PERSON, "login": f"user-{PERSON}"},
            f"{GITHUB_API}/user/installations": {"total_count": 2, "installations": [person_installation(), _ORG]},
            f"{GITHUB_API}/user/memberships/orgs/acme": {
                "state": "active", "role": "admin", "organization": {"id": 400},
            },
            f"{GITHUB_API}/app/installations/9": person_installation(),
            f"{GITHUB_API}/app/installations/40": _ORG,
        },
        accounts=(str(PERSON), "400"),
        name_at=(f"{GITHUB_API}/user/installations", "installations", 0, "account", "login"),
        refusals=(
            (200, {"error": "bad_verification_code", "error_description": "expired"}, GrantRefused),
            (200, {"error": "incorrect_client_credentials"}, ClientRefused),
            (200, {"error": "redirect_uri_mismatch"}, ClientRefused),
            (404, {"error": "Not Found"}, ClientRefused),
            (200, {"error": "unverified_user_email"}, OAuthFailure),
        ),
        event={"action": "deleted", "installation": _ORG, "sender": {"id": PERSON, "login": "jo"}},
        signs=github_signs,
        as_ourselves=frozenset({f"{GITHUB_API}/app/installations/9", f"{GITHUB_API}/app/installations/40"}),
    ),
    "github_oauth": Case(
        app=github_oauth_app(),
        authenticates="client_secret_post",
        token={
            "access_token": ACCESS, "expires_in": 28800, "refresh_token": REFRESH,
            "refresh_token_expires_in": 15897600, "scope": "read:user,read:org", "token_type": "bearer",
        },
        answers={f"{GITHUB_API}/user": {"id": PERSON, "login": f"user-{PERSON}", "type": "User"}},
        probe_posts={
            f"{GITHUB_API}/applications/Ov23.acme/token": {
                "user": {"id": PERSON, "login": f"user-{PERSON}"}, "scopes": ["read:user", "read:org"],
            }
        },
        accounts=(str(PERSON),),
        name_at=(f"{GITHUB_API}/user", "login"),
        refusals=(
            (200, {"error": "bad_verification_code", "error_description": "expired"}, GrantRefused),
            (200, {"error": "bad_refresh_token"}, GrantRefused),
            (200, {"error": "incorrect_client_credentials"}, ClientRefused),
            (404, {"error": "Not Found"}, ClientRefused),
        ),
    ),
}  # fmt: skip
