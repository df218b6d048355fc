"""HubSpot's canned answers, from developers.hubspot.com, OAuth tokens, 2026-03."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused
from tests.house import app_of
from tests.providers.case import Case, body

INTROSPECT = "https://api.hubapi.com/oauth/2026-03/token/introspect"

CASE = Case(
    app=app_of("hubspot", "hubspot"),
    authenticates="client_secret_post",
    token=body(__file__, "token"),
    answers={},
    posts={INTROSPECT: body(__file__, "introspection")},
    introspects=frozenset({INTROSPECT}),
    accounts=("4411223",),
    name_at=(INTROSPECT, "hub_domain"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": "expired"}, GrantRefused),
        # As version 1 says it, and gateways still do.
        (400, {"status": "BAD_REFRESH_TOKEN", "message": "missing or invalid refresh token"}, GrantRefused),
        (400, {"status": "BAD_AUTH_CODE", "message": "missing or unknown auth code"}, GrantRefused),
        (400, {"status": "BAD_CLIENT_ID", "message": "missing or invalid client id"}, ClientRefused),
    ),
)
