"""A stand-in for Linear: comma scopes, tokens of a day, a replaced refresh token that answers for half an hour more."""

from __future__ import annotations

from datetime import timedelta

from flask import jsonify
from werkzeug.wrappers import Response

from broker.sandbox.authorization import Account, Grant, Rules
from broker.sandbox.refusal import Refusal
from broker.sandbox.secrets import alphanumeric
from broker.sandbox.stand_in import StandIn


def _new(account_id: str | None) -> Account:
    made = account_id or f"workspace-{alphanumeric(12).lower()}"
    return Account(made, f"Workspace {made[-6:]}")


def _more(grant: Grant) -> dict[str, object]:
    # Asked for with commas, told with spaces.
    return {"scope": " ".join(grant.scopes)}


STAND_IN = StandIn(
    name="linear",
    title="Linear",
    sequin_provider="linear",
    settings={"LINEAR_URL": "", "LINEAR_API_URL": "/api"},
    authorize="/oauth/authorize",
    token="/api/oauth/token",
    revoke="/api/oauth/revoke",
    revoke_needs_client=False,
    revoke_unknown=(400, {"error": "invalid_request", "error_description": "The token was revoked already."}),
    more=_more,
    rules=Rules(
        scopes=frozenset({"read", "write", "issues:create", "comments:create"}),
        accounts=(Account("workspace-northwind", "Northwind"), Account("workspace-globex", "Globex")),
        new_account=_new,
        client_auth="client_secret_post",
        pkce="taken",
        scope_separator=",",
        token_life=timedelta(seconds=86_399),
        grace=timedelta(minutes=30),
    ),
)


@STAND_IN.api("POST", "/api/graphql")
def graphql() -> Response:
    """Answer the one query a broker asks: who, and in which workspace."""
    grant = STAND_IN.bearer()
    if grant is None:
        problem = {"message": "Authentication required", "extensions": {"code": "AUTHENTICATION_ERROR"}}
        raise Refusal(401, {"errors": [problem]})
    viewer = {"id": f"user-of-{grant.account.id}", "name": "Jo Lind", "email": "jo@northwind.example"}
    workspace = {"id": grant.account.id, "name": grant.account.name, "urlKey": grant.account.name.lower()}
    return jsonify(data={"viewer": viewer, "organization": workspace})
