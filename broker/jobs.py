"""The job table: work that commits with the data requiring it, leased with a fence, settled once.

Why a table and not a queue beside the database: the job must exist exactly when the change it follows does;
an operator must be able to see and re-arm it; and a person's connection must not depend on another service.

A lease is a row's `fence` going up. An outcome is an UPDATE that names the fence: when it meets no row, somebody
else has the job by now and the outcome must be discarded. I/O happens outside any transaction.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker.clock import Clock
from broker.db import Database, table
from broker.models import Job, JobState

LEASE_SECONDS = 30.0
FIRST_RETRY_SECONDS = 2.0
LONGEST_RETRY_SECONDS = 900.0
LONGEST_RETRY = timedelta(seconds=LONGEST_RETRY_SECONDS)
GIVE_UP_AFTER = timedelta(days=3)
HASTENED_AT_ONCE = 500
FRESH_SECONDS = 60.0
FRESH_SHARE = 4
"""One in so many of a batch goes to what became due within FRESH_SECONDS, however long the line is."""
LINED_UP = "import"
"""The kind that waits by the thousand while Sequin is away: who leases it too takes what is first in the whole line."""
WAITED_FOR = ("finish", "import")
"""The kinds of work that a person may be waiting for: only these overtake."""
JUST_LEASED_SECONDS = 1.0
"""For so long after taking it a lease is not looked at again before the work begins."""
COVERED_SECONDS = 20.0
"""A lease with this much left covers any one call (15 s) and recording how it went."""
NEVER_GIVEN_UP = frozenset(
    {"revoke", "remove", "discard", "verify", "reconcile", "purge", "refresh", "probe", "notify", "approval"}
)
"""Kinds of work that somebody was promised, or that comes round for ever: however long they fail, they go on."""

_jobs = table(Job)

# Built once: these run for every job, and building a statement costs more than running it.
_COLUMNS = ("state", "due_at", "failures", "failing_since", "error", "error_detail")
_MINE = (
    _jobs.c.id == sa.bindparam("job"),
    _jobs.c.fence == sa.bindparam("held_fence"),
    _jobs.c.state == JobState.RUNNING,
)
_SETTLE = (
    sa.update(_jobs)
    .where(*_MINE)
    .values(
        updated_at=sa.bindparam("at"),
        # What comes again later is asked for anew then.
        created_at=sa.func.coalesce(sa.bindparam("next_asked", type_=_jobs.c.created_at.type), _jobs.c.created_at),
        **{
            name: sa.case(
                # Work asked for again meanwhile: this outcome speaks of an older request, so run once more.
                (
                    _jobs.c.generation != sa.bindparam("asked"),
                    sa.bindparam(f"afresh_{name}", type_=_jobs.c[name].type),
                ),
                else_=sa.bindparam(f"then_{name}", type_=_jobs.c[name].type),
            )
            for name in _COLUMNS
        },
    )
    .returning(_jobs.c.id)
)
_RENEW = (
    sa.update(_jobs)
    .where(*_MINE)
    .values(due_at=sa.bindparam("until"), updated_at=sa.bindparam("at"))
    .returning(_jobs.c.id)
)
_HELD_UNTIL = sa.select(_jobs.c.due_at).where(*_MINE)
_CANCEL = (
    sa.update(_jobs)
    .where(
        _jobs.c.kind == sa.bindparam("of_kind"),
        _jobs.c.subject_id == sa.bindparam("subject"),
        _jobs.c.state != JobState.DONE,
    )
    .values(
        state=JobState.DONE, due_at=sa.null(), fence=_jobs.c.fence + 1, updated_at=sa.bindparam("at")
    )
)  # fmt: skip
_LEASED = (
    _jobs.c.id, _jobs.c.kind, _jobs.c.subject_id, _jobs.c.fence, _jobs.c.generation, _jobs.c.failures,
    _jobs.c.failing_since,
)  # fmt: skip
_TAKE = (
    sa.update(_jobs)
    .where(_jobs.c.id.in_(sa.bindparam("chosen", expanding=True)))
    .values(
        state=JobState.RUNNING, fence=_jobs.c.fence + 1, due_at=sa.bindparam("until"), updated_at=sa.bindparam("at")
    )
    .returning(*_LEASED)
)
_INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def _enqueue(insert: Any) -> Any:
    """Return the upsert that asks for work; `insert` is the dialect's own."""
    running = _jobs.c.state == JobState.RUNNING
    fresh = insert(_jobs).values(
        kind=sa.bindparam("kind"), subject_id=sa.bindparam("subject"), state=JobState.WAITING,
        due_at=sa.bindparam("due"), fence=0, generation=0, failures=0, created_at=sa.bindparam("due"),
        updated_at=sa.bindparam("at"),
    )  # fmt: skip
    return fresh.on_conflict_do_update(
        index_elements=["kind", "subject_id"],
        set_={
            "state": sa.case((running, _jobs.c.state), else_=JobState.WAITING.value),
            "due_at": sa.case((running, _jobs.c.due_at), else_=fresh.excluded.due_at),
            "generation": _jobs.c.generation + 1,
            "failures": 0,
            "failing_since": None,
            "error": None,
            "error_detail": None,
            "created_at": fresh.excluded.created_at,
            "updated_at": fresh.excluded.updated_at,
        },
    )


_ENQUEUE = {name: _enqueue(insert) for name, insert in _INSERTS.items()}


_OF_THESE = _jobs.c.kind.in_(sa.bindparam("kinds", expanding=True))
# Work of every kind is taken from the front of the one line, through the index on `due_at`: a planner that may look for
# the kinds finds all jobs of these kinds there ever were, and sorts them, each time. Wrapped, they are only compared.
# Of some kinds, however many others wait in front of them, it is found through the index on (kind, due_at).
_LOOKED_AT = sa.func.coalesce(_OF_THESE, sa.false())


def _due(of_these: sa.ColumnElement[bool], *, early: bool = False) -> tuple[sa.ColumnElement[bool], ...]:
    """Return what makes a job of these `kinds` due by `now`; `early`, if it waits after a failure, at any time."""
    is_due = _jobs.c.due_at <= sa.bindparam("now")
    if not early:
        return (is_due, of_these)
    # No failure waits longer than this, so that the index bounds the search.
    soon = _jobs.c.due_at <= sa.bindparam("soon")
    failed = sa.and_(_jobs.c.state == JobState.WAITING, _jobs.c.failures > 0)
    return (soon, sa.or_(is_due, failed), of_these)


def _first(*which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Lock and return the longest due of the jobs that nobody else is at."""
    return (
        sa.select(_jobs.c.id, _jobs.c.due_at)
        .where(*which)
        .order_by(_jobs.c.due_at, _jobs.c.id)
        .limit(sa.bindparam("most", type_=sa.Integer))
        .with_for_update(skip_locked=True)
    )


def _any(*which: sa.ColumnElement[bool]) -> sa.Select[Any]:
    return sa.select(_jobs.c.id).where(*which).limit(sa.bindparam("most", type_=sa.Integer))


_FIRST, _FIRST_EARLY = _first(*_due(_LOOKED_AT)), _first(*_due(_LOOKED_AT, early=True))
_FIRST_OF_SOME = _first(*_due(_OF_THESE))
_FIRST_FRESH = _first(*_due(_OF_THESE), _jobs.c.due_at > sa.bindparam("since"))
_ANY, _ANY_OF_SOME = _any(*_due(_LOOKED_AT)), _any(*_due(_OF_THESE))
_ANY_EARLY = _any(*_due(_LOOKED_AT, early=True))


@dataclass(frozen=True)
class LeasedJob:
    """A job this worker may work on until its lease ends."""

    id: int
    kind: str
    subject_id: int
    fence: int
    generation: int
    failures: int
    failing_since: datetime | None
    # Since when it was due, so that a job handed back keeps its place; None where that does not matter.
    due_at: datetime | None = None
    # When a worker leased it, by the monotonic clock of this process.
    leased_at: float = 0.0


@dataclass(frozen=True)
class JobView:
    """A job as operators see it."""

    id: int
    kind: str
    state: str
    due_at: datetime | None
    failures: int
    failing_since: datetime | None
    error: str | None
    error_detail: str | None


@dataclass(frozen=True)
class Done:
    """The work is finished."""


@dataclass(frozen=True)
class Later:
    """The work is finished for now and due again in so many `seconds`."""

    seconds: float


@dataclass(frozen=True)
class Retry:
    """It may pass by itself. `not_before` is in seconds when the other side said so."""

    error: str
    detail: str = ""
    not_before: float | None = None


@dataclass(frozen=True)
class Hold:
    """Somebody must mend a setting; looked at again every `seconds`, without end."""

    error: str
    detail: str = ""
    seconds: float = 60.0


@dataclass(frozen=True)
class Park:
    """Trying again would fail the same way; waits for a person."""

    error: str
    detail: str = ""


Outcome = Done | Later | Retry | Hold | Park


class Jobs:
    """Enqueue, lease, settle."""

    def __init__(self, database: Database, clock: Clock, *, jitter: Callable[[], float] = random.random) -> None:
        self._database = database
        self._clock = clock
        self._jitter = jitter
        self.wakeup = threading.Event()
        """Set when this process has committed new work, so that its own workers need not wait for their next look."""

    def enqueue(
        self,
        connection: Connection,
        kind: str,
        subject_id: int,
        *,
        after: timedelta = timedelta(0),
        now: datetime | None = None,
    ) -> None:
        """Ask for work in the caller's transaction, now or not before `after` has passed.

        A job that is running keeps its lease and runs once more afterwards; any other is armed afresh. `now` is for
        callers that have asked the database already.
        """
        # By the clock that judges what is due: another machine's worker must not wait for this one's to be right.
        now = now or self._database.now(connection)
        connection.execute(
            _ENQUEUE[connection.dialect.name], {"kind": kind, "subject": subject_id, "due": now + after, "at": now}
        )

    def enqueue_all(self, connection: Connection, kind: str, waits: Mapping[int, timedelta]) -> None:
        """Ask in the caller's transaction for the same work on many subjects, each not before its wait has passed."""
        if not waits:
            return
        now = self._database.now(connection)
        asked = [{"kind": kind, "subject": subject, "due": now + wait, "at": now} for subject, wait in waits.items()]
        connection.execute(_ENQUEUE[connection.dialect.name], asked)

    def ensure(self, connection: Connection, kind: str, subject_id: int) -> None:
        """See to it, in the caller's transaction, that a job that takes up all there is to do runs now or later.

        Unlike `enqueue` it leaves a waiting or running one as it is: one that waits after a failure goes on waiting.
        Who runs such a job must look for more to do after settling it, in the same transaction.
        """
        now = self._database.now(connection)
        insert = _INSERTS[connection.dialect.name]
        armed = _jobs.c.state.in_([JobState.WAITING, JobState.RUNNING])
        fresh = insert(_jobs).values(
            kind=kind, subject_id=subject_id, state=JobState.WAITING, due_at=now, fence=0, generation=0,
            failures=0, created_at=now, updated_at=now,
        )  # fmt: skip
        afresh = {"state": JobState.WAITING.value, "due_at": now, "failures": 0, "failing_since": None}
        afresh |= {"error": None, "error_detail": None, "updated_at": now}
        # An update that changes nothing still waits for the row: a job being settled elsewhere is seen as it ends.
        kept = {
            name: sa.case((armed, column), else_=sa.literal(value, column.type))
            for name, value in afresh.items()
            for column in [_jobs.c[name]]
        }
        connection.execute(fresh.on_conflict_do_update(index_elements=["kind", "subject_id"], set_=kept))

    def cancel(self, connection: Connection, kind: str, subject_id: int) -> None:
        """Take back work that is no longer needed, in the caller's transaction."""
        connection.execute(_CANCEL, {"of_kind": kind, "subject": subject_id, "at": self._clock.now()})

    def take_back(self, connection: Connection, kind: str, subject_id: int) -> timedelta | None:
        """Cancel, in the caller's transaction, and tell whether somebody was at it.

        Returns for how long they may still be acting, since what they have sent cannot be recalled; None when
        nobody was at it.
        """
        which = sa.and_(_jobs.c.kind == kind, _jobs.c.subject_id == subject_id)
        job = connection.execute(sa.select(_jobs.c.state, _jobs.c.due_at).where(which).with_for_update()).one_or_none()
        self.cancel(connection, kind, subject_id)
        if job is None or job.state != JobState.RUNNING:
            return None
        left: timedelta = job.due_at - self._database.now(connection)
        return max(timedelta(0), left)

    def lease(self, kinds: Sequence[str], *, most: int = 1, early: bool = False) -> list[LeasedJob]:
        """Lease up to `most` due jobs, the longest due first; a job whose lease ran out is due again.

        Where the line is long, a share of each batch goes to what has just been asked for.

        With `early`, jobs that wait after a failure count as due: one of them shows whether the failure has passed.
        """
        if self._database.is_sqlite and not self._any_due(kinds, early=early):
            # Looking first keeps idle workers from taking the embedded database's write lock.
            return []
        began = self._clock.monotonic()
        with self._database.write() as connection:
            now = self._database.now(connection)
            # Chosen first: as a subquery the planner may run it again for each row, and RETURNING keeps no order.
            which = {"kinds": list(kinds), "now": now, "soon": now + LONGEST_RETRY, "most": most}
            first = _FIRST_EARLY if early else _FIRST if LINED_UP in kinds else _FIRST_OF_SOME
            found = connection.execute(first, which).all()
            if not found:
                return []
            since = now - timedelta(seconds=FRESH_SECONDS)
            if len(found) == most > 1 and found[-1].due_at < since:
                # A long line: whoever has just connected must not wait for all of it.
                waited_for = [kind for kind in kinds if kind in WAITED_FOR]
                share = which | {"kinds": waited_for, "since": since, "most": max(1, most // FRESH_SHARE)}
                fresh = connection.execute(_FIRST_FRESH, share).all()
                found = [*found[: most - len(fresh)], *fresh]
            chosen = {job.id: job.due_at for job in found}
            until = now + timedelta(seconds=LEASE_SECONDS)
            rows = connection.execute(_TAKE, {"chosen": list(chosen), "until": until, "at": now}).all()
        leased = {row.id: replace(LeasedJob(*row), due_at=chosen[row.id], leased_at=began) for row in rows}
        return [leased[key] for key in chosen if key in leased]

    def _any_due(self, kinds: Sequence[str], *, early: bool) -> bool:
        with self._database.read() as connection:
            now = self._database.now(connection)
            which = {"kinds": list(kinds), "now": now, "soon": now + LONGEST_RETRY, "most": 1}
            first = _ANY_EARLY if early else _ANY if LINED_UP in kinds else _ANY_OF_SOME
            return connection.execute(first, which).first() is not None

    def covers(self, connection: Connection, job: LeasedJob) -> bool:
        """Tell whether the lease is still held, and for long enough to act and to record the outcome."""
        until = connection.execute(_HELD_UNTIL, {"job": job.id, "held_fence": job.fence}).scalar_one_or_none()
        return until is not None and until - self._database.now(connection) >= timedelta(seconds=COVERED_SECONDS)

    def alone(self, kind: str) -> LeasedJob | None:
        """Lease work that no worker does but whoever asks for it, now; None while somebody else is at it."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            insert = _INSERTS[connection.dialect.name]
            idle = insert(_jobs).values(
                kind=kind, subject_id=0, state=JobState.DONE, fence=0, generation=0, failures=0, created_at=now,
                updated_at=now,
            )  # fmt: skip
            connection.execute(idle.on_conflict_do_nothing(index_elements=["kind", "subject_id"]))
            row = connection.execute(
                sa.update(_jobs)
                .where(
                    _jobs.c.kind == kind,
                    _jobs.c.subject_id == 0,
                    sa.or_(_jobs.c.state != JobState.RUNNING, _jobs.c.due_at <= now),
                )
                .values(
                    state=JobState.RUNNING,
                    fence=_jobs.c.fence + 1,
                    due_at=now + timedelta(seconds=LEASE_SECONDS),
                    updated_at=now,
                )
                .returning(*_LEASED)
            ).one_or_none()
        return LeasedJob(*row) if row is not None else None

    def holds(self, job: LeasedJob) -> bool:
        """Make sure of the lease before the work begins. False means that somebody else has the job: do nothing.

        One that was taken a moment ago is not looked at: whoever must be sure looks right before acting, and no
        outcome counts without the lease.
        """
        return self._clock.monotonic() - job.leased_at < JUST_LEASED_SECONDS or self.renew(job)

    def renew(self, job: LeasedJob) -> bool:
        """Make sure of the lease right before acting. False means that somebody else has the job: do nothing."""
        with self._database.look() as connection:
            # Looking first: most leases have been taken a moment ago, and a write costs many times as much.
            if self.covers(connection, job):
                return True
        with self._database.write() as connection:
            return self.renew_with(connection, job)

    def renew_with(self, connection: Connection, job: LeasedJob) -> bool:
        """Extend the lease in the caller's transaction. False means that somebody else has the job."""
        until = self._database.now(connection) + timedelta(seconds=LEASE_SECONDS)
        held = {"job": job.id, "held_fence": job.fence, "until": until, "at": self._clock.now()}
        return connection.execute(_RENEW, held).scalar_one_or_none() is not None

    def release(self, job: LeasedJob) -> None:
        """Hand an untouched job back at once, in its old place; for a worker that stops or had better wait."""
        with self._database.write() as connection:
            connection.execute(
                sa.update(_jobs)
                .where(*_MINE)
                .values(
                    state=JobState.WAITING,
                    due_at=job.due_at or self._database.now(connection),
                    updated_at=self._clock.now(),
                ),
                {"job": job.id, "held_fence": job.fence},
            )

    def hasten(
        self,
        connection: Connection,
        kinds: Sequence[str],
        *,
        after: timedelta = timedelta(0),
        subjects: sa.Select[tuple[int]] | None = None,
        failed: bool = False,
    ) -> int:
        """Make jobs due that wait because of something that has passed, in the caller's transaction.

        Without `after` each goes back to its place in the line: when it was asked for, not when it last failed.
        Without `subjects` those with an error; with them every waiting job about one of these, or only those with
        an error for `failed`. Returns how many.
        """
        now = self._database.now(connection)
        waiting = (
            _jobs.c.kind.in_(kinds),
            _jobs.c.state == JobState.WAITING,
            _jobs.c.due_at > now + after,
            # Of each job one, and not all there are.
            sa.true()
            if subjects is None
            else subjects.where(subjects.selected_columns[0] == _jobs.c.subject_id).exists(),
            _jobs.c.error.is_not(None) if failed or subjects is None else sa.true(),
        )
        # Whoever holds one of them now decides about it; waiting for them in another order could deadlock.
        query = sa.select(_jobs.c.id).where(*waiting).with_for_update(skip_locked=True)
        chosen = connection.execute(query).scalars().all()
        place = sa.case((_jobs.c.created_at < now, _jobs.c.created_at), else_=sa.literal(now, _jobs.c.due_at.type))
        due = now + after if after else place
        for start in range(0, len(chosen), HASTENED_AT_ONCE):
            batch = chosen[start : start + HASTENED_AT_ONCE]
            connection.execute(sa.update(_jobs).where(_jobs.c.id.in_(batch)).values(due_at=due, updated_at=now))
        return len(chosen)

    def settle(self, connection: Connection, job: LeasedJob, outcome: Outcome, *, now: datetime | None = None) -> bool:
        """Record the outcome in the caller's transaction.

        Returns False when the lease was lost: the caller must then roll back whatever depends on this outcome. `now` is
        for callers that have asked the database already.
        """
        now = now or self._database.now(connection)
        afresh = self._after(job, Done(), now) | {"state": JobState.WAITING.value, "due_at": now}
        values: dict[str, object] = {f"afresh_{name}": value for name, value in afresh.items()}
        values |= {f"then_{name}": value for name, value in self._after(job, outcome, now).items()}
        values |= {"job": job.id, "held_fence": job.fence, "asked": job.generation, "at": self._clock.now()}
        values["next_asked"] = values["then_due_at"] if isinstance(outcome, Later) else None
        return connection.execute(_SETTLE, values).scalar_one_or_none() is not None

    def unfinished(self, *, most: int = 1000) -> list[JobView]:
        """Return jobs that are not done: parked ones first, then by when they are due."""
        columns = [_jobs.c[name] for name in JobView.__dataclass_fields__]
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(*columns)
                .where(_jobs.c.state != JobState.DONE)
                .order_by(_jobs.c.due_at.is_not(None), _jobs.c.due_at)
                .limit(most)
            ).all()
        return [JobView(*row) for row in rows]

    def rearm(self, job_id: int | None = None) -> int:
        """Let one parked job run again, or every one for None. Returns how many."""
        with self._database.write() as connection:
            count = self.rearm_with(connection, job_id)
        self.wakeup.set()
        return count

    def rearm_with(self, connection: Connection, job_id: int | None = None) -> int:
        """Do the same in the caller's transaction; whoever calls sets `wakeup` after it."""
        parked = _jobs.c.state == JobState.PARKED
        now = self._database.now(connection)
        return connection.execute(
            sa.update(_jobs)
            .where(parked if job_id is None else sa.and_(parked, _jobs.c.id == job_id))
            .values(state=JobState.WAITING, due_at=now, failures=0, failing_since=None, updated_at=now)
        ).rowcount

    def oldest_due(self, kinds_left_out: Sequence[str] = ()) -> tuple[int, timedelta]:
        """Return how many jobs are due, and for how long the first of them has been."""
        with self._database.read() as connection:
            now = self._database.now(connection)
            count, oldest = connection.execute(
                sa.select(sa.func.count(), sa.func.min(_jobs.c.due_at)).where(
                    _jobs.c.due_at <= now, _jobs.c.state == JobState.WAITING, _jobs.c.kind.not_in(kinds_left_out)
                )
            ).one()
        return count, timedelta(0) if oldest is None else now - oldest

    def parked(self) -> int:
        """Return how many jobs wait for a person."""
        with self._database.read() as connection:
            query = sa.select(sa.func.count()).select_from(_jobs).where(_jobs.c.state == JobState.PARKED)
            return connection.execute(query).scalar_one()

    def _after(self, job: LeasedJob, outcome: Outcome, now: datetime) -> dict[str, object]:
        if isinstance(outcome, Done | Later):
            forgiven: dict[str, object] = {"failures": 0, "failing_since": None, "error": None, "error_detail": None}
            if isinstance(outcome, Done):
                return forgiven | {"state": JobState.DONE.value, "due_at": None}
            return forgiven | {"state": JobState.WAITING.value, "due_at": now + timedelta(seconds=outcome.seconds)}
        told: dict[str, object] = {"error": outcome.error, "error_detail": outcome.detail[:500]}
        if isinstance(outcome, Hold):
            # Not a failure of this job: however long it waits, the tries it has afterwards are all there.
            again = now + timedelta(seconds=outcome.seconds)
            return told | {"state": JobState.WAITING.value, "due_at": again, "failures": 0, "failing_since": None}
        since = job.failing_since or now
        told["failing_since"] = since
        if isinstance(outcome, Park) or self.gives_up(job, now):
            return told | {"state": JobState.PARKED.value, "due_at": None, "failures": job.failures + 1}
        wait = timedelta(seconds=self._wait(job.failures, outcome.not_before))
        return told | {"state": JobState.WAITING.value, "due_at": now + wait, "failures": job.failures + 1}

    def _wait(self, failures: int, not_before: float | None) -> float:
        """Return seconds until the next try: exponential with full jitter, never before the other side asked."""
        ceiling = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(failures, 20))
        return max(0.1, self._jitter() * ceiling, min(not_before or 0.0, LONGEST_RETRY_SECONDS))

    def gives_up(self, job: LeasedJob, now: datetime) -> bool:
        """Tell whether a further failure of this job is the last one."""
        is_endless = job.kind in NEVER_GIVEN_UP
        return not is_endless and job.failing_since is not None and now - job.failing_since >= GIVE_UP_AFTER
