"""The audit trail as operators read it: by action, actor, target and time; looking and exporting leave records too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.connection_search import CursorUnknown
from broker.db import Database, table
from broker.errors import Refused
from broker.models import AuditRecord, AuditSeal
from broker.text import storable

MOST_EXPORTED = 50_000
BATCH = 1_000
LARGEST_KEY = 2**63 - 1
TARGET = "audit"
"""What a record about the trail itself is about."""

_records = table(AuditRecord)
_seals = table(AuditSeal)


@dataclass(frozen=True)
class AuditFilters:
    """What to show; None and empty do not narrow. `until` itself is left out."""

    action: str | None = None
    actor: str | None = None
    target: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True)
class AuditEntry:
    """One record; `number` is its place in the chain, None until it is sealed."""

    id: int
    number: int | None
    at: datetime
    actor_kind: str
    actor: str
    action: str
    target: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class AuditPage:
    """Some entries, newest first, and the cursors that lead to older and to newer ones; None where there are none."""

    items: tuple[AuditEntry, ...]
    next_cursor: str | None
    previous_cursor: str | None = None


@dataclass(frozen=True)
class AuditDetails:
    """One record, and what seals it in the chain; None until it is sealed."""

    entry: AuditEntry
    digest: str | None
    sealed_at: datetime | None
    key_id: str | None


class AuditRecordUnknown(Refused):
    """There is no such record; maybe it was purged."""

    code = "audit_record_unknown"
    status = 404
    heading = "There is no such record"
    advice = "It may have been forgotten: records are kept for as long as the settings say."


class AuditTrail:
    """Lists and exports records."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def page(
        self,
        filters: AuditFilters,
        *,
        limit: int,
        actor: Actor,
        cursor: str | None = None,
        newer_than: str | None = None,
    ) -> AuditPage:
        """Return the records that match, newest first, and record that `actor` saw them.

        They are those older than the one named by `cursor`, or else the nearest newer than `newer_than`.
        Raises CursorUnknown.
        """
        with self._database.read() as connection:
            if cursor is None and newer_than is not None:
                found = _entries(connection, filters, limit + 1, _place_of(connection, newer_than), newer=True)
                items, has_older, has_newer = found[:limit][::-1], True, len(found) > limit
            else:
                before = None if cursor is None else _place_of(connection, cursor)
                found = _entries(connection, filters, limit + 1, before)
                items, has_older, has_newer = found[:limit], len(found) > limit, before is not None
        self._note("audit.viewed", _said(filters), actor)
        return AuditPage(
            tuple(items),
            str(items[-1].id) if items and has_older else None,
            str(items[0].id) if items and has_newer else None,
        )

    def find(self, record_id: int, *, actor: Actor) -> AuditDetails:
        """Return one record with its seal, and record that `actor` saw it. Raises AuditRecordUnknown."""
        with self._database.read() as connection:
            row = None
            if record_id <= LARGEST_KEY:
                row = connection.execute(_entry().where(_records.c.id == record_id)).one_or_none()
            if row is None:
                raise AuditRecordUnknown
            seal = connection.execute(
                sa.select(_seals.c.digest, _seals.c.sealed_at, _seals.c.key_id).where(_seals.c.record_id == record_id)
            ).one_or_none()
        self._note("audit.viewed", {"record": record_id}, actor)
        return AuditDetails(AuditEntry(*row), *(seal or (None, None, None)))

    def export(self, filters: AuditFilters, *, actor: Actor) -> Iterator[AuditEntry]:
        """Record that `actor` exports what matches, then return it, newest first, 50,000 records at most."""
        self._note("audit.exported", _said(filters), actor)
        return self._exported(filters)

    def _exported(self, filters: AuditFilters) -> Iterator[AuditEntry]:
        before: tuple[datetime, int] | None = None
        left = MOST_EXPORTED
        while left > 0:
            # A unit for each batch: a slow reader keeps nothing open.
            with self._database.read() as connection:
                found = _entries(connection, filters, min(BATCH, left), before)
            yield from found
            if len(found) < min(BATCH, left):
                return
            left -= len(found)
            before = (found[-1].at, found[-1].id)

    def _note(self, action: str, detail: Mapping[str, object], actor: Actor) -> None:
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action=action,
                target=TARGET, detail=detail,
            )  # fmt: skip


def _said(filters: AuditFilters) -> dict[str, object]:
    """Return what was asked for, as it is recorded."""
    wanted = {
        "action": filters.action, "actor": filters.actor, "target": filters.target,
        "since": filters.since and filters.since.isoformat(), "until": filters.until and filters.until.isoformat(),
    }  # fmt: skip
    return {name: value for name, value in wanted.items() if value and storable(value)}


def _entry() -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        _records.c.id, _seals.c.number, _records.c.at, _records.c.actor_kind, _records.c.actor,
        _records.c.action, _records.c.target, _records.c.detail,
    ).outerjoin(_seals, _seals.c.record_id == _records.c.id)  # fmt: skip


def _entries(
    connection: Connection,
    filters: AuditFilters,
    limit: int,
    beside: tuple[datetime, int] | None,
    *,
    newer: bool = False,
) -> list[AuditEntry]:
    """Return the nearest records older than a place, newest first; or newer ones, oldest first."""
    wanted = _matching(filters)
    here = sa.tuple_(_records.c.at, _records.c.id)
    if beside is not None:
        place = sa.tuple_(sa.literal(beside[0], _records.c.at.type), sa.literal(beside[1], _records.c.id.type))
        wanted.append(here > place if newer else here < place)
    order = (_records.c.at, _records.c.id) if newer else (_records.c.at.desc(), _records.c.id.desc())
    rows = connection.execute(_entry().where(*wanted).order_by(*order).limit(limit)).all()
    return [AuditEntry(*row) for row in rows]


def _matching(filters: AuditFilters) -> list[sa.ColumnElement[bool]]:
    exact = (
        (_records.c.action, filters.action),
        (_records.c.actor, filters.actor),
        (_records.c.target, filters.target),
    )
    if not all(storable(value) for _, value in exact if value):
        # No record can hold such text, so nothing matches it.
        return [sa.false()]
    found: list[sa.ColumnElement[bool]] = [column == value for column, value in exact if value]
    if filters.since is not None:
        found.append(_records.c.at >= filters.since)
    if filters.until is not None:
        found.append(_records.c.at < filters.until)
    return found


def _place_of(connection: Connection, cursor: str) -> tuple[datetime, int]:
    # More digits than a key can have would be no number to a database.
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise CursorUnknown
    row = connection.execute(sa.select(_records.c.at).where(_records.c.id == int(cursor))).one_or_none()
    if row is None:
        raise CursorUnknown
    return row.at, int(cursor)
