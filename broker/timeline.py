"""What happened in a flow, hop by hop: each entry commits with the step it tells of.

After a crash the last entry says where the flow stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.db import Database, table
from broker.models import ConnectedAccount, Flow, FlowEvent

MOST_SHOWN = 200

_connections = table(ConnectedAccount)
_events = table(FlowEvent)
_flows = table(Flow)
# Built once, and without RETURNING: nobody asks for the key.
_NOTE = sa.insert(_events).inline()


@dataclass(frozen=True)
class Entry:
    """One thing that happened."""

    flow_ref: str
    at: datetime
    # left, returned, redeemed, held, picked, attached, failed, expired or interrupted.
    name: str
    # How long the other side took; None where nobody was asked.
    duration_ms: int | None
    detail: str | None


def note(
    connection: Connection,
    flow_id: int,
    name: str,
    *,
    at: datetime,
    detail: str | None = None,
    seconds: float | None = None,
) -> None:
    """Add an entry in the caller's transaction. `detail` is a fact, never a secret; `seconds` how long it took."""
    connection.execute(
        _NOTE,
        {
            "flow_id": flow_id, "at": at, "name": name, "detail": detail[:500] if detail else None,
            "duration_ms": None if seconds is None else round(seconds * 1000),
        },
    )  # fmt: skip


class Timeline:
    """Reads entries."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def of_flow(self, flow_ref: str) -> list[Entry]:
        """Return a flow's entries, oldest first."""
        return self._entries(_flows.c.ref == flow_ref)

    def of_connection(self, ref: str) -> list[Entry]:
        """Return the entries of every flow that made or renewed a connection, oldest first."""
        connected = sa.select(_connections.c.id).where(_connections.c.ref == ref)
        return self._entries(_flows.c.connection_id.in_(connected))

    def _entries(self, which: sa.ColumnElement[bool]) -> list[Entry]:
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(_flows.c.ref, _events.c.at, _events.c.name, _events.c.duration_ms, _events.c.detail)
                .join(_flows, _flows.c.id == _events.c.flow_id)
                .where(which)
                .order_by(_events.c.id)
                .limit(MOST_SHOWN)
            ).all()
        return [Entry(*row) for row in rows]
