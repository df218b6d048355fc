"""GitHub OAuth Apps' canned answers, from docs.github.com/rest/apps/oauth-applications."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused
from tests.connecting import ACCESS, GITHUB_API, PERSON, REFRESH, github_oauth_app
from tests.providers.case import Case

CASE = Case(
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
    # Sequin documents none: what the sandbox takes.
    members=({"access_token": str}, {"scope": str, "account_login": str}),
)  # fmt: skip
