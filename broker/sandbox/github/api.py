"""GitHub's API for a user token: who am I, what is installed, what am I in an organisation."""

from __future__ import annotations

from flask import Blueprint
from werkzeug.wrappers import Response

from broker.sandbox.github.answers import for_token, installation_resource, refusal, slice_of, user_token
from broker.sandbox.github.people import account
from broker.sandbox.points import point
from broker.sandbox.world import current_world

blueprint = Blueprint("github_api", __name__, url_prefix="/github/api")


@blueprint.get("/user")
@point("github.user")
def user() -> Response:
    """Show the person behind the token."""
    world = current_world()
    token = user_token(world)
    return for_token(token, world.github.user(token.login).resource())


@blueprint.get("/user/installations")
@point("github.installations")
def installations() -> Response:
    """List what the person can reach, organisations where they are mere members included; suspended ones too."""
    world = current_world()
    token = user_token(world)
    if not token.client.is_app:
        raise refusal(
            403, "You must authenticate with an access token authorized to a GitHub App in order to list installations"
        )
    visible = world.github.visible_to(world.github.user(token.login))
    some, links = slice_of(visible)
    body = {"total_count": len(visible), "installations": [installation_resource(world, one) for one in some]}
    answer = for_token(token, body)
    answer.headers.update(links)
    return answer


@blueprint.get("/user/memberships/orgs/<login>")
@point("github.memberships")
def membership(login: str) -> Response:
    """Show the person's role in one organisation."""
    world = current_world()
    token = user_token(world)
    person = world.github.user(token.login)
    role, org = person.orgs.get(login), world.github.orgs.get(login)
    if role is None or org is None:
        raise refusal(404, "Not Found")
    body = {
        "state": "active",
        "role": role,
        "organization": account(org.id, org.login, "Organization"),
        "user": account(person.id, person.login, "User"),
    }
    return for_token(token, body)
