"""The sweep over all of Sequin's credentials: finds those that carry our metadata and that nobody here owns.

A check looks from a connection to its credential; this looks the other way. Sequin's list has no pages, so it is
read as a stream, and what it shows counts only once it was read to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError, Refused, SequinError, Verdict
from broker.jobs import Hold, Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import CleanUp, ConnectedAccount, ImportState, Job, Orphan
from broker.sequin import Credential, Sequin

SWEEP_EVERY_SECONDS = 6 * 3600.0
SWEEP_DEADLINE_SECONDS = 600.0
"""Reading a million credentials takes its time; the lease is renewed batch by batch."""
BATCH = 500
LONGEST_CLAIM = 64

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_orphans = table(Orphan)
_jobs = table(Job)


class OrphanUnknown(Refused):
    """No orphaned credential has this id."""

    code = "orphan_unknown"
    status = 404
    heading = "Page not found"
    advice = "It may have been dealt with already. Reload the list."


@dataclass(frozen=True)
class OrphanView:
    """A credential in Sequin that no connection here owns."""

    credential_id: str
    kind: str | None
    oauth_app_id: str | None
    claimed_ref: str
    found_at: datetime
    seen_at: datetime


class Reconciliation:
    """Sweeps over Sequin, lists what it found, and forgets one orphan at a time."""

    def __init__(self, *, database: Database, clock: Clock, sequin: Sequin, jobs: Jobs) -> None:
        self._database = database
        self._clock = clock
        self._sequin = sequin
        self._jobs = jobs

    def schedule(self) -> None:
        """Make sure that the sweep is among the jobs; a worker calls this when it starts."""
        with self._database.read() as connection:
            known = sa.select(_jobs.c.id).where(_jobs.c.kind == "reconcile", _jobs.c.subject_id == 0)
            if connection.execute(known).first() is not None:
                return
        with self._database.write() as connection:
            self._jobs.enqueue(connection, "reconcile", 0)

    def run(self, job: LeasedJob) -> Outcome:
        """Run the scheduled sweep and settle its job."""
        try:
            self.sweep(job)
            outcome: Outcome = Later(SWEEP_EVERY_SECONDS)
        except BrokerError as failure:
            if failure.verdict is Verdict.CONFIGURATION:
                outcome = Hold(failure.code, failure.detail)
            else:
                wait = failure.retry_after if isinstance(failure, SequinError) else None
                outcome = Retry(failure.code, failure.detail, wait)
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome

    def sweep(self, job: LeasedJob | None = None) -> list[OrphanView]:
        """Read all of Sequin's credentials and return the orphans among them.

        Raises SequinError or NetworkError; an incomplete list changes nothing but what it surely showed.
        """
        started = self._clock.now()
        batch: list[Credential] = []
        for credential in self._sequin.credentials(deadline=SWEEP_DEADLINE_SECONDS):
            if isinstance(credential.metadata.get("broker_connection_id"), str):
                batch.append(credential)
            if len(batch) >= BATCH:
                self._note(batch, started)
                batch = []
                if job is not None and not self._jobs.renew(job):
                    return []
        self._note(batch, started)
        with self._database.write() as connection:
            # The whole list was read: what it no longer shows is gone.
            connection.execute(sa.delete(_orphans).where(_orphans.c.seen_at < started))
        return self.orphans()

    def _note(self, batch: list[Credential], now: datetime) -> None:
        with self._database.read() as connection:
            rows = _claimed(connection, {_claim_of(each) for each in batch})
            in_use = _in_use(connection, {each.id for each in batch})
        for each in batch:
            if each.id not in in_use and not _owns(rows.get(_claim_of(each)), each.id):
                self._remember(each, now)

    def _remember(self, credential: Credential, now: datetime) -> None:
        ref = _claim_of(credential)
        with self._database.write() as connection:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            connection.execute(
                insert(_orphans)
                .values(
                    credential_id=credential.id, kind=credential.kind,
                    sequin_oauth_app_id=credential.oauth_app_id, claimed_ref=ref, found_at=now, seen_at=now,
                )
                .on_conflict_do_update(index_elements=["credential_id"], set_={"seen_at": now})
            )  # fmt: skip
        log.warning("reconciliation.orphan", credential=credential.id, claimed=ref)

    def orphans(self, *, most: int = 1000) -> list[OrphanView]:
        """Return the orphans of the last sweep, oldest first."""
        names = ("credential_id", "kind", "sequin_oauth_app_id", "claimed_ref", "found_at", "seen_at")
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(*(_orphans.c[name] for name in names)).order_by(_orphans.c.found_at).limit(most)
            ).all()
        return [OrphanView(*row) for row in rows]

    def forget(self, credential_id: str, *, actor: Actor) -> None:
        """Delete an orphan in Sequin. Raises OrphanUnknown, SequinError or NetworkError."""
        with self._database.read() as connection:
            known = sa.select(_orphans.c.claimed_ref).where(_orphans.c.credential_id == credential_id)
            ref = connection.execute(known).scalar_one_or_none()
            # Owned by now: an import whose answer was lost has been sent again since.
            if ref is None or _owns(_claimed(connection, {ref}).get(ref), credential_id):
                raise OrphanUnknown
            if _in_use(connection, {credential_id}):
                raise OrphanUnknown
        self._sequin.delete_credential(credential_id)
        with self._database.write() as connection:
            connection.execute(sa.delete(_orphans).where(_orphans.c.credential_id == credential_id))
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action="orphan.forgotten",
                target=credential_id, detail={"claimed": ref},
            )  # fmt: skip


def _claim_of(credential: Credential) -> str:
    return str(credential.metadata["broker_connection_id"])[:LONGEST_CLAIM]


def _claimed(connection: Connection, refs: set[str]) -> dict[str, Row[Any]]:
    """Return the connections that credentials claim to belong to, by reference."""
    columns = ("ref", "credential_id", "superseded_credential_id", "import_state", "disconnected_at", "removal")
    rows = connection.execute(
        sa.select(*(_connections.c[name] for name in columns)).where(_connections.c.ref.in_(refs))
    ).all()
    return {row.ref: row for row in rows}


def _in_use(connection: Connection, credential_ids: set[str]) -> set[str]:
    """Return which of these a living connection holds, whatever their metadata says.

    Sequin knows a credential by its account: another person's import may have taken over what an older one left.
    """
    rows = connection.execute(
        sa.select(_connections.c.credential_id).where(
            _connections.c.credential_id.in_(credential_ids), _connections.c.disconnected_at.is_(None)
        )
    )
    return set(rows.scalars())


def _owns(row: Row[Any] | None, credential_id: str) -> bool:
    """Tell whether a connection holds this credential, is replacing it, or is still deleting it."""
    if row is None:
        return False
    if row.disconnected_at is not None:
        return bool(row.removal == CleanUp.PENDING)
    if row.import_state != ImportState.IMPORTED:
        # An import may have been sent whose answer was lost: the next one finds the same credential.
        return True
    return credential_id in (row.credential_id, row.superseded_credential_id)
