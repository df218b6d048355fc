"""Bulk runs: what was confirmed is done once each, as if it were done alone, whatever happens meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.app import build_services
from broker.audit import Actor
from broker.bulk import (
    ITEMS_A_TURN,
    BulkRuns,
    BulkRunUnknown,
    NothingSelected,
    RunState,
    RunView,
    Selection,
    SelectionGrew,
    TooManySelected,
)
from broker.connection_search import ConnectionFilters
from broker.db import DatabaseUnavailable
from broker.jobs import Done, Outcome, Retry
from broker.models import BulkAction, BulkItem, BulkRun, ConnectedAccount, ImportState, Job
from broker.services import Services
from broker.status import Status
from tests.house import START, House, open_house

SAM = Actor("operator", "sam@example.com")


@dataclass
class Desk:
    """A house with everything built over it."""

    house: House
    services: Services

    def start(self, action: BulkAction, *refs: str, confirmed: int = 1_000, **filters: Any) -> str:
        selection = Selection(refs) if refs else Selection(filters=ConnectionFilters(**filters))
        return self.services.bulk_runs.start(action, selection, confirmed=confirmed, actor=SAM)

    def turn(self) -> int:
        """Do what a worker does with the runs that are due, once."""
        jobs = self.services.jobs.lease(["bulk"])
        for job in jobs:
            self.services.bulk_runs.run(job)
        return len(jobs)

    def finish(self, ref: str) -> RunView:
        while self.turn():
            continue
        return self.services.bulk_runs.find(ref)

    def numbers(self, ref: str) -> tuple[int, int, int, int]:
        run = self.services.bulk_runs.find(ref)
        return run.done, run.skipped, run.failed, run.waiting


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    with open_house(database_url) as house:
        yield Desk(house, build_services(house.settings, house.database, house.clock))


def audited(house: House, action: str) -> list[str]:
    return [target for _, _, done, target in house.audited() if done == action]


def test_each_is_disconnected_as_if_it_were_alone(desk: Desk) -> None:
    refs = [desk.house.connection(desk.house.end_user(f"u{number}")) for number in range(3)]
    other = desk.house.connection(desk.house.end_user("other"))
    run = desk.finish(desk.start(BulkAction.DISCONNECT, *refs))
    assert (run.done, run.skipped, run.failed, run.waiting, run.state) == (3, 0, 0, 0, RunState.FINISHED)
    assert sorted(audited(desk.house, "connection.disconnected")) == sorted(refs)
    assert ("operator", SAM.name, "connections.bulk", run.ref) in desk.house.audited()
    assert desk.services.connections.find(other).status is Status.UNKNOWN
    for ref in refs:
        ended = desk.services.connections.find(ref)
        assert ended.ending is not None
        assert ended.ending.is_pending


def test_what_cannot_be_done_is_skipped_and_says_why(desk: Desk) -> None:
    person = desk.house.end_user("jo")
    fine = desk.house.connection(person)
    failed = desk.house.connection(person, import_state=ImportState.PARKED, grant_sealed=b"x")
    erased = desk.house.connection(person, import_state=ImportState.PARKED)
    ended = desk.house.connection(person, revoked_at=START)
    run = desk.finish(desk.start(BulkAction.IMPORT, fine, failed, erased, ended))
    assert (run.done, run.skipped, run.failed) == (1, 3, 0)
    assert {(reason.code, reason.count) for reason in run.reasons} == {
        ("nothing_to_do", 1), ("token_erased", 1), ("connection_ended", 1),
    }  # fmt: skip
    assert dict(run.not_done) == {
        fine: "It stands in Sequin as it should.",
        erased: "The token is no longer here.",
        ended: "This account is no longer connected.",
    }
    assert audited(desk.house, "connection.retry") == [failed]


def test_all_that_match_are_those_that_matched_when_it_began(desk: Desk) -> None:
    person = desk.house.end_user("jo")
    pros = [desk.house.connection(person, host_metadata={"plan": "pro"}) for _ in range(ITEMS_A_TURN + 2)]
    desk.house.connection(person)
    ref = desk.start(BulkAction.CHECK, metadata={"plan": "pro"})
    desk.house.connection(person, host_metadata={"plan": "pro"})
    assert desk.turn() == 1
    assert desk.numbers(ref) == (ITEMS_A_TURN, 0, 0, 2)
    run = desk.finish(ref)
    assert (run.done, run.total) == (len(pros), len(pros))
    # What names a person, or may, is not written down.
    assert run.narrowed == {"metadata": "given"}


def test_a_crash_in_the_middle_repeats_and_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [desk.house.connection(desk.house.end_user(f"u{number}")) for number in range(4)]
    ref = desk.start(BulkAction.DISCONNECT, *refs)
    ask, asked = desk.services.disconnections.request_with, []

    def dies(connection: sa.Connection, wanted: str, *, actor: Actor) -> bool | None:
        told = ask(connection, wanted, actor=actor)
        asked.append(wanted)
        if len(asked) == 3:
            # After the change, before its commit.
            raise KeyboardInterrupt
        return told

    with monkeypatch.context() as patch:
        patch.setattr(desk.services.disconnections, "request_with", dies)
        with pytest.raises(KeyboardInterrupt):
            desk.turn()
    assert desk.numbers(ref) == (2, 0, 0, 2)
    assert desk.turn() == 0
    # Its lease runs out.
    desk.house.run(sa.update(Job).where(Job.kind == "bulk").values(due_at=START - timedelta(days=400)))
    assert desk.finish(ref).done == 4
    assert sorted(audited(desk.house, "connection.disconnected")) == sorted(refs)


def test_one_that_fails_in_a_way_nobody_foresaw_holds_up_no_other(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    refs = [desk.house.connection(desk.house.end_user(f"u{number}")) for number in range(3)]
    ask = desk.services.connections.check_with

    def poisoned(connection: sa.Connection, ref: str) -> bool:
        if ref == refs[1]:
            raise ValueError
        return ask(connection, ref)

    monkeypatch.setattr(desk.services.connections, "check_with", poisoned)
    run = desk.finish(desk.start(BulkAction.CHECK, *refs))
    assert (run.done, run.skipped, run.failed, run.state) == (2, 0, 1, RunState.FINISHED)
    assert run.not_done == ((refs[1], "It failed in a way nobody foresaw; the log has the details."),)


def test_a_database_that_is_away_fails_no_connection(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    ref = desk.start(BulkAction.CHECK, desk.house.connection(desk.house.end_user("jo")))
    (job,) = desk.services.jobs.lease(["bulk"])

    def away(_connection: sa.Connection, _ref: str) -> bool:
        raise DatabaseUnavailable

    with monkeypatch.context() as patch:
        patch.setattr(desk.services.connections, "check_with", away)
        assert isinstance(desk.services.bulk_runs.run(job), Retry)
    assert desk.numbers(ref) == (0, 0, 0, 1)


def test_stopping_leaves_the_rest_as_it_is(desk: Desk) -> None:
    refs = [desk.house.connection(desk.house.end_user(f"u{number}")) for number in range(ITEMS_A_TURN + 3)]
    ref = desk.start(BulkAction.DISCONNECT, *refs)
    desk.turn()
    desk.services.bulk_runs.stop(ref, actor=SAM)
    desk.services.bulk_runs.stop(ref, actor=SAM)
    run = desk.finish(ref)
    assert (run.done, run.waiting, run.state, run.stopped_by) == (ITEMS_A_TURN, 3, RunState.STOPPED, SAM.name)
    assert len(audited(desk.house, "connection.disconnected")) == ITEMS_A_TURN
    assert audited(desk.house, "connections.bulk_stopped") == [ref]


def test_a_stop_in_the_middle_of_one_undoes_that_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = desk.house.connection(desk.house.end_user("jo"))
    ref = desk.start(BulkAction.DISCONNECT, wanted)
    ask = desk.services.disconnections.request_with

    def stopped(connection: sa.Connection, ref: str, *, actor: Actor) -> bool | None:
        connection.execute(sa.update(BulkRun).values(ended_at=START, stopped_at=START))
        return ask(connection, ref, actor=actor)

    monkeypatch.setattr(desk.services.disconnections, "request_with", stopped)
    (job,) = desk.services.jobs.lease(["bulk"])
    desk.services.bulk_runs.run(job)
    assert desk.services.connections.find(wanted).disconnected_at is None
    assert desk.services.bulk_runs.find(ref).done == 0


def test_no_more_is_done_than_was_confirmed(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        desk.house.connection(desk.house.end_user(f"u{number}"))
    with pytest.raises(SelectionGrew):
        desk.start(BulkAction.CHECK, confirmed=2, mode="live")
    with pytest.raises(NothingSelected):
        desk.start(BulkAction.CHECK, mode="test")
    with pytest.raises(NothingSelected):
        desk.start(BulkAction.CHECK, "0000-0000-0000", "\x00")
    monkeypatch.setattr("broker.bulk.MOST_AT_ONCE", 2)
    with pytest.raises(TooManySelected):
        desk.start(BulkAction.CHECK, mode="live")
    assert desk.services.bulk_runs.recent() == []
    with pytest.raises(BulkRunUnknown):
        desk.services.bulk_runs.find("\x00")


def test_who_is_erased_meanwhile_is_in_no_run(desk: Desk) -> None:
    kept, gone = (desk.house.connection(desk.house.end_user(name)) for name in ("jo", "sam"))
    ref = desk.start(BulkAction.CHECK, kept, gone)
    desk.finish(ref)
    desk.services.erasures.request("sam", actor=SAM)
    desk.house.run(sa.update(ConnectedAccount).values(revocation="done", removal="done"))
    desk.services.notifications.dispatch()
    for job in desk.services.jobs.lease(["forget"]):
        desk.services.erasures.run(job)
    run = desk.services.bulk_runs.find(ref)
    assert (run.total, run.done, run.forgotten) == (2, 1, 1)


def test_what_is_gone_when_a_run_begins_is_skipped(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = desk.house.connection(desk.house.end_user("jo"))
    found, gone = desk.house.key_of(kept), 1_000_000
    monkeypatch.setattr(BulkRuns, "_keys", lambda *_: [found, gone])
    assert desk.finish(desk.start(BulkAction.CHECK, kept)).total == 1
    monkeypatch.setattr(BulkRuns, "_keys", lambda *_: [gone])
    with pytest.raises(NothingSelected):
        desk.start(BulkAction.CHECK, kept)


def test_who_is_forgotten_while_a_run_begins_is_forgotten_all_the_same(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, gone = (desk.house.connection(desk.house.end_user(name)) for name in ("jo", "sam"))
    desk.services.erasures.request("sam", actor=SAM)
    desk.house.run(sa.update(ConnectedAccount).values(revocation="done", removal="done"))
    desk.services.notifications.dispatch()
    (job,) = desk.services.jobs.lease(["forget"])
    with ThreadPoolExecutor(1) as beside:
        erased: list[Future[Outcome]] = []
        enqueue = desk.services.jobs.enqueue

        def meanwhile(connection: Connection, *asked: Any) -> None:
            """The run is written down, not committed yet, and the erasure comes as far as it can."""
            erased.append(beside.submit(desk.services.erasures.run, job))
            waits = sa.text("SELECT 1 FROM pg_locks WHERE NOT granted")
            if connection.dialect.name == "postgresql":
                while not erased[0].done() and connection.execute(waits).first() is None:
                    continue
            enqueue(connection, *asked)

        monkeypatch.setattr(desk.services.jobs, "enqueue", meanwhile)
        ref = desk.start(BulkAction.CHECK, kept, gone)
        assert isinstance(erased[0].result(), Done)
    monkeypatch.undo()
    run = desk.finish(ref)
    assert (run.total, run.done, run.forgotten) == (2, 1, 1)


def test_old_runs_are_forgotten_with_what_came_of_each(desk: Desk) -> None:
    wanted = desk.house.connection(desk.house.end_user("jo"))
    first = desk.finish(desk.start(BulkAction.CHECK, wanted))
    desk.house.clock.advance(timedelta(days=400).total_seconds())
    last = desk.start(BulkAction.CHECK, wanted)
    desk.services.purge.purge()
    assert [run.ref for run in desk.services.bulk_runs.recent()] == [last]
    assert first.ref != last
    assert desk.house.value(sa.select(sa.func.count()).select_from(BulkItem)) == 1
