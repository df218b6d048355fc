"""Bulk runs: one thing done to many connections, by the worker, each by the same use case as one by one.

What a run is about is written down when it begins, so that an operator gets what they confirmed and nothing that came
later. Each connection is one transaction: what is asked for, its audit record and the mark on the run commit together,
so that a crash neither repeats nor loses one, and the counts are what happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.connection_search import ConnectionFilters, Order, Search, told_of
from broker.connections import ConnectionEnded, Connections, ConnectionUnknown, ConnectionView, TokenErased
from broker.db import Database, DatabaseUnavailable, table
from broker.disconnection import Disconnections
from broker.errors import Refused, by_code
from broker.jobs import Done, Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import BulkAction, BulkItem, BulkOutcome, BulkRun, ConnectedAccount
from broker.references import new_ref
from broker.secret import digest
from broker.text import storable

KIND = "bulk"
MOST_AT_ONCE = 10_000
"""More than this is not done in one go: nobody has looked at so many."""
MOST_PICKED = 100
SHOWN_BEFORE = 20
SHOWN_AFTER = 100
ITEMS_A_TURN = 25
"""So many are done before other work gets its turn."""
RUNS_LISTED = 50
NOTHING_TO_DO = "nothing_to_do"
INTERNAL = "internal_error"

log = structlog.get_logger(__name__)

_runs = table(BulkRun)
_items = table(BulkItem)
_connections = table(ConnectedAccount)


class BulkRunUnknown(Refused):
    """No bulk run has this reference, or it was forgotten since."""

    code = "bulk_run_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or look for it in the list of bulk actions."


class NothingSelected(Refused):
    """No connection was picked, or none matches any more."""

    code = "nothing_selected"
    status = 409
    heading = "No connection is selected"
    advice = "Go back to the list and tick some, or choose all that match."


class TooManySelected(Refused):
    """More connections match than are done in one go."""

    code = "too_many_selected"
    status = 409
    heading = f"More than {MOST_AT_ONCE:,} connections match"
    advice = "Narrow the list further: so many are not done in one go."


class SelectionGrew(Refused):
    """More connections match by now than were confirmed."""

    code = "selection_grew"
    status = 409
    heading = "The list has changed"
    advice = "More connections match by now: look at the number again."


class SelectionChanged(Refused):
    """Other connections match by now than those that were looked at, and what is done to them cannot be taken back."""

    code = "selection_changed"
    status = 409
    heading = "The list has changed"
    advice = "Other connections match by now than when you looked: look at them again."


@dataclass(frozen=True)
class Selection:
    """The connections meant: those picked by reference, or all that match the filters."""

    refs: tuple[str, ...] = ()
    filters: ConnectionFilters | None = None


@dataclass(frozen=True)
class Preview:
    """What a selection comes to before anything is done."""

    count: int
    first: tuple[ConnectionView, ...]
    # Stands for exactly these connections.
    seen: str


class RunState(StrEnum):
    """How a bulk run stands."""

    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"


@dataclass(frozen=True)
class Reason:
    """Why connections were skipped or failed, and how many."""

    outcome: BulkOutcome
    code: str
    # What happened, in words; the code where nobody knows any.
    words: str
    count: int


@dataclass(frozen=True)
class RunView:
    """A bulk run as operators see it. The numbers are counted, not kept: they say what has happened."""

    ref: str
    action: BulkAction
    actor: str
    # What the list was narrowed to, without what names a person; empty where connections were picked.
    narrowed: Mapping[str, str]
    total: int
    done: int
    skipped: int
    failed: int
    waiting: int
    created_at: datetime
    stopped_at: datetime | None
    stopped_by: str | None
    ended_at: datetime | None
    reasons: tuple[Reason, ...] = ()
    # The first of those that were not done, each with why.
    not_done: tuple[tuple[str, str], ...] = field(default=())

    @property
    def state(self) -> RunState:
        """Where it stands."""
        if self.ended_at is None:
            return RunState.RUNNING
        return RunState.STOPPED if self.stopped_at is not None else RunState.FINISHED

    @property
    def forgotten(self) -> int:
        """How many of them were erased since, at somebody’s request."""
        return self.total - self.done - self.skipped - self.failed - self.waiting


_WORDS: Mapping[tuple[BulkAction, str], str] = MappingProxyType(
    {
        (BulkAction.CHECK, NOTHING_TO_DO): "There is nothing to check before its first import.",
        (BulkAction.IMPORT, NOTHING_TO_DO): "It stands in Sequin as it should.",
        (BulkAction.DISCONNECT, NOTHING_TO_DO): "It was disconnected already.",
    }
)


class BulkRuns:
    """Preview, start, show, stop and run them."""

    def __init__(
        self, *, database: Database, clock: Clock, jobs: Jobs, connections: Connections, disconnections: Disconnections
    ) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._connections = connections
        self._disconnections = disconnections

    def preview(self, selection: Selection) -> Preview:
        """Return how many connections are meant, and the first of them. Raises NothingSelected or TooManySelected."""
        with self._database.read() as connection:
            keys = self._keys(connection, selection)
        first = tuple(self._connections.by_id(key) for key in keys[-SHOWN_BEFORE:][::-1])
        return Preview(len(keys), first, _sign_of(keys))

    def start(
        self, action: BulkAction, selection: Selection, *, confirmed: int, actor: Actor, seen: str | None = None
    ) -> str:
        """Begin a run over at most `confirmed` connections and return its reference.

        Where all that match are disconnected, these have to be the very ones of the preview called `seen`: as many
        others are not what was confirmed. Raises NothingSelected, TooManySelected, SelectionGrew or SelectionChanged.
        """
        now = self._clock.now()
        ref = new_ref()
        narrowed = told_of(selection.filters) if selection.filters is not None else {}
        with self._database.write() as connection:
            keys = self._keys(connection, selection)
            if len(keys) > confirmed:
                raise SelectionGrew
            is_final = action is BulkAction.DISCONNECT and selection.filters is not None
            if is_final and seen != _sign_of(keys):
                raise SelectionChanged
            keys = _held(connection, keys)
            run_id = connection.execute(
                sa.insert(_runs)
                .values(
                    ref=ref, action=action, actor=actor.name, narrowed=narrowed, total=len(keys), created_at=now
                )
                .returning(_runs.c.id)
            ).scalar_one()  # fmt: skip
            connection.execute(sa.insert(_items), [{"run_id": run_id, "connection_id": key} for key in keys])
            self._jobs.enqueue(connection, KIND, run_id)
            audit.record(
                connection, at=now, actor_kind=actor.kind, actor=actor.name, action="connections.bulk", target=ref,
                detail={"action": action.value, "count": len(keys), "narrowed": dict(narrowed)},
            )  # fmt: skip
        self._jobs.wakeup.set()
        return ref

    def stop(self, ref: str, *, actor: Actor) -> None:
        """End a run where it stands; repeating it changes nothing. Raises BulkRunUnknown."""
        now = self._clock.now()
        with self._database.write() as connection:
            run = self._row(connection, ref)
            if run.ended_at is not None:
                return
            self._jobs.cancel(connection, KIND, run.id)
            connection.execute(
                sa.update(_runs)
                .where(_runs.c.id == run.id, _runs.c.ended_at.is_(None))
                .values(stopped_at=now, stopped_by=actor.name, ended_at=now)
            )
            audit.record(
                connection, at=now, actor_kind=actor.kind, actor=actor.name, action="connections.bulk_stopped",
                target=ref,
            )  # fmt: skip

    def find(self, ref: str) -> RunView:
        """Return a run with what came of it so far. Raises BulkRunUnknown."""
        with self._database.read() as connection:
            run = self._row(connection, ref)
            left_out = connection.execute(
                sa.select(_connections.c.ref, _items.c.reason)
                .join(_connections, _connections.c.id == _items.c.connection_id)
                .where(_items.c.run_id == run.id, _items.c.reason.is_not(None))
                .order_by(_items.c.connection_id)
                .limit(SHOWN_AFTER)
            ).all()
            not_done = tuple((item.ref, _words(BulkAction(run.action), item.reason)) for item in left_out)
            return _view(connection, run, not_done)

    def recent(self) -> list[RunView]:
        """Return the last RUNS_LISTED runs, newest first."""
        with self._database.read() as connection:
            runs = connection.execute(sa.select(_runs).order_by(_runs.c.id.desc()).limit(RUNS_LISTED)).all()
            return [_view(connection, run) for run in runs]

    def _keys(self, connection: Connection, selection: Selection) -> list[int]:
        if selection.filters is not None:
            search = Search(connection, selection.filters, self._clock.now(), Order.OLDEST)
            keys = sorted(place.id for place in search.places(MOST_AT_ONCE + 1))
        else:
            refs = [ref for ref in selection.refs if storable(ref)][:MOST_PICKED]
            query = sa.select(_connections.c.id).where(_connections.c.ref.in_(refs)).order_by(_connections.c.id)
            keys = list(connection.execute(query).scalars())
        if not keys:
            raise NothingSelected
        if len(keys) > MOST_AT_ONCE:
            raise TooManySelected
        return keys

    def _row(self, connection: Connection, ref: str) -> Row[Any]:
        row = None
        if storable(ref):
            row = connection.execute(sa.select(_runs).where(_runs.c.ref == ref)).one_or_none()
        if row is None:
            raise BulkRunUnknown
        return row

    # --- the job ---------------------------------------------------------------------------------------

    def run(self, job: LeasedJob) -> Outcome:
        """Do some of a run's connections, settle the job, and return the outcome."""
        outcome: Outcome = Done()
        try:
            with self._database.read() as connection:
                run = connection.execute(sa.select(_runs).where(_runs.c.id == job.subject_id)).one_or_none()
            if run is not None and run.ended_at is None:
                items = self._waiting(run.id)
                for item in items:
                    self._do(run, item.connection_id, item.ref)
                if len(items) == ITEMS_A_TURN:
                    # To the end of the line: other work comes in between.
                    outcome = Later(0)
        except DatabaseUnavailable as failure:
            outcome = Retry(failure.code, failure.detail)
        with self._database.write() as connection:
            if self._jobs.settle(connection, job, outcome) and isinstance(outcome, Done):
                over = sa.update(_runs).where(_runs.c.id == job.subject_id, _runs.c.ended_at.is_(None))
                connection.execute(over.values(ended_at=self._clock.now()))
        return outcome

    def _waiting(self, run_id: int) -> Sequence[Any]:
        query = (
            sa.select(_items.c.connection_id, _connections.c.ref)
            .join(_connections, _connections.c.id == _items.c.connection_id)
            .where(_items.c.run_id == run_id, _items.c.outcome.is_(None))
            .order_by(_items.c.connection_id)
            .limit(ITEMS_A_TURN)
        )
        with self._database.read() as connection:
            return connection.execute(query).all()

    def _do(self, run: Row[Any], connection_id: int, ref: str) -> None:
        """Do one connection and note what came of it; nothing where somebody else has, or the run was stopped."""
        try:
            while not self._try(run, connection_id, ref):
                continue
        except DatabaseUnavailable:
            raise
        except Exception:
            # One poisoned connection never blocks the others.
            log.exception("bulk.item_failed", run=run.ref, connection=ref)
            with self._database.write() as connection:
                _note(connection, run.id, connection_id, BulkOutcome.FAILED, INTERNAL)

    def _try(self, run: Row[Any], connection_id: int, ref: str) -> bool:
        """Return False when the connection has changed underneath, so that it has to be looked at again."""
        with self._database.write() as connection:
            try:
                asked = self._ask(connection, BulkAction(run.action), ref, Actor("operator", run.actor))
            except (ConnectionEnded, ConnectionUnknown, TokenErased) as refused:
                _note(connection, run.id, connection_id, BulkOutcome.SKIPPED, refused.code)
                return True
            if asked is None:
                connection.rollback()
                return False
            came_to = (BulkOutcome.DONE, None) if asked else (BulkOutcome.SKIPPED, NOTHING_TO_DO)
            if not _note(connection, run.id, connection_id, *came_to):
                # Done by somebody else, or stopped: then this must not have happened.
                connection.rollback()
        return True

    def _ask(self, connection: Connection, action: BulkAction, ref: str, actor: Actor) -> bool | None:
        if action is BulkAction.CHECK:
            return self._connections.check_with(connection, ref)
        if action is BulkAction.IMPORT:
            return self._connections.retry_with(connection, ref, actor=actor)
        return self._disconnections.request_with(connection, ref, actor=actor)


def _held(connection: Connection, keys: Sequence[int]) -> list[int]:
    """Return those that are still there, and keep them there until this is committed. Raises NothingSelected."""
    still = sa.select(_connections.c.id).where(_connections.c.id.in_(keys)).order_by(_connections.c.id)
    held = list(connection.execute(still.with_for_update(read=True, key_share=True)).scalars())
    if not held:
        raise NothingSelected
    return held


def _sign_of(keys: Sequence[int]) -> str:
    return digest(",".join(map(str, keys)))


def _note(
    connection: Connection, run_id: int, connection_id: int, outcome: BulkOutcome, reason: str | None
) -> bool:  # fmt: skip
    goes_on = sa.exists().where(_runs.c.id == run_id, _runs.c.ended_at.is_(None))
    mine = (_items.c.run_id == run_id, _items.c.connection_id == connection_id, _items.c.outcome.is_(None))
    noted = sa.update(_items).where(*mine, goes_on).values(outcome=outcome, reason=reason)
    return connection.execute(noted.returning(_items.c.connection_id)).scalar_one_or_none() is not None


def _view(connection: Connection, run: Row[Any], not_done: tuple[tuple[str, str], ...] = ()) -> RunView:
    action = BulkAction(run.action)
    counted = connection.execute(
        sa.select(_items.c.outcome, _items.c.reason, sa.func.count())
        .where(_items.c.run_id == run.id)
        .group_by(_items.c.outcome, _items.c.reason)
    ).all()
    totals = dict.fromkeys([None, *BulkOutcome], 0)
    for outcome, _, count in counted:
        totals[outcome] += count
    reasons = sorted(
        (
            Reason(BulkOutcome(outcome), reason, _words(action, reason), count)
            for outcome, reason, count in counted
            if reason is not None
        ),
        key=lambda one: -one.count,
    )
    return RunView(
        ref=run.ref, action=action, actor=run.actor, narrowed=MappingProxyType(dict(run.narrowed)), total=run.total,
        done=totals[BulkOutcome.DONE], skipped=totals[BulkOutcome.SKIPPED], failed=totals[BulkOutcome.FAILED],
        waiting=totals[None], created_at=run.created_at, stopped_at=run.stopped_at, stopped_by=run.stopped_by,
        ended_at=run.ended_at, reasons=tuple(reasons), not_done=not_done,
    )  # fmt: skip


def _words(action: BulkAction, code: str) -> str:
    known = _WORDS.get((action, code))
    if known is not None:
        return known
    if code == INTERNAL:
        return "It failed in a way nobody foresaw; the log has the details."
    failure = by_code(code)
    return f"{failure.heading}." if failure is not None else code
