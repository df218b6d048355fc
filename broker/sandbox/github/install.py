"""The App's install page."""

from __future__ import annotations

from dataclasses import dataclass

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.github.authorize import not_found
from broker.sandbox.github.people import ADMIN, Installation, User
from broker.sandbox.github.session import sign_in, sign_in_page, signed_in
from broker.sandbox.points import point
from broker.sandbox.redirects import with_query
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_install", __name__, url_prefix="/github")
HTML = "text/html"


@dataclass(frozen=True)
class Place:
    """An account the App could be installed on."""

    login: str
    kind: str
    owned: bool
    installed: bool


@blueprint.get("/apps/<slug>/installations/new")
@blueprint.get("/github-apps/<slug>/installations/new")  # where enterprise hosts have it
@point("github.install")
def install_page(slug: str) -> Response:
    """Ask where to install; the script may answer."""
    world = current_world()
    if slug != world.github.app_slug:
        return not_found()
    if world.consent.auto == "allow":
        return _by_itself(world)
    user = signed_in(world)
    if user is None:
        return sign_in_page(world, request.full_path)
    return _page(world, user)


@blueprint.post("/apps/<slug>/installations/new")
@blueprint.post("/github-apps/<slug>/installations/new")
@point()
def install_decision(slug: str) -> Response:
    """Install, ask an owner to, or save what is installed already."""
    world = current_world()
    user = signed_in(world)
    if slug != world.github.app_slug:
        return not_found()
    if user is None:
        return sign_in_page(world, request.full_path)
    login, action = request.form.get("account", ""), request.form.get("action", "")
    place = next((place for place in _places(world, user) if place.login == login), None)
    if place is None:
        return _page(world, user)
    if action == "request" and not place.owned:
        return _requested(world, user, login)
    if action == "configure" and place.installed:
        return _configured(world, login)
    if action == "install" and place.owned:
        return _back(world, "install", world.github.install(login), 303)
    return _page(world, user)


def _by_itself(world: World) -> Response:
    pinned = world.consent.github_login
    user = world.github.user(pinned) if pinned else signed_in(world) or world.github.user(world.github.last_auto_login)
    already = world.github.installation_on(user.login)
    installation = world.github.install(user.login)
    return sign_in(_back(world, "update" if already else "install", installation, 302), user)


def _page(world: World, user: User) -> Response:
    places = _places(world, user)
    free = [place for place in places if place.owned and not place.installed]
    page = render_template(
        "sandbox/github_install.html",
        user=user,
        free=free,
        askable=[place for place in places if not place.owned and not place.installed],
        installed=[place for place in places if place.installed],
        slug=world.github.app_slug,
    )
    return Response(page, mimetype=HTML)


def _places(world: World, user: User) -> list[Place]:
    logins = [(user.login, "personal account", True)]
    logins += [(login, "organisation", role == ADMIN) for login, role in user.orgs.items()]
    return [Place(login, kind, owned, world.github.installation_on(login) is not None) for login, kind, owned in logins]


def _requested(world: World, user: User, login: str) -> Response:
    # Nobody is sent back when the owner approves: then there is only the webhook.
    world.github.requests[login] = user.login
    return _back(world, "request", None, 303)


def _configured(world: World, login: str) -> Response:
    installation = world.github.installation_on(login)
    if world.options.github_redirect_on_update:
        return _back(world, "update", installation, 303)
    # The dead end that surprises people: an App that is installed already does not send them back.
    return Response(render_template("sandbox/github_configured.html", login=login), mimetype=HTML)


def _back(world: World, action: str, installation: Installation | None, status: int) -> Response:
    setup_url = world.seen.setup_url(world.github.app.id)
    if setup_url is None:
        return Response(render_template("sandbox/github_unseen.html"), 409, mimetype=HTML)
    number = str(installation.id) if installation else None
    state = request.args.get("state")
    return redirect(with_query(setup_url, installation_id=number, setup_action=action, state=state), status)
