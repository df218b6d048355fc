"""A stand-in for Salesforce: no lifetime in the answer, and an address for each org that the answer tells."""

from __future__ import annotations

from datetime import timedelta

from flask import Response as FlaskResponse
from flask import jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.authorization import Account, Grant, Rules
from broker.sandbox.secrets import alphanumeric
from broker.sandbox.stand_in import StandIn


def _new(account_id: str | None) -> Account:
    made = account_id or f"00D{alphanumeric(12)}EAU"
    return Account(made, f"owner@{made[3:9].lower()}.example")


def _more(grant: Grant) -> dict[str, object]:
    base = f"{request.url_root.rstrip('/')}/salesforce"
    return {
        "expires_in": None,
        # Below one address in this sandbox, on a host of its own at Salesforce.
        "instance_url": f"{base}/orgs/{grant.account.id}",
        "id": f"{base}/id/{grant.account.id}/0055g00000ElKkQAAV",
        "issued_at": str(int(grant.refreshed_at.timestamp() * 1000)),
        "signature": "c2lnbmF0dXJl",
    }


STAND_IN = StandIn(
    name="salesforce",
    title="Salesforce",
    sequin_provider="salesforce",
    settings={"SALESFORCE_LOGIN_URL": ""},
    authorize="/services/oauth2/authorize",
    token="/services/oauth2/token",
    revoke="/services/oauth2/revoke",
    revoke_needs_client=False,
    revoke_unknown=(400, {"error": "invalid_token", "error_description": "The token is unknown or revoked."}),
    more=_more,
    rules=Rules(
        scopes=frozenset({"api", "refresh_token", "offline_access", "full"}),
        accounts=(
            Account("00D5g000008iGzKEAU", "jo@northwind.example"),
            Account("00D5g000009jHaLEAU", "kiln@globex.example"),
        ),
        new_account=_new,
        client_auth="client_secret_post",
        pkce="taken",
        token_life=timedelta(hours=2),
        # As an org has it that does not replace refresh tokens.
        rotates=False,
    ),
)


@STAND_IN.api("GET", "/orgs/<org>/services/oauth2/userinfo")
def userinfo(org: str) -> Response:
    """Show who the token's person is, at the address of their own org alone."""
    grant = STAND_IN.bearer()
    if grant is None or grant.account.id != org:
        return FlaskResponse("Bad_OAuth_Token", 403, mimetype="text/html")
    return jsonify(
        user_id="0055g00000ElKkQAAV", organization_id=grant.account.id, preferred_username=grant.account.name
    )
