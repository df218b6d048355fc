"""GitHub Apps' canned answers, from docs.github.com/rest/apps."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import datetime

from broker.errors import ClientRefused, GrantRefused, OAuthFailure
from broker.secret import Secret
from tests.connecting import ACCESS, GITHUB_API, PERSON, REFRESH, github_app, installation, person_installation
from tests.providers.case import Case


def github_signs(body: bytes, secret: Secret, at: datetime) -> Mapping[str, str]:
    """Sign a webhook as GitHub does, with the headers that it needs besides."""
    made = hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
    return {"X-Hub-Signature-256": f"sha256={made}", "X-GitHub-Event": "installation", "X-GitHub-Delivery": "d-1"}


_ORG = installation(40, 400, "acme")

CASE = Case(
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
)  # fmt: skip
