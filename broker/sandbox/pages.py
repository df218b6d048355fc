"""The sandbox's own pages: where things are, its stylesheet, and the end of a followed redirect."""

from __future__ import annotations

from pathlib import Path

from flask import Blueprint, current_app, jsonify, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.world import current_world

blueprint = Blueprint("pages", __name__)
STATIC = "/static-sandbox/"


@blueprint.get("/")
def home() -> Response:
    """Say what this is and where things are."""
    page = render_template("sandbox/home.html", base=request.url_root.rstrip("/"), world=current_world())
    return Response(page, mimetype="text/html")


@blueprint.get(f"{STATIC}style.css")
def style() -> Response:
    """Serve the stylesheet; it lies with the templates, so that it travels with them."""
    text = (Path(str(current_app.template_folder)) / "sandbox" / "style.css").read_text(encoding="utf-8")
    return Response(text, mimetype="text/css", headers={"Cache-Control": "max-age=3600"})


@blueprint.get("/favicon.ico")
def favicon() -> Response:
    """There is none, and nobody needs to read that in the log."""
    return Response(status=204)


@blueprint.route("/elsewhere", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def elsewhere() -> Response:
    """Stand at the end of a scripted redirect; whoever arrives here is in the log, with what they brought."""
    return jsonify(message="A redirect that should not have been followed leads here.")
