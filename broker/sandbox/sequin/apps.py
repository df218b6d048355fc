"""Sequin's OAuth app endpoints."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.points import point
from broker.sandbox.sequin.answers import JsonObject, authorized, invalid, listed_app, not_found, sent
from broker.sandbox.sequin.filters import filtered
from broker.sandbox.sequin.kinds import INVALID, MASKED, PROVIDERS, TEXT, Reasons, is_mask
from broker.sandbox.sequin.store import OAuthApp
from broker.sandbox.world import World

blueprint = Blueprint("sequin_apps", __name__, url_prefix="/sequin/v1/oauth-apps")


@blueprint.post("")
@point("sequin.oauth_apps")
def create() -> Response:
    """Register one."""
    world = authorized()
    body = sent()
    if errors := {**_missing(body), **_wrong(body)}:
        raise invalid(errors)
    metadata = body.get("metadata")
    app = world.sequin.register(
        str(body["provider"]),
        str(body["name"]),
        str(body["client_id"]),
        str(body["client_secret"]),
        metadata if isinstance(metadata, dict) else {},
    )
    return jsonify(listed_app(world, app))


@blueprint.get("")
@point("sequin.oauth_apps")
def oauth_apps() -> Response:
    """List them; secrets are shown when `truncate_secrets=false`."""
    world = authorized()
    secret = request.args.get("truncate_secrets", "true").lower() == "false"
    return jsonify(data=filtered(world, [listed_app(world, app, secret=secret) for app in world.sequin.apps.values()]))


@blueprint.get("/<app_id>")
@point("sequin.oauth_apps")
def oauth_app(app_id: str) -> Response:
    """Show one."""
    world = authorized()
    return jsonify(listed_app(world, _found(world, app_id)))


@blueprint.patch("/<app_id>")
@point("sequin.oauth_apps")
def update(app_id: str) -> Response:
    """Change name, secret or metadata; provider and client id stay."""
    world = authorized()
    found, body = _found(world, app_id), sent()
    if errors := _wrong(body):
        raise invalid(errors)
    name, client_secret, metadata = body.get("name"), body.get("client_secret"), body.get("metadata")
    if isinstance(name, str):
        found.name = name
    if isinstance(client_secret, str):
        found.client_secret = client_secret
    if isinstance(metadata, dict):
        found.metadata = metadata
    found.updated_at = world.sequin.now()
    return jsonify(listed_app(world, found))


@blueprint.delete("/<app_id>")
@point("sequin.oauth_apps")
def delete(app_id: str) -> Response:
    """Delete one that no credential uses."""
    world = authorized()
    found = _found(world, app_id)
    if world.sequin.in_use(found):
        raise invalid({"id": ["is used by a credential"]})
    del world.sequin.apps[app_id]
    return jsonify(id=app_id, deleted=True)


def _found(world: World, app_id: str) -> OAuthApp:
    found = world.sequin.apps.get(app_id)
    if found is None:
        raise not_found("OAuth app")
    return found


def _missing(body: JsonObject) -> Reasons:
    names = ("provider", "client_id", "client_secret", "name")
    found = {name: TEXT.reasons(body.get(name)) for name in names}
    if not found["provider"] and body["provider"] not in PROVIDERS:
        found["provider"] = [INVALID]
    return {name: reasons for name, reasons in found.items() if reasons}


def _wrong(body: JsonObject) -> Reasons:
    wrong: Reasons = {
        name: [INVALID]
        for name in ("name", "client_secret")
        if body.get(name) is not None and not isinstance(body[name], str)
    }
    if is_mask(body.get("client_secret")):
        wrong["client_secret"] = [MASKED]
    if not isinstance(body.get("metadata"), dict | None):
        wrong["metadata"] = [INVALID]
    return wrong
