"""Airtable's canned answers, from airtable.com/developers/web/api/oauth-reference and /get-user-id-scopes."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused, OAuthFailure
from tests.house import app_of
from tests.providers.case import Case, body

WHOAMI = "https://api.airtable.com/v0/meta/whoami"

CASE = Case(
    app=app_of("airtable", "airtable"),
    authenticates="client_secret_basic",
    token=body(__file__, "token"),
    answers={WHOAMI: body(__file__, "whoami")},
    accounts=("usrL2PNC5o3H4lBEi",),
    name_at=(WHOAMI, "email"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": "The refresh token is invalid"}, GrantRefused),
        (401, {"error": "invalid_client"}, ClientRefused),
        (400, {"error": "invalid_request", "error_description": "code_verifier is missing"}, OAuthFailure),
    ),
)
