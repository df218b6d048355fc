"""A stand-in for HubSpot: everything in the form, `scopes` as an array, a refresh token that stays, introspection."""

from __future__ import annotations

import zlib
from datetime import timedelta

from flask import jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.authorization import Account, Grant, Rules
from broker.sandbox.secrets import alphanumeric
from broker.sandbox.stand_in import StandIn


def _new(account_id: str | None) -> Account:
    made = account_id or alphanumeric(8)
    # An account's id is a number.
    hub = made if made.isdigit() else str(10_000_000 + zlib.crc32(made.encode()))
    return Account(hub, f"hub-{hub}.example")


def _more(grant: Grant) -> dict[str, object]:
    return {"scope": None, "scopes": list(grant.scopes), "hub_id": int(grant.account.id), "token_type": "bearer"}


STAND_IN = StandIn(
    name="hubspot",
    title="HubSpot",
    sequin_provider="hubspot",
    settings={"HUBSPOT_URL": "", "HUBSPOT_API_URL": "/api"},
    authorize="/oauth/authorize",
    token="/api/oauth/2026-03/token",
    revoke="/api/oauth/2026-03/token/revoke",
    revoke_unknown=(400, {"error": "invalid_grant", "error_description": "The token is unknown."}),
    more=_more,
    rules=Rules(
        scopes=frozenset(
            {
                *("oauth", "crm.objects.contacts.read", "crm.objects.companies.read", "crm.objects.deals.read"),
                "crm.objects.contacts.write",
            }
        ),
        accounts=(Account("4411223", "northwind.example"), Account("5522334", "globex.example")),
        new_account=_new,
        client_auth="client_secret_post",
        pkce="ignored",
        token_life=timedelta(minutes=30),
        rotates=False,
    ),
)


@STAND_IN.api("POST", "/api/oauth/2026-03/token/introspect")
def introspect() -> Response:
    """Tell whether a token works, and of which account it is (RFC 7662)."""
    STAND_IN.prove_client()
    grant = STAND_IN.server().known(request.form.get("token", ""))
    if grant is None:
        return jsonify(active=False)
    return jsonify(
        active=True,
        token_use=request.form.get("token_type_hint", "access_token"),
        hub_id=int(grant.account.id),
        hub_domain=grant.account.name,
        user=f"owner@{grant.account.name}",
        user_id=1,
        app_id=1,
        scopes=list(grant.scopes),
    )
