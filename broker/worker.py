"""The loop around the job table: lease, run, settle; embedded in a web process or a process of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import structlog

from broker.approvals import Approvals
from broker.audit_chain import AuditChain
from broker.bulk import KIND as BULK
from broker.bulk import BulkRuns
from broker.circuits import NEEDS, SEQUIN, Circuits, OpenCircuit
from broker.db import Database
from broker.delivery import Deliveries
from broker.discards import Discards
from broker.disconnection import Disconnections
from broker.erasure import Erasures
from broker.errors import BrokerError, Verdict
from broker.flows import Flows
from broker.jobs import Done, Jobs, LeasedJob, Outcome, Retry
from broker.journal import FlowJournal
from broker.notifications import NOTIFY, Notifications
from broker.overview import KIND as COUNT
from broker.overview import Overviews
from broker.probes import Probes
from broker.provider_events import KIND as PROVIDER_EVENT
from broker.provider_events import ProviderEvents
from broker.purge import Purge
from broker.reconciliation import Reconciliation
from broker.refresh import Refreshes
from broker.verification import Verifications

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

    def __init__(
        self,
        *,
        database: Database,
        jobs: Jobs,
        flows: Flows,
        journal: FlowJournal,
        deliveries: Deliveries,
        verifications: Verifications,
        refreshes: Refreshes,
        probes: Probes,
        provider_events: ProviderEvents,
        approvals: Approvals,
        disconnections: Disconnections,
        bulk_runs: BulkRuns,
        discards: Discards,
        erasures: Erasures,
        reconciliation: Reconciliation,
        notifications: Notifications,
        circuits: Circuits,
        knock: Callable[[], object],
        purge: Purge,
        overviews: Overviews,
        audit_chain: AuditChain,
        threads: int,
    ) -> None:
        """`knock` asks Sequin anything at all: what looks whether it is back when no job can."""
        self._circuits = circuits
        self._knock = knock
        self._database = database
        self._jobs = jobs
        self._flows = flows
        self._journal = journal
        self._reconciliation = reconciliation
        self._purge = purge
        self._audit_chain = audit_chain
        self._notifications = notifications
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
            "import": deliveries.run,
            "verify": verifications.run,
            "refresh": refreshes.run,
            "probe": probes.run,
            PROVIDER_EVENT: provider_events.run,
            "approval": approvals.run,
            "revoke": disconnections.run_revoke,
            "remove": disconnections.run_remove,
            "discard": discards.run,
            "reconcile": reconciliation.run,
            "purge": purge.run,
            COUNT: overviews.run,
            "forget": erasures.run,
            BULK: bulk_runs.run,
            "finish": self._finish,
        }
        # Who else has to know that a job failed in a way nobody foresaw.
        self._failed: Mapping[str, Callable[[LeasedJob, Outcome], None]] = {
            "import": deliveries.failed,
            "discard": discards.failed,
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
                self._knock()
        return len(jobs)

    def _work_turn(self) -> int:
        self._sweep_sometimes()
        return self.run_once()

    def notify_once(self) -> int:
        """Queue what happened for the endpoints, send one of them what waits for it; returns how many that were."""
        self._notifications.dispatch()
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
        try:
            if job.fence > 1 and not self._jobs.renew(job):
                return True
            run = self._notifications.run if job.kind == NOTIFY else self._handlers[job.kind]
            outcome = run(job)
        except Exception as failure:
            # One poisoned row never blocks the others: it waits longer each time, and parks in the end.
            log.exception("worker.job_failed", kind=job.kind)
            self._failed.get(job.kind, self._settle)(job, Retry("internal_error", type(failure).__name__))
            return True
        return not isinstance(outcome, Retry)

    def _finish(self, job: LeasedJob) -> Outcome:
        try:
            self._flows.finish(job.subject_id)
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
                self._journal.sweep()
                self._reconciliation.schedule()
                self._purge.schedule()
            if time.monotonic() - self._sealed >= SEAL_SECONDS:
                self._sealed = time.monotonic()
                self._audit_chain.seal()
        finally:
            self._sweeping.release()
