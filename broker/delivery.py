"""Deliveries: importing a connection's current token into Sequin, and recording honestly how that went.

A delivery reads the token when it sends, so the latest always wins; it never sends without a lease it has just
renewed; and its outcome counts only while that lease is its own.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import grant_binding
from broker.clock import Clock
from broker.connected import account_of, connected_row
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import (
    AppUnknown,
    BrokerError,
    NetworkError,
    SequinError,
    SequinRefused,
    Unreadable,
    Verdict,
)
from broker.events import EventType
from broker.http import TOTAL_SECONDS
from broker.jobs import Done, Hold, Jobs, Later, LeasedJob, Outcome, Park, Retry
from broker.matching import OAuthAppMatch, OAuthAppUnmatched
from broker.models import CleanUp, ConnectedAccount, ImportState
from broker.oauth import Grant
from broker.providers.base import GrantIncomplete
from broker.secret import digest
from broker.sequin import Credential, Sequin
from broker.vault import Vault
from broker.verification import CredentialOverwritten

SEND_SECONDS = TOTAL_SECONDS
"""Total time for one import, from before the last look at the lease."""
HOLD_SECONDS = 15.0
"""How often a delivery that waits for a setting looks again."""
OAUTH_APP_FIELD = "oauth_app_id"
"""What Sequin calls the field in a refusal that is about the OAuth app and not about this delivery."""

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)

# Built once: every import runs them, and building a statement costs more than running it.
_ENDED = sa.select(sa.func.coalesce(_connections.c.disconnected_at, _connections.c.revoked_at)).where(
    _connections.c.id == sa.bindparam("key")
)
_RECORD = (
    sa.update(_connections)
    # A reconnect meanwhile: an outcome speaks of the token before it.
    .where(_connections.c.id == sa.bindparam("key"), _connections.c.token_version == sa.bindparam("of_version"))
    .returning(_connections)
)


@dataclass(frozen=True)
class _Import:
    """Everything one import sends, read in one go."""

    oauth_app_id: str
    name: str
    properties: dict[str, object] = field(repr=False)
    metadata: dict[str, object]
    metadata_digest: str


class Deliveries:
    """Runs import jobs."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        vault: Vault,
        sequin: Sequin,
        match: OAuthAppMatch,
        jobs: Jobs,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._sequin = sequin
        self._match = match
        self._jobs = jobs

    def run(self, job: LeasedJob) -> Outcome:
        """Import the connection a job speaks of, record the outcome with the job, and return it."""
        row = connected_row(self._database, job.subject_id)
        if row is None or row.account_id is None or (row.disconnected_at or row.revoked_at) is not None:
            return self._record(job, row, Done(), None, None)
        try:
            sending = self._prepare(row)
            began = self._clock.monotonic()
            if not self._may_send(job, row):
                return Done()
        except BrokerError as failure:
            return self._record(job, row, self._judge(failure), None, None)
        try:
            credential = self._sequin.import_credential(
                properties=sending.properties,
                oauth_app_id=sending.oauth_app_id,
                name=sending.name,
                # An unchanged one is left out, so that what the host changed in Sequin since is not undone.
                metadata=None if row.metadata_digest == sending.metadata_digest else sending.metadata,
                # From before the last look at the lease: who was paused since then sends nothing any more.
                deadline=SEND_SECONDS - (self._clock.monotonic() - began),
            )
        except BrokerError as failure:
            return self._record(job, row, self._judge(failure), None, None, may_have_arrived=_may_arrive(failure))
        return self._record(job, row, Done(), credential, sending, may_have_arrived=True)

    def failed(self, job: LeasedJob, outcome: Outcome) -> None:
        """Record a failure nobody foresaw on the job and on its connection, so that both tell the same."""
        self._record(job, connected_row(self._database, job.subject_id), outcome, None, None)

    def _may_send(self, job: LeasedJob, row: Row[Any]) -> bool:
        """Look once more right before sending: preparing may have taken a call to Sequin.

        False when somebody else has the job, or when the connection was ended meanwhile, which takes the job back.
        """
        with self._database.look() as connection:
            is_covered = self._jobs.covers(connection, job)
            ended_at = connection.execute(_ENDED, {"key": row.id}).scalar_one_or_none()
        if ended_at is not None:
            self._record(job, row, Done(), None, None)
            return False
        return is_covered or self._jobs.renew(job)

    def _prepare(self, row: Row[Any]) -> _Import:
        app = self._apps.get(row.app_key)
        metadata = dict(row.host_metadata) | {"broker_connection_id": row.ref, "end_user_id": row.external_id}
        return _Import(
            oauth_app_id=self._match.sequin_id(app),
            name=row.account_name,
            properties=app.provider.properties(app.config, account_of(row), self._grant(app, row)),
            metadata=metadata,
            metadata_digest=digest(json.dumps(metadata, sort_keys=True)),
        )

    def _grant(self, app: OfferedApp, row: Row[Any]) -> Grant | None:
        if row.grant_sealed is None or not app.provider.import_needs_grant:
            return None
        return Grant.from_json(self._vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version)))

    def _judge(self, failure: BrokerError) -> Outcome:
        """Classify a failure once: it may pass, a setting must be mended, or a person must look."""
        if isinstance(failure, SequinRefused):
            # The refusal may be about the OAuth app: look it up afresh the next time.
            self._match.forget()
            if OAUTH_APP_FIELD in failure.fields:
                return Hold(failure.code, failure.detail, HOLD_SECONDS)
            return Park(failure.code, failure.detail)
        if isinstance(failure, Unreadable | GrantIncomplete):
            return Park(failure.code, failure.detail)
        if isinstance(failure, DatabaseUnavailable):
            return Retry(failure.code, failure.detail)
        if isinstance(failure, OAuthAppUnmatched | AppUnknown) or failure.verdict is Verdict.CONFIGURATION:
            return Hold(failure.code, failure.detail, HOLD_SECONDS)
        after = failure.retry_after if isinstance(failure, SequinError) else None
        return Retry(failure.code, failure.detail, after)

    def _record(
        self,
        job: LeasedJob,
        row: Row[Any] | None,
        outcome: Outcome,
        credential: Credential | None,
        sent: _Import | None,
        *,
        may_have_arrived: bool = False,
    ) -> Outcome:
        """Commit the outcome on the job and on the connection together, or neither."""
        now = self._clock.now()
        with self._database.write() as connection:
            # Asked once, so that job and connection are parked together.
            judged_at = self._database.now(connection)
            if not self._jobs.settle(connection, job, outcome, now=judged_at):
                # Somebody else has this job. If we sent, what Sequin holds may be ours: let the latest token go again.
                if may_have_arrived and row is not None:
                    self._put_right(connection, row, credential)
                log.warning("delivery.lease_lost", connection=row.ref if row else None)
                return outcome
            if row is None:
                return outcome
            gives_up = self._jobs.gives_up(job, judged_at)
            values = self._after(row, outcome, credential, sent, gives_up=gives_up)
            if values:
                values |= {"key": row.id, "of_version": row.token_version}
                changed = connection.execute(_RECORD, values).one_or_none()
                if changed is not None:
                    # A renewed token goes the same way, and is nobody's news.
                    news = credential is not None and (row.imported_at is None or row.credential_id != credential.id)
                    what = EventType.IMPORTED if news else None
                    events.changed_row(connection, changed, row.external_id, at=now, what=what)
            if credential is not None:
                self._jobs.enqueue(connection, "verify", row.id, now=judged_at)
                audit.record(
                    connection, at=now, actor_kind="worker", actor="import", action="connection.imported",
                    target=row.ref, detail={"credential": credential.id},
                )  # fmt: skip
        self._tell(row, outcome)
        return outcome

    def _put_right(self, connection: Connection, late: Row[Any], credential: Credential | None) -> None:
        """Follow up what may have arrived in Sequin too late: the latest token goes again, what was ended goes away.

        `late` is the connection as it was sent; `credential` what Sequin answered, None where that was lost.
        """
        # Sequin knows a credential by its account, and the account may be somebody else's by now.
        names = ("id", "ref", "app_key", "disconnected_at", "revoked_at", "credential_id", "token_version")
        shown: list[sa.ColumnElement[Any]] = [_connections.c[name] for name in names]
        shown.append(_connections.c.grant_sealed.is_not(None).label("holds_grant"))
        found = connection.execute(
            sa.select(*shown).where(
                sa.or_(
                    _connections.c.id == late.id,
                    sa.and_(
                        _connections.c.app_key == late.app_key,
                        _connections.c.account_id == late.account_id,
                        _connections.c.mode == late.mode,
                        _connections.c.disconnected_at.is_(None),
                    ),
                )
            )
        ).all()
        for row in found:
            if row.disconnected_at is not None:
                self._remove_again(connection, row, credential)
            elif row.revoked_at is None:
                self._send_again(connection, row, late)

    def _send_again(self, connection: Connection, row: Row[Any], late: Row[Any]) -> None:
        """Let a connection's token go once more after something else may have taken its place."""
        now = self._clock.now()
        is_same = (row.id, row.token_version) == (late.id, late.token_version)
        values: dict[str, object] = {}
        if row.holds_grant or not self._apps.get(row.app_key).provider.import_needs_grant:
            self._jobs.enqueue(connection, "import", row.id)
            # Not verified any more: until then nothing may be erased.
            values = {"import_state": ImportState.PENDING, "verified_at": None}
        elif not is_same:
            # Sequin shows no secrets, so that no check could tell.
            found = CredentialOverwritten()
            values = {
                "import_state": ImportState.PARKED, "import_error": found.code, "import_error_detail": found.sentence,
                "health": "error", "health_note": f"{found.sentence} {found.cure}", "drift": found.code,
                "drifted_at": now, "checked_at": now,
            }  # fmt: skip
            log.error("delivery.overwritten", connection=row.ref, by=late.ref, cure=found.cure)
        if row.id != late.id:
            # The late one has put its own there.
            values["metadata_digest"] = None
        if values:
            connection.execute(
                sa.update(_connections).where(_connections.c.id == row.id).values(updated_at=now, **values)
            )
            events.changed(connection, row.id, at=now)

    def _remove_again(self, connection: Connection, row: Row[Any], credential: Credential | None) -> None:
        """Let what was ended be taken away once more; where its id is not known, it is looked for."""
        self._jobs.enqueue(connection, "remove", row.id)
        values: dict[str, object] = {"removal": CleanUp.PENDING}
        if credential is None:
            values["import_state"] = ImportState.PENDING
        else:
            values["credential_id"] = credential.id
            if row.credential_id not in (None, credential.id):
                values["superseded_credential_id"] = row.credential_id
        connection.execute(
            sa.update(_connections)
            .where(_connections.c.id == row.id, _connections.c.disconnected_at.is_not(None))
            .values(**values)
        )

    def _after(
        self,
        row: Row[Any],
        outcome: Outcome,
        credential: Credential | None,
        sent: _Import | None,
        *,
        gives_up: bool,
    ) -> dict[str, object]:
        now = self._clock.now()
        if credential is not None and sent is not None:
            replaced = row.credential_id if row.credential_id not in (None, credential.id) else None
            return {
                "superseded_credential_id": replaced or row.superseded_credential_id,
                "import_state": ImportState.IMPORTED.value, "import_error": None, "import_error_detail": None,
                "credential_id": credential.id, "sequin_oauth_app_id": sent.oauth_app_id,
                "imported_at": now, "metadata_digest": sent.metadata_digest, "updated_at": now,
            }  # fmt: skip
        if isinstance(outcome, Done | Later):
            return {}
        state = ImportState.PENDING
        if isinstance(outcome, Park) or (isinstance(outcome, Retry) and gives_up):
            state = ImportState.PARKED
        elif isinstance(outcome, Hold):
            state = ImportState.HELD
        return {
            "import_state": state.value, "import_error": outcome.error,
            "import_error_detail": outcome.detail[:500], "updated_at": now,
        }  # fmt: skip

    def _tell(self, row: Row[Any], outcome: Outcome) -> None:
        if isinstance(outcome, Done | Later):
            log.info("delivery.imported", connection=row.ref)
        elif isinstance(outcome, Retry):
            log.warning("delivery.retry", connection=row.ref, error=outcome.error, detail=outcome.detail)
        elif isinstance(outcome, Hold):
            # Whatever holds it holds many: the alert is the circuit's, or the match's.
            log.warning("delivery.held", connection=row.ref, error=outcome.error, detail=outcome.detail)
        else:
            log.error("delivery.parked", connection=row.ref, error=outcome.error, detail=outcome.detail)


def _may_arrive(failure: BrokerError) -> bool:
    """Tell whether an import may have been made although it failed here."""
    if isinstance(failure, NetworkError):
        return failure.sent
    return isinstance(failure, SequinError) and failure.verdict is Verdict.RETRY
