"""The operators' list of connections and the page of each."""

from __future__ import annotations

from flask import g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connections import ConnectionFilters, ConnectionPage
from broker.status import Status
from broker.web import services

ON_A_PAGE = 50
MODES = ("test", "live")


def home() -> Response:
    """Lead to the list, until there is an overview."""
    return redirect(url_for("console.list_connections"), 303)


def list_connections() -> Response:
    """List connections; everything that narrows the list is in its address."""
    wanted = {name: request.args.get(name, "").strip() for name in ("q", "provider", "status", "mode")}
    problems = _problems(wanted)
    page = ConnectionPage((), None)
    if not problems:
        cursor = request.args.get("after") or None
        page = services().connections.page(_filters(wanted), limit=ON_A_PAGE, cursor=cursor)
    text = render_template(
        "console/connections.html",
        page=page,
        wanted=wanted,
        narrowed={name: value for name, value in wanted.items() if value},
        problems=problems,
        providers={app.provider.name: app.title for app in services().apps},
        statuses=list(Status),
        modes=MODES,
        first="after" not in request.args,
    )
    return make_response(text, 400 if problems else 200)


def show_connection(ref: str) -> str:
    """Show one connection: its facts, how far it has come, and what to do about it."""
    connection = services().connections.find(ref)
    return render_template(
        "console/connection.html",
        connection=connection,
        timeline=services().timeline.of_connection(ref),
        done=request.args.get("done", ""),
    )


def check_connection(ref: str) -> Response:
    """Ask for a check now."""
    services().connections.check(ref)
    return redirect(url_for("console.show_connection", ref=ref, done="check"), 303)


def retry_connection(ref: str) -> Response:
    """Ask for the import again."""
    services().connections.retry(ref, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.show_connection", ref=ref, done="retry"), 303)


def confirm_disconnect(ref: str) -> ResponseReturnValue:
    """Say what disconnecting does, before it is done."""
    connection = services().connections.find(ref)
    if connection.disconnected_at is not None:
        return redirect(url_for("console.show_connection", ref=ref), 303)
    effect = services().disconnections.effect(ref)
    return render_template("console/disconnect.html", connection=connection, effect=effect)


def disconnect(ref: str) -> Response:
    """Disconnect it; its page tells what is still to be done."""
    services().disconnections.request(ref, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.show_connection", ref=ref, done="disconnect"), 303)


def _problems(wanted: dict[str, str]) -> dict[str, str]:
    problems = {}
    if wanted["status"] and wanted["status"] not in set(Status):
        problems["status"] = "There is no such status."
    if wanted["mode"] and wanted["mode"] not in MODES:
        problems["mode"] = "The mode is test or live."
    return problems


def _filters(wanted: dict[str, str]) -> ConnectionFilters:
    return ConnectionFilters(
        provider=wanted["provider"] or None,
        status=Status(wanted["status"]) if wanted["status"] else None,
        mode=wanted["mode"] or None,
        search=wanted["q"] or None,
    )
