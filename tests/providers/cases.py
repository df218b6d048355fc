"""What each provider says, canned: all that a new provider has to add to be held to the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.errors import BrokerError, ClientRefused, GrantRefused, OAuthFailure
from broker.settings import OAuthApp
from tests.connecting import ACCESS, GITHUB_API, PERSON, REFRESH, github_app, installation, person_installation
from tests.house import stripe_app


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


_ORG = installation(40, 400, "acme")

CASES: Mapping[str, Case] = {
    "stripe": Case(
        app=stripe_app("stripe"),
        authenticates="secret_key_basic",
        token={
            "access_token": ACCESS, "refresh_token": REFRESH, "token_type": "bearer", "scope": "read_write",
            "stripe_user_id": "acct_1", "livemode": False, "stripe_publishable_key": "pk_1",
        },
        answers={
            "https://api.stripe.com/v1/account": {
                "id": "acct_1", "type": "standard", "settings": {"dashboard": {"display_name": "Acme"}},
            }
        },
        accounts=("acct_1",),
        name_at=("https://api.stripe.com/v1/account", "settings", "dashboard", "display_name"),
        refusals=(
            (400, {"error": "invalid_grant", "error_description": f"does not exist: {ACCESS}"}, GrantRefused),
            (401, {"error": "invalid_client"}, ClientRefused),
            (401, {"error": {"type": "invalid_request_error", "message": "Invalid API Key"}}, ClientRefused),
            (400, {"error": "invalid_scope"}, OAuthFailure),
        ),
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
        as_ourselves=frozenset({f"{GITHUB_API}/app/installations/9", f"{GITHUB_API}/app/installations/40"}),
    ),
}  # fmt: skip
