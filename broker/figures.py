"""Numbers about the whole broker, read from the database: whichever process is asked, they are the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.circuits import Circuits
from broker.clock import Clock
from broker.db import Database, table
from broker.models import ConnectedAccount, Flow, Job, JobState, Orphan, ProviderEvent, SendState, WebhookDelivery
from broker.status import status_expression

KNOWN_SECONDS = 10.0
"""How long numbers are given out again: counting a million rows for every question would cost more than it tells."""

_deliveries = table(WebhookDelivery)
_events = table(ProviderEvent)
_flows = table(Flow)
_jobs = table(Job)
_orphans = table(Orphan)


@dataclass(frozen=True)
class Numbers:
    """How everything stands."""

    at: datetime
    # By OAuth app and status.
    connections: Mapping[tuple[str, str], int]
    # By kind and state, without those that are done.
    jobs: Mapping[tuple[str, str], int]
    # By kind: for how many seconds the longest due job has been waiting to be taken up.
    job_delay: Mapping[str, float]
    # Flows under way, by state.
    flows_open: Mapping[str, int]
    # Names of the open circuits.
    circuits_open: tuple[str, ...]
    # Webhooks that still have to be sent, and those of providers that still have to be acted on.
    webhooks_waiting: int
    provider_events_waiting: int
    # Credentials in Sequin that carry our metadata and belong to no connection.
    orphans: int


class Figures:
    """Counts."""

    def __init__(self, database: Database, clock: Clock, circuits: Circuits) -> None:
        self._database = database
        self._clock = clock
        self._circuits = circuits
        self._lock = threading.Lock()
        self._known: tuple[float, Numbers] | None = None

    def numbers(self) -> Numbers:
        """Return the numbers, not more than KNOWN_SECONDS old. Raises DatabaseUnavailable."""
        with self._lock:
            known = self._known
            if known is None or self._clock.monotonic() - known[0] >= KNOWN_SECONDS:
                known = self._known = (self._clock.monotonic(), self._count())
        return known[1]

    def _count(self) -> Numbers:
        now = self._clock.now()
        with self._database.read() as connection:
            return Numbers(
                at=now,
                connections=_connections(connection, now),
                jobs=_unfinished(connection),
                job_delay=_delays(connection, self._database.now(connection)),
                flows_open=_open_flows(connection, now),
                circuits_open=tuple(circuit.name for circuit in self._circuits.open()),
                webhooks_waiting=_rows(connection, _deliveries, _deliveries.c.state == SendState.PENDING),
                provider_events_waiting=_rows(connection, _events, _events.c.processed_at.is_(None)),
                orphans=_rows(connection, _orphans),
            )


def _connections(connection: Connection, now: datetime) -> dict[tuple[str, str], int]:
    status = status_expression(now).label("status")
    query = sa.select(ConnectedAccount.app_key, status, sa.func.count()).group_by(ConnectedAccount.app_key, status)
    return {(app, status): count for app, status, count in connection.execute(query)}


def _unfinished(connection: Connection) -> dict[tuple[str, str], int]:
    query = (
        sa.select(_jobs.c.kind, _jobs.c.state, sa.func.count())
        .where(_jobs.c.state != JobState.DONE)
        .group_by(_jobs.c.kind, _jobs.c.state)
    )
    return {(kind, state): count for kind, state, count in connection.execute(query)}


def _delays(connection: Connection, now: datetime) -> dict[str, float]:
    query = (
        sa.select(_jobs.c.kind, sa.func.min(_jobs.c.due_at))
        .where(_jobs.c.state == JobState.WAITING, _jobs.c.due_at <= now)
        .group_by(_jobs.c.kind)
    )
    return {kind: (now - due).total_seconds() for kind, due in connection.execute(query)}


def _open_flows(connection: Connection, now: datetime) -> dict[str, int]:
    query = (
        sa.select(_flows.c.state, sa.func.count())
        .where(_flows.c.ended_at.is_(None), _flows.c.expires_at > now)
        .group_by(_flows.c.state)
    )
    return {row.state: row[1] for row in connection.execute(query)}


def _rows(connection: Connection, rows: sa.Table, *which: sa.ColumnElement[bool]) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(rows).where(*which)).scalar_one()
