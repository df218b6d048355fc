"""The loop around the job table: lease, run, settle; embedded in a web process or a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

import structlog

from broker.db import Database
from broker.delivery import Deliveries
from broker.errors import BrokerError, Verdict
from broker.flows import Flows
from broker.jobs import Done, Jobs, LeasedJob, Outcome, Retry
from broker.journal import FlowJournal
from broker.verification import Verifications

IDLE_SECONDS = 0.5
"""How long an idle worker waits before it looks again, unless this process has committed new work."""
SWEEP_SECONDS = 15.0
BATCH = 8

log = structlog.get_logger(__name__)


class Worker:
    """A few threads that lease jobs and run them. Start it after a fork, never before."""

    def __init__(
        self,
        *,
        database: Database,
        jobs: Jobs,
        flows: Flows,
        journal: FlowJournal,
        deliveries: Deliveries,
        verifications: Verifications,
        threads: int,
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._flows = flows
        self._journal = journal
        self._threads = [threading.Thread(target=self._loop, name=f"worker-{n}", daemon=True) for n in range(threads)]
        self._stopping = threading.Event()
        self._swept = 0.0
        self._sweeping = threading.Lock()
        # Each handler settles its own job, because the outcome commits with what it changed.
        self._handlers: Mapping[str, Callable[[LeasedJob], Outcome]] = {
            "import": deliveries.run,
            "verify": verifications.run,
            "finish": self._finish,
        }

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, timeout: float = 20.0) -> None:
        """Let running jobs finish, hand the others back, and wait for the threads, `timeout` seconds at most."""
        self._stopping.set()
        self._jobs.wakeup.set()
        ends = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, ends - time.monotonic()))

    def run_once(self) -> int:
        """Run what is due now and return how many jobs that were; what every turn of the loop does."""
        jobs = self._jobs.lease(list(self._handlers), most=BATCH)
        for done, job in enumerate(jobs):
            if self._stopping.is_set() or not self._run(job):
                self._hand_back(jobs[done + 1 :] if not self._stopping.is_set() else jobs[done:])
                break
        return len(jobs)

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                self._sweep_sometimes()
                if self.run_once():
                    continue
            except Exception:
                # A database that is away for a while must not end the thread.
                log.exception("worker.turn_failed")
            self._jobs.wakeup.wait(IDLE_SECONDS)
            self._jobs.wakeup.clear()

    def _run(self, job: LeasedJob) -> bool:
        """Run one job; False when the rest of the batch had better wait, because the other side is slow or away."""
        try:
            if job.fence > 1 and not self._jobs.renew(job):
                return True
            outcome = self._handlers[job.kind](job)
        except Exception as failure:
            # One poisoned row never blocks the others: it waits longer each time, and parks in the end.
            log.exception("worker.job_failed", kind=job.kind)
            self._settle(job, Retry("internal_error", type(failure).__name__))
            return True
        return not isinstance(outcome, Retry)

    def _finish(self, job: LeasedJob) -> Outcome:
        try:
            self._flows.finish(job.subject_id)
            outcome: Outcome = Done()
        except BrokerError as failure:
            if failure.verdict is not Verdict.RETRY:
                raise
            outcome = Retry(failure.code, failure.detail)
        self._settle(job, outcome)
        return outcome

    def _settle(self, job: LeasedJob, outcome: Outcome) -> None:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)

    def _hand_back(self, jobs: list[LeasedJob]) -> None:
        for job in jobs:
            self._jobs.release(job)

    def _sweep_sometimes(self) -> None:
        if not self._sweeping.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._swept >= SWEEP_SECONDS:
                self._swept = time.monotonic()
                self._journal.sweep()
        finally:
            self._sweeping.release()
