"""What providers tell us by webhook: verified, stored and answered at once; acted on by the worker.

An event only makes us ask the provider again, because it may be late, repeated or overtaken by a reconnect. That
access has ended is the exception: nothing can be asked with a dead token, so that the signed event is the truth,
unless the account was connected again since.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from broker.apps import AppCatalogue
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import AppUnknown
from broker.jobs import Done, Jobs, LeasedJob, Outcome
from broker.models import ConnectedAccount, ProviderEvent
from broker.probes import mark_revoked
from broker.providers.base import Notice, NoticeKind

KIND = "provider_event"
"""The jobs that act on events; the subject is the event."""
TO_THE_SECOND = timedelta(seconds=1)
"""Providers leave out fractions: in the second of a connect, what ended came after it."""
IN_DOUBT = timedelta(minutes=5)
"""They date events by clocks of their own: where one is so little older than the connect, the provider is asked."""

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_events = table(ProviderEvent)


class Approve(Protocol):
    """Notes in the caller's transaction that an owner approved; returns how many connections waited for it."""

    def __call__(
        self, connection: Connection, app_key: str, facts: Mapping[str, Any], *, jobs: Jobs, now: datetime
    ) -> int:
        """Act on the facts of a verified notice."""


class ProviderEvents:
    """Takes webhooks in and runs the jobs that act on them."""

    def __init__(
        self, *, database: Database, clock: Clock, apps: AppCatalogue, jobs: Jobs, approve: Approve | None = None
    ) -> None:
        """`approve` acts on approvals; without it nothing waits for any."""
        self._database = database
        self._clock = clock
        self._apps = apps
        self._jobs = jobs
        self._approve = approve

    def receive(self, app_key: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Verify and store a webhook; False for one that was stored before.

        Raises AppUnknown where the app has no webhooks, and WebhookRefused or WebhookInvalid, having stored nothing.
        """
        app = self._apps.get(app_key)
        if app.provider.webhook is None:
            raise AppUnknown(f"{app.title} sends no webhooks")
        notice = app.provider.webhook(app.config, headers, body, self._clock.now())
        event_id = self.store(app_key, notice)
        if event_id is None:
            log.info("provider_event.repeated", app=app_key, name=notice.name)
            return False
        self._jobs.wakeup.set()
        log.info("provider_event.received", app=app_key, name=notice.name, notice=notice.kind.value)
        return True

    def store(self, app_key: str, notice: Notice) -> int | None:
        """Store a verified notice and ask for work on it; None for one that was stored before."""
        now = self._clock.now()
        means_nothing = notice.kind is NoticeKind.NOTHING
        with self._database.write() as connection:
            insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
            stored = connection.execute(
                insert(_events)
                .values(
                    app_key=app_key, delivery_id=notice.delivery_id, name=notice.name, notice=notice.kind.value,
                    facts={"account_id": notice.account_id, "mode": notice.mode, "facts": dict(notice.facts)},
                    occurred_at=notice.occurred_at, received_at=now, processed_at=now if means_nothing else None,
                    outcome="means nothing here" if means_nothing else None,
                )
                .on_conflict_do_nothing(index_elements=["app_key", "delivery_id"])
                .returning(_events.c.id)
            ).scalar_one_or_none()  # fmt: skip
            if stored is not None and not means_nothing:
                self._jobs.enqueue(connection, KIND, stored)
        return stored

    # --- acting on it ----------------------------------------------------------------------------------

    def run(self, job: LeasedJob) -> Outcome:
        """Act on the event a job speaks of; what changes commits with the job's outcome, or not at all."""
        with self._database.write() as connection:
            if not self._jobs.settle(connection, job, Done()):
                return Done()
            event = connection.execute(
                sa.select(_events).where(_events.c.id == job.subject_id, _events.c.processed_at.is_(None))
            ).one_or_none()
            if event is None:
                return Done()
            came_of_it = self._acts[NoticeKind(event.notice)](self, connection, event)
            connection.execute(
                sa.update(_events)
                .where(_events.c.id == event.id)
                .values(processed_at=self._clock.now(), outcome=came_of_it[:200])
            )
        self._jobs.wakeup.set()
        log.info("provider_event.processed", app=event.app_key, name=event.name, outcome=came_of_it)
        return Done()

    def _revoked(self, connection: Connection, event: Row[Any]) -> str:
        counted = {"revoked": 0, "asked": 0, "connected again since": 0}
        for row in self._concerned(connection, event):
            newer_by = timedelta(0) if event.occurred_at is None else row.connected_at - event.occurred_at
            if newer_by >= IN_DOUBT:
                counted["connected again since"] += 1
            elif newer_by >= TO_THE_SECOND:
                counted["asked"] += self._ask(connection, row)
            else:
                counted["revoked"] += mark_revoked(
                    connection, row, jobs=self._jobs, actor=event.app_key, why=event.name, now=self._clock.now()
                )
        return _told(counted)

    def _changed(self, connection: Connection, event: Row[Any]) -> str:
        return _told({"asked": sum(self._ask(connection, row) for row in self._concerned(connection, event))})

    def _approved(self, connection: Connection, event: Row[Any]) -> str:
        if self._approve is None:
            return "nobody waits for approvals"
        waiting = self._approve(connection, event.app_key, event.facts["facts"], jobs=self._jobs, now=self._clock.now())
        # An installation that nobody here waits for may still be one that is connected already.
        return _told({"waiting": waiting}) if waiting else self._changed(connection, event)

    def _nothing(self, connection: Connection, event: Row[Any]) -> str:
        return "means nothing here"

    _acts: Mapping[NoticeKind, Callable[[ProviderEvents, Connection, Row[Any]], str]] = {
        NoticeKind.REVOKED: _revoked,
        NoticeKind.CHANGED: _changed,
        NoticeKind.APPROVED: _approved,
        NoticeKind.NOTHING: _nothing,
    }

    def _concerned(self, connection: Connection, event: Row[Any]) -> list[Row[Any]]:
        """Return the living connections that an event is about, in the order in which everybody locks them."""
        named, mode, facts = event.facts["account_id"], event.facts["mode"], event.facts["facts"]
        if named is None and not facts:
            return []
        which = [
            _connections.c.app_key == event.app_key,
            _connections.c.disconnected_at.is_(None),
            _connections.c.revoked_at.is_(None),
        ]
        if named is not None:
            which.append(_connections.c.account_id == named)
        else:
            which += [_fact(connection, name) == str(value) for name, value in facts.items()]
        if mode is not None:
            # Accounts connected in both modes send test events to both addresses.
            which.append(_connections.c.mode == mode)
        query = sa.select(_connections).where(*which).order_by(_connections.c.id)
        return list(connection.execute(query).all())

    def _ask(self, connection: Connection, row: Row[Any]) -> bool:
        if row.app_key not in self._apps or self._apps.get(row.app_key).provider.probe is None:
            return False
        self._jobs.enqueue(connection, "probe", row.id)
        return True

    # --- looking and clearing up -----------------------------------------------------------------------

    def last_received(self, app_key: str) -> datetime | None:
        """Return when an app's last webhook arrived; None when none did."""
        query = sa.select(_events.c.received_at).where(_events.c.app_key == app_key)
        with self._database.read() as connection:
            return connection.execute(query.order_by(_events.c.received_at.desc()).limit(1)).scalar_one_or_none()


def _fact(connection: Connection, name: str) -> sa.ColumnElement[str]:
    """Return one of an account's facts as text."""
    if connection.dialect.name == "sqlite":
        return sa.cast(sa.func.json_extract(_connections.c.account_facts, f'$."{name}"'), sa.Text)
    return _connections.c.account_facts.op("->>", return_type=sa.Text())(sa.literal(name, sa.Text()))


def _told(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{what}: {count}" for what, count in counted.items() if count) or "no connection of ours"
