"""Asking the providers how connected accounts are: seldom, spread out, and within their rate limits.

A webhook may never come and a token that does not expire tells nothing by itself, so every account is looked at once
in 20 hours at the latest, and at once when something hints that it has changed.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import grant_binding
from broker.circuits import Circuits, app_circuit
from broker.clock import Clock
from broker.connected import account_of, connected_row
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import AccountSuspended, AppUnknown, BrokerError, RegistrationDoubted, Unreadable, Verdict
from broker.http import Http
from broker.jobs import LONGEST_RETRY_SECONDS, Done, Hold, Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import ConnectedAccount
from broker.oauth import Grant
from broker.providers.base import AccountGone, Call, Condition, TokenRejected, calls_within
from broker.status import TROUBLES, Trouble
from broker.vault import Vault

PROBE_SECONDS = 10.0
"""Total time for all calls of one probe."""
EVERY_SECONDS = 20 * 3600.0
JITTER = 0.25
"""Probes come up to this share earlier, so that accounts connected together are not probed together for ever."""
HOLD_SECONDS = 60.0
AFTER_REFRESH_SECONDS = 30.0
LATE_SECONDS = 1.0
"""By how much a probe that was put off may come back late without losing its place."""
WITNESSES = 3
"""How many other accounts must be gone as well before it is our registration that is doubted, not the account."""

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)


class Probes:
    """Runs probe jobs."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        vault: Vault,
        http: Http,
        circuits: Circuits,
        jobs: Jobs,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._http = http
        self._circuits = circuits
        self._jobs = jobs
        self._jitter = jitter
        self._pace = Pace(clock)

    def run(self, job: LeasedJob) -> Outcome:
        """Ask about the connection a job speaks of, record what the provider said, and return the outcome."""
        row = connected_row(self._database, job.subject_id)
        if row is None or not _is_live(row):
            return self._settle(job, Done())
        try:
            app = self._apps.get(row.app_key)
            if app.provider.probe is None:
                return self._settle(job, Done())
            grant = self._grant(app, row)
        except AppUnknown as failure:
            return self._settle(job, Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS))
        except Unreadable as failure:
            return self._settle(job, Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS))
        if app.provider.probe_needs_grant and grant is None:
            # Sequin's verification is the check then.
            return self._settle(job, self._again())
        wait = self._wait(app, grant)
        if wait is not None:
            return self._settle(job, wait)
        if not self._jobs.renew(job):
            return Done()
        return self._probe(job, app, row, grant)

    def _grant(self, app: OfferedApp, row: Row[Any]) -> Grant | None:
        if row.grant_sealed is None or not app.provider.probe_needs_grant:
            return None
        return Grant.from_json(self._vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version)))

    def _wait(self, app: OfferedApp, grant: Grant | None) -> Outcome | None:
        """Return why now is not the time: the token is being renewed, the provider is away, or others go first."""
        if grant is not None and app.refreshes and grant.expires_at is not None and grant.expires_at <= self._now():
            return Later(AFTER_REFRESH_SECONDS)
        seconds = self._pace.wait(app.key, app.provider.probes_per_second)
        if seconds:
            return Later(seconds)
        closed_for = self._circuits.admit(app_circuit(app.key))
        if closed_for is not None:
            return Hold("provider_unavailable", "", closed_for * (1 + self._jitter()))
        return None

    def _probe(self, job: LeasedJob, app: OfferedApp, row: Row[Any], grant: Grant | None) -> Outcome:
        call = calls_within(self._http, PROBE_SECONDS)
        try:
            with self._circuits.watching(app_circuit(app.key)):
                found = self._ask(app, row, grant, call)
        except AccountSuspended:
            return self._troubled(job, row, "account_suspended")
        except TokenRejected as failure:
            if _can_refresh(app, grant):
                return self._refresh_first(job, row)
            return self._gone(job, row, failure)
        except AccountGone as failure:
            return self._gone(job, row, failure)
        except DatabaseUnavailable:
            raise
        except BrokerError as failure:
            return self._settle(job, self._judge(job, failure))
        return self._well(job, app, row, found)

    def _ask(self, app: OfferedApp, row: Row[Any], grant: Grant | None, call: Call) -> Condition:
        """Raises what a provider's `probe` does; RegistrationDoubted where no account is known any more."""
        assert app.provider.probe is not None
        try:
            return app.provider.probe(app.config, account_of(row), grant, call, self._now())
        except (AccountGone, TokenRejected) as failure:
            if isinstance(failure, AccountGone) or not _can_refresh(app, grant):
                self._require_witness(app, row, call)
            raise

    def _require_witness(self, app: OfferedApp, row: Row[Any], call: Call) -> None:
        """Raise RegistrationDoubted where as many other accounts as can be asked about are gone, too.

        With the key of another platform every account looks removed; to believe that would end them all.
        """
        assert app.provider.probe is not None
        gone = 0
        for other in self._witnesses(app, row):
            try:
                grant = self._grant(app, other)
                app.provider.probe(app.config, account_of(other), grant, call, self._now())
            except Unreadable:
                continue
            except AccountSuspended:
                return
            except TokenRejected:
                gone += not _can_refresh(app, grant)
            except AccountGone:
                gone += 1
            else:
                return
        if gone == WITNESSES:
            raise RegistrationDoubted(f"{app.key}: {gone + 1} accounts asked about, and not one is known")

    def _witnesses(self, app: OfferedApp, row: Row[Any]) -> Sequence[Row[Any]]:
        """Return other living connections from a place that falls anew each time.

        Were they always the same, a few that ended together would keep one another in doubt for ever.
        """
        which = [
            _connections.c.app_key == app.key,
            _connections.c.mode == row.mode,
            _connections.c.id != row.id,
            _connections.c.account_id.is_not(None),
            _connections.c.interrupted_at.is_(None),
            _live(),
        ]
        if app.provider.probe_needs_grant:
            which.append(_connections.c.grant_sealed.is_not(None))
        query = sa.select(_connections).where(*which).order_by(_connections.c.id)
        with self._database.read() as connection:
            newest = connection.execute(sa.select(sa.func.max(_connections.c.id))).scalar_one()
            start = 1 + int(self._jitter() * newest)
            found = connection.execute(query.where(_connections.c.id >= start).limit(WITNESSES)).all()
            before = query.where(_connections.c.id < start).limit(WITNESSES - len(found))
            return [*found, *(connection.execute(before).all() if len(found) < WITNESSES else ())]

    # --- what was said ---------------------------------------------------------------------------------

    def _well(self, job: LeasedJob, app: OfferedApp, row: Row[Any], found: Condition) -> Outcome:
        if found.scopes is not None and set(row.scopes) - set(found.scopes):
            # What was granted at first stays on the row: it is what the next probe compares with.
            return self._troubled(job, row, "permissions_reduced")
        news = _news(row, found)
        now = self._now()
        drifted = _connections.c.drift.is_not(None)
        values: dict[str, object] = {
            "trouble": None,
            "health": sa.case((drifted, _connections.c.health), else_="ok"),
            "health_note": sa.case((drifted, _connections.c.health_note), else_=sa.null()),
            "failing_since": sa.case((drifted, _connections.c.failing_since), else_=sa.null()),
            "checked_at": now,
        }
        can_import = row.grant_sealed is not None or not app.provider.import_needs_grant
        self._record(job, row, values | news, imports=bool(news) and can_import)
        return self._again()

    def _troubled(self, job: LeasedJob, row: Row[Any], trouble: str) -> Outcome:
        told = TROUBLES[trouble]
        now = self._now()
        values = {
            "trouble": trouble,
            "health": "error",
            "health_note": told.operator,
            "failing_since": sa.func.coalesce(_connections.c.failing_since, now),
            "checked_at": now,
        }
        self._record(job, row, values, told=None if row.trouble == trouble else told)
        log.warning("probe.trouble", connection=row.ref, error=trouble)
        return self._again()

    def _gone(self, job: LeasedJob, row: Row[Any], failure: BrokerError) -> Outcome:
        with self._database.write() as connection:
            if self._jobs.settle(connection, job, Done()):
                mark_revoked(connection, row, jobs=self._jobs, actor="probe", why=failure.code, now=self._now())
        log.warning("probe.account_gone", connection=row.ref, error=failure.code, detail=failure.detail)
        return Done()

    def _refresh_first(self, job: LeasedJob, row: Row[Any]) -> Outcome:
        """Only the refresh can tell whether the grant is gone or the token has merely ended early."""
        outcome = Later(AFTER_REFRESH_SECONDS)
        with self._database.write() as connection:
            self._jobs.enqueue(connection, "refresh", row.id)
            self._jobs.settle(connection, job, outcome)
        return outcome

    def _record(
        self,
        job: LeasedJob,
        row: Row[Any],
        values: dict[str, object],
        *,
        told: Trouble | None = None,
        imports: bool = False,
    ) -> None:
        now = self._now()
        with self._database.write() as connection:
            if imports:
                self._jobs.enqueue(connection, "import", row.id)
            if not self._jobs.settle(connection, job, self._again()):
                connection.rollback()
                return
            changed = connection.execute(
                sa.update(_connections)
                # A reconnect or a refresh meanwhile changes nothing of what the provider said of the account.
                .where(_connections.c.id == row.id, _connections.c.connected_at == row.connected_at, _live())
                .values(updated_at=now, probed_at=now, **values)
                .returning(_connections.c.id)
            ).one_or_none()
            if changed is not None:
                events.changed(connection, row.id, at=now)
            if changed is not None and told is not None:
                audit.record(
                    connection, at=now, actor_kind="provider", actor=row.provider, target=row.ref,
                    action="connection.troubled", detail={"found": values["trouble"]},
                )  # fmt: skip

    def _judge(self, job: LeasedJob, failure: BrokerError) -> Outcome:
        """Classify a failed probe: it says nothing about the connection, so it is tried again, without end."""
        log.warning("probe.failed", kind=job.kind, error=failure.code, detail=failure.detail)
        if failure.verdict is Verdict.RETRY and not self._jobs.gives_up(job, self._now()):
            return Retry(failure.code, failure.detail, getattr(failure, "retry_after", None))
        return Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS)

    def _again(self) -> Later:
        return Later(EVERY_SECONDS * (1 - JITTER * self._jitter()))

    def _now(self) -> datetime:
        return self._clock.now()

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome


def mark_revoked(connection: Connection, row: Row[Any], *, jobs: Jobs, actor: str, why: str, now: datetime) -> bool:
    """Record, in the caller's transaction, that access to the account in `row` has ended at the provider.

    Returns False when the connection was reconnected or ended meanwhile, which then wins.
    """
    with connection.begin_nested() as attempt:
        # Jobs before the connection, in everybody's order. A dead token is not imported, renewed or asked about.
        for kind in ("import", "verify", "refresh", "probe"):
            jobs.cancel(connection, kind, row.id)
        changed = connection.execute(
            sa.update(_connections)
            .where(_connections.c.id == row.id, _connections.c.connected_at == row.connected_at, _live())
            .values(revoked_at=now, grant_sealed=None, refreshing_since=None, probed_at=now, updated_at=now)
            .returning(_connections.c.id)
        ).one_or_none()
        if changed is None:
            # What was cancelled is a reconnect's own work: it stays.
            attempt.rollback()
            return False
    audit.record(
        connection, at=now, actor_kind="provider", actor=actor, target=row.ref,
        action="connection.revoked_by_provider", detail={"found": why},
    )  # fmt: skip
    events.changed(connection, row.id, at=now)
    return True


def _can_refresh(app: OfferedApp, grant: Grant | None) -> bool:
    return grant is not None and grant.refresh_token is not None and app.refreshes


def _is_live(row: Row[Any]) -> bool:
    return (row.disconnected_at or row.revoked_at or row.interrupted_at) is None and row.account_id is not None


def _live() -> sa.ColumnElement[bool]:
    return sa.and_(_connections.c.disconnected_at.is_(None), _connections.c.revoked_at.is_(None))


def _news(row: Row[Any], found: Condition) -> dict[str, object]:
    """Return what the provider tells differently of the account now: names change, ids do not."""
    if found.account is None or found.account.id != row.account_id:
        return {}
    facts = {**row.account_facts, **found.account.facts}
    told = {"account_name": found.account.name, "account_type": found.account.type, "account_facts": facts}
    return {name: value for name, value in told.items() if value and value != getattr(row, name)}


class Pace:
    """Lets calls through one after the other, so many in a second for each app in this process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        # By app: when the next call may be made, and when the last of those that were put off comes back.
        self._free_at: dict[str, float] = {}
        self._line_ends: dict[str, float] = {}
        self._lock = threading.Lock()

    def wait(self, key: str, per_second: float) -> float:
        """Take the next place if it is free and return 0, or return in how many seconds to ask again."""
        every = 1 / per_second
        with self._lock:
            now = self._clock.monotonic()
            free_at = self._free_at.get(key, now)
            if free_at <= now:
                # Whoever comes a little late for their place does not make everybody behind them too early.
                self._free_at[key] = max(free_at, now - max(every, LATE_SECONDS)) + every
                return 0.0
            # One after the other, and without taking a place: it would be free to nobody when they come back.
            returns_at = max(free_at, self._line_ends.get(key, now))
            self._line_ends[key] = returns_at + every
            return returns_at - now
