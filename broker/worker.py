"""The loop around the job table: lease, run, settle; embedded in a web process or a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from broker.bulk import KIND as BULK
from broker.circuits import NEEDS, SEQUIN, OpenCircuit
from broker.errors import BrokerError, Verdict
from broker.jobs import Done, LeasedJob, Outcome, Retry
from broker.notifications import NOTIFY
from broker.overview import KIND as COUNT
from broker.provider_events import KIND as PROVIDER_EVENT
from broker.services import Services
from broker.telemetry import tracing

IDLE_SECONDS = 0.5
"""How long an idle worker waits before it looks again, unless this process has committed new work."""
SWEEP_SECONDS = 15.0
SEAL_SECONDS = 2.0
"""How long a record of the audit trail stands unsealed, and so unprotected."""
BATCH = 8
NOTIFIERS = 4
"""Threads that send webhooks: so many slow endpoints are served at the same time."""

log = structlog.get_logger(__name__)


class Worker:
    """A few threads that lease jobs and run them. Start it after a fork, never before."""

    def __init__(self, services: Services, *, threads: int) -> None:
        """With no threads it runs only what `run_once` and `notify_once` are called for."""
        self._services = services
        self._database = services.database
        self._jobs = services.jobs
        self._circuits = services.circuits
        # Webhooks have threads of their own: however slow an endpoint is, it keeps no import waiting.
        lanes = [("worker", self._work_turn)] * threads + [("notifier", self.notify_once)] * (
            NOTIFIERS if threads else 0
        )
        self._threads = [
            threading.Thread(target=self._loop, args=(turn,), name=f"{name}-{n}", daemon=True)
            for n, (name, turn) in enumerate(lanes)
        ]
        self._stopping = threading.Event()
        self._swept = 0.0
        self._sealed = 0.0
        self._sweeping = threading.Lock()
        # Each handler settles its own job, because the outcome commits with what it changed.
        self._handlers: Mapping[str, Callable[[LeasedJob], Outcome]] = {
            "import": services.deliveries.run,
            "verify": services.verifications.run,
            "refresh": services.refreshes.run,
            "probe": services.probes.run,
            PROVIDER_EVENT: services.provider_events.run,
            "approval": services.approvals.run,
            "revoke": services.disconnections.run_revoke,
            "remove": services.disconnections.run_remove,
            "discard": services.discards.run,
            "reconcile": services.reconciliation.run,
            "purge": services.purge.run,
            COUNT: services.overviews.run,
            "forget": services.erasures.run,
            BULK: services.bulk_runs.run,
            "finish": self._finish,
        }
        # Who else has to know that a job failed in a way nobody foresaw.
        self._failed: Mapping[str, Callable[[LeasedJob, Outcome], None]] = {
            "import": services.deliveries.failed,
            "discard": services.discards.failed,
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
        circuit = self._circuits.look(SEQUIN)
        if circuit is None:
            return self._work(self._jobs.lease(list(self._handlers), most=BATCH))
        probed = self._probe(circuit) if circuit.is_due else 0
        return probed + self._work(self._jobs.lease([kind for kind in self._handlers if kind not in NEEDS], most=BATCH))

    def _work(self, jobs: list[LeasedJob]) -> int:
        for done, job in enumerate(jobs):
            if self._stopping.is_set():
                self._hand_back(jobs[done:])
                break
            if job.kind in NEEDS and self._circuits.look(NEEDS[job.kind]) is not None:
                # Opened meanwhile: it keeps its place, and costs the other side nothing.
                self._hand_back([job])
            elif not self._run(job):
                self._hand_back(jobs[done + 1 :])
                break
        return len(jobs)

    def _probe(self, circuit: OpenCircuit) -> int:
        """Let one job through to see whether Sequin is back; when there is none, or it tells nothing, just knock."""
        if not self._circuits.claim(circuit.name):
            return 0
        jobs = self._jobs.lease([kind for kind in self._handlers if kind in NEEDS], most=1, early=True)
        for job in jobs:
            self._run(job)
        after = self._circuits.look(circuit.name)
        if after is not None and after.failures == circuit.failures:
            with suppress(BrokerError), self._circuits.watching(circuit.name):
                self._services.sequin.survey()
        return len(jobs)

    def _work_turn(self) -> int:
        self._sweep_sometimes()
        return self.run_once()

    def notify_once(self) -> int:
        """Queue what happened for the endpoints, send one of them what waits for it; returns how many that were."""
        self._services.notifications.dispatch()
        jobs = self._jobs.lease([NOTIFY])
        for job in jobs:
            self._run(job)
        return len(jobs)

    def _loop(self, turn: Callable[[], int]) -> None:
        while not self._stopping.is_set():
            try:
                if turn():
                    continue
            except Exception:
                # A database that is away for a while must not end the thread.
                log.exception("worker.turn_failed")
            self._jobs.wakeup.wait(IDLE_SECONDS)
            self._jobs.wakeup.clear()

    def _run(self, job: LeasedJob) -> bool:
        """Run one job; False when the rest of the batch had better wait, because the other side is slow or away."""
        with tracing.working(job.kind) as span:
            try:
                if not self._jobs.holds(job):
                    span.settled("lost")
                    return True
                run = self._services.notifications.run if job.kind == NOTIFY else self._handlers[job.kind]
                outcome = run(job)
            except Exception as failure:
                # One poisoned row never blocks the others: it waits longer each time, and parks in the end.
                log.exception("worker.job_failed", kind=job.kind)
                span.settled("failed", type(failure).__name__)
                self._failed.get(job.kind, self._settle)(job, Retry("internal_error", type(failure).__name__))
                return True
            span.settled(type(outcome).__name__.lower(), getattr(outcome, "error", None))
        return not isinstance(outcome, Retry)

    def _finish(self, job: LeasedJob) -> Outcome:
        try:
            self._services.flows.finish(job.subject_id)
            outcome: Outcome = Done()
        except BrokerError as failure:
            if failure.verdict is not Verdict.RETRY:
                raise
            outcome = Retry(failure.code, failure.detail, getattr(failure, "retry_after", None))
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
                self._services.journal.sweep()
                self._services.reconciliation.schedule()
                self._services.purge.schedule()
            if time.monotonic() - self._sealed >= SEAL_SECONDS:
                self._sealed = time.monotonic()
                self._services.audit_chain.seal()
        finally:
            self._sweeping.release()
