"""Stripe's token endpoints and deauthorize."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.points import point
from broker.sandbox.refusal import Refusal
from broker.sandbox.stripe.platform import APPS, CONNECT, Client, Grant, Refused
from broker.sandbox.world import World, current_world

blueprint = Blueprint("stripe_token", __name__, url_prefix="/stripe")


@blueprint.post("/oauth/token")
@point("stripe.token")
def connect_token() -> Response:
    """Connect: exchange a code or a refresh token."""
    return _exchange(CONNECT, offered_key(form=True))


@blueprint.post("/v1/oauth/token")
@point("stripe.token")
def apps_token() -> Response:
    """Stripe Apps: the same, but the key is taken from Basic authentication only."""
    authorization = request.authorization
    basic = authorization.username if authorization and authorization.type == "basic" else None
    return _exchange(APPS, basic)


@blueprint.post("/oauth/deauthorize")
@point("stripe.deauthorize")
def deauthorize() -> Response:
    """Connect: end an account's connection. Needs no token, only the platform's key."""
    world = current_world()
    client = _keyholder(world, offered_key(form=True))
    client_id, account = request.form.get("client_id"), request.form.get("stripe_user_id")
    if not client_id or not account:
        missing = "client_id" if not client_id else "stripe_user_id"
        raise oauth_error(400, "invalid_request", f"Missing required parameter: {missing}")
    if client_id != client.id:
        raise oauth_error(401, "invalid_client", f"No application matches '{client_id}' and the key supplied.")
    if account in world.stripe.accounts and world.stripe.account(account).controlled:
        sentence = "This account is controlled by another platform."
        raise oauth_error(401, "invalid_client", f"no_deauth_on_controlled_account: {sentence}")
    if not world.stripe.disconnect(client, account):
        raise oauth_error(
            401,
            "invalid_client",
            f"This application is not connected to stripe account {account}, or that account does not exist.",
        )
    return jsonify(stripe_user_id=account)


def offered_key(*, form: bool) -> str | None:
    """Return the API key a request carries: Basic (as user name), Bearer, or, at OAuth endpoints, a form member."""
    authorization = request.authorization
    if authorization and authorization.type == "basic":
        return authorization.username
    if authorization and authorization.type == "bearer":
        return authorization.token
    return request.form.get("client_secret") if form else None


def oauth_error(status: int, error: str, description: str) -> Refusal:
    """Return an error as the OAuth endpoints write it: a string, where the API has an object."""
    return Refusal(status, {"error": error, "error_description": description})


def invalid_key(key: str) -> Refusal:
    """Return the API's answer to a key that is none."""
    return api_error(401, f"Invalid API Key provided: {key[:7]}{'*' * 12}{key[-4:]}")


def api_error(status: int, message: str, code: str | None = None) -> Refusal:
    """Return an error as the API writes it."""
    named = {"code": code} if code else {}
    return Refusal(status, {"error": {"type": "invalid_request_error", "message": message, **named}})


def _keyholder(world: World, key: str | None) -> Client:
    if not key:
        raise oauth_error(
            401,
            "invalid_client",
            "No authentication was provided. Send your secret API key using the Authorization header, "
            "or as a client_secret POST parameter.",
        )
    client = world.stripe.keyholder(key)
    if client is None:
        raise invalid_key(key)
    return client


def _exchange(flavour: str, key: str | None) -> Response:
    world = current_world()
    client = _keyholder(world, key)
    kind = request.form.get("grant_type")
    if not kind:
        raise oauth_error(400, "invalid_request", "No grant type specified")
    if kind not in ("authorization_code", "refresh_token"):
        raise oauth_error(400, "unsupported_grant_type", f"Unsupported grant type: {kind}")
    offered = request.form.get("code" if kind == "authorization_code" else "refresh_token")
    if not offered:
        raise oauth_error(400, "invalid_request", f"No {kind.replace('_', ' ')} specified")
    try:
        if kind == "authorization_code":
            grant = world.stripe.redeem(client, offered, flavour)
            return jsonify(_answer(world, grant, client, first=True))
        grant = world.stripe.refresh(client, offered, request.form.get("scope"), flavour)
        return jsonify(_answer(world, grant, client, first=False))
    except Refused as refused:
        raise oauth_error(400, refused.error, refused.description) from None


def _answer(world: World, grant: Grant, client: Client, *, first: bool) -> dict[str, object]:
    answer: dict[str, object] = {
        "livemode": client.livemode,
        "scope": grant.scope,
        "stripe_user_id": grant.account_id,
        "token_type": "bearer",
    }
    apps = grant.flavour == APPS
    if apps or world.options.stripe_tokens:
        # Never an expires_in, even where the token expires: that is Stripe's way.
        answer |= {"access_token": grant.access_token, "stripe_publishable_key": grant.publishable_key}
        if apps or first:
            answer["refresh_token"] = grant.refresh_token
    return answer
