"""Sequin's credential endpoints."""

from __future__ import annotations

from flask import Blueprint, jsonify
from werkzeug.wrappers import Response

from broker.sandbox.points import point
from broker.sandbox.sequin.answers import JsonObject, authorized, invalid, not_found, sent, shown_credential
from broker.sandbox.sequin.filters import filtered
from broker.sandbox.sequin.kinds import BLANK, INVALID, Kind, Reasons
from broker.sandbox.sequin.store import Credential, OAuthApp
from broker.sandbox.world import World

blueprint = Blueprint("sequin_credentials", __name__, url_prefix="/sequin/v1/credentials")


@blueprint.post("")
@point("sequin.import")
def import_credential() -> Response:
    """Import, which is an upsert: the same account again updates the credential there is."""
    world = authorized()
    body = sent()
    errors: dict[str, object] = {**_reasons_outside(body)}
    properties = body.get("properties")
    kind = _kind(world, properties)
    if kind is None or not isinstance(properties, dict):
        errors["properties"] = _unusable(properties)
    elif reasons := world.sequin.kinds[kind].reasons(properties):
        errors["properties"] = reasons
    app = _app(world, body, world.sequin.kinds[kind] if kind else None, errors)
    if errors or app is None or kind is None or not isinstance(properties, dict):
        raise invalid(errors)
    return _imported(world, kind, app, properties, body)


@blueprint.get("")
@point("sequin.list")
def credentials() -> Response:
    """List them all, oldest first."""
    world = authorized()
    everything = [shown_credential(world, one) for one in world.sequin.credentials.values()]
    return jsonify(data=filtered(world, everything))


@blueprint.get("/<credential_id>")
@point("sequin.get")
def credential(credential_id: str) -> Response:
    """Show one."""
    world = authorized()
    return jsonify(shown_credential(world, _found(world, credential_id)))


@blueprint.patch("/<credential_id>")
@point("sequin.update")
def update(credential_id: str) -> Response:
    """Change name or metadata; nothing else can be changed but by importing again."""
    world = authorized()
    found, body = _found(world, credential_id), sent()
    if errors := _reasons_outside(body):
        raise invalid(errors)
    name, metadata = body.get("name"), body.get("metadata")
    if isinstance(name, str):
        found.name = name
    if isinstance(metadata, dict):
        found.metadata = metadata
    found.updated_at = world.sequin.now()
    return jsonify(shown_credential(world, found))


@blueprint.delete("/<credential_id>")
@point("sequin.delete")
def delete(credential_id: str) -> Response:
    """Delete one; a second time it is not found."""
    world = authorized()
    world.sequin.delete(_found(world, credential_id))
    return jsonify(id=credential_id, deleted=True)


def _found(world: World, credential_id: str) -> Credential:
    found = world.sequin.credentials.get(credential_id)
    if found is None:
        raise not_found("Credential")
    return found


def _reasons_outside(body: JsonObject) -> Reasons:
    wrong: Reasons = {}
    if not isinstance(body.get("name"), str | None):
        wrong["name"] = [INVALID]
    if not isinstance(body.get("metadata"), dict | None):
        wrong["metadata"] = [INVALID]
    return wrong


def _kind(world: World, properties: object) -> str | None:
    kind = properties.get("kind") if isinstance(properties, dict) else None
    known = world.sequin.kinds.get(kind) if isinstance(kind, str) else None
    taken = known is not None and (known.documented or world.options.sequin_undocumented_kinds)
    return str(kind) if taken else None


def _unusable(properties: object) -> object:
    if properties is None:
        return [BLANK]
    if not isinstance(properties, dict):
        return [INVALID]
    return {"kind": [INVALID] if properties.get("kind") else [BLANK]}


def _app(world: World, body: JsonObject, kind: Kind | None, errors: dict[str, object]) -> OAuthApp | None:
    app_id = body.get("oauth_app_id")
    app = world.sequin.apps.get(app_id) if isinstance(app_id, str) else None
    if app_id is None:
        errors["oauth_app_id"] = [BLANK]
    elif app is None:
        errors["oauth_app_id"] = ["does not exist" if isinstance(app_id, str) else INVALID]
    elif kind is not None and kind.provider != app.provider:
        errors["oauth_app_id"] = [f"is an OAuth app for {app.provider}, not for {kind.provider}"]
    return app


def _imported(world: World, kind: str, app: OAuthApp, properties: dict[str, object], body: JsonObject) -> Response:
    rules = world.sequin.kinds[kind]
    kept: dict[str, object] = {"kind": kind, **rules.clean(properties)}
    name, metadata = body.get("name"), body.get("metadata")
    if isinstance(name, str) and "name" in rules.members:
        kept.setdefault("name", name)
    credential = world.sequin.upsert(
        kind,
        app,
        kept,
        name=name if isinstance(name, str) else None,
        metadata=metadata if isinstance(metadata, dict) else None,
    )
    return jsonify(shown_credential(world, credential))
