"""How it all goes: what became of attempts and links, how long imports take, how connections stand.

What happened is counted over the audit trail and the events, whose indexes hold action, type and time. How everything
stands takes a look at every connection. A small database is counted whenever somebody looks; in a large one the worker
counts, when somebody has looked and what is known has grown old, so that no page ever waits for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError
from broker.events import EventType
from broker.jobs import Done, Jobs, LeasedJob, Outcome, Retry
from broker.models import (
    AuditRecord,
    ConnectedAccount,
    CountedOverview,
    Event,
    Flow,
    FlowState,
    Job,
    JobState,
    Link,
    LinkUse,
)
from broker.status import status_expression

KIND = "count"
SMALL = 20_000
"""Up to so many rows counting takes no longer than showing a page."""
FRESH_FOR = timedelta(minutes=5)
"""How old the numbers of a large database are before the worker is asked for new ones."""
SAMPLE = 10_000
"""About how many rows are followed to others at most, evenly one in so many: that cannot be had from an index."""
PRIME, SCATTER = 10_007, 7_919
"""Rows of one kind may come at every fourth key: the remainder by a prime still meets all of them alike."""

_audit = table(AuditRecord)
_connections = table(ConnectedAccount)
_events = table(Event)
_flows = table(Flow)
_jobs = table(Job)
_known = table(CountedOverview)
_links = table(Link)
_uses = table(LinkUse)


class Period(StrEnum):
    """What is looked back on."""

    DAY = "24h"
    WEEK = "7d"
    MONTH = "30d"


@dataclass(frozen=True)
class Span:
    """How a period is cut into parts, all of one length and aligned in UTC."""

    part: timedelta
    parts: int

    @property
    def length(self) -> timedelta:
        """The whole period."""
        return self.part * self.parts

    def starts(self, now: datetime) -> tuple[datetime, ...]:
        """Return when each part begins; the last one holds `now` and is not over."""
        last = now.replace(minute=0, second=0, microsecond=0)
        if self.part >= timedelta(days=1):
            last = last.replace(hour=0)
        return tuple(last - self.part * back for back in reversed(range(self.parts)))


SPANS: Mapping[Period, Span] = MappingProxyType(
    {
        Period.DAY: Span(timedelta(hours=1), 24),
        Period.WEEK: Span(timedelta(days=1), 7),
        Period.MONTH: Span(timedelta(days=1), 30),
    }
)
_SUBJECTS: Mapping[int, Period] = MappingProxyType({1: Period.DAY, 2: Period.WEEK, 3: Period.MONTH})


@dataclass(frozen=True)
class Group:
    """So many connections of one OAuth app stand like this; `error` is why the last import failed."""

    app: str
    status: str
    error: str | None
    count: int


@dataclass(frozen=True)
class Reason:
    """So many attempts ended like this; `action` is how the audit trail calls it, `code` the error."""

    action: str
    code: str
    count: int


@dataclass(frozen=True)
class Funnel:
    """How far the links of the period have come; each number is part of the one before.

    Where only some links were followed, the others are taken to have gone as far.
    """

    followed: int
    created: int
    opened: int
    left: int
    returned: int
    connected: int
    imported: int


@dataclass(frozen=True)
class Times:
    """How many seconds passed between connecting and the import; None where nothing was imported."""

    # For each part of the period.
    median: tuple[float | None, ...]
    slow: tuple[float | None, ...]
    # For all of it. `slow` is the time within which 95 of 100 arrived.
    median_of_all: float | None
    slow_of_all: float | None
    # How many were looked at, of how many.
    looked_at: int
    of: int


@dataclass(frozen=True)
class Overview:
    """What is known about one period. Sequences have a number for each part that begins in `starts`."""

    at: datetime
    starts: tuple[datetime, ...]
    connected: tuple[int, ...]
    failed: tuple[int, ...]
    abandoned: tuple[int, ...]
    # In the same time one period earlier.
    connected_before: int
    broke: tuple[int, ...]
    recovered: tuple[int, ...]
    times: Times
    funnel: Funnel
    reasons: tuple[Reason, ...]
    groups: tuple[Group, ...]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be seen at all."""
        return not (self.groups or self.funnel.created or self.attempts)

    @property
    def attempts(self) -> int:
        """How many attempts have ended."""
        return sum(self.connected) + sum(self.failed) + sum(self.abandoned)


_STORED = TypeAdapter(Overview)


class Overviews:
    """Counts, and remembers what was counted."""

    def __init__(self, database: Database, clock: Clock, jobs: Jobs) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs

    def find(self, period: Period) -> Overview | None:
        """Return what is known; None while a large database is counted for the first time.

        Raises DatabaseUnavailable.
        """
        with self._database.read() as connection:
            if _rows(connection) <= SMALL:
                return _count(connection, period, self._clock.now())
            found = connection.execute(sa.select(_known.c.found).where(_known.c.period == period)).scalar_one_or_none()
        known = None if found is None else _STORED.validate_python(found, strict=False)
        if known is None or known.at < self._clock.now() - FRESH_FOR:
            self._ask(period)
        return known

    def run(self, job: LeasedJob) -> Outcome:
        """Count one period and settle the job."""
        period, now = _SUBJECTS[job.subject_id], self._clock.now()
        outcome: Outcome = Done()
        try:
            with self._database.read() as connection:
                counted = _count(connection, period, now)
        except BrokerError as failure:
            outcome = Retry(failure.code, failure.detail)
        with self._database.write() as connection:
            # The job last: a count that lost its lease is as good as any other.
            if isinstance(outcome, Done):
                _remember(connection, period, counted)
            self._jobs.settle(connection, job, outcome)
        return outcome

    def _ask(self, period: Period) -> None:
        subject = next(number for number, each in _SUBJECTS.items() if each is period)
        with self._database.read() as connection:
            asked = sa.select(_jobs.c.id).where(
                _jobs.c.kind == KIND,
                _jobs.c.subject_id == subject,
                _jobs.c.state.in_((JobState.WAITING, JobState.RUNNING)),
            )
            if connection.execute(asked).first() is not None:
                return
        with self._database.write() as connection:
            self._jobs.enqueue(connection, KIND, subject)
        self._jobs.wakeup.set()


def _rows(connection: Connection) -> int:
    """Return about how many rows there are to count: keys are given out in order, so the last one tells."""
    newest = (
        sa.select(sa.func.coalesce(sa.func.max(each.c.id), 0)).scalar_subquery()
        for each in (_connections, _links, _audit, _events)
    )
    return sum(connection.execute(sa.select(*newest)).one())


def _remember(connection: Connection, period: Period, counted: Overview) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    found = _STORED.dump_python(counted, mode="json")
    new = insert(_known).values(period=period.value, counted_at=counted.at, found=found)
    connection.execute(
        new.on_conflict_do_update(
            index_elements=["period"], set_={"counted_at": new.excluded.counted_at, "found": new.excluded.found}
        )
    )


# --- counting ---------------------------------------------------------------------------------------------


def _count(connection: Connection, period: Period, now: datetime) -> Overview:
    span = SPANS[period]
    starts = span.starts(now)
    since = starts[0]
    edges = [*starts, starts[-1] + span.part]
    connected = _by_part(connection, _audit, _audit.c.action, "connection.connected", edges)
    refused = _by_part(connection, _audit, _audit.c.action, f"flow.{FlowState.FAILED}", edges)
    cut_off = _by_part(connection, _audit, _audit.c.action, f"flow.{FlowState.INTERRUPTED}", edges)
    before = [since - span.length, now - span.length]
    return Overview(
        at=now,
        starts=starts,
        connected=connected,
        failed=tuple(one + other for one, other in zip(refused, cut_off, strict=True)),
        abandoned=_by_part(connection, _audit, _audit.c.action, f"flow.{FlowState.EXPIRED}", edges),
        connected_before=sum(_by_part(connection, _audit, _audit.c.action, "connection.connected", before)),
        broke=_by_part(connection, _events, _events.c.type, EventType.NEEDS_ATTENTION, edges),
        recovered=_by_part(connection, _events, _events.c.type, EventType.RECOVERED, edges),
        times=_times(connection, starts, sum(connected)),
        funnel=_funnel(connection, since),
        reasons=_reasons(connection, since),
        groups=_groups(connection, now),
    )


def _by_part(
    connection: Connection, rows: sa.Table, column: sa.ColumnElement[str], word: str, edges: Sequence[datetime]
) -> tuple[int, ...]:
    """Return how many rows with a word in a column there are between each edge and the next.

    Each count is a range of an index over that column and the time; no expression has to be worked out for any row.
    """
    counts = (
        sa.select(sa.func.count())
        .select_from(rows)
        .where(column == word, rows.c.at >= start, rows.c.at < end)
        .scalar_subquery()
        .label(f"part_{number}")
        for number, (start, end) in enumerate(pairwise(edges))
    )
    return tuple(connection.execute(sa.select(*counts)).one())


def _reasons(connection: Connection, since: datetime) -> tuple[Reason, ...]:
    actions = [f"flow.{state}" for state in (FlowState.FAILED, FlowState.INTERRUPTED, FlowState.EXPIRED)]
    ended = (
        sa.select(_audit.c.action, _audit.c.detail["failure"].as_string().label("code"))
        .where(_audit.c.action.in_(actions), _audit.c.at >= since)
        .subquery()
    )
    count = sa.func.count().label("count")
    rows = connection.execute(
        sa.select(ended.c.action, ended.c.code, count)
        .group_by(ended.c.action, ended.c.code)
        .order_by(count.desc(), ended.c.code)
    )
    return tuple(Reason(row.action, row.code or "", row[2]) for row in rows)


def _groups(connection: Connection, now: datetime) -> tuple[Group, ...]:
    stood = sa.select(
        _connections.c.app_key, status_expression(now).label("status"), _connections.c.import_error
    ).subquery()
    rows = connection.execute(
        sa.select(stood, sa.func.count()).group_by(*stood.c).order_by(stood.c.app_key, stood.c.status)
    )
    return tuple(Group(*row) for row in rows)


def _one_in(rows: sa.Table, of: int) -> tuple[int, list[sa.ColumnElement[bool]]]:
    """Return which of so many rows are looked at, about SAMPLE of them: one in how many, and by which condition."""
    every = math.ceil(of / SAMPLE)
    return (every, [rows.c.id * SCATTER % PRIME < PRIME // every]) if every > 1 else (1, [])


def _funnel(connection: Connection, since: datetime) -> Funnel:
    """Follow the links made since then; links to a person's own page, and operators' tests, lead nowhere."""
    made = connection.execute(
        sa.select(sa.func.count()).select_from(_links).where(_links.c.created_at >= since)
    ).scalar_one()
    every, sampled = _one_in(_links, made)
    used = sa.exists().where(_uses.c.link_id == _links.c.id)
    # Who turned back before the provider, or never came back from there, has a flow that merely ended.
    back = sa.exists().where(
        _flows.c.link_id == _links.c.id,
        sa.or_(
            _flows.c.grant_received_at.is_not(None),
            _flows.c.state.in_(
                [FlowState.REDEEMING, FlowState.HELD, FlowState.DONE, FlowState.FAILED, FlowState.INTERRUPTED]
            ),
        ),
    )
    arrived = (
        sa.exists()
        .where(_uses.c.link_id == _links.c.id, _connections.c.id == _uses.c.connection_id)
        .where(_connections.c.imported_at.is_not(None))
    )
    of_people = (_links.c.manage.is_(False), _links.c.trial.is_(False))
    steps = sa.select(
        _links.c.opened_at, _links.c.started_at, sa.case((sa.or_(used, back), 1), else_=0).label("back"),
        sa.case((used, 1), else_=0).label("used"), sa.case((arrived, 1), else_=0).label("arrived"),
    ).where(_links.c.created_at >= since, *of_people, *sampled).subquery()  # fmt: skip
    row = connection.execute(
        sa.select(
            sa.func.count(),
            # A link can be started without its page having been seen.
            sa.func.count(sa.func.coalesce(steps.c.opened_at, steps.c.started_at)),
            sa.func.count(steps.c.started_at),
            *(sa.func.coalesce(sa.func.sum(step), 0) for step in (steps.c.back, steps.c.used, steps.c.arrived)),
        ).select_from(steps)
    ).one()
    return Funnel(row[0], *(int(count) * every for count in row))


def _times(connection: Connection, starts: Sequence[datetime], of: int) -> Times:
    """Look how long imports took, of one connection in so many where there are very many."""
    _, sampled = _one_in(_audit, of)
    later = _audit.alias()
    imported_at = (
        sa.select(sa.func.min(later.c.at))
        .where(later.c.target == _audit.c.target, later.c.at >= _audit.c.at, later.c.action == "connection.imported")
        .correlate(_audit)
        .scalar_subquery()
    )
    rows = connection.execute(
        sa.select(_audit.c.at, sa.type_coerce(imported_at, _audit.c.at.type)).where(
            _audit.c.action == "connection.connected", _audit.c.at >= starts[0], *sampled
        )
    ).all()
    parts: list[list[float]] = [[] for _ in starts]
    part = starts[1] - starts[0]
    for connected_at, arrived_at in rows:
        if arrived_at is not None:
            number = min(int((connected_at - starts[0]) / part), len(starts) - 1)
            parts[number].append((arrived_at - connected_at).total_seconds())
    together = [seconds for each in parts for seconds in each]
    return Times(
        median=tuple(percentile(each, 50) for each in parts),
        slow=tuple(percentile(each, 95) for each in parts),
        median_of_all=percentile(together, 50),
        slow_of_all=percentile(together, 95),
        looked_at=len(together),
        of=of,
    )


def percentile(values: Iterable[float], percent: int) -> float | None:
    """Return the smallest value that so many percent of them do not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] if ordered else None


def total(groups: Iterable[Group], statuses: Iterable[Any]) -> int:
    """Return how many connections have one of these statuses."""
    wanted = set(map(str, statuses))
    return sum(each.count for each in groups if each.status in wanted)
