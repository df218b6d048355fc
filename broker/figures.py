"""Numbers about the whole broker, read from the database: whichever process is asked, they are the same."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.apps import AppCatalogue
from broker.circuits import Circuits
from broker.clock import Clock
from broker.db import Database, table
from broker.models import ConnectedAccount, Flow, Job, JobState, Orphan, ProviderEvent, SendState, WebhookDelivery
from broker.status import status_expression

KNOWN_SECONDS = 10.0
"""How long numbers are given out again, at least."""
COUNTING_SHARE = 20
"""Counting takes at most one part in so many of the time: with a million rows it would go on without an end."""
LONGEST_KNOWN_SECONDS = 120.0
"""However long it took: alerts wait for some minutes, and it may have been the database that was slow."""

AGES_KNOWN_SECONDS = 300.0
"""How long ages are given out again, which change in hours and take a look at every connection once more."""

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
    # By OAuth app: since how many seconds its provider was not asked about one of the connections it is asked about.
    probe_age: Mapping[str, float]
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

    def __init__(self, database: Database, clock: Clock, circuits: Circuits, apps: AppCatalogue) -> None:
        self._database = database
        self._apps = apps
        self._clock = clock
        self._circuits = circuits
        self._lock = threading.Lock()
        # Until when they are given out, by the monotonic clock.
        self._known: tuple[float, Numbers] | None = None
        # Since when they are.
        self._known_ages: tuple[float, Mapping[str, datetime]] | None = None

    def numbers(self) -> Numbers:
        """Return the numbers as they were counted up to LONGEST_KNOWN_SECONDS ago. Raises DatabaseUnavailable."""
        with self._lock:
            known, began = self._known, self._clock.monotonic()
            if known is None or began >= known[0]:
                counted = self._count()
                ended = self._clock.monotonic()
                known_for = min(max(KNOWN_SECONDS, COUNTING_SHARE * (ended - began)), LONGEST_KNOWN_SECONDS)
                known = self._known = (ended + known_for, counted)
        return known[1]

    def _count(self) -> Numbers:
        now = self._clock.now()
        with self._database.read() as connection:
            return Numbers(
                at=now,
                connections=_connections(connection, now),
                jobs=_unfinished(connection),
                job_delay=_delays(connection, self._database.now(connection)),
                probe_age=self._probe_age(connection, now),
                flows_open=_open_flows(connection, now),
                circuits_open=tuple(circuit.name for circuit in self._circuits.open()),
                webhooks_waiting=_rows(connection, _deliveries, _deliveries.c.state == SendState.PENDING),
                provider_events_waiting=_rows(connection, _events, _events.c.processed_at.is_(None)),
                orphans=_rows(connection, _orphans),
            )

    def _probe_age(self, connection: Connection, now: datetime) -> Mapping[str, float]:
        known = self._known_ages
        if known is None or self._clock.monotonic() - known[0] >= AGES_KNOWN_SECONDS:
            known = self._known_ages = (self._clock.monotonic(), _last_asked(connection, self._apps))
        return {app: (now - asked_at).total_seconds() for app, asked_at in known[1].items()}


def _connections(connection: Connection, now: datetime) -> dict[tuple[str, str], int]:
    status = status_expression(now).label("status")
    query = sa.select(ConnectedAccount.app_key, status, sa.func.count()).group_by(ConnectedAccount.app_key, status)
    return {(app, status): count for app, status, count in connection.execute(query)}


def _last_asked(connection: Connection, apps: AppCatalogue) -> dict[str, datetime]:
    """Return by OAuth app when the connection was asked about that was asked about longest ago, of those that are."""
    row = ConnectedAccount
    asked = {app.key: app.provider.probe_needs_grant for app in apps if app.provider.probe is not None}
    without_grant = [key for key, needs_grant in asked.items() if not needs_grant]
    query = sa.select(row.app_key, sa.func.min(sa.func.coalesce(row.probed_at, row.connected_at))).where(
        row.app_key.in_(asked),
        sa.or_(row.grant_sealed.is_not(None), row.app_key.in_(without_grant)),
        # Probes begin with the first verification.
        row.verified_at.is_not(None),
        row.disconnected_at.is_(None),
        row.revoked_at.is_(None),
        row.interrupted_at.is_(None),
    )
    return dict(iter(connection.execute(query.group_by(row.app_key))))


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
