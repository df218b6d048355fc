"""The operators' list of connections and the page of each."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator

from flask import g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connection_search import Order
from broker.connections import MOST_EXPORTED, ConnectionPage, ConnectionView
from broker.contract import iso
from broker.status import Status
from broker.web import services
from broker.web.console.narrowing import MODES, Narrowing, NarrowingWrong
from broker.web.pages import STATUS_WORDS

ON_A_PAGE = 50
ORDERS = {Order.NEWEST: "Newest", Order.OLDEST: "Oldest", Order.CHANGED: "Recently changed"}
COLUMNS = (
    "id", "status", "provider", "app", "kind", "account_id", "account_name", "account_type", "mode", "end_user_id",
    "end_user_email", "end_user_name", "metadata", "scopes", "credential_id", "health", "error", "connected_at",
    "imported_at", "checked_at", "updated_at",
)  # fmt: skip


def list_connections() -> Response:
    """List connections; everything that narrows and sorts the list is in its address."""
    narrowing = Narrowing(request.args)
    page = ConnectionPage((), None)
    if not narrowing.problems:
        connections, order = services().connections, narrowing.order or Order.NEWEST
        place = {"cursor": narrowing.after, "before": narrowing.before}
        page = connections.page(narrowing.filters, limit=ON_A_PAGE, order=order, counted=True, **place)
    # Somebody who goes back may meet rows that have come meanwhile: the first page starts at the first.
    start = narrowing.start if page.previous_cursor else 0
    apps = list(services().apps)
    text = render_template(
        "console/connections.html",
        page=page,
        narrowing=narrowing,
        wanted=narrowing.wanted,
        problems=narrowing.problems,
        active=narrowing.active(lambda status: STATUS_WORDS[status].operator),
        start=start,
        following=start + len(page.items),
        preceding=max(0, start - ON_A_PAGE),
        count=page.count,
        most_exported=MOST_EXPORTED,
        providers=list({app.provider.name: app.title for app in apps}.items()),
        apps=[(app.key, app.key) for app in apps],
        kinds=[(kind, kind) for kind in sorted({app.provider.kind for app in apps})],
        statuses=list(Status),
        modes=[(mode, mode) for mode in MODES],
        orders=ORDERS,
        is_ticked=request.args.get("tick") == "page",
        empty_again=bool(narrowing.after or narrowing.before),
    )
    return make_response(text, 400 if narrowing.problems else 200)


def export_connections() -> Response:
    """Send the list as CSV, as it is narrowed and sorted; that it was sent stands in the audit trail."""
    narrowing = Narrowing(request.args)
    if narrowing.problems:
        raise NarrowingWrong
    batches = services().connections.export(
        narrowing.filters, order=narrowing.order or Order.NEWEST, actor=Actor("operator", g.operator.email)
    )
    name = f"connections-{services().clock.now():%Y-%m-%d}.csv"
    response = Response(_lines(batches), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


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


def _lines(batches: Iterable[tuple[ConnectionView, ...]]) -> Iterator[str]:
    yield _csv([COLUMNS])
    for batch in batches:
        yield _csv(map(_cells, batch))


def _csv(rows: Iterable[Iterable[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([harmless(cell) for cell in row] for row in rows)
    return text.getvalue()


def harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def _cells(item: ConnectionView) -> list[str]:
    account, person, hand_off = item.account, item.end_user, item.hand_off
    times = (item.connected_at, hand_off.imported_at, item.health.checked_at, item.updated_at)
    return [
        item.ref, item.status.value, item.provider, item.app, item.kind,
        (account.id or "") if account else "", account.name if account else "",
        (account.type or "") if account else "", account.mode if account else "",
        person.id, person.email or "", person.name or "",
        json.dumps(dict(item.metadata), ensure_ascii=False) if item.metadata else "",
        " ".join(item.scopes), hand_off.credential_id or "", item.health.status, hand_off.error,
        *(iso(time) if time is not None else "" for time in times),
    ]  # fmt: skip
