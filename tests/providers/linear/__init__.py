"""Linear's canned answers, from linear.app/developers/oauth-2-0-authentication."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused
from tests.house import app_of
from tests.providers.case import Case, body

GRAPHQL = "https://api.linear.app/graphql"
VIEWER = body(__file__, "viewer")

CASE = Case(
    app=app_of("linear", "linear"),
    authenticates="client_secret_post",
    token=body(__file__, "token"),
    answers={},
    posts={GRAPHQL: VIEWER},
    probe_posts={GRAPHQL: VIEWER},
    accounts=("0f7fbc0a-1c6c-4b0e-b1c2-000000000001",),
    name_at=(GRAPHQL, "data", "organization", "name"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": "Refresh token is invalid or expired"}, GrantRefused),
        (401, {"error": "invalid_client"}, ClientRefused),
    ),
)
