"""GitHub's API for organisations, as the App asks it."""

from __future__ import annotations

from flask import Blueprint, jsonify
from werkzeug.wrappers import Response

from broker.sandbox.github.answers import installation_resource, refusal
from broker.sandbox.github.app import require_app
from broker.sandbox.points import point
from broker.sandbox.world import current_world

blueprint = Blueprint("github_organizations", __name__, url_prefix="/github/api/orgs")


@blueprint.get("/<login>/installation")
@point("github.app_installation")
def installation(login: str) -> Response:
    """Show the installation on an organisation."""
    world = current_world()
    require_app(world)
    found = world.github.installation_on(login)
    if found is None or found.account_type != "Organization":
        raise refusal(404, "Not Found")
    return jsonify(installation_resource(world, found))
