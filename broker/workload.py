"""The job table as operators see it: what waits, runs, is tried again, or waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.connections import cure_of
from broker.db import Database
from broker.errors import Refused
from broker.jobs import LEASE_SECONDS, Jobs
from broker.models import ConnectedAccount, Flow, Job, JobState

MOST_COUNTED = 1_000
"""How many jobs are counted at most: the rest is "more than"."""
MOST_LISTED = 100
LARGEST_KEY = 2**63 - 1
RUNNING_LATE = timedelta(hours=1)
"""A lease that ended so long ago is not looked for among what runs."""
ABOUT_CONNECTIONS = ("import", "verify", "revoke", "remove", "refresh", "probe")
ABOUT_FLOWS = ("finish", "discard")


class JobUnknown(Refused):
    """No parked job has this key: it runs again already, or never was."""

    code = "job_unknown"
    status = 404
    heading = "This job is not parked"
    advice = "It may have been retried already: look at the list again."


class Group(StrEnum):
    """How a job stands, in the words of the page."""

    PARKED = "parked"
    RETRYING = "retrying"
    RUNNING = "running"
    WAITING = "waiting"


@dataclass(frozen=True)
class WorkView:
    """One job, and what it is about."""

    id: int
    kind: str
    # Reference of the connection or the flow it is about; None for work of the broker's own.
    connection_ref: str | None
    flow_ref: str | None
    due_at: datetime | None
    failures: int
    failing_since: datetime | None
    # Why the last try failed: a stable code, the facts, and what to do. Empty unless it did.
    error: str
    detail: str
    cure: str
    updated_at: datetime


class Workload:
    """Count, list and retry jobs."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs

    def counts(self) -> dict[Group, int]:
        """Return how many jobs are in each group, MOST_COUNTED + 1 for more than that."""
        found = {}
        with self._database.read() as connection:
            now = self._database.now(connection)
            for group in Group:
                some = sa.select(Job.id).where(*_in(group, now)).limit(MOST_COUNTED + 1).subquery()
                found[group] = connection.execute(sa.select(sa.func.count()).select_from(some)).scalar_one()
        return found

    def list(self, group: Group) -> tuple[WorkView, ...]:
        """Return the first MOST_LISTED jobs of a group: those parked last, or due first."""
        place = (Job.id.desc(),) if group is Group.PARKED else (Job.due_at, Job.id)
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(
                    Job.id, Job.kind, ConnectedAccount.ref.label("connection_ref"), Flow.ref.label("flow_ref"),
                    Job.due_at, Job.failures, Job.failing_since, Job.error, Job.error_detail, Job.updated_at,
                )
                .outerjoin(
                    ConnectedAccount,
                    sa.and_(Job.kind.in_(ABOUT_CONNECTIONS), ConnectedAccount.id == Job.subject_id),
                )
                .outerjoin(Flow, sa.and_(Job.kind.in_(ABOUT_FLOWS), Flow.id == Job.subject_id))
                .where(*_in(group, self._database.now(connection)))
                .order_by(*place)
                .limit(MOST_LISTED)
            ).all()  # fmt: skip
        return tuple(
            WorkView(
                row.id, row.kind, row.connection_ref, row.flow_ref, row.due_at, row.failures, row.failing_since,
                row.error or "", row.error_detail or "", cure_of(row.error) if row.error else "", row.updated_at,
            )
            for row in rows
        )  # fmt: skip

    def retry(self, job_id: int | None, *, actor: Actor) -> int:
        """Let one parked job run again, or all of them for None, and return how many. Raises JobUnknown."""
        with self._database.write() as connection:
            count = self._jobs.rearm_with(connection, job_id) if job_id is None or job_id <= LARGEST_KEY else 0
            if job_id is not None and not count:
                raise JobUnknown
            if count:
                audit.record(
                    connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action="jobs.retried",
                    target="parked" if job_id is None else f"job {job_id}", detail={"count": count},
                )  # fmt: skip
        self._jobs.wakeup.set()
        return count


def _in(group: Group, now: datetime) -> tuple[sa.ColumnElement[bool], ...]:
    """Return what holds for the jobs of a group; what failed is few and has an index of its own."""
    if group is Group.PARKED:
        return (Job.state == JobState.PARKED, Job.error.is_not(None))
    if group is Group.RETRYING:
        return (Job.state == JobState.WAITING, Job.error.is_not(None))
    if group is Group.RUNNING:
        leased = Job.due_at.between(now - RUNNING_LATE, now + timedelta(seconds=LEASE_SECONDS))
        return (Job.state == JobState.RUNNING, leased)
    return (Job.state == JobState.WAITING, Job.error.is_(None), Job.due_at.is_not(None))
