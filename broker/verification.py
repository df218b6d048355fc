"""Proof of hand-off: reading a credential back from Sequin, and saying what is wrong when it is not as it should be.

A check that passes is the last step of a connection's way; after it, token material that nothing needs any more is
erased. It is repeated for as long as the connection lives, so that drift is found and the status stays honest.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, ClassVar

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue
from broker.clock import Clock
from broker.connected import account_of, connected_row
from broker.db import Database, table
from broker.errors import BrokerError, SequinError, SequinNotFound, Verdict
from broker.jobs import Done, Hold, Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import ConnectedAccount, ImportState
from broker.sequin import Credential, Sequin

CHECK_EVERY_SECONDS = 20 * 3600.0
"""A status calls itself fine for 24 hours: the next check comes before that."""
JITTER = 0.25
"""Checks come up to this share earlier, so that connections made together are not checked together for ever."""
HOLD_SECONDS = 15.0

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)

# Built once: every check runs them, and building a statement costs more than running it.
_FOUND = (
    sa.update(_connections)
    # A reconnect, another import or a disconnect meanwhile: a finding speaks of what was there before.
    .where(
        _connections.c.id == sa.bindparam("key"),
        _connections.c.token_version == sa.bindparam("of_version"),
        _connections.c.credential_id == sa.bindparam("of_credential"),
        _connections.c.import_state == ImportState.IMPORTED,
        _connections.c.disconnected_at.is_(None),
    )
    .returning(_connections)
)
_NOW = sa.bindparam("now", type_=_connections.c.failing_since.type)
_DRIFTED = _FOUND.values(failing_since=sa.func.coalesce(_connections.c.failing_since, _NOW))
_PASSED = _FOUND.values(
    **{
        # What the provider says is wrong stays until the provider takes it back.
        name: sa.case(
            (_connections.c.trouble.is_not(None), _connections.c[name]),
            else_=sa.literal(value, _connections.c[name].type),
        )
        for name, value in (("health", "ok"), ("health_note", None), ("failing_since", None))
    }
)


RECONNECT = "The person has to reconnect."
IMPORT_AGAIN = "Import it again."


class Drift(BrokerError):
    """Sequin does not hold what was imported. `sentence` is for operators; the cure is one action."""

    code = "drift"
    verdict = Verdict.PERSON
    sentence: ClassVar[str] = ""
    # The cure where what an import sends is still here, or can be made afresh.
    cure_with_token: ClassVar[str] = ""
    # Which of the two it is here.
    remedy: str = ""


class CredentialMissing(Drift):
    """The credential was deleted in Sequin."""

    code = "credential_missing"
    sentence = "Sequin no longer has this credential."
    cure = RECONNECT
    cure_with_token = IMPORT_AGAIN


class CredentialMoved(Drift):
    """The credential stands under another OAuth app."""

    code = "credential_moved"
    sentence = "In Sequin this credential stands under another OAuth app."
    cure = RECONNECT
    cure_with_token = IMPORT_AGAIN


class CredentialChanged(Drift):
    """The credential is of another kind, or of another account."""

    code = "credential_changed"
    sentence = "In Sequin this credential speaks of another account or kind."
    cure = RECONNECT
    cure_with_token = IMPORT_AGAIN


class CredentialUnhealthy(Drift):
    """Sequin itself reports the credential as failing."""

    code = "credential_unhealthy"
    sentence = "Sequin reports that this credential does not work."
    cure = RECONNECT


class CredentialOverwritten(Drift):
    """An import that came too late has put an older token into the credential, and the current one was erased."""

    code = "credential_overwritten"
    sentence = "An older import that came late has replaced the token in Sequin, and ours was erased by then."
    cure = RECONNECT


class Verifications:
    """Runs verify jobs."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        sequin: Sequin,
        jobs: Jobs,
        keep_grants: bool,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._sequin = sequin
        self._jobs = jobs
        self._keep_grants = keep_grants
        self._jitter = jitter

    def run(self, job: LeasedJob) -> Outcome:
        """Check the connection a job speaks of, record the finding with the job, and return the outcome."""
        row = connected_row(self._database, job.subject_id)
        if row is None or not _checkable(row):
            return self._settle(job, Done())
        try:
            found = self._look(row)
        except BrokerError as failure:
            return self._settle(job, _judge(failure))
        outcome = Later(self._next())
        with self._database.write() as connection:
            judged_at = self._database.now(connection)
            if self._jobs.settle(connection, job, outcome, now=judged_at):
                self._save(connection, row, found, judged_at)
        return outcome

    def check(self, connection_id: int) -> Drift | None:
        """Check one connection here and now; None when it is as imported, or has not come so far.

        Raises SequinError or NetworkError when Sequin cannot be asked.
        """
        row = connected_row(self._database, connection_id)
        if row is None or not _checkable(row):
            return None
        found = self._look(row)
        with self._database.write() as connection:
            self._save(connection, row, found, self._database.now(connection))
        return found

    def _look(self, row: Row[Any]) -> Drift | None:
        """Read the credential back. Raises SequinError or NetworkError."""
        try:
            found = self._compare(row, self._sequin.credential(row.credential_id))
        except SequinNotFound:
            found = CredentialMissing()
        if found is not None:
            can_import = row.grant_sealed is not None or not self._apps.get(row.app_key).provider.import_needs_grant
            found.remedy = (can_import and found.cure_with_token) or found.cure
        elif row.superseded_credential_id is not None and not self._is_in_use(row):
            self._sequin.delete_credential(row.superseded_credential_id)
        return found

    def _is_in_use(self, row: Row[Any]) -> bool:
        """Tell whether another connection stands on the credential that this one has left behind."""
        query = sa.select(_connections.c.id).where(
            _connections.c.credential_id == row.superseded_credential_id,
            _connections.c.id != row.id,
            _connections.c.disconnected_at.is_(None),
        )
        with self._database.read() as connection:
            return connection.execute(query.limit(1)).first() is not None

    def _compare(self, row: Row[Any], credential: Credential) -> Drift | None:
        if credential.oauth_app_id != row.sequin_oauth_app_id:
            return CredentialMoved()
        if (credential.kind or row.kind) != row.kind:
            return CredentialChanged("kind")
        expected = self._apps.get(row.app_key).provider.identity(account_of(row))
        for name, value in expected.items():
            # Sequin may leave members out of its answer; those it shows must agree.
            if credential.properties.get(name, value) != value:
                return CredentialChanged(name)
        return CredentialUnhealthy(credential.health_status or "") if credential.healthy is False else None

    def _next(self) -> float:
        return CHECK_EVERY_SECONDS * (1 - JITTER * self._jitter())

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome

    def _save(self, connection: Connection, row: Row[Any], found: Drift | None, judged_at: datetime) -> None:
        now = self._clock.now()
        turns: dict[str, object] = {}
        if found is None and row.verified_at is None and self._apps.get(row.app_key).provider.probe is not None:
            # From now on its provider is asked about it too. Jobs come before the connection, in everybody's order.
            after = timedelta(seconds=self._next())
            self._jobs.enqueue(connection, "probe", row.id, after=after, now=judged_at)
            # Connected long ago, at another broker or while Sequin was away: it is not late before its first turn.
            turns = {"probed_at": row.probed_at or now}
        which = {"key": row.id, "of_version": row.token_version, "of_credential": row.credential_id}
        told = {"updated_at": now, "checked_at": now, **self._finding(row, found, now), **turns}
        changed = connection.execute(_PASSED if found is None else _DRIFTED, which | told).one_or_none()
        if changed is None:
            return
        events.changed_row(connection, changed, row.external_id, at=now)
        if (found.code if found else None) != row.drift or row.verified_at is None:
            audit.record(
                connection, at=now, actor_kind="worker", actor="verify", target=row.ref,
                action="connection.drifted" if found else "connection.verified",
                detail={"found": found.code if found else "as imported"},
            )  # fmt: skip
        if found is None:
            log.info("verification.passed", connection=row.ref)
        else:
            log.warning("verification.drifted", connection=row.ref, error=found.code, detail=found.detail)

    def _finding(self, row: Row[Any], found: Drift | None, now: datetime) -> dict[str, object]:
        if found is not None:
            told: dict[str, object] = {
                "health": "error",
                "health_note": f"{found.sentence} {found.remedy}",
                "drift": found.code,
                # Since the first of them in a row, whatever it was.
                "drifted_at": row.drifted_at or now,
                "now": now,
            }
            # A credential made anew has no metadata: send it again.
            return told if isinstance(found, CredentialUnhealthy) else told | {"metadata_digest": None}
        passed: dict[str, object] = {
            "drift": None, "drifted_at": None, "verified_at": now, "superseded_credential_id": None,
        }  # fmt: skip
        if not self._keep_grants and not self._apps.get(row.app_key).keeps_grant:
            passed["grant_sealed"] = None
        return passed


def _checkable(row: Row[Any]) -> bool:
    """Tell whether Sequin is to hold something for this connection."""
    return row.disconnected_at is None and row.import_state == ImportState.IMPORTED and row.credential_id is not None


def _judge(failure: BrokerError) -> Outcome:
    """Classify a failed look: it says nothing about the connection."""
    if failure.verdict is Verdict.CONFIGURATION:
        return Hold(failure.code, failure.detail, HOLD_SECONDS)
    return Retry(failure.code, failure.detail, failure.retry_after if isinstance(failure, SequinError) else None)
