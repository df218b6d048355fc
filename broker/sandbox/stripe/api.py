"""The one resource of Stripe's API that a broker reads: the account."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.points import point
from broker.sandbox.refusal import Refusal
from broker.sandbox.stripe.accounts import Account
from broker.sandbox.stripe.token import api_error, invalid_key, offered_key
from broker.sandbox.world import current_world

blueprint = Blueprint("stripe_api", __name__, url_prefix="/stripe/v1")
PLATFORM_ACCOUNT = Account("acct_1SandboxPlatform0", "Sandbox Platform", dashboard_name="Sandbox Platform")


@blueprint.get("/account")
@point("stripe.account")
def own_account() -> Response:
    """Show the account whose key or token this is, or the one named by Stripe-Account."""
    return jsonify(_readable(None).resource())


@blueprint.get("/accounts/<account_id>")
@point("stripe.account")
def account(account_id: str) -> Response:
    """Show one account, if the key may see it."""
    return jsonify(_readable(account_id).resource())


def _readable(account_id: str | None) -> Account:
    world = current_world()
    key = offered_key(form=False)
    if not key:
        raise api_error(401, "You did not provide an API key. Send it in the Authorization header, using Bearer auth.")
    acting_as = request.headers.get("Stripe-Account")
    grant = world.stripe.holder(key)
    if grant is not None:
        # A token of the account's own: it sees itself and nobody else.
        if {account_id or grant.account_id, acting_as or grant.account_id} != {grant.account_id}:
            raise _no_access(key, account_id or acting_as or "")
        return world.stripe.account(grant.account_id)
    client = world.stripe.keyholder(key)
    if world.stripe.uninstalled(key):
        raise _no_access(key, account_id or acting_as or "")
    if client is None:
        raise invalid_key(key)
    wanted = acting_as or account_id
    if wanted is None:
        return PLATFORM_ACCOUNT
    if account_id not in (None, wanted) or not world.stripe.connected(client, wanted):
        raise _no_access(key, wanted)
    return world.stripe.account(wanted)


def _no_access(key: str, account_id: str) -> Refusal:
    return api_error(
        403,
        f"The provided key '{key[:8]}****' does not have access to account '{account_id}' "
        "(or that account does not exist). Application access may have been revoked.",
        "account_invalid",
    )
