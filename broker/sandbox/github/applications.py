"""GitHub's API for checking and revoking user tokens, with the client's own id and secret."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.github.answers import refusal, stamp
from broker.sandbox.github.hub import Client, Token
from broker.sandbox.github.people import account
from broker.sandbox.points import point
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_applications", __name__, url_prefix="/github/api/applications/<client_id>")


@blueprint.post("/token")
@point("github.check")
def check(client_id: str) -> Response:
    """Say whose token it is and whether it still works."""
    world = current_world()
    return jsonify(_resource(world, _token(world, _client(world, client_id))))


@blueprint.patch("/token")
@point("github.check")
def reset(client_id: str) -> Response:
    """Replace a token by a new one."""
    world = current_world()
    return jsonify(_resource(world, world.github.rotate(_token(world, _client(world, client_id)))))


@blueprint.delete("/token")
@point("github.revoke")
def revoke_token(client_id: str) -> Response:
    """End one token."""
    world = current_world()
    world.github.revoke(_token(world, _client(world, client_id)))
    return Response(status=204)


@blueprint.delete("/grant")
@point("github.revoke")
def revoke_grant(client_id: str) -> Response:
    """End all tokens of the person this one belongs to."""
    world = current_world()
    client = _client(world, client_id)
    world.github.revoke_grant(client, _token(world, client).login)
    return Response(status=204)


def _client(world: World, client_id: str) -> Client:
    client, offered = world.github.client(client_id), request.authorization
    if client is None or offered is None or offered.type != "basic":
        raise refusal(404, "Not Found")
    if (offered.username, offered.password) != (client.id, client.secret):
        raise refusal(401, "Bad credentials")
    return client


def _token(world: World, client: Client) -> Token:
    body = request.get_json(silent=True, force=True)
    value = body.get("access_token") if isinstance(body, dict) else None
    if not isinstance(value, str) or not value:
        raise refusal(422, "Validation Failed")
    token = world.github.holder(value)
    if token is None or token.client is not client:
        raise refusal(404, "Not Found")
    return token


def _resource(world: World, token: Token) -> dict[str, object]:
    user, ends = world.github.user(token.login), token.expires_at()
    return {
        "id": user.id,
        "token": token.value,
        "token_last_eight": token.value[-8:],
        "scopes": list(token.scopes),
        "created_at": stamp(token.created_at),
        "updated_at": stamp(token.created_at),
        "expires_at": stamp(ends) if ends else None,
        "app": {"client_id": token.client.id, "name": "Sandbox broker", "url": request.url_root},
        "user": account(user.id, user.login, "User"),
    }
