"""Disconnecting: the connection ends here at once, then at the provider and in Sequin, each retried until done.

What ends it wins: the import and its verification are taken back in the same transaction, and their late outcomes
are discarded. What still has to be done stands on the connection, where everybody sees it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import grant_binding
from broker.audit import Actor
from broker.circuits import CircuitOpen, Circuits
from broker.clock import Clock
from broker.connected import account_of, connected_row
from broker.connections import ConnectionUnknown
from broker.db import Database, table
from broker.errors import AppUnknown, BrokerError, SequinRefused, Verdict
from broker.events import EventType
from broker.http import TOTAL_SECONDS, Http
from broker.jobs import LEASE_SECONDS, LONGEST_RETRY_SECONDS, Done, Hold, Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import Claim, CleanUp, ConnectedAccount, ImportState
from broker.oauth import Grant
from broker.providers.base import RevocationRefused, calls_within
from broker.sequin import Sequin
from broker.text import storable
from broker.vault import Vault

REVOKE_SECONDS = 12.0
"""Total time for all calls that end one grant at the provider."""
LANDED_AFTER = timedelta(seconds=LEASE_SECONDS + TOTAL_SECONDS)
"""After this no import that was under way at the disconnect can arrive any more: its lease and its call are over."""
HOLD_SECONDS = 15.0
"""How often work that waits for a setting looks again."""
RENEW_EVERY = 500
SEARCH_SECONDS = 600.0

log = structlog.get_logger(__name__)

_claims = table(Claim)
_connections = table(ConnectedAccount)


class _LeaseLost(Exception):
    """Somebody else has the job, or it was taken back: whatever was to be recorded is not."""


@dataclass(frozen=True)
class Effect:
    """What disconnecting will do besides ending the connection here, for the page that asks."""

    # Another connection uses the same account, so that access at the provider stays.
    is_shared: bool
    # Whether access at the provider is ended by us.
    ends_access: bool
    # What stays at the provider until its owner removes it there; empty where nothing does.
    stays: str


class Disconnections:
    """Ends connections, and runs the jobs that finish it."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        vault: Vault,
        http: Http,
        sequin: Sequin,
        jobs: Jobs,
        circuits: Circuits,
    ) -> None:
        self._circuits = circuits
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._http = http
        self._sequin = sequin
        self._jobs = jobs

    # --- asking for it ---------------------------------------------------------------------------------

    def effect(self, ref: str) -> Effect:
        """Return what disconnecting would do. Raises ConnectionUnknown."""
        with self._database.read() as connection:
            row = _row(connection, ref)
            is_shared = row.account_id is not None and _others_use_account(connection, row)
        if row.account_id is None:
            return Effect(is_shared=False, ends_access=False, stays="your request to the owners")
        app = self._app(row)
        provider = app.provider if app else None
        ends = provider is not None and provider.revoke is not None and not is_shared
        stays = provider.stays(app.config) if app and provider and provider.stays else ""
        return Effect(is_shared, ends, stays)

    def request(self, ref: str, *, actor: Actor) -> None:
        """End a connection; repeating it changes nothing. Raises ConnectionUnknown."""
        # Somebody else ended it, or an owner approved it, between our look and our change: then the next look tells.
        while not self._request(ref, actor):
            continue
        self._jobs.wakeup.set()

    def _request(self, ref: str, actor: Actor) -> bool:
        with self._database.write() as connection:
            ended = self.request_with(connection, ref, actor=actor)
            if ended is None:
                connection.rollback()
                return False
        return True

    def request_with(self, connection: Connection, ref: str, *, actor: Actor) -> bool | None:
        """End a connection in the caller's transaction. Raises ConnectionUnknown.

        False when it had ended before. None when it was changed meanwhile: the caller then rolls back and asks again.
        """
        row = _row(connection, ref)
        if row.disconnected_at is not None:
            return False
        if not self._end(connection, row, actor):
            return None
        log.info("connection.disconnected", connection=ref, by=actor.kind)
        return True

    def _end(self, connection: Connection, row: Row[Any], actor: Actor) -> bool:
        now = self._clock.now()
        if row.account_id is None:
            return self._end_waiting(connection, row, actor)
        app = self._app(row)
        # An app that is not configured now may be again: until then its part waits.
        revokes = app is None or app.provider.revoke is not None
        needs_grant = app is None or (revokes and app.provider.revoke_needs_grant)
        # Jobs before the connection, as the worker takes them, and in the order of `attach`: no deadlock.
        if revokes:
            self._jobs.enqueue(connection, "revoke", row.id)
        self._jobs.enqueue(connection, "remove", row.id)
        was_importing = self._jobs.take_back(connection, "import", row.id) is not None
        for kind in ("verify", "refresh", "probe"):
            self._jobs.cancel(connection, kind, row.id)
        values: dict[str, object] = {
            "disconnected_at": now,
            "updated_at": now,
            "revocation": CleanUp.PENDING if revokes else CleanUp.NOT_NEEDED,
            "removal": CleanUp.PENDING,
        }
        if was_importing:
            # Says to the removal that Sequin may come to hold something whose id nobody has recorded.
            values["import_state"] = ImportState.PENDING
        if not needs_grant:
            values["grant_sealed"] = None
        changed = connection.execute(
            sa.update(_connections)
            .where(_connections.c.id == row.id, _connections.c.disconnected_at.is_(None))
            .values(**values)
        ).rowcount
        audit.record(
            connection, at=now, actor_kind=actor.kind, actor=actor.name, action="connection.disconnected",
            target=row.ref, detail={"app": row.app_key, "account": row.account_id, "mode": row.mode},
        )  # fmt: skip
        if not changed:
            return False
        events.changed(connection, row.id, at=now, what=EventType.DISCONNECTED)
        return True

    def _end_waiting(self, connection: Connection, row: Row[Any], actor: Actor) -> bool:
        """End what waits for an owner's approval: nothing was given, so that nothing is left to do."""
        now = self._clock.now()
        self._jobs.cancel(connection, "approval", row.id)
        changed = connection.execute(
            sa.update(_connections)
            # Approved meanwhile: then it is a connection, and ending that takes more.
            .where(
                _connections.c.id == row.id,
                _connections.c.account_id.is_(None),
                _connections.c.disconnected_at.is_(None),
            )
            .values(
                disconnected_at=now, updated_at=now, revocation=CleanUp.NOT_NEEDED, removal=CleanUp.NOT_NEEDED,
            )
        ).rowcount  # fmt: skip
        audit.record(
            connection, at=now, actor_kind=actor.kind, actor=actor.name, action="connection.disconnected",
            target=row.ref, detail={"app": row.app_key, "requester": row.requester_id},
        )  # fmt: skip
        if not changed:
            return False
        events.changed(connection, row.id, at=now, what=EventType.DISCONNECTED)
        return True

    def _app(self, row: Row[Any]) -> OfferedApp | None:
        return self._apps.get(row.app_key) if row.app_key in self._apps else None

    # --- at the provider -------------------------------------------------------------------------------

    def run_revoke(self, job: LeasedJob) -> Outcome:
        """End at the provider what a connection was given, record the outcome with the job, and return it."""
        row = connected_row(self._database, job.subject_id)
        if row is None or row.disconnected_at is None or row.revocation != CleanUp.PENDING:
            return self._settle(job, Done())
        try:
            if not self._jobs.renew(job):
                return Done()
            end = self._revoke(row)
        except RevocationRefused as failure:
            log.warning("revocation.refused", connection=row.ref, detail=failure.detail)
            end = CleanUp.REFUSED
        except BrokerError as failure:
            return self._settle(job, self._judge(job, row, failure))
        return self._revoked(job, row, end)

    def _revoke(self, row: Row[Any]) -> CleanUp:
        """Raises AppUnknown, Unreadable, CircuitOpen, NetworkError and the errors of the providers."""
        app = self._apps.get(row.app_key)
        # Looked at under our lease: a connection made since would have seen it, and waited (`attach`).
        with self._database.read() as connection:
            if app.provider.revoke is None or _others_use_account(connection, row):
                return CleanUp.NOT_NEEDED
        call = calls_within(self._http, REVOKE_SECONDS)
        grant = self._grant(row) if app.provider.revoke_needs_grant else None
        with self._circuits.through(app.key):
            ended = app.provider.revoke(app.config, account_of(row), grant, call, self._clock.now())
        return CleanUp.DONE if ended else CleanUp.NOT_NEEDED

    def _grant(self, row: Row[Any]) -> Grant | None:
        if row.grant_sealed is None:
            return None
        return Grant.from_json(self._vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version)))

    def _revoked(self, job: LeasedJob, row: Row[Any], end: CleanUp) -> Outcome:
        outcome = Done()
        with self._database.write() as connection:
            if not self._jobs.settle(connection, job, outcome):
                return outcome
            # Nothing needs the grant any more.
            self._note(connection, row, {"revocation": end, "grant_sealed": None})
            self._audit(connection, row, "revoke", "connection.revoked", end)
        log.info("revocation.ended", connection=row.ref, end=end.value)
        return outcome

    # --- in Sequin -------------------------------------------------------------------------------------

    def run_remove(self, job: LeasedJob) -> Outcome:
        """Delete what Sequin holds of a connection, record the outcome with the job, and return it."""
        row = connected_row(self._database, job.subject_id)
        if row is None or row.disconnected_at is None or row.removal != CleanUp.PENDING:
            return self._settle(job, Done())
        landing = row.disconnected_at + LANDED_AFTER - self._clock.now()
        may_land = row.import_state != ImportState.IMPORTED
        try:
            # What is known goes now; once nothing can arrive any more, it goes again with what arrived meanwhile.
            search = may_land and landing <= timedelta(0)
            end = self._remove(job, row, search=search)
        except _LeaseLost:
            return Done()
        except BrokerError as failure:
            return self._settle(job, self._judge(job, row, failure))
        if may_land and not search:
            return self._settle(job, Later(landing.total_seconds()))
        return self._removed(job, row, end)

    def _remove(self, job: LeasedJob, row: Row[Any], *, search: bool) -> CleanUp:
        """Raises SequinError, NetworkError or _LeaseLost."""
        known = [row.credential_id, row.superseded_credential_id]
        found = dict.fromkeys([each for each in known if each is not None])
        if search:
            found |= dict.fromkeys(self._strays(job, row))
        end = CleanUp.NOT_NEEDED
        for credential_id in found:
            self._hold_on(job)
            with self._database.read() as connection:
                if _others_hold(connection, row, credential_id):
                    continue
            # One that is gone already is as good as deleted.
            self._sequin.delete_credential(credential_id)
            end = CleanUp.DONE
        return end

    def _strays(self, job: LeasedJob, row: Row[Any]) -> Iterator[str]:
        """Yield what an import has left in Sequin whose answer never came; only its metadata says whose it is."""
        for number, credential in enumerate(self._sequin.credentials(deadline=SEARCH_SECONDS)):
            if number % RENEW_EVERY == 0:
                self._hold_on(job)
            if credential.metadata.get("broker_connection_id") == row.ref:
                yield credential.id

    def _hold_on(self, job: LeasedJob) -> None:
        if not self._jobs.renew(job):
            raise _LeaseLost

    def _removed(self, job: LeasedJob, row: Row[Any], end: CleanUp) -> Outcome:
        try:
            with self._database.write() as connection:
                # The claim first, as `attach` takes it: the other order could deadlock.
                _release(connection, row)
                if not self._jobs.settle(connection, job, Done()):
                    raise _LeaseLost
                gone = {"credential_id": None, "superseded_credential_id": None, "metadata_digest": None}
                self._note(connection, row, {"removal": end, **gone})
                self._audit(connection, row, "remove", "connection.removed", end)
        except _LeaseLost:
            self._put_right(row)
            return Done()
        log.info("removal.ended", connection=row.ref, end=end.value)
        return Done()

    def _put_right(self, row: Row[Any]) -> None:
        """Follow up a deletion that was overtaken by a reconnect: what it deleted may be what the import had made."""
        with self._database.write() as connection:
            now_live = sa.select(_connections.c.grant_sealed).where(
                _connections.c.id == row.id, _connections.c.disconnected_at.is_(None)
            )
            found = connection.execute(now_live).one_or_none()
            if found is None:
                return
            app = self._app(row)
            can_import = found.grant_sealed is not None or (app is not None and not app.provider.import_needs_grant)
            # Without the token a check at least tells the truth.
            self._jobs.enqueue(connection, "import" if can_import else "verify", row.id)
        log.warning("removal.overtaken", connection=row.ref)

    # --- recording -------------------------------------------------------------------------------------

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome

    def _note(self, connection: Connection, row: Row[Any], values: dict[str, object]) -> None:
        connection.execute(
            sa.update(_connections)
            # A reconnect meanwhile: this speaks of what was there before.
            .where(
                _connections.c.id == row.id,
                _connections.c.token_version == row.token_version,
                _connections.c.disconnected_at.is_not(None),
            )
            .values(updated_at=self._clock.now(), **values)
        )

    def _audit(self, connection: Connection, row: Row[Any], actor: str, action: str, end: CleanUp) -> None:
        audit.record(
            connection, at=self._clock.now(), actor_kind="worker", actor=actor, action=action, target=row.ref,
            detail={"outcome": end.value},
        )  # fmt: skip

    def _judge(self, job: LeasedJob, row: Row[Any], failure: BrokerError) -> Outcome:
        """Classify a failure once: it may pass, or somebody must mend something. Neither is ever given up (`Jobs`)."""
        # What waits for a circuit is no event of its own: opening it was the one alert.
        write = log.debug if isinstance(failure, CircuitOpen) else log.warning
        write("cleanup.failed", kind=job.kind, connection=row.ref, error=failure.code, detail=failure.detail)
        if isinstance(failure, CircuitOpen):
            return Hold(failure.code, failure.detail, failure.retry_after)
        if isinstance(failure, SequinRefused):
            # Such as a credential that a sync still uses: somebody has to look in Sequin.
            return Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS)
        if isinstance(failure, AppUnknown) or failure.verdict is Verdict.CONFIGURATION:
            return Hold(failure.code, failure.detail, HOLD_SECONDS)
        return Retry(failure.code, failure.detail, getattr(failure, "retry_after", None))


def _row(connection: Connection, ref: str) -> Row[Any]:
    row = None
    if storable(ref):
        row = connection.execute(sa.select(_connections).where(_connections.c.ref == ref)).one_or_none()
    if row is None:
        raise ConnectionUnknown
    return row


def _others_use_account(connection: Connection, row: Row[Any]) -> bool:
    """Tell whether another live connection reaches the same account: ending access there would end it for both."""
    return _live_others(
        connection,
        row,
        _connections.c.app_key == row.app_key,
        _connections.c.account_id == row.account_id,
        _connections.c.mode == row.mode,
    )


def _others_hold(connection: Connection, row: Row[Any], credential_id: str) -> bool:
    """Tell whether another live connection stands on the same credential."""
    return _live_others(connection, row, _connections.c.credential_id == credential_id)


def _live_others(connection: Connection, row: Row[Any], *which: sa.ColumnElement[bool]) -> bool:
    query = sa.select(_connections.c.id).where(
        *which, _connections.c.id != row.id, _connections.c.disconnected_at.is_(None)
    )
    return connection.execute(query.limit(1)).first() is not None


def _release(connection: Connection, row: Row[Any]) -> None:
    """Let somebody else connect the account.

    Not before the removal is over: Sequin's import is an upsert by account, so that it would hand the new owner the
    very credential which the late deletion then takes away.
    """
    connection.execute(
        sa.delete(_claims).where(
            _claims.c.app_key == row.app_key,
            _claims.c.account_id == row.account_id,
            _claims.c.mode == row.mode,
            _claims.c.end_user_id == row.end_user_id,
        )
    )
