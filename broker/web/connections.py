"""A person's own connected accounts, for the half hour after they connected one, opened a manage link or signed in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flask import Blueprint, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connections import ConnectionUnknown, ConnectionView
from broker.errors import Refused
from broker.history import Happening
from broker.journal import Browser
from broker.sessions import SignedIn
from broker.status import Status
from broker.text import translatable
from broker.web import cookies, services
from broker.web.cookies import remembering, this_browser
from broker.web.security import allow_leaving
from broker.web.sign_in import inside

NEEDS_A_PERSON = (Status.REVOKED, Status.ERROR, Status.INTERRUPTED)
MANY = 10
"""With more accounts than this there is a search box."""
ON_A_PAGE = 25
LOOKS = 12
"""How often a page without script looks whether the check asked for was made, every 5 s: one minute."""

HAPPENINGS = {
    Happening.CONNECTED: translatable("Connected"),
    Happening.RECONNECTED: translatable("Connected again"),
    Happening.SET_UP: translatable("Set-up finished"),
    Happening.CHECK_PASSED: translatable("A check passed"),
    Happening.CHECK_FAILED: translatable("A check did not pass"),
    Happening.DISCONNECTED: translatable("Disconnected"),
}

blueprint = Blueprint("connections", __name__)


class SessionEnded(Refused):
    """Nobody is signed in, or no longer."""

    code = "session_ended"
    status = 401
    heading = "This page has closed"
    advice = "It stays open for 30 minutes. Go back to {host} to open it again."


class SignedOut(SessionEnded):
    """As above, where people can sign in again."""

    code = "signed_out"
    advice = "It stays open for 30 minutes. Sign in again to go on."


@dataclass(frozen=True)
class Shown:
    """The part of a person's accounts that one page shows."""

    items: Sequence[ConnectionView]
    # How many match, and whether there are enough to search among them.
    count: int
    many: bool
    search: str
    number: int
    pages: int


@blueprint.before_request
def want_sign_in() -> Response | None:
    """Lead who asks for a page without a session to where people sign in, if there is such a place."""
    if services().people_sign_ins is None or request.method != "GET" or request.endpoint == "connections.signed_out":
        return None
    if _session() is not None:
        return None
    ended = 1 if cookies.read(cookies.SESSION) else None
    return redirect(url_for("sign_in.show", next=inside(request.path) or None, ended=ended), 303)


@blueprint.get("/connections")
def index() -> str:
    """List what the signed-in person has connected."""
    allow_leaving()
    connections = _own_connections()
    signed_in = _session()
    # Whoever may connect something here is told first for whom that would be.
    whose = signed_in.end_user_id if signed_in is not None and signed_in.by_sign_in else None
    attention = [item for item in connections if item.status in NEEDS_A_PERSON]
    shown = _shown(connections, request.args.get("q", ""), request.args.get("page", 1, type=int))
    return render_template(
        "connections/index.html",
        connections=connections,
        shown=shown,
        attention=attention,
        apps=services().apps,
        offered=list(services().apps) if whose is not None else [],
        person=services().self_service.label(whose) if whose is not None else "",
    )


@blueprint.get("/connections/<ref>")
def details(ref: str) -> str:
    """Show one of them."""
    allow_leaving()
    connection = _own_connection(ref)
    checked_at = connection.health.checked_at
    stage = checked_at.isoformat() if checked_at else "never"
    # What the last check was when this one was asked for; once there is another, it has been made.
    is_checking = request.args.get("since") == stage and not connection.disconnected_at
    looks = request.args.get("n", 0, type=int)
    looking = is_checking and 0 <= looks < LOOKS
    return render_template(
        "connections/details.html",
        connection=connection,
        app=_app(connection),
        history=services().history.of_connection(ref),
        happenings=HAPPENINGS,
        attention=NEEDS_A_PERSON,
        check_stage=stage,
        is_checking=is_checking,
        was_checked="since" in request.args and not is_checking,
        next_look=url_for("connections.details", ref=ref, since=stage, n=looks + 1) if looking else None,
    )


@blueprint.post("/connections/connect/<app_key>")
def connect(app_key: str) -> Response:
    """Lead a person who signed in to the provider, to connect an account for themself."""
    signed_in = _session()
    if signed_in is None or signed_in.end_user_id is None or not signed_in.by_sign_in:
        raise _closed()
    browser = this_browser() or Browser(cookies.new_browser_secret())
    address = services().self_service.begin(signed_in.end_user_id, app_key, browser)
    return remembering(browser, redirect(address, 303))


@blueprint.post("/connections/<ref>/check")
def check(ref: str) -> Response:
    """Ask for a check now; the page shows when it was made."""
    connection = _own_connection(ref)
    services().connections.check(connection.ref)
    checked_at = connection.health.checked_at
    since = checked_at.isoformat() if checked_at else "never"
    return redirect(url_for("connections.details", ref=ref, since=since), 303)


@blueprint.post("/connections/<ref>/reconnect")
def reconnect(ref: str) -> Response:
    """Lead the person to the provider to connect this account again."""
    connection = _own_connection(ref)
    browser = this_browser() or Browser(cookies.new_browser_secret())
    return remembering(browser, redirect(services().reconnects.begin(connection, browser), 303))


@blueprint.get("/connections/<ref>/disconnect")
def confirm_disconnect(ref: str) -> ResponseReturnValue:
    """Say what stops and what stays, before it is done."""
    connection = _own_connection(ref)
    if connection.disconnected_at is not None:
        return _to_details(ref)
    effect = services().disconnections.effect(ref)
    return render_template("connections/disconnect.html", connection=connection, effect=effect)


@blueprint.post("/connections/<ref>/disconnect")
def disconnect(ref: str) -> Response:
    """Disconnect it; its page tells what is still to be done."""
    connection = _own_connection(ref)
    services().disconnections.request(ref, actor=Actor("end_user", connection.end_user.id))
    return _to_details(ref)


@blueprint.post("/sign-out")
def sign_out() -> Response:
    """End the session here, not only in the browser."""
    services().sessions.end(cookies.read(cookies.SESSION))
    response = redirect(url_for("connections.signed_out"), 303)
    cookies.forget(response, cookies.SESSION)
    # Flow pages sign the browser in that started them: whoever uses it next must not be that browser any more.
    cookies.forget(response, cookies.BROWSER)
    session.clear()
    return response


@blueprint.get("/signed-out")
def signed_out() -> str:
    """Say that it worked."""
    return render_template("connections/signed_out.html", again=services().people_sign_ins is not None)


def _shown(connections: list[ConnectionView], search: str, number: int) -> Shown:
    found = [item for item in connections if _matches(item, search.strip().casefold())]
    pages = max(1, -(-len(found) // ON_A_PAGE))
    number = min(max(1, number), pages)
    items = found[(number - 1) * ON_A_PAGE : number * ON_A_PAGE]
    return Shown(items, len(found), len(connections) > MANY, search.strip(), number, pages)


def _matches(connection: ConnectionView, search: str) -> bool:
    account = connection.account
    texts = (connection.provider_title, connection.ref, account.name if account else "", account.id if account else "")
    return any(search in text.casefold() for text in texts)


def _to_details(ref: str) -> Response:
    return redirect(url_for("connections.details", ref=ref), 303)


def _own_connection(ref: str) -> ConnectionView:
    """Return one of the signed-in person's; somebody else's answers like one that does not exist."""
    for connection in _own_connections():
        if connection.ref == ref:
            return connection
    raise ConnectionUnknown


def _own_connections() -> list[ConnectionView]:
    signed_in = _session()
    if signed_in is None or signed_in.end_user_id is None:
        raise _closed()
    return list(services().connections.of_person(signed_in.end_user_id, link_id=signed_in.link_id))


def _session() -> SignedIn | None:
    return services().sessions.find(cookies.read(cookies.SESSION))


def _closed() -> SessionEnded:
    return SessionEnded() if services().people_sign_ins is None else SignedOut()


def _app(connection: ConnectionView) -> object | None:
    apps = services().apps
    return apps.get(connection.app) if connection.app in apps else None
