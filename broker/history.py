"""What happened to a connection, for the person whose account it is: read from the audit trail."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType

import sqlalchemy as sa

from broker.db import Database
from broker.models import AuditRecord

MOST_SHOWN = 50


class Happening(StrEnum):
    """What can have happened, as far as the person is concerned."""

    CONNECTED = "connected"
    RECONNECTED = "reconnected"
    SET_UP = "set_up"
    CHECK_PASSED = "check_passed"
    CHECK_FAILED = "check_failed"
    DISCONNECTED = "disconnected"


_HAPPENINGS: Mapping[str, Happening] = MappingProxyType(
    {
        "connection.connected": Happening.CONNECTED,
        "connection.imported": Happening.SET_UP,
        # Only a check that changes the outcome of the one before is recorded.
        "connection.verified": Happening.CHECK_PASSED,
        "connection.drifted": Happening.CHECK_FAILED,
        "connection.disconnected": Happening.DISCONNECTED,
    }
)


@dataclass(frozen=True)
class Event:
    """One thing that happened."""

    at: datetime
    what: Happening
    # Whether the person did it, rather than somebody or something at the host.
    by_person: bool


class History:
    """Reads what happened to one connection."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_connection(self, ref: str) -> list[Event]:
        """Return the latest events of a connection, newest first."""
        wanted = sa.select(AuditRecord.at, AuditRecord.action, AuditRecord.actor_kind).where(
            AuditRecord.target == ref, AuditRecord.action.in_(_HAPPENINGS)
        )
        with self._database.read() as connection:
            rows = connection.execute(wanted.order_by(AuditRecord.id.desc()).limit(MOST_SHOWN)).all()
        events = [Event(row.at, _HAPPENINGS[row.action], row.actor_kind == "end_user") for row in rows]
        # Everything but the very first time is a renewal; with more events than are shown, the first is not among them.
        first = len(events) - 1 if len(events) < MOST_SHOWN else -1
        return [
            Event(event.at, Happening.RECONNECTED, event.by_person)
            if event.what is Happening.CONNECTED and number != first
            else event
            for number, event in enumerate(events)
        ]
