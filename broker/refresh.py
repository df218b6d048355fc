"""Refreshing the grants that the broker still holds, so that a refresh token is never burned by us.

Three things keep two processes from spending one refresh token: the job's lease decides who tries, a right that ends
only with the process (`Database.alone`) keeps the next one out for as long as the first may still act, and the
connection's token version decides whose result counts. The rotated token is committed before anything else happens,
whatever became of the lease meanwhile.

What no client can prevent: a process that dies between the provider's rotation and our commit takes the new token
with it. That a refresh is under way is therefore committed before the request; whoever finds such a mark tries the old
token once and, when it is refused, says honestly that the connection was interrupted.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import grant_binding
from broker.circuits import Circuits, app_circuit
from broker.clock import Clock
from broker.connected import connected_row
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import (
    AppUnknown,
    BrokerError,
    ClientRefused,
    GrantRefused,
    NetworkError,
    OAuthFailure,
    OAuthUnavailable,
    Unreadable,
    UnusableAnswer,
)
from broker.jobs import LONGEST_RETRY_SECONDS, Done, Hold, Jobs, Later, LeasedJob, Outcome, Park, Retry
from broker.models import CleanUp, ConnectedAccount
from broker.oauth import Grant, OAuth
from broker.secret import Secret
from broker.status import TROUBLES
from broker.vault import Vault

REFRESH_SECONDS = 10.0
"""Total time for one refresh; well under a lease, so that nobody takes over what may still be sent."""
TURN_SECONDS = 1.0
"""How long a thread waits for another one's call of the same app before it does something else."""
BUSY_SECONDS = 5.0
"""How soon to look again while another process, perhaps a paused one, may still bring the new token."""
PAUSED_AT_MOST = timedelta(minutes=10)
"""After this the connection is not left without a token any longer for the sake of a process that never wakes."""
LIMITS = frozenset({"http_429", "rate_limit", "slow_down"})
"""Answers that say no before anything was looked at."""
COMMIT_PAUSES = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Seconds between tries to commit a rotated token: it exists nowhere else."""

FAILING = "refresh_failing"

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_NOT_DISCONNECTED = _connections.c.disconnected_at.is_(None)


def _while(which: sa.ColumnElement[bool]) -> sa.Update:
    """Return the change of a connection for as long as its token is still the one that was read."""
    current = (_connections.c.id == sa.bindparam("key"), _connections.c.token_version == sa.bindparam("of_version"))
    return sa.update(_connections).where(*current, which)


def _recovered() -> dict[str, sa.ColumnElement[Any]]:
    """Return what a renewed token takes back of its trouble, and of nothing else."""
    was_failing = _connections.c.trouble == FAILING
    return {
        # The check that follows the import says how it stands now.
        name: sa.case((was_failing, sa.null()), else_=_connections.c[name])
        for name in ("trouble", "health", "health_note", "failing_since")
    }


_NOW = sa.bindparam("now", type_=_connections.c.updated_at.type)

# Built once: every refresh runs them, and building a statement costs more than running it.
_BEGIN = (
    _while(_NOT_DISCONNECTED)
    .values(refreshing_since=sa.func.coalesce(_connections.c.refreshing_since, _NOW))
    .returning(_connections.c.id)
)
_CHANGE = _while(_NOT_DISCONNECTED).returning(_connections)
_CHANGE_FAILING = _CHANGE.values(failing_since=sa.func.coalesce(_connections.c.failing_since, _NOW))
_RENEW = (
    _while(sa.and_(_NOT_DISCONNECTED, _connections.c.revoked_at.is_(None)))
    .values(**_recovered())
    .returning(_connections)
)
_RENEW_ENDED = _while(_connections.c.disconnected_at.is_not(None)).returning(_connections)


class Refreshes:
    """Runs refresh jobs."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        vault: Vault,
        oauth: OAuth,
        circuits: Circuits,
        jobs: Jobs,
        jitter: Callable[[], float] = random.random,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._oauth = oauth
        self._circuits = circuits
        self._jobs = jobs
        self._jitter = jitter
        self._pause = pause
        self._turns: dict[str, threading.Lock] = {}
        self._turns_lock = threading.Lock()

    def run(self, job: LeasedJob) -> Outcome:
        """Refresh the grant of the connection a job speaks of, record the outcome, and return it."""
        with self._database.alone(job.subject_id) as alone:
            # Read when alone: whoever was so before may have refreshed it.
            row = connected_row(self._database, job.subject_id)
            if row is None or not _refreshable(row):
                return self._settle(job, Done())
            try:
                app = self._apps.get(row.app_key)
            except AppUnknown as failure:
                return self._settle(job, Hold(failure.code, failure.detail))
            if not app.refreshes:
                return self._settle(job, Done())
            if not alone and not self._has_waited_long(row):
                return self._settle(job, Later(BUSY_SECONDS))
            return self._refresh(job, app, row)

    def _has_waited_long(self, row: Row[Any]) -> bool:
        return row.refreshing_since is not None and row.refreshing_since < self._clock.now() - PAUSED_AT_MOST

    def _refresh(self, job: LeasedJob, app: OfferedApp, row: Row[Any]) -> Outcome:
        try:
            grant = Grant.from_json(self._vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version)))
        except Unreadable as failure:
            return self._settle(job, Park(failure.code, failure.detail))
        if grant.refresh_token is None:
            return self._settle(job, Done())
        with self._one_call(app) as free:
            if not free:
                return self._settle(job, Later(TURN_SECONDS))
            wait = self._circuits.admit(app_circuit(app.key))
            if wait is not None:
                return self._settle(job, self._held_back(app, wait))
            if not self._begin(job, row):
                return Done()
            try:
                answer = self._ask(app, grant.refresh_token)
                received_at = self._clock.now()
            except (OAuthFailure, NetworkError, UnusableAnswer) as failure:
                return self._failed(job, row, failure)
        return self._keep(job, app, row, grant, answer, received_at)

    @contextmanager
    def _one_call(self, app: OfferedApp) -> Iterator[bool]:
        """Let one refresh of an app be under way in this process; False when that takes longer than a turn.

        A registration that is refused all of a sudden is then told by as many calls as there are processes.
        """
        with self._turns_lock:
            turn = self._turns.setdefault(app.key, threading.Lock())
        free = turn.acquire(timeout=TURN_SECONDS)
        try:
            yield free
        finally:
            if free:
                turn.release()

    def _ask(self, app: OfferedApp, refresh_token: Secret) -> Mapping[str, object]:
        with self._circuits.watching(app_circuit(app.key)):
            return self._oauth.refresh(
                app.provider.profile(app.config), refresh_token=refresh_token, deadline=REFRESH_SECONDS
            )

    # --- before the request ----------------------------------------------------------------------------

    def _begin(self, job: LeasedJob, row: Row[Any]) -> bool:
        """Commit that this token version is being refreshed; False when somebody else has the job or the token."""
        with self._database.write() as connection:
            if not self._jobs.renew_with(connection, job):
                return False
            which = {"key": row.id, "of_version": row.token_version, "now": self._clock.now()}
            begun = connection.execute(_BEGIN, which).one_or_none()
            if begun is None:
                # Reconnected or disconnected meanwhile; whatever did that has said what this job is to do.
                self._jobs.settle(connection, job, Done())
        return begun is not None

    def _held_back(self, app: OfferedApp, wait: float) -> Hold:
        circuit = self._circuits.look(app_circuit(app.key))
        # Spread out, so that they do not all look at the same moment; closing the circuit makes them due at once.
        seconds = wait * (1 + self._jitter())
        if circuit is None:
            return Hold("provider_unavailable", "", seconds)
        return Hold(circuit.error, circuit.detail, seconds)

    # --- after it --------------------------------------------------------------------------------------

    def _keep(
        self,
        job: LeasedJob,
        app: OfferedApp,
        row: Row[Any],
        old: Grant,
        answer: Mapping[str, object],
        received_at: datetime,
    ) -> Outcome:
        """Commit what the provider gave, whatever became of the lease: the old token may be worth nothing now."""
        problem: UnusableAnswer | None = None
        try:
            life = app.provider.profile(app.config).access_seconds
            grant = old.renewed(answer, received_at=received_at, access_seconds=life)
        except UnusableAnswer as failure:
            problem, grant = failure, _salvaged(old, answer)
        outcome = Retry(problem.code, problem.detail) if problem is not None else self._next(grant)
        sealed = self._vault.seal(grant.to_json(), grant_binding(row.ref, row.token_version + 1))
        for pause in (*COMMIT_PAUSES, None):
            try:
                kept = self._commit(job, row, grant, sealed, outcome)
                break
            except DatabaseUnavailable:
                if pause is None:
                    log.error("refresh.token_lost", connection=row.ref, cure=DatabaseUnavailable.cure)
                    raise
                self._pause(pause)
        if not kept:
            log.warning("refresh.overtaken", connection=row.ref)
        elif problem is not None:
            log.warning("refresh.unusable_answer", connection=row.ref, detail=problem.detail)
        else:
            log.info("refresh.done", connection=row.ref)
            self._jobs.wakeup.set()
        return outcome

    def _commit(self, job: LeasedJob, row: Row[Any], grant: Grant, sealed: bytes, outcome: Outcome) -> bool:
        """Keep the renewed grant and have it imported; False when a reconnect has replaced it."""
        values: dict[str, object] = {
            "grant_sealed": sealed, "token_version": row.token_version + 1, "scopes": list(grant.scopes),
            "grant_expires_at": grant.expires_at, "refresh_expires_at": grant.refresh_expires_at,
            "refreshing_since": None,
        }  # fmt: skip
        now = self._clock.now()
        with self._database.write() as connection:
            judged_at = self._database.now(connection)
            # Jobs before the connection, in everybody's order.
            self._jobs.enqueue(connection, "import", row.id, now=judged_at)
            self._jobs.settle(connection, job, outcome, now=judged_at)
            if _changed(connection, _RENEW, row, values, now):
                return True
            connection.rollback()
        with self._database.write() as connection:
            # Disconnected meanwhile: what has just come to life has to be ended too.
            self._jobs.enqueue(connection, "revoke", row.id)
            self._jobs.settle(connection, job, Done())
            if _changed(connection, _RENEW_ENDED, row, values | {"revocation": CleanUp.PENDING.value}, now):
                return True
            connection.rollback()
        self._settle(job, Done())
        return False

    def _failed(self, job: LeasedJob, row: Row[Any], failure: BrokerError) -> Outcome:
        if isinstance(failure, GrantRefused):
            return self._refused(job, row, failure)
        spent = _may_be_spent(failure)
        if isinstance(failure, ClientRefused):
            outcome: Outcome = Hold(failure.code, failure.detail, BUSY_SECONDS * (1 + self._jitter()))
        elif self._jobs.gives_up(job, self._clock.now()):
            # A connection without a working token is never given up.
            outcome = Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS)
        else:
            outcome = Retry(failure.code, failure.detail, getattr(failure, "retry_after", None))
        now = self._clock.now()
        # A mark from an earlier try stays: that one may still have spent it.
        unmarks = not spent and row.refreshing_since is None
        values: dict[str, object] = {"refreshing_since": None} if unmarks else {}
        change = _CHANGE
        if row.grant_expires_at is not None and row.grant_expires_at <= now:
            # So a connection tells that its token has ended and could not be renewed.
            change = _CHANGE_FAILING
            values |= {"trouble": FAILING, "health": "error", "health_note": TROUBLES[FAILING].operator, "now": now}
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
            if values:
                _changed(connection, change, row, values, now)
        log.warning("refresh.failed", connection=row.ref, error=failure.code, detail=failure.detail, sent=spent)
        return outcome

    def _refused(self, job: LeasedJob, row: Row[Any], failure: GrantRefused) -> Outcome:
        """The provider does not take the refresh token, and nobody has replaced it: the person must connect again."""
        now = self._clock.now()
        # An earlier try was cut off: most likely it was that one which spent the token.
        interrupted = row.refreshing_since is not None
        column = "interrupted_at" if interrupted else "revoked_at"
        with self._database.write() as connection:
            self._jobs.settle(connection, job, Done())
            if not _changed(connection, _CHANGE, row, {column: now, "refreshing_since": None}, now):
                return Done()
            audit.record(
                connection, at=now, actor_kind="worker", actor="refresh", target=row.ref,
                action="connection.interrupted" if interrupted else "connection.revoked_by_provider",
                detail={"error": failure.code},
            )  # fmt: skip
        event = "refresh.interrupted" if interrupted else "refresh.grant_gone"
        log.warning(event, connection=row.ref, error=failure.code, detail=failure.detail)
        return Done()

    def _next(self, grant: Grant) -> Outcome:
        after = grant.refresh_after(self._clock.now(), self._jitter())
        return Done() if after is None else Later(after.total_seconds())

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome


def _refreshable(row: Row[Any]) -> bool:
    ended = row.disconnected_at or row.revoked_at or row.interrupted_at
    return ended is None and row.grant_sealed is not None


def _changed(
    connection: Connection, change: sa.UpdateBase, row: Row[Any], values: Mapping[str, object], now: datetime
) -> bool:
    """Change the connection if its token is still the one in `row`."""
    about = {"key": row.id, "of_version": row.token_version, "updated_at": now, **values}
    changed = connection.execute(change, about).one_or_none()
    if changed is None:
        return False
    events.changed_row(connection, changed, row.external_id, at=now)
    return True


def _may_be_spent(failure: BrokerError) -> bool:
    """Tell whether the provider may have rotated the token although we have nothing of it."""
    if isinstance(failure, NetworkError):
        return failure.sent
    # A plain answer that says no has changed nothing; a server's own failure may have come too late for that.
    return isinstance(failure, UnusableAnswer) or (
        isinstance(failure, OAuthUnavailable) and failure.error not in LIMITS
    )


def _salvaged(old: Grant, answer: Mapping[str, object]) -> Grant:
    """Return the old grant with whatever refresh token an otherwise unusable answer holds: that must not be lost."""
    token = answer.get("refresh_token")
    if isinstance(token, str) and token.isascii() and token.isprintable() and token.strip() == token != "":
        return replace(old, refresh_token=Secret(token))
    return old
