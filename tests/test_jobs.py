"""The job table: leases with a fence, outcomes that count once, retries that end."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Row

from broker.clock import ManualClock
from broker.db import Database
from broker.jobs import (
    COVERED_SECONDS,
    FIRST_RETRY_SECONDS,
    GIVE_UP_AFTER,
    JUST_LEASED_SECONDS,
    LEASE_SECONDS,
    LONGEST_RETRY_SECONDS,
    Done,
    Hold,
    Jobs,
    Later,
    LeasedJob,
    Outcome,
    Park,
    Retry,
)
from broker.models import Job, JobState
from tests.connecting import Dice, ManualDatabase
from tests.house import House, open_house

KINDS = ("import", "finish")


class Bench:
    """A job table, its clock, and dice."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.clock: ManualClock = house.clock
        self.database: Database = ManualDatabase(house.database.engine, house.clock)
        self.dice = Dice()
        self.jobs = Jobs(self.database, self.clock, jitter=self.dice)

    def enqueue(self, subject: int = 1, kind: str = "import", *, seconds: float = 0) -> None:
        with self.database.write() as connection:
            self.jobs.enqueue(connection, kind, subject, after=timedelta(seconds=seconds))

    def cancel(self, subject: int = 1, kind: str = "import") -> None:
        with self.database.write() as connection:
            self.jobs.cancel(connection, kind, subject)

    def lease(self) -> LeasedJob:
        (job,) = self.jobs.lease(KINDS)
        return job

    def settle(self, job: LeasedJob, outcome: Outcome) -> bool:
        with self.database.write() as connection:
            return self.jobs.settle(connection, job, outcome)

    def row(self, subject: int = 1) -> Row[Any]:
        with self.database.read() as connection:
            return connection.execute(sa.select(Job.__table__).where(Job.subject_id == subject)).one()

    def wait_after(self, job: LeasedJob, outcome: Outcome) -> float:
        """Settle and return the seconds until the job is due again."""
        assert self.settle(job, outcome)
        return float((self.row(job.subject_id).due_at - self.clock.now()).total_seconds())


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_house(database_url) as house:
        yield Bench(house)


# --- asking for work ------------------------------------------------------------------------------------


def test_work_commits_with_what_it_follows_or_not_at_all(bench: Bench) -> None:
    class Mishap(Exception):
        pass

    def save_and_fail() -> None:
        with bench.database.write() as connection:
            bench.jobs.enqueue(connection, "import", 1)
            raise Mishap

    with pytest.raises(Mishap):
        save_and_fail()
    assert bench.jobs.lease(KINDS) == []
    bench.enqueue()
    assert bench.lease().subject_id == 1


def test_work_asked_for_twice_is_one_job(bench: Bench) -> None:
    bench.enqueue()
    bench.enqueue()
    assert bench.lease().generation == 1
    assert bench.jobs.lease(KINDS) == []


def test_the_same_subject_has_a_job_of_each_kind(bench: Bench) -> None:
    bench.enqueue(kind="import")
    bench.enqueue(kind="finish")
    assert {job.kind for job in bench.jobs.lease(KINDS, most=9)} == {"import", "finish"}


def test_work_for_later_is_left_alone_until_then(bench: Bench) -> None:
    bench.enqueue(seconds=30)
    bench.clock.advance(29.9)
    assert bench.jobs.lease(KINDS) == []
    bench.clock.advance(0.1)
    assert bench.lease().subject_id == 1


def test_asking_again_now_brings_work_for_later_forward(bench: Bench) -> None:
    bench.enqueue(seconds=3600)
    bench.enqueue()
    assert bench.lease().subject_id == 1


def test_asking_again_arms_a_parked_job_as_if_it_had_never_failed(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Park("sequin_refused", "no"))
    bench.enqueue()
    row = bench.row()
    assert (row.state, row.failures, row.failing_since, row.error, row.error_detail) == (
        JobState.WAITING, 0, None, None, None,
    )  # fmt: skip


def test_work_is_due_at_once_by_the_clock_that_judges_leases_however_wrong_this_machines_clock_is(
    database_url: str,
) -> None:
    with open_house(database_url) as house:
        if house.database.is_sqlite:
            pytest.skip("an embedded database has no clock but the machine's")
        house.clock.advance(400 * 86_400.0)
        jobs = house.jobs
        with house.database.write() as connection:
            jobs.enqueue(connection, "import", 1)
        assert [job.subject_id for job in jobs.lease(KINDS)] == [1]


# --- leasing --------------------------------------------------------------------------------------------


def test_the_longest_due_job_is_leased_first(bench: Bench) -> None:
    for subject, age in ((1, 10), (2, 30), (3, 20)):
        bench.enqueue(subject, seconds=-age)
    assert [bench.lease().subject_id for _ in range(3)] == [2, 3, 1]


def test_a_batch_is_in_the_order_in_which_its_jobs_became_due(bench: Bench) -> None:
    ages = {1: 10, 2: 60, 3: 40, 4: 50, 5: 20, 6: 30}
    for subject, age in ages.items():
        bench.enqueue(subject, seconds=-age)
    assert [job.subject_id for job in bench.jobs.lease(KINDS, most=4)] == [2, 4, 3, 6]
    assert [job.subject_id for job in bench.jobs.lease(KINDS, most=4)] == [5, 1]


def test_only_the_kinds_asked_for_are_leased(bench: Bench) -> None:
    bench.enqueue(kind="finish")
    assert bench.jobs.lease(["import"], most=9) == []
    assert [job.kind for job in bench.jobs.lease(["finish"])] == ["finish"]


def test_every_lease_has_a_higher_fence(bench: Bench) -> None:
    bench.enqueue()
    first = bench.lease()
    bench.clock.advance(LEASE_SECONDS)
    second = bench.lease()
    assert second.fence > first.fence
    assert second.id == first.id


def test_a_leased_job_is_nobody_elses_until_its_lease_ends(bench: Bench) -> None:
    bench.enqueue()
    bench.lease()
    bench.clock.advance(LEASE_SECONDS - 0.1)
    assert bench.jobs.lease(KINDS) == []
    bench.clock.advance(0.1)
    assert bench.lease().subject_id == 1


def test_a_killed_workers_work_resumes_within_a_minute() -> None:
    assert LEASE_SECONDS <= 60


@pytest.mark.parametrize("batch", [1, 3])
def test_many_leasers_never_lease_one_job_twice(bench: Bench, batch: int) -> None:
    subjects = 24
    for subject in range(subjects):
        bench.enqueue(subject)
    leased: list[int] = []
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def lease() -> None:
        try:
            start.wait(10)
            while jobs := bench.jobs.lease(KINDS, most=batch):
                assert len(jobs) <= batch
                leased.extend(job.subject_id for job in jobs)
        except BaseException as failure:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=lease) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    # A leaser may find everything left just locked by another and stop early: what remains is leased here.
    while jobs := bench.jobs.lease(KINDS, most=batch):
        leased.extend(job.subject_id for job in jobs)
    assert not failures
    assert sorted(leased) == list(range(subjects))


def test_in_a_long_line_a_share_of_each_batch_goes_to_what_was_just_asked_for(bench: Bench) -> None:
    for subject in range(1, 21):
        bench.enqueue(subject, seconds=-3600 + subject)
    for subject in (91, 92, 93):
        bench.enqueue(subject)
    batches = [[job.subject_id for job in bench.jobs.lease(KINDS, most=8)] for _ in range(3)]
    assert batches == [[1, 2, 3, 4, 5, 6, 91, 92], [7, 8, 9, 10, 11, 12, 13, 93], [14, 15, 16, 17, 18, 19, 20]]


def test_nobody_overtakes_in_a_short_line_and_nothing_overtakes_that_nobody_waits_for(bench: Bench) -> None:
    for subject in range(1, 5):
        bench.enqueue(subject, seconds=-50 + subject)
    bench.enqueue(9)
    assert [job.subject_id for job in bench.jobs.lease(KINDS, most=4)] == [1, 2, 3, 4]
    bench.clock.advance(3600)
    for subject in range(1, 5):
        bench.enqueue(subject, kind="finish", seconds=-1800)
    bench.enqueue(7, kind="verify")
    leased = bench.jobs.lease([*KINDS, "verify"], most=4)
    assert "verify" not in [job.kind for job in leased]


def test_what_failed_takes_up_its_old_place_in_the_line_once_the_failure_has_passed(bench: Bench) -> None:
    for subject in (1, 2, 3):
        bench.enqueue(subject, seconds=-300 + subject)
    for _ in range(2):
        bench.settle(bench.lease(), Retry("sequin_unavailable"))
    bench.clock.advance(0.5)
    with bench.database.write() as connection:
        assert bench.jobs.hasten(connection, KINDS) == 2
    assert [job.subject_id for job in bench.jobs.lease(KINDS, most=3)] == [1, 2, 3]


def test_what_comes_again_later_takes_its_place_from_then(bench: Bench) -> None:
    bench.enqueue(1, seconds=-7200)
    bench.settle(bench.lease(), Later(3600))
    bench.clock.advance(3500)
    bench.enqueue(2)
    bench.clock.advance(100)
    for _ in range(2):
        bench.settle(bench.lease(), Retry("sequin_unavailable"))
    with bench.database.write() as connection:
        bench.jobs.hasten(connection, KINDS)
    assert [job.subject_id for job in bench.jobs.lease(KINDS, most=2)] == [2, 1]


def test_a_lease_covers_a_call_for_as_long_as_enough_of_it_is_left(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    with bench.database.read() as connection:
        assert bench.jobs.covers(connection, job)
    bench.clock.advance(LEASE_SECONDS - COVERED_SECONDS + 0.1)
    with bench.database.read() as connection:
        assert not bench.jobs.covers(connection, job)
    assert bench.jobs.renew(job)
    bench.cancel()
    with bench.database.read() as connection:
        assert not bench.jobs.covers(connection, job)


def test_a_lease_just_taken_is_not_looked_at_again_before_the_work_begins(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    bench.cancel()
    assert bench.jobs.holds(job)
    bench.clock.advance(JUST_LEASED_SECONDS)
    assert not bench.jobs.holds(job)


def test_renewing_moves_the_end_of_the_lease(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    bench.clock.advance(20)
    assert bench.jobs.renew(job)
    bench.clock.advance(20)
    assert bench.jobs.lease(KINDS) == []


def test_a_lease_that_ran_out_but_was_not_taken_can_still_be_renewed(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    bench.clock.advance(LEASE_SECONDS * 2)
    assert bench.jobs.renew(job)
    assert bench.jobs.lease(KINDS) == []


def test_a_lost_lease_cannot_be_renewed_settled_or_handed_back(bench: Bench) -> None:
    bench.enqueue()
    lost = bench.lease()
    bench.clock.advance(LEASE_SECONDS)
    kept = bench.lease()
    before = bench.row()
    assert not bench.jobs.renew(lost)
    for outcome in (Done(), Retry("x"), Hold("x"), Park("x")):
        assert not bench.settle(lost, outcome)
    bench.jobs.release(lost)
    assert bench.row() == before
    assert bench.settle(kept, Done())


def test_an_outcome_counts_once(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    assert bench.settle(job, Done())
    assert not bench.settle(job, Park("x"))
    assert bench.row().state == JobState.DONE


def test_a_job_handed_back_is_due_at_once(bench: Bench) -> None:
    bench.enqueue()
    first = bench.lease()
    bench.jobs.release(first)
    again = bench.lease()
    assert (again.subject_id, again.failures) == (1, 0)
    assert not bench.settle(first, Done())


# --- outcomes -------------------------------------------------------------------------------------------


def test_done_work_is_never_due_again(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Done())
    bench.clock.advance(86_400 * 365)
    assert bench.jobs.lease(KINDS) == []
    assert bench.row().due_at is None


def test_done_work_forgets_its_failures(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Retry("sequin_unavailable", "503"))
    assert bench.row().error == "sequin_unavailable"
    bench.clock.advance(3)
    bench.settle(bench.lease(), Done())
    row = bench.row()
    assert (row.failures, row.failing_since, row.error, row.error_detail) == (0, None, None, None)


def test_the_first_retry_comes_within_two_seconds(bench: Bench) -> None:
    assert FIRST_RETRY_SECONDS <= 2
    bench.enqueue()
    assert 0 < bench.wait_after(bench.lease(), Retry("x")) <= 2


def test_retries_double_up_to_a_quarter_of_an_hour(bench: Bench) -> None:
    bench.enqueue()
    waits = []
    for _ in range(14):
        waits.append(bench.wait_after(bench.lease(), Retry("x")))
        bench.clock.advance(waits[-1])
    assert waits[:5] == [2, 4, 8, 16, 32]
    assert waits[-1] == LONGEST_RETRY_SECONDS == 900
    assert waits == sorted(waits)


def test_full_jitter_spreads_retries_over_the_whole_span_but_never_spins(bench: Bench) -> None:
    bench.enqueue()
    bench.dice.value = 0.0
    for _ in range(5):
        wait = bench.wait_after(bench.lease(), Retry("x"))
        assert wait == pytest.approx(0.1)
        bench.clock.advance(wait)
    bench.dice.value = 0.5
    assert bench.wait_after(bench.lease(), Retry("x")) == pytest.approx(32)


@pytest.mark.parametrize(
    ("asked", "waited"), [(5.0, 5.0), (120.0, 120.0), (86_400.0, 900.0), (1e300, 900.0), (0.0, 2.0), (-5.0, 2.0)]
)
def test_the_other_sides_retry_after_is_honoured_and_clamped(bench: Bench, asked: float, waited: float) -> None:
    bench.enqueue()
    assert bench.wait_after(bench.lease(), Retry("x", "", asked)) == pytest.approx(waited)


def fail_for(bench: Bench, span: timedelta) -> None:
    """Let the one job fail again and again until `span` has passed since the first failure."""
    bench.settle(bench.lease(), Retry("x"))
    ends = bench.clock.now() + span
    while bench.clock.now() < ends:
        left = (ends - bench.clock.now()).total_seconds()
        bench.clock.advance(min(left, 6 * 3600.0))
        if bench.clock.now() < ends:
            bench.settle(bench.lease(), Retry("x"))


def test_retries_go_on_for_three_days_and_then_park(bench: Bench) -> None:
    assert timedelta(days=3) <= GIVE_UP_AFTER
    bench.enqueue()
    fail_for(bench, GIVE_UP_AFTER - timedelta(seconds=1))
    bench.settle(bench.lease(), Retry("x"))
    assert bench.row().state == JobState.WAITING
    bench.clock.advance(901)
    job = bench.lease()
    assert bench.jobs.gives_up(job, bench.clock.now())
    bench.settle(job, Retry("sequin_unavailable", "503"))
    row = bench.row()
    assert (row.state, row.due_at, row.error, row.error_detail) == (
        JobState.PARKED, None, "sequin_unavailable", "503",
    )  # fmt: skip
    assert bench.jobs.lease(KINDS) == []


def test_a_success_starts_the_three_days_afresh(bench: Bench) -> None:
    bench.enqueue()
    fail_for(bench, GIVE_UP_AFTER - timedelta(hours=1))
    bench.settle(bench.lease(), Done())
    bench.clock.advance(86_400)
    bench.enqueue()
    bench.settle(bench.lease(), Retry("x"))
    assert bench.row().state == JobState.WAITING


def test_work_that_waits_for_a_setting_is_looked_at_again_without_end(bench: Bench) -> None:
    bench.enqueue()
    for _ in range(30):
        assert bench.wait_after(bench.lease(), Hold("sequin_unauthorized", "401", 15.0)) == 15
        bench.clock.advance(6 * 3600)
    row = bench.row()
    assert (row.state, row.error, row.error_detail) == (JobState.WAITING, "sequin_unauthorized", "401")


def test_days_of_waiting_for_a_setting_do_not_count_against_a_failure_that_may_pass(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Hold("sequin_unauthorized"))
    bench.clock.advance((GIVE_UP_AFTER + timedelta(days=1)).total_seconds())
    job = bench.lease()
    assert not bench.jobs.gives_up(job, bench.clock.now())
    bench.settle(job, Retry("sequin_unavailable"))
    assert bench.row().state == JobState.WAITING


def test_parked_work_waits_for_a_person(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Park("sequin_refused", "properties.secret: is invalid"))
    bench.clock.advance(86_400 * 30)
    assert bench.jobs.lease(KINDS) == []
    (view,) = bench.jobs.unfinished()
    assert (view.state, view.error, view.error_detail) == (
        "parked", "sequin_refused", "properties.secret: is invalid",
    )  # fmt: skip


def test_a_long_detail_is_cut_to_what_the_column_takes(bench: Bench) -> None:
    bench.enqueue()
    bench.settle(bench.lease(), Park("x", "y" * 5_000))
    assert bench.row().error_detail == "y" * 500


# --- asked again while running --------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Done(), Retry("x"), Hold("x"), Park("x")])
def test_work_asked_for_while_it_runs_runs_once_more(bench: Bench, outcome: Outcome) -> None:
    bench.enqueue()
    job = bench.lease()
    bench.enqueue()
    assert bench.jobs.lease(KINDS) == [], "the running job keeps its lease"
    assert bench.settle(job, outcome)
    again = bench.lease()
    assert again.generation == job.generation + 1
    assert bench.settle(again, Done())
    assert bench.row().state == JobState.DONE


def test_failures_of_the_older_request_do_not_count_against_the_newer_one(bench: Bench) -> None:
    bench.enqueue()
    fail_for(bench, GIVE_UP_AFTER - timedelta(seconds=1))
    job = bench.lease()
    bench.enqueue()
    bench.clock.advance(10)
    bench.settle(job, Retry("x"))
    bench.settle(bench.lease(), Retry("x"))
    row = bench.row()
    assert (row.state, row.failures) == (JobState.WAITING, 1)


# --- taking back, and arming again ----------------------------------------------------------------------


def test_work_taken_back_is_not_run(bench: Bench) -> None:
    bench.enqueue()
    bench.cancel()
    assert bench.jobs.lease(KINDS) == []
    assert bench.jobs.unfinished() == []


def test_work_taken_back_while_it_runs_loses_its_lease(bench: Bench) -> None:
    bench.enqueue()
    job = bench.lease()
    bench.cancel()
    assert not bench.jobs.renew(job)
    assert not bench.settle(job, Retry("x"))
    assert bench.row().state == JobState.DONE


def test_work_taken_back_can_be_asked_for_again(bench: Bench) -> None:
    bench.enqueue()
    bench.cancel()
    bench.enqueue()
    assert bench.lease().subject_id == 1


def test_taking_back_touches_no_other_job(bench: Bench) -> None:
    bench.enqueue(1, "import")
    bench.enqueue(1, "finish")
    bench.enqueue(2, "import")
    bench.cancel(1, "import")
    assert {(job.kind, job.subject_id) for job in bench.jobs.lease(KINDS, most=9)} == {("finish", 1), ("import", 2)}


def test_one_parked_job_is_armed_again(bench: Bench) -> None:
    for subject in (1, 2):
        bench.enqueue(subject)
        bench.settle(bench.lease(), Park("x"))
    bench.jobs.wakeup.clear()
    assert bench.jobs.rearm(bench.row(2).id) == 1
    assert bench.jobs.wakeup.is_set()
    leased = bench.lease()
    assert (leased.subject_id, leased.failures, leased.failing_since) == (2, 0, None)
    assert bench.row(1).state == JobState.PARKED


def test_every_parked_job_is_armed_again_and_no_other(bench: Bench) -> None:
    for subject in (1, 2, 3):
        bench.enqueue(subject)
        bench.settle(bench.lease(), Park("x") if subject < 3 else Done())
    assert bench.jobs.rearm() == 2
    assert {job.subject_id for job in bench.jobs.lease(KINDS, most=9)} == {1, 2}


def test_arming_a_job_that_is_not_parked_does_nothing(bench: Bench) -> None:
    bench.enqueue()
    assert bench.jobs.rearm(bench.row().id) == 0
    assert bench.jobs.rearm(10**12) == 0


def test_operators_see_parked_jobs_first_then_by_when_they_are_due(bench: Bench) -> None:
    for subject, age in ((1, 5), (2, 50), (3, 20)):
        bench.enqueue(subject, seconds=-age)
    bench.settle(bench.lease(), Park("x"))
    bench.enqueue(4, seconds=3600)
    bench.enqueue(5)
    bench.cancel(5)
    order = [bench.row(subject).id for subject in (2, 3, 1, 4)]
    assert [view.id for view in bench.jobs.unfinished()] == order
    assert [view.id for view in bench.jobs.unfinished(most=2)] == order[:2]


# --- a long line ----------------------------------------------------------------------------------------


def test_however_long_the_line_its_front_is_found_without_sorting_it(bench: Bench) -> None:
    now = bench.clock.now()
    same = {"state": JobState.WAITING, "fence": 0, "generation": 0, "failures": 0, "created_at": now, "updated_at": now}
    for kind, count, since in (("import", 5_000, 3600), ("verify", 2_000, 30)):
        due_at = now - timedelta(seconds=since)
        with bench.database.write() as connection:
            connection.execute(
                sa.insert(Job), [{"kind": kind, "subject_id": n, "due_at": due_at} | same for n in range(count)]
            )
    assert plans(bench, lambda: bench.jobs.lease(["import", "verify", "finish"], most=8)) == {
        "ix_jobs_due", "ix_jobs_kind_due",
    }  # fmt: skip
    # Whoever takes other kinds passes by those that wait for Sequin.
    assert plans(bench, lambda: bench.jobs.lease(["notify"], most=1)) == {"ix_jobs_kind_due"}


def plans(bench: Bench, work: Callable[[], object]) -> set[str]:
    """Return the indexes through which the jobs are found that `work` looks for."""
    asked: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "jobs.due_at <=" in statement:
            asked.append((statement, parameters))

    sa.event.listen(bench.database.engine, "before_cursor_execute", note)
    try:
        work()
    finally:
        sa.event.remove(bench.database.engine, "before_cursor_execute", note)
    explain = "EXPLAIN QUERY PLAN " if bench.database.is_sqlite else "EXPLAIN "
    with bench.database.read() as connection:
        lines = [
            str(row) for each in asked for row in connection.exec_driver_sql(explain + each[0], each[1])
        ]  # fmt: skip
    return {name for line in lines for name in re.findall(r"\b(?:ix|uq|sqlite_autoindex)_jobs\w*", line)}
