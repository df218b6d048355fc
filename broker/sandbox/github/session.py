"""Who is signed in at the GitHub stand-in: a cookie of its own, kept to its own paths because cookies ignore ports."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.github.people import User
from broker.sandbox.points import point
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_session", __name__, url_prefix="/github")
COOKIE = "sandbox_github_user"


def signed_in(world: World) -> User | None:
    """Return the person this browser is signed in as."""
    return world.github.users.get(request.cookies.get(COOKIE, ""))


def sign_in(answer: Response, user: User) -> Response:
    """Remember the person in this browser."""
    answer.set_cookie(COOKIE, user.login, path="/github", httponly=True, samesite="Lax")
    return answer


def sign_in_page(world: World, return_to: str) -> Response:
    """Ask who it is, then go on to `return_to`, a path of this stand-in."""
    page = render_template("sandbox/sign_in.html", users=list(world.github.users.values())[:40], return_to=return_to)
    return Response(page, mimetype="text/html")


@blueprint.post("/login")
@point()
def login() -> Response:
    """Sign in as one of the made-up people."""
    world = current_world()
    return_to = request.form.get("return_to", "/")
    # Only paths below: this form must not become a way to send people elsewhere.
    safe = return_to if return_to.startswith("/github/") else "/"
    return sign_in(redirect(safe, 303), world.github.user(request.form.get("login")))


@blueprint.post("/logout")
@point()
def logout() -> Response:
    """Sign out of the stand-in."""
    answer = redirect("/", 303)
    answer.delete_cookie(COOKIE, path="/github")
    return answer
