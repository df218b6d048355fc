"""Salesforce's canned answers, from help.salesforce.com, OAuth web server flow and user info."""

from __future__ import annotations

from broker.errors import ClientRefused, GrantRefused, OAuthFailure
from tests.house import app_of
from tests.providers.case import Case, body

USERINFO = "https://northwind.my.salesforce.com/services/oauth2/userinfo"

CASE = Case(
    app=app_of("salesforce", "salesforce"),
    authenticates="client_secret_post",
    token=body(__file__, "token"),
    answers={USERINFO: body(__file__, "userinfo")},
    accounts=("00D5g000008iGzK",),
    name_at=(USERINFO, "preferred_username"),
    refusals=(
        (400, {"error": "invalid_grant", "error_description": "expired authorization code"}, GrantRefused),
        (400, {"error": "invalid_client_id", "error_description": "client identifier invalid"}, ClientRefused),
        (400, {"error": "invalid_client", "error_description": "invalid client credentials"}, ClientRefused),
        (400, {"error": "redirect_uri_mismatch"}, ClientRefused),
        (400, {"error": "inactive_user"}, OAuthFailure),
    ),
)
