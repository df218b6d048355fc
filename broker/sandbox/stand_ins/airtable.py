"""A stand-in for Airtable: PKCE required, Basic alone, every refresh replaces both tokens."""

from __future__ import annotations

from datetime import timedelta

from flask import jsonify
from werkzeug.wrappers import Response

from broker.sandbox.authorization import Account, Grant, Rules
from broker.sandbox.refusal import Refusal
from broker.sandbox.secrets import alphanumeric
from broker.sandbox.stand_in import StandIn

REFRESH_LIFE = timedelta(days=60)


def _new(account_id: str | None) -> Account:
    made = account_id or f"usr{alphanumeric(14)}"
    return Account(made, f"{made[3:].lower()}@new.example")


def _more(_grant: Grant) -> dict[str, object]:
    return {"refresh_expires_in": int(REFRESH_LIFE.total_seconds())}


STAND_IN = StandIn(
    name="airtable",
    title="Airtable",
    sequin_provider="airtable",
    settings={"AIRTABLE_URL": "", "AIRTABLE_API_URL": "/api"},
    authorize="/oauth2/v1/authorize",
    token="/oauth2/v1/token",
    revoke="/oauth2/v1/revoke",
    more=_more,
    rules=Rules(
        scopes=frozenset({"data.records:read", "schema.bases:read", "user.email:read", "webhook:manage"}),
        accounts=(
            Account("usrNorthwindJo0001", "jo@northwind.example"),
            Account("usrGlobexKiln00001", "kiln@globex.example"),
        ),
        new_account=_new,
        client_auth="client_secret_basic",
        pkce="required",
        refresh_life=REFRESH_LIFE,
    ),
)


@STAND_IN.api("GET", "/api/v0/meta/whoami")
def whoami() -> Response:
    """Show whose token this is; the e-mail address only to who asked for it."""
    grant = STAND_IN.bearer()
    if grant is None:
        raise Refusal(401, {"error": {"type": "AUTHENTICATION_REQUIRED", "message": "Authentication required"}})
    email = {"email": grant.account.name} if "user.email:read" in grant.scopes else {}
    return jsonify(id=grant.account.id, scopes=list(grant.scopes), **email)
