"""A person's own connected accounts, for the half hour after they connected one or opened a manage link."""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, session, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connections import ConnectionUnknown, ConnectionView
from broker.errors import Refused
from broker.status import Status
from broker.web import cookies, services

NEEDS_A_PERSON = (Status.REVOKED, Status.ERROR, Status.INTERRUPTED)

blueprint = Blueprint("connections", __name__)


class SessionEnded(Refused):
    """Nobody is signed in, or no longer."""

    code = "session_ended"
    status = 401
    heading = "This page has closed"
    advice = "It stays open for 30 minutes. Go back to {host} to open it again."


@blueprint.get("/connections")
def index() -> str:
    """List what the signed-in person has connected."""
    connections = _own_connections()
    attention = [item for item in connections if item.status in NEEDS_A_PERSON]
    return render_template("connections/index.html", connections=connections, attention=attention)


@blueprint.get("/connections/<ref>")
def details(ref: str) -> str:
    """Show one of them."""
    connection = _own_connection(ref)
    return render_template("connections/details.html", connection=connection, app=_app(connection))


@blueprint.post("/connections/<ref>/check")
def check(ref: str) -> Response:
    """Ask for a check now; the page shows when it was made."""
    services().connections.check(_own_connection(ref).ref)
    return _to_details(ref)


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
    return render_template("connections/signed_out.html")


def _to_details(ref: str) -> Response:
    return redirect(url_for("connections.details", ref=ref), 303)


def _own_connection(ref: str) -> ConnectionView:
    """Return one of the signed-in person's; somebody else's answers like one that does not exist."""
    for connection in _own_connections():
        if connection.ref == ref:
            return connection
    raise ConnectionUnknown


def _own_connections() -> list[ConnectionView]:
    signed_in = services().sessions.find(cookies.read(cookies.SESSION))
    if signed_in is None or signed_in.end_user_id is None:
        raise SessionEnded
    return list(services().connections.of_person(signed_in.end_user_id, link_id=signed_in.link_id))


def _app(connection: ConnectionView) -> object | None:
    apps = services().apps
    return apps.get(connection.app) if connection.app in apps else None
