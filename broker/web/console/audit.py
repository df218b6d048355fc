"""The operators' page of the audit trail, and the same as a file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from flask import Response, g, make_response, render_template, request
from flask.typing import ResponseReturnValue

from broker.audit import Actor
from broker.audit_trail import MOST_EXPORTED, AuditEntry, AuditFilters, AuditPage
from broker.web import services
from broker.web.spreadsheet import stream

ON_A_PAGE = 50
NAMES = ("number", "at", "actor_kind", "actor", "action", "target", "detail")
_WANTED = ("action", "actor", "target", "from", "to")
_LAST_DAY = date(9999, 12, 30)


def show_audit() -> ResponseReturnValue:
    """List records, newest first; everything that narrows the list is in its address."""
    wanted = _wanted()
    filters, problems = _filters(wanted)
    page = AuditPage((), None)
    if not problems:
        place = {"cursor": request.args.get("after") or None, "newer_than": request.args.get("before") or None}
        page = services().audit_trail.page(filters, limit=ON_A_PAGE, actor=_operator(), **place)
    text = render_template(
        "console/audit.html",
        page=page,
        wanted=wanted,
        narrowed={name: value for name, value in wanted.items() if value},
        problems=problems,
        most=MOST_EXPORTED,
        kept=services().settings.retention.audit_days,
    )
    return make_response(text, 400 if problems else 200)


def show_record(record_id: int) -> str:
    """Show one record with all its facts, and what seals it."""
    found = services().audit_trail.find(record_id, actor=_operator())
    return render_template("console/audit_record.html", record=found.entry, seal=found)


def export_audit() -> ResponseReturnValue:
    """Send what the filters of the page let through as CSV."""
    filters, problems = _filters(_wanted())
    if problems:
        return show_audit()
    rows = _rows(services().audit_trail.export(filters, actor=_operator()))
    response = Response(stream(NAMES, rows), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = 'attachment; filename="audit.csv"'
    return response


def _rows(entries: Iterator[AuditEntry]) -> Iterator[tuple[object, ...]]:
    for entry in entries:
        detail = json.dumps(entry.detail, ensure_ascii=False, sort_keys=True)
        at = f"{entry.at:%Y-%m-%dT%H:%M:%SZ}"
        yield (entry.number, at, entry.actor_kind, entry.actor, entry.action, entry.target, detail)


def _wanted() -> dict[str, str]:
    return {name: request.args.get(name, "").strip() for name in _WANTED}


def _filters(wanted: dict[str, str]) -> tuple[AuditFilters, dict[str, str]]:
    days: dict[str, date | None] = {}
    problems = {}
    for name in ("from", "to"):
        try:
            days[name] = date.fromisoformat(wanted[name]) if wanted[name] else None
        except ValueError:
            days[name] = None
            problems[name] = "Write the date as year-month-day, such as 2026-11-20."
    last = days["to"]
    return (
        AuditFilters(
            action=wanted["action"] or None,
            actor=wanted["actor"] or None,
            target=wanted["target"] or None,
            since=_midnight(days["from"]) if days["from"] else None,
            # The day itself belongs to what is asked for.
            until=_midnight(min(last, _LAST_DAY) + timedelta(days=1)) if last else None,
        ),
        problems,
    )


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


def _operator() -> Actor:
    return Actor("operator", g.operator.email)
