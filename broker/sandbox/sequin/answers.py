"""The shapes of Sequin's API: who may ask, errors, and how objects are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from hmac import compare_digest

from flask import request

from broker.sandbox.refusal import Refusal
from broker.sandbox.sequin.kinds import OAUTH_APP_MASK
from broker.sandbox.sequin.store import Credential, Health, OAuthApp
from broker.sandbox.world import World, current_world

JsonObject = Mapping[str, object]


def refusal(status: int, summary: str) -> Refusal:
    """Return an error of every status but 422."""
    return Refusal(status, {"summary": summary})


def invalid(errors: Mapping[str, object]) -> Refusal:
    """Return a 422 with what is wrong, by field, nested where the object is."""
    return Refusal(422, {"summary": "Validation failed", "validation_errors": dict(errors)})


def not_found(what: str) -> Refusal:
    """Return a 404: it names what is missing and never echoes the id."""
    return refusal(404, f"{what} not found")


def outside(status: int, detail: str) -> Refusal:
    """Return an error of the framework below the API: another shape, as with the real one."""
    return Refusal(status, {"errors": {"detail": detail}})


def authorized() -> World:
    """Return the state, for a request that carries the API token. Raises a 401 Refusal."""
    world = current_world()
    header = request.headers.get("Authorization")
    if header is None:
        raise refusal(401, "No authorization header found")
    # The server joins repeated headers with a comma, and no token holds one.
    if "," in header:
        raise refusal(401, "More than one authorization header found")
    if not header.startswith("Bearer "):
        raise refusal(401, "The authorization header must start with `Bearer `")
    if not compare_digest(header.removeprefix("Bearer ").encode(), world.sequin.token.encode()):
        raise refusal(401, "The API token is unknown or revoked")
    return world


def sent() -> JsonObject:
    """Return the request's JSON object. Raises a 400 Refusal."""
    try:
        body = json.loads(request.get_data())
    except ValueError:
        raise outside(400, "Bad Request") from None
    if request.mimetype != "application/json":
        raise outside(415, "Unsupported Media Type")
    if not isinstance(body, dict):
        raise refusal(400, "The request body must be a JSON object")
    return body


def shown_app(app: OAuthApp, *, secret: bool = False) -> dict[str, object]:
    """Return an OAuth app as answers show it, without its health."""
    return {
        "id": app.id,
        "provider": app.provider,
        "name": app.name,
        "client_id": app.client_id,
        "client_secret": app.client_secret if secret else OAUTH_APP_MASK,
        "metadata": app.metadata,
        "created_at": stamp(app.created_at),
        "updated_at": stamp(app.updated_at),
    }


def listed_app(world: World, app: OAuthApp, *, secret: bool = False) -> dict[str, object]:
    """Return an OAuth app as its own endpoints show it, with its health."""
    return {**shown_app(app, secret=secret), **shown_health(world, Health("ok", [], app.updated_at))}


def shown_credential(world: World, credential: Credential) -> dict[str, object]:
    """Return a credential as answers show it: secrets masked."""
    app = world.sequin.apps.get(credential.oauth_app_id)
    return {
        "id": credential.id,
        "provider": credential.rules.provider,
        "kind": credential.kind,
        "oauth_app_id": credential.oauth_app_id,
        "oauth_app": shown_app(app) if app else None,
        "properties": credential.rules.masked(credential.properties),
        "metadata": credential.metadata,
        **shown_health(world, credential.health),
        "created_at": stamp(credential.created_at),
        "updated_at": stamp(credential.updated_at),
    }


def shown_health(world: World, health: Health) -> dict[str, object]:
    """Return the health member, or nothing where it is switched off."""
    if not world.options.sequin_health:
        return {}
    return {"health": {"status": health.status, "notes": health.notes, "time": stamp(health.time)}}


def stamp(moment: datetime) -> str:
    """Write a time: ISO 8601, UTC, whole seconds."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
