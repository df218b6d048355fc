"""Forgetting what nobody needs any more: ended flows, spent links, finished work, events, webhooks, audit records.

Each kind is found in one look and forgotten in small transactions, a bounded number at a time, so that no purge ever
keeps a person waiting. What may still matter to somebody stays: a flow whose grant is being ended, a link that a
signed-in browser is limited to, and the newest row of a table, because SQLite would give its key out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from broker.audit_chain import AuditChain
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError
from broker.idempotency import IdempotentCalls
from broker.jobs import Jobs, Later, LeasedJob, Outcome, Retry
from broker.models import (
    BrowserSession,
    BulkItem,
    BulkRun,
    Event,
    Flow,
    FlowEvent,
    Hop,
    Job,
    JobState,
    Link,
    LinkUse,
    PendingSignIn,
    ProviderEvent,
    SendState,
    SignInThrottle,
    WebhookAttempt,
    WebhookDelivery,
)
from broker.sessions import Sessions
from broker.settings import Retention

PURGE_EVERY_SECONDS = 3600.0
AGAIN_SECONDS = 30.0
"""When a purge that did not get to its end goes on."""
BUDGET = 5_000
"""Rows of one kind that one purge forgets at most."""
BATCH = 200
THROTTLES_KEPT = timedelta(days=1)
SIGN_INS_KEPT = timedelta(days=1)

log = structlog.get_logger(__name__)

_attempts = table(WebhookAttempt)
_events = table(FlowEvent)
_flows = table(Flow)
_hops = table(Hop)
_items = table(BulkItem)
_jobs = table(Job)
_links = table(Link)
_notices = table(ProviderEvent)
_runs = table(BulkRun)
_sendings = table(WebhookDelivery)
_sessions = table(BrowserSession)
_told = table(Event)
_sign_ins = table(PendingSignIn)
_throttles = table(SignInThrottle)
_uses = table(LinkUse)

Forget = Callable[[Connection, Sequence[int]], int]


class Purge:
    """Forgets by the `[retention]` settings; by itself every hour, and on request."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        jobs: Jobs,
        sessions: Sessions,
        calls: IdempotentCalls,
        chain: AuditChain,
        retention: Retention,
    ) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._sessions = sessions
        self._calls = calls
        self._chain = chain
        self._retention = retention

    def schedule(self) -> None:
        """Make sure that the purge is among the jobs; a worker calls this now and then."""
        with self._database.read() as connection:
            known = sa.select(_jobs.c.id).where(_jobs.c.kind == "purge", _jobs.c.subject_id == 0)
            if connection.execute(known).first() is not None:
                return
        with self._database.write() as connection:
            self._jobs.enqueue(connection, "purge", 0)

    def run(self, job: LeasedJob) -> Outcome:
        """Run the scheduled purge and settle its job."""
        try:
            found = self.purge(job=job)
            outcome: Outcome = Later(AGAIN_SECONDS if max(found.values()) >= BUDGET else PURGE_EVERY_SECONDS)
        except BrokerError as failure:
            outcome = Retry(failure.code, failure.detail)
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome

    def purge(self, *, budget: int = BUDGET, job: LeasedJob | None = None) -> Mapping[str, int]:
        """Forget at most `budget` rows of each kind and return how many of each there were.

        Stops early when `job` is somebody else's. Raises DatabaseUnavailable.
        """
        now = self._clock.now()
        old = now - timedelta(days=self._retention.flow_days)
        very_old = now - timedelta(days=self._retention.audit_days)
        plan: tuple[tuple[str, sa.Select[int], Forget], ...] = (
            ("flows", _old_flows(old), _forget_flows),
            # After the flows, which keep their links.
            ("links", _old_links(old), _forget_links),
            ("jobs", _old_jobs(old), lambda connection, keys: _forget_jobs(connection, keys, old)),
            ("events", _old_events(old), _forget_events),
            ("bulk_runs", _old_runs(old), _forget_runs),
            # By its id a replay is known, and not every provider dates what it signs.
            ("webhooks", _old_notices(very_old), _forget_notices),
        )
        found = {"sessions": self._sessions.purge(), "sign_in_throttles": self._forget_throttles(now)}
        found["repeatable_calls"] = self._calls.purge()
        found["sign_ins"] = self._forget_sign_ins(now)
        for name, query, forget in plan:
            found[name] = sum(self._in_batches(query.limit(budget), forget, job))
        found["audit"] = self._forget_audit(very_old, budget, job)
        if any(found.values()):
            log.info("purge.done", **found)
        return MappingProxyType(found)

    def _in_batches(self, query: sa.Select[int], forget: Forget, job: LeasedJob | None) -> Iterator[int]:
        with self._database.read() as connection:
            keys = list(connection.execute(query).scalars())
        for start in range(0, len(keys), BATCH):
            if job is not None and not self._jobs.renew(job):
                return
            with self._database.write() as connection:
                yield forget(connection, keys[start : start + BATCH])

    def _forget_audit(self, before: datetime, budget: int, job: LeasedJob | None) -> int:
        # What is not sealed stays.
        self._chain.seal()
        forgotten = 0
        while forgotten < budget and (job is None or self._jobs.renew(job)):
            with self._database.write() as connection:
                count = self._chain.forget(connection, before=before, most=min(BATCH, budget - forgotten))
            forgotten += count
            if count < BATCH:
                break
        return forgotten

    def _forget_sign_ins(self, now: datetime) -> int:
        with self._database.write() as connection:
            return connection.execute(
                sa.delete(_sign_ins).where(_sign_ins.c.expires_at <= now - SIGN_INS_KEPT)
            ).rowcount

    def _forget_throttles(self, now: datetime) -> int:
        with self._database.write() as connection:
            return connection.execute(sa.delete(_throttles).where(_throttles.c.since < now - THROTTLES_KEPT)).rowcount


# --- what is old ----------------------------------------------------------------------------------------


def _newest(rows: sa.Table) -> sa.ScalarSelect[int]:
    return sa.select(sa.func.max(rows.c.id)).scalar_subquery()


def _old_flows(old: datetime) -> sa.Select[int]:
    """Return the flows that ended long ago; not those whose grant is still being ended."""
    return (
        sa.select(_flows.c.id)
        .where(_flows.c.ended_at < old, _flows.c.grant_sealed.is_(None), _flows.c.id < _newest(_flows))
        .order_by(_flows.c.id)
    )


def _old_links(old: datetime) -> sa.Select[int]:
    """Return the links that can do nothing any more and that nothing hangs on."""
    in_a_flow = sa.exists().where(_flows.c.link_id == _links.c.id)
    in_a_session = sa.exists().where(_sessions.c.link_id == _links.c.id)
    return (
        sa.select(_links.c.id)
        .where(_links.c.expires_at < old, ~in_a_flow, ~in_a_session, _links.c.id < _newest(_links))
        .order_by(_links.c.id)
    )


def _old_jobs(old: datetime) -> sa.Select[int]:
    """Return work that was finished long ago. Asked for again, it gets a row of its own."""
    return (
        sa.select(_jobs.c.id)
        .where(_jobs.c.state == JobState.DONE, _jobs.c.updated_at < old, _jobs.c.id < _newest(_jobs))
        .order_by(_jobs.c.id)
    )


def _old_events(old: datetime) -> sa.Select[int]:
    """Return the events that nobody is still to be told of."""
    return (
        sa.select(_told.c.id)
        .where(
            _told.c.at < old,
            _told.c.dispatched_at.is_not(None),
            ~_still_to_send(),
            _told.c.id < _newest(_told),
        )
        .order_by(_told.c.id)
    )


def _still_to_send() -> sa.Exists:
    return sa.exists().where(_sendings.c.event_id == _told.c.id, _sendings.c.state == SendState.PENDING)


def _old_runs(old: datetime) -> sa.Select[int]:
    return sa.select(_runs.c.id).where(_runs.c.ended_at < old, _runs.c.id < _newest(_runs)).order_by(_runs.c.id)


def _old_notices(old: datetime) -> sa.Select[int]:
    return (
        sa.select(_notices.c.id)
        .where(_notices.c.received_at < old, _notices.c.processed_at.is_not(None), _notices.c.id < _newest(_notices))
        .order_by(_notices.c.id)
    )


# --- forgetting it, in one transaction for each batch ---------------------------------------------------


def _forget_flows(connection: Connection, keys: Sequence[int]) -> int:
    # The flows first, as everybody locks them before anything that hangs on them.
    held = connection.execute(
        sa.select(_flows.c.id).where(_flows.c.id.in_(keys), _flows.c.grant_sealed.is_(None)).with_for_update()
    )
    mine = list(held.scalars())
    for hanging in (_events, _hops):
        connection.execute(sa.delete(hanging).where(hanging.c.flow_id.in_(mine)))
    connection.execute(sa.delete(_jobs).where(_jobs.c.kind.in_(("finish", "discard")), _jobs.c.subject_id.in_(mine)))
    return connection.execute(sa.delete(_flows).where(_flows.c.id.in_(mine))).rowcount


def _forget_links(connection: Connection, keys: Sequence[int]) -> int:
    # Nobody can start from an expired link: what hung on none of these a moment ago hangs on none now.
    connection.execute(sa.delete(_uses).where(_uses.c.link_id.in_(keys)))
    return connection.execute(sa.delete(_links).where(_links.c.id.in_(keys))).rowcount


def _forget_jobs(connection: Connection, keys: Sequence[int], old: datetime) -> int:
    # Looked at again: it may have been asked for since.
    unchanged = (_jobs.c.state == JobState.DONE, _jobs.c.updated_at < old)
    return connection.execute(sa.delete(_jobs).where(_jobs.c.id.in_(keys), *unchanged)).rowcount


def _forget_events(connection: Connection, keys: Sequence[int]) -> int:
    # Looked at again: somebody may have asked to send one once more.
    held = sa.select(_told.c.id).where(_told.c.id.in_(keys), ~_still_to_send()).with_for_update()
    mine = list(connection.execute(held).scalars())
    sendings = sa.select(_sendings.c.id).where(_sendings.c.event_id.in_(mine))
    connection.execute(sa.delete(_attempts).where(_attempts.c.delivery_id.in_(sendings)))
    connection.execute(sa.delete(_sendings).where(_sendings.c.event_id.in_(mine)))
    return connection.execute(sa.delete(_told).where(_told.c.id.in_(mine))).rowcount


def _forget_runs(connection: Connection, keys: Sequence[int]) -> int:
    connection.execute(sa.delete(_items).where(_items.c.run_id.in_(keys)))
    return connection.execute(sa.delete(_runs).where(_runs.c.id.in_(keys))).rowcount


def _forget_notices(connection: Connection, keys: Sequence[int]) -> int:
    return connection.execute(sa.delete(_notices).where(_notices.c.id.in_(keys))).rowcount
