"""Telling webhook endpoints what happened, in the format of Standard Webhooks: every event arrives, in order.

Events are queued for the endpoints by one dispatcher at a time, so that each endpoint has one order. An endpoint
takes one event at a time; while it fails, what follows waits behind it, and no other endpoint notices.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row
from standardwebhooks import Webhook

from broker.clock import Clock
from broker.db import Database, table
from broker.errors import NetworkError, Unreadable
from broker.events import EventView, as_told
from broker.http import Address, Http, is_public, retry_after
from broker.jobs import GIVE_UP_AFTER, Done, Hold, Jobs, LeasedJob, Outcome, Retry
from broker.models import Event, SendState, WebhookAttempt, WebhookDelivery, WebhookEndpoint, WebhookSecret
from broker.secret import Secret
from broker.settings import Settings
from broker.vault import Binding, Vault

NOTIFY = "notify"
"""The kind of job that sends one endpoint all that waits for it."""
SEND_SECONDS = 10.0
"""How long an endpoint may take to answer."""
TURN_SECONDS = 10.0
MOST_IN_A_TURN = 50
"""After so many seconds or events an endpoint goes to the back of the queue, so that the others get their turn."""
DISPATCHED_AT_ONCE = 500
HOLD_SECONDS = 60.0
GONE = 410
DISPATCHER = 0x6576656E7473
"""Any number that nothing else in the database uses."""

log = structlog.get_logger(__name__)

_attempts = table(WebhookAttempt)
_deliveries = table(WebhookDelivery)
_endpoints = table(WebhookEndpoint)
_events = table(Event)
_secrets = table(WebhookSecret)


def secret_binding(endpoint_id: str, number: int) -> Binding:
    """Return where an endpoint's sealed secret may be opened; `endpoint_id` is the public one."""
    return Binding("webhook_secrets", "sealed", endpoint_id, number)


def may_be_told(settings: Settings) -> Callable[[Address], bool]:
    """Return the judge of addresses that hosts type in: public ones, those allowed, and in development this machine."""

    def judge(address: Address) -> bool:
        mapped = getattr(address, "ipv4_mapped", None) or address
        allowed = any(mapped in network for network in settings.webhooks.private_networks)
        return allowed or is_public(address) or (mapped.is_loopback and not settings.production)

    return judge


@dataclass(frozen=True)
class _Sent:
    """What came of one try. `error` is a stable code, None when the endpoint took it."""

    at: datetime
    duration_ms: int
    status: int | None
    error: str | None
    # Seconds, when the endpoint said so.
    not_before: float | None = None


class Notifications:
    """Queues events for endpoints, and runs the jobs that send them."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        vault: Vault,
        http: Http,
        jobs: Jobs,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`http` must refuse the addresses that webhooks may not be sent to."""
        self._database = database
        self._clock = clock
        self._vault = vault
        self._http = http
        self._jobs = jobs
        self._monotonic = monotonic

    # --- queueing --------------------------------------------------------------------------------------

    def dispatch(self) -> int:
        """Queue what happened since for every endpoint that wants it; returns how many events that were."""
        new = sa.select(_events.c.id).where(_events.c.dispatched_at.is_(None)).limit(1)
        with self._database.look() as connection:
            # Looking first keeps idle workers from taking the embedded database's write lock.
            if connection.execute(new).first() is None:
                return 0
        with self._database.write() as connection:
            if not self._database.only_writer(connection, DISPATCHER):
                return 0
            return self._dispatch(connection)

    def dispatch_all(self, connection: Connection) -> None:
        """Queue all that happened, in the caller's transaction, for the endpoints there are before it changes them."""
        self.hold_dispatch(connection)
        while self._dispatch(connection) == DISPATCHED_AT_ONCE:
            pass

    def hold_dispatch(self, connection: Connection) -> None:
        """Let nobody queue anything until the caller's transaction ends."""
        self._database.only_writer(connection, DISPATCHER, wait=True)

    def _dispatch(self, connection: Connection) -> int:
        now = self._clock.now()
        # Events before endpoints: whatever happened after an endpoint was made then finds it.
        events = connection.execute(
            sa.select(_events.c.id, _events.c.type)
            .where(_events.c.dispatched_at.is_(None))
            .order_by(_events.c.id)
            .limit(DISPATCHED_AT_ONCE)
        ).all()
        endpoints = connection.execute(
            sa.select(_endpoints.c.id, _endpoints.c.types, _endpoints.c.disabled_at)
            .order_by(_endpoints.c.id)
            # None of them is deleted before this commits.
            .with_for_update(read=True, key_share=True)
        ).all()
        for endpoint in endpoints:
            wanted = [event.id for event in events if endpoint.types is None or event.type in endpoint.types]
            if not wanted:
                continue
            fixed = {"endpoint_id": endpoint.id, "state": SendState.PENDING.value, "queued_at": now, "attempts": 0}
            connection.execute(sa.insert(_deliveries), [{"event_id": event, **fixed} for event in wanted])
            if endpoint.disabled_at is None:
                self._jobs.ensure(connection, NOTIFY, endpoint.id)
        told = _events.c.id.in_([event.id for event in events])
        connection.execute(sa.update(_events).where(told).values(dispatched_at=now))
        return len(events)

    # --- sending ---------------------------------------------------------------------------------------

    def run(self, job: LeasedJob) -> Outcome:
        """Send an endpoint what waits for it, one event after the other, for one turn; settle the job."""
        ends = self._monotonic() + TURN_SECONDS
        for _ in range(MOST_IN_A_TURN):
            row = self._next(job.subject_id)
            if row is None:
                break
            try:
                keys = self._keys(row)
            except Unreadable as failure:
                return self._settle(job, Hold(failure.code, failure.detail, HOLD_SECONDS))
            sent = self._send(row, keys)
            if sent.error is not None:
                return self._failed(job, row, sent)
            if not self._delivered(job, row, sent):
                return Done()
            # It works again: whatever fails next starts from the shortest wait.
            job = replace(job, failures=0, failing_since=None)
            if self._monotonic() >= ends:
                break
        return self._settle(job, Done())

    def _next(self, endpoint_id: int) -> Row[*tuple[Any, ...]] | None:
        query = (
            sa.select(
                _deliveries.c.id, _deliveries.c.endpoint_id, _endpoints.c.public_id.label("endpoint"),
                _endpoints.c.url, _endpoints.c.failing_since, _events.c.public_id.label("event"), _events.c.type,
                _events.c.at, _events.c.data,
            )
            .join(_endpoints, _endpoints.c.id == _deliveries.c.endpoint_id)
            .join(_events, _events.c.id == _deliveries.c.event_id)
            .where(
                _deliveries.c.endpoint_id == endpoint_id,
                _deliveries.c.state == SendState.PENDING,
                _endpoints.c.disabled_at.is_(None),
            )
            .order_by(_deliveries.c.id)
            .limit(1)
        )  # fmt: skip
        with self._database.read() as connection:
            return connection.execute(query).one_or_none()

    def _keys(self, row: Row[Any]) -> list[Secret]:
        """Return the secrets that sign now, the newest first. Raises Unreadable."""
        query = (
            sa.select(_secrets.c.number, _secrets.c.sealed)
            .where(
                _secrets.c.endpoint_id == row.endpoint_id,
                sa.or_(_secrets.c.expires_at.is_(None), _secrets.c.expires_at > self._clock.now()),
            )
            .order_by(_secrets.c.number.desc())
        )
        with self._database.read() as connection:
            kept = connection.execute(query).all()
        return [
            Secret(self._vault.open(each.sealed, secret_binding(row.endpoint, each.number)).decode()) for each in kept
        ]

    def _send(self, row: Row[Any], keys: list[Secret]) -> _Sent:
        # Whole seconds: what the header says is what is signed.
        at = self._clock.now().replace(microsecond=0)
        event = EventView(row.event, row.type, row.at, row.data)
        content = json.dumps(as_told(event), separators=(",", ":"))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": row.event,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": " ".join(Webhook(key.reveal()).sign(row.event, at, content) for key in keys),
        }
        began = self._monotonic()
        status, error, not_before = None, None, None
        try:
            answer = self._http.post(row.url, headers=headers, content=content.encode(), deadline=SEND_SECONDS)
        except NetworkError as failure:
            error = failure.code
        else:
            status, not_before = answer.status, retry_after(answer.headers)
            error = None if 200 <= status < 300 else f"http_{status}"
        return _Sent(at, round((self._monotonic() - began) * 1000), status, error, not_before)

    # --- recording -------------------------------------------------------------------------------------

    def _delivered(self, job: LeasedJob, row: Row[Any], sent: _Sent) -> bool:
        with self._database.write() as connection:
            if not self._jobs.renew_with(connection, job):
                # Somebody else sends it again; its id tells the endpoint that it is the same event.
                log.warning("webhook.lease_lost", endpoint=row.endpoint, event_id=row.event)
                return False
            self._note(connection, row, sent, state=SendState.DELIVERED.value, delivered_at=sent.at)
            connection.execute(
                sa.update(_endpoints)
                .where(_endpoints.c.id == row.endpoint_id)
                .values(delivered_at=sent.at, failing_since=None)
            )
        log.info("webhook.delivered", endpoint=row.endpoint, event_id=row.event, ms=sent.duration_ms)
        return True

    def _failed(self, job: LeasedJob, row: Row[Any], sent: _Sent) -> Outcome:
        """Record a try in vain: the event stays first in its line, and comes again later."""
        is_gone = sent.status == GONE
        error = sent.error or ""
        # The job itself is never given up: when an old event is parked, younger ones wait behind it.
        outcome: Outcome = Done() if is_gone else Retry(error, "", sent.not_before)
        with self._database.write() as connection:
            if not self._jobs.settle(connection, job, outcome):
                return outcome
            self._note(connection, row, sent)
            since = row.failing_since or sent.at
            values: dict[str, object] = {"failing_since": since}
            if is_gone:
                values |= {"disabled_at": sent.at, "disabled_reason": "gone", "updated_at": sent.at}
            connection.execute(sa.update(_endpoints).where(_endpoints.c.id == row.endpoint_id).values(**values))
            parked = self._park(connection, row, sent.at) if sent.at - since >= GIVE_UP_AFTER and not is_gone else 0
        if is_gone:
            log.error("webhook.endpoint_disabled", endpoint=row.endpoint, reason="gone")
        elif parked:
            log.error("webhook.parked", endpoint=row.endpoint, count=parked, error=error)
        else:
            log.warning("webhook.retry", endpoint=row.endpoint, event_id=row.event, error=error)
        return outcome

    def _park(self, connection: Connection, row: Row[Any], now: datetime) -> int:
        return connection.execute(
            sa.update(_deliveries)
            .where(
                _deliveries.c.endpoint_id == row.endpoint_id,
                _deliveries.c.state == SendState.PENDING,
                _deliveries.c.queued_at <= now - GIVE_UP_AFTER,
            )
            .values(state=SendState.PARKED.value)
        ).rowcount

    def _note(self, connection: Connection, row: Row[Any], sent: _Sent, **values: object) -> None:
        connection.execute(
            sa.insert(_attempts).values(
                delivery_id=row.id, at=sent.at, duration_ms=sent.duration_ms, status=sent.status, error=sent.error
            )
        )
        connection.execute(
            sa.update(_deliveries)
            .where(_deliveries.c.id == row.id)
            .values(attempts=_deliveries.c.attempts + 1, **values)
        )

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        waiting = sa.select(_deliveries.c.id).where(
            _deliveries.c.endpoint_id == job.subject_id,
            _deliveries.c.state == SendState.PENDING,
            sa.exists().where(_endpoints.c.id == job.subject_id, _endpoints.c.disabled_at.is_(None)),
        )
        with self._database.write() as connection:
            settled = self._jobs.settle(connection, job, outcome)
            # After settling, which waits for a dispatcher that has queued something meanwhile.
            if settled and isinstance(outcome, Done) and connection.execute(waiting.limit(1)).first() is not None:
                self._jobs.ensure(connection, NOTIFY, job.subject_id)
        return outcome
