"""GitHub's authorize page."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flask import Blueprint, redirect, render_template, request
from werkzeug.wrappers import Response

from broker.sandbox.github.hub import Client, Code
from broker.sandbox.github.people import User
from broker.sandbox.github.session import sign_in, signed_in
from broker.sandbox.points import point
from broker.sandbox.redirects import is_registered, origin, with_query
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_authorize", __name__, url_prefix="/github")
CHALLENGE = re.compile(r"[A-Za-z0-9_-]{43}\Z")
DOCS = "https://docs.github.com/apps/oauth-apps/maintaining-oauth-apps/troubleshooting-authorization-request-errors"


@dataclass(frozen=True)
class Ask:
    """An authorize request that has passed every check."""

    client: Client
    redirect_uri: str
    state: str | None
    challenge: str | None
    scopes: tuple[str, ...] | None  # None: no scope was asked for
    expiring: bool


class Stopped(Exception):
    """The request goes no further; this is the answer."""

    def __init__(self, answer: Response) -> None:
        super().__init__()
        self.answer = answer


@blueprint.get("/login/oauth/authorize")
@point("github.authorize")
def authorize_page() -> Response:
    """Ask the person, unless the script or an earlier consent answers."""
    world = current_world()
    try:
        return _answer(world, _ask(world))
    except Stopped as stopped:
        return stopped.answer


@blueprint.post("/login/oauth/authorize")
@point()
def authorize_decision() -> Response:
    """Take the person's answer."""
    world = current_world()
    try:
        ask = _ask(world)
    except Stopped as stopped:
        return stopped.answer
    if request.form.get("decision") != "authorize":
        return redirect(_denied(ask), 303)
    return _authorized(world, ask, world.github.user(request.form.get("login")), 303)


def _ask(world: World) -> Ask:
    client = world.github.client(request.args.get("client_id"))
    if client is None:
        raise Stopped(not_found())
    redirect_uri = _redirect_uri(world, client)
    scope, scopes = request.args.get("scope"), None
    if scope is not None:
        scopes = tuple(dict.fromkeys(scope.replace(",", " ").split()))
    ask = Ask(
        client=client,
        redirect_uri=redirect_uri,
        state=request.args.get("state"),
        challenge=request.args.get("code_challenge"),
        scopes=tuple(name for name in scopes if name != "offline_access") if scopes is not None else None,
        expiring=world.options.github_expiring if client.is_app else "offline_access" in (scopes or ()),
    )
    if not _sound_challenge(ask):
        # Which error GitHub uses here is not documented.
        raise Stopped(redirect(_error(ask, "invalid_request", "Use a 43-character code_challenge with method S256.")))
    return ask


def _redirect_uri(world: World, client: Client) -> str:
    last = world.seen.last(client.id)
    uri = request.args.get("redirect_uri") or last or ""
    if is_registered(uri):
        world.seen.remember(client.id, uri)
        return uri
    if last is None:
        raise Stopped(not_found())
    # GitHub tells the registered address about it, never the one that was asked for.
    ask = Ask(client, last, request.args.get("state"), None, None, False)
    description = "The redirect_uri MUST match the registered callback URL for this application."
    raise Stopped(redirect(_error(ask, "redirect_uri_mismatch", description)))


def _sound_challenge(ask: Ask) -> bool:
    method = request.args.get("code_challenge_method")
    if ask.challenge is None and method is None:
        return True
    return method == "S256" and bool(CHALLENGE.match(ask.challenge or ""))


def _answer(world: World, ask: Ask) -> Response:
    if world.consent.auto == "deny":
        return redirect(_denied(ask))
    if world.consent.auto == "allow":
        user = world.github.user(world.consent.github_login)
        world.github.last_auto_login = user.login
        return _authorized(world, ask, user, 302)
    user_now = signed_in(world)
    if user_now is not None and _goes_straight_back(world, ask, user_now):
        return _authorized(world, ask, user_now, 302)
    users = list(world.github.users.values())[:40]
    wanted = request.args.get("login") or (user_now.login if user_now else users[0].login)
    page = render_template(
        "sandbox/github_authorize.html",
        users=users,
        chosen=wanted if wanted in {user.login for user in users} else users[0].login,
        origin=origin(ask.redirect_uri),
        scopes=ask.scopes or (),
        is_app=ask.client.is_app,
    )
    return Response(page, mimetype="text/html")


def _goes_straight_back(world: World, ask: Ask, user: User) -> bool:
    earlier = world.github.authorizations.get((ask.client.id, user.login))
    if not world.options.github_silent or request.args.get("prompt") == "select_account" or earlier is None:
        return False
    return ask.client.is_app or set(ask.scopes or ()) <= set(earlier)


def _authorized(world: World, ask: Ask, user: User, status: int) -> Response:
    if ask.client.is_app:
        scopes: tuple[str, ...] = ()  # a GitHub App has permissions instead; a scope is ignored
    elif ask.scopes is None:
        # Nothing asked, authorized before: the new token silently gets everything granted earlier.
        scopes = world.github.authorizations.get((ask.client.id, user.login), ())
    else:
        scopes = ask.scopes
    now = world.clock.now()
    code = Code(ask.client, user.login, ask.redirect_uri, ask.challenge, scopes, ask.expiring, now)
    value = world.github.authorize(code)
    iss = issuer() if world.options.github_iss else None
    return sign_in(redirect(with_query(ask.redirect_uri, code=value, state=ask.state, iss=iss), status), user)


def issuer() -> str:
    """Return the issuer identifier (RFC 9207): the web address with GitHub's own suffix."""
    return f"{request.url_root.rstrip('/')}/github/login/oauth"


def not_found() -> Response:
    """Return GitHub's page for what is not there, or not for everybody."""
    return Response(render_template("sandbox/not_found.html"), 404, mimetype="text/html")


def _denied(ask: Ask) -> str:
    return _error(ask, "access_denied", "The user has denied your application access.")


def _error(ask: Ask, error: str, description: str) -> str:
    return with_query(
        ask.redirect_uri,
        error=error,
        error_description=description,
        error_uri=f"{DOCS}#{error.replace('_', '-')}",
        state=ask.state,
    )
