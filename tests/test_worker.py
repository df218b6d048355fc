"""The loop around the job table: every row gets its turn, and a worker that stops leaves nothing behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from io import StringIO

import pytest
import requests
import sqlalchemy as sa

from broker import logs
from broker.jobs import GIVE_UP_AFTER, LEASE_SECONDS, LeasedJob
from broker.journal import FINISH_AFTER
from broker.models import BrowserSession, ConnectedAccount, Flow, Job, JobState
from broker.worker import BATCH, IDLE_SECONDS, SWEEP_SECONDS, Worker
from tests.connecting import CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, STRIPE_ACCOUNT, STRIPE_TOKEN, Bench, open_bench

IMPORT = f"{SEQUIN}/v1/credentials"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def connect(bench: Bench, count: int) -> None:
    """Connect accounts, one second apart, each of its own end user."""
    for number in range(count):
        bench.stripe(f"acct_{number}")
        bench.connect(end_user=f"user-{number}")
        bench.later(seconds=1)


def states(bench: Bench) -> dict[str, str]:
    return {row.account_id: row.import_state for row in bench.rows(ConnectedAccount)}


def poison(bench: Bench, account: str) -> None:
    """Make a connection's row such that nobody foresaw it."""
    poisoned = ConnectedAccount.account_id == account
    bench.house.run(sa.update(ConnectedAccount).where(poisoned).values(host_metadata=["not", "a", "mapping"]))


def imports(bench: Bench) -> dict[int, str]:
    return {job.subject_id: job.state for job in bench.rows(Job) if job.kind == "import"}


def test_one_turn_runs_what_is_due(bench: Bench) -> None:
    connect(bench, 3)
    assert bench.worker.run_once() == 3
    assert set(states(bench).values()) == {"imported"}


def test_an_idle_turn_runs_nothing_and_writes_nothing(bench: Bench) -> None:
    before = bench.everything()
    assert bench.worker.run_once() == 0
    assert bench.everything() == before


def test_a_turn_takes_a_batch_and_leaves_the_rest_to_others(bench: Bench) -> None:
    connect(bench, BATCH + 2)
    assert bench.worker.run_once() == BATCH
    assert list(states(bench).values()).count("imported") == BATCH
    assert [job.kind for job in bench.jobs.lease(["import"], most=9)] == ["import"] * 2


def test_the_longest_waiting_goes_first(bench: Bench) -> None:
    connect(bench, 4)
    bench.worker.run_once()
    sent = [body["properties"]["stripe_user_id"] for body in bench.imports()]
    assert sent == ["acct_0", "acct_1", "acct_2", "acct_3"]


def test_a_poisoned_row_never_blocks_the_others(bench: Bench) -> None:
    connect(bench, 3)
    poison(bench, "acct_0")
    bench.worker.run_once()
    assert states(bench) == {"acct_0": "pending", "acct_1": "imported", "acct_2": "imported"}
    job = min((row for row in bench.rows(Job) if row.kind == "import"), key=lambda row: row.id)
    assert (job.state, job.error, job.failures) == (JobState.WAITING, "internal_error", 1)
    assert job.due_at > bench.clock.now()


def test_a_row_that_stays_poisoned_is_parked_visibly_with_its_connection(bench: Bench) -> None:
    connect(bench, 1)
    poison(bench, "acct_0")
    bench.worker.run_once()
    bench.later(seconds=GIVE_UP_AFTER.total_seconds())
    bench.worker.run_once()
    assert bench.job("import").state == JobState.PARKED
    (row,) = bench.rows(ConnectedAccount)
    assert (row.import_state, row.import_error) == ("parked", "internal_error")


def test_what_nobody_foresaw_is_logged_without_a_secret(bench: Bench) -> None:
    connect(bench, 1)
    poison(bench, "acct_0")
    written = StringIO()
    logs.configure("DEBUG", "json", written)
    bench.worker.run_once()
    printed = written.getvalue()
    assert "worker.job_failed" in printed
    assert "SENTINEL" not in printed


def test_when_the_other_side_is_away_the_rest_of_the_batch_is_handed_back(bench: Bench) -> None:
    connect(bench, 4)
    bench.sequin(status=503)
    bench.worker.run_once()
    assert len(bench.imports()) == 1, "a side that is away is not asked for every row"
    waiting = [job for job in bench.rows(Job) if job.kind == "import"]
    assert {job.state for job in waiting} == {JobState.WAITING}
    assert sorted(job.failures for job in waiting) == [0, 0, 0, 1]
    bench.sequin()
    bench.later(seconds=2)
    while bench.worker.run_once():
        pass
    assert set(states(bench).values()) == {"imported"}


def test_after_a_killed_worker_another_one_does_its_work(bench: Bench) -> None:
    connect(bench, 1)
    bench.lease("import")
    assert bench.worker.run_once() == 0
    bench.later(seconds=LEASE_SECONDS)
    assert Worker(bench.services, threads=0).run_once() == 1
    assert states(bench) == {"acct_0": "imported"}


def test_what_somebody_else_took_over_while_it_waited_in_its_batch_is_left_alone(bench: Bench) -> None:
    connect(bench, 2)
    bench.worker.run_once()
    asked = f"{IMPORT}/{CREDENTIAL}"
    elsewhere: list[LeasedJob] = []

    def slowly(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        # So long that another process leases both checks.
        bench.later(seconds=LEASE_SECONDS)
        elsewhere.extend(bench.jobs.lease(["verify"], most=2))
        return 200, {}, json.dumps({"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "kind": "stripe_oauth2"})

    bench.answering("GET", asked, slowly)
    bench.worker.run_once()

    assert [job.fence for job in elsewhere] == [2, 2]
    assert len(bench.calls(asked)) == 1, "each of them is now asked about elsewhere"


def test_timing_keeps_what_the_design_promises() -> None:
    assert LEASE_SECONDS + IDLE_SECONDS <= 60
    assert SWEEP_SECONDS <= 15


# --- flows ----------------------------------------------------------------------------------------------


def interrupted_before_identity(bench: Bench) -> None:
    """Leave a flow whose account could not be read yet."""
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=503)
    bench.connect()
    bench.later(seconds=FINISH_AFTER.total_seconds())


def test_a_flow_left_to_the_worker_becomes_a_connection_and_then_a_credential(bench: Bench) -> None:
    interrupted_before_identity(bench)
    bench.stripe()
    while bench.worker.run_once():
        bench.later(seconds=1)
    assert bench.row(Flow).state == "done"
    assert bench.row(ConnectedAccount).credential_id == CREDENTIAL
    assert len(bench.calls(STRIPE_TOKEN)) == 1


def test_a_provider_that_stays_away_is_asked_again_until_the_flows_time_is_over(bench: Bench) -> None:
    interrupted_before_identity(bench)
    asked = len(bench.calls(STRIPE_ACCOUNT))
    for _ in range(3):
        assert bench.worker.run_once() == 1
        assert bench.job("finish").state == JobState.WAITING
        bench.later(minutes=15)
    assert len(bench.calls(STRIPE_ACCOUNT)) == asked + 3
    bench.later(minutes=15)
    bench.worker.run_once()
    flow = bench.row(Flow)
    assert (flow.state, flow.failure) == ("expired", "flow_expired")
    assert bench.job("finish").state == JobState.DONE


def test_a_providers_retry_after_is_honoured(bench: Bench) -> None:
    interrupted_before_identity(bench)
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=429, headers={"Retry-After": "77"})
    bench.worker.run_once()
    assert (bench.job("finish").due_at - bench.clock.now()).total_seconds() == 77


def test_a_flow_that_cannot_be_finished_ends_with_its_job(bench: Bench) -> None:
    interrupted_before_identity(bench)
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=401)
    bench.worker.run_once()
    assert (bench.row(Flow).state, bench.row(Flow).failure) == ("failed", "grant_unusable")
    bench.let_go()
    assert bench.jobs.unfinished() == []


# --- threads --------------------------------------------------------------------------------------------


def test_threads_do_what_is_committed_and_end_when_told(bench: Bench) -> None:
    imported = threading.Event()

    def answer(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        imported.set()
        return 200, {}, json.dumps({"id": CREDENTIAL})

    bench.answering("POST", IMPORT, answer)
    worker = Worker(bench.services, threads=2)
    worker.start()
    bench.connect()
    assert imported.wait(20)
    worker.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("worker-")]
    assert states(bench) == {"acct_1": "imported"}


def test_a_worker_that_stops_finishes_the_running_job_and_hands_the_others_back(bench: Bench) -> None:
    connect(bench, 3)
    worker = Worker(bench.services, threads=0)

    def answer(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        worker.stop()
        return 200, {}, json.dumps({"id": CREDENTIAL})

    bench.answering("POST", IMPORT, answer)
    worker.run_once()
    assert states(bench) == {"acct_0": "imported", "acct_1": "pending", "acct_2": "pending"}
    assert [job.subject_id for job in bench.jobs.lease(["import"], most=9)] == [
        row.id for row in bench.rows(ConnectedAccount)[1:]
    ]


def test_a_database_that_is_away_for_a_while_does_not_end_the_thread(bench: Bench) -> None:
    imported, failed = threading.Event(), threading.Event()
    lease = bench.jobs.lease

    def answer(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        imported.set()
        return 200, {}, json.dumps({"id": CREDENTIAL})

    def away(*args: object, **options: object) -> object:
        bench.jobs.lease = lease  # type: ignore[method-assign]
        failed.set()
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("away"))

    bench.answering("POST", IMPORT, answer)
    bench.jobs.lease = away  # type: ignore[method-assign, assignment]
    worker = Worker(bench.services, threads=1)
    worker.start()
    assert failed.wait(20)
    bench.connect()
    assert imported.wait(20)
    worker.stop()
    assert states(bench) == {"acct_1": "imported"}


def test_sessions_whose_time_is_over_are_forgotten(bench: Bench) -> None:
    sessions, purged = bench.services.sessions, threading.Event()
    sessions.open_end_user(None, bench.house.end_user("jo"), None)
    bench.later(hours=1)
    purge = sessions.purge

    def noted() -> int:
        count = purge()
        purged.set()
        return count

    sessions.purge = noted  # type: ignore[method-assign]
    worker = Worker(bench.services, threads=1)
    worker.start()
    assert purged.wait(20)
    worker.stop()
    assert bench.rows(BrowserSession) == []
