"""What machines ask: is it alive, is it ready, may it be indexed, what is its icon."""

from __future__ import annotations

from pathlib import Path

import structlog
from flask import Blueprint, current_app, jsonify, send_from_directory
from werkzeug.wrappers import Response

from broker.db import require_current_schema
from broker.errors import BrokerError
from broker.web import services

log = structlog.get_logger("broker.ready")

blueprint = Blueprint("health", __name__)


@blueprint.get("/healthz")
def healthz() -> Response:
    """Answer whether this process serves requests at all."""
    return jsonify(status="ok")


@blueprint.get("/readyz")
def readyz() -> tuple[Response, int]:
    """Answer whether people can connect here; what is wrong goes to the log, not to strangers."""
    try:
        require_current_schema(services().database)
        problems = services().key_ring.check()
    except BrokerError as failure:
        log.exception("not_ready", error=failure.code, detail=failure.detail)
        return jsonify(status="unavailable", reason=failure.code), 503
    if problems:
        log.error("not_ready", error="keys_do_not_open", detail="; ".join(problems))
        return jsonify(status="unavailable", reason="keys_do_not_open"), 503
    return jsonify(status="ready", checks={"database": "ok", "schema": "ok", "keys": "ok"}), 200


@blueprint.get("/robots.txt")
def robots() -> Response:
    """Keep every page out of every index."""
    return Response("User-agent: *\nDisallow: /\n", content_type="text/plain; charset=utf-8")


@blueprint.get("/favicon.ico")
def favicon() -> Response:
    """Answer browsers that ask for the icon by its old name."""
    return send_from_directory(Path(current_app.static_folder or "."), "favicon.svg", mimetype="image/svg+xml")
