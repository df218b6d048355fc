"""Waiting for an owner: a person asked for an installation that somebody else has to allow, and nobody comes back.

What waits is a connection without an account, known by (end user, app, the person's id at the provider). It becomes
whole when the provider says that this person's request was approved: by a signed webhook, or when it is asked again.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import AccountEnding, afresh, claim_account, require_settled, spend_link, take_back_ending
from broker.circuits import Circuits, app_circuit
from broker.clock import Clock
from broker.connected import connected_row
from broker.connection_metadata import index_metadata
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import AccountSuspended, AccountTaken, AppUnknown, BrokerError
from broker.events import EventType
from broker.http import Http
from broker.jobs import LONGEST_RETRY_SECONDS, Done, Hold, Jobs, Later, LeasedJob, Outcome
from broker.models import CleanUp, ConnectedAccount, EndUser, Flow, FlowState, ImportState, Link, LinkUse
from broker.providers.base import Account, Approval, calls_within
from broker.references import new_ref
from broker.timeline import note

KEPT_FOR = timedelta(days=30)
"""How long a request waits for its owner."""
ASK_SECONDS = 10.0
"""Total time for all calls of one look."""
SOONEST_SECONDS = 300.0
LATEST_SECONDS = 6 * 3600.0
SHARE = 0.25
"""The next look comes after this share of the time waited so far: often at first, four times a day in the end."""
ENDING_SECONDS = 30.0

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_flows = table(Flow)
_links = table(Link)
_people = table(EndUser)
_uses = table(LinkUse)


@dataclass(frozen=True)
class Asked:
    """What is to wait: the flow in which the person asked, and the person's id at the provider."""

    flow_id: int
    flow_ref: str
    app: OfferedApp
    requester_id: str


def await_approval(connection: Connection, what: Asked, *, jobs: Jobs, now: datetime) -> str | None:
    """Save what waits in the caller's transaction and return its reference; asking again starts its time afresh.

    Returns None when the flow has ended meanwhile. Raises LinkSpent; the caller must then roll back.
    """
    flow = connection.execute(
        sa.update(_flows)
        .where(_flows.c.id == what.flow_id, _flows.c.state == FlowState.REDEEMING)
        .values(state=FlowState.DONE, hold=None, choices=None, updated_at=now, ended_at=now)
        .returning(_flows.c.end_user_id, _flows.c.link_id)
    ).one_or_none()
    if flow is None:
        return None
    # Two flows of the same person at once must not make two rows: NULLs are never equal to a constraint.
    connection.execute(sa.select(_people.c.id).where(_people.c.id == flow.end_user_id).with_for_update())
    connection_id, ref = _save(connection, what, flow, jobs, now)
    connection.execute(sa.update(_flows).where(_flows.c.id == what.flow_id).values(connection_id=connection_id))
    spend_link(connection, flow.link_id, what.app.key, connection_id, now)
    note(connection, what.flow_id, "asked", at=now, detail=ref)
    audit.record(
        connection, at=now, actor_kind="end_user", actor=what.flow_ref, action="connection.approval_asked",
        target=ref, detail={"app": what.app.key, "requester": what.requester_id},
    )  # fmt: skip
    events.changed(connection, connection_id, at=now)
    jobs.cancel(connection, "finish", what.flow_id)
    # The person's token was needed to know who they are, and for nothing more.
    jobs.enqueue(connection, "discard", what.flow_id)
    return ref


def _save(connection: Connection, what: Asked, flow: Row[Any], jobs: Jobs, now: datetime) -> tuple[int, str]:
    metadata = connection.execute(sa.select(_links.c.host_metadata).where(_links.c.id == flow.link_id)).scalar_one()
    values = {
        "provider": what.app.provider.name,
        "kind": what.app.kind,
        "scopes": [],
        "host_metadata": metadata,
        **afresh(now),
    }
    existing = connection.execute(
        sa.select(_connections.c.id, _connections.c.ref).where(
            *_waits(what.app.key, what.requester_id), _connections.c.end_user_id == flow.end_user_id
        )
    ).first()
    if existing is not None:
        jobs.enqueue(connection, "approval", existing.id)
        connection.execute(sa.update(_connections).where(_connections.c.id == existing.id).values(**values))
        index_metadata(connection, existing.id, metadata)
        return existing.id, existing.ref
    ref = new_ref()
    created = connection.execute(
        sa.insert(_connections)
        .values(
            ref=ref, end_user_id=flow.end_user_id, app_key=what.app.key, account_id=None, account_name="",
            requester_id=what.requester_id, account_facts={}, mode="live", created_at=now, **values,
        )
        .returning(_connections.c.id)
    ).scalar_one()  # fmt: skip
    index_metadata(connection, created, metadata, is_new=True)
    jobs.enqueue(connection, "approval", created)
    return created, ref


def approved(connection: Connection, app_key: str, facts: Mapping[str, Any], *, jobs: Jobs, now: datetime) -> int:
    """Note in the caller's transaction what a verified webhook says of an approval, and look at once.

    `facts` are those of the provider's notice. Returns how many connections waited for this person's request.
    """
    requester_id, said = facts.get("requester_id"), facts.get("asked")
    if not isinstance(requester_id, str) or not isinstance(said, dict):
        return 0
    query = sa.select(_connections.c.id, _connections.c.account_facts).where(*_waits(app_key, requester_id))
    # Sorted here: asked for the order, SQLite goes through the whole app in that order.
    rows = sorted(connection.execute(query).all(), key=lambda row: row.id)
    for row in rows:
        jobs.enqueue(connection, "approval", row.id)
    for row in rows:
        others = [one for one in row.account_facts.get("asked", ()) if one.get("id") != said.get("id")]
        connection.execute(
            sa.update(_connections)
            .where(_connections.c.id == row.id, _connections.c.account_id.is_(None))
            .values(account_facts={**row.account_facts, "asked": [*others, said]}, updated_at=now)
        )
    return len(rows)


class Approvals:
    """Runs approval jobs: each asks the provider how one request stands."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        http: Http,
        circuits: Circuits,
        jobs: Jobs,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._http = http
        self._circuits = circuits
        self._jobs = jobs
        self._jitter = jitter

    def run(self, job: LeasedJob) -> Outcome:
        """Look at the request a job speaks of, record how it stands, and return the outcome."""
        row = connected_row(self._database, job.subject_id)
        if row is None or row.account_id is not None or row.disconnected_at is not None:
            return self._settle(job, Done())
        now = self._clock.now()
        if row.connected_at + KEPT_FOR <= now:
            return self._give_up(job, row, "approval_expired")
        try:
            app = self._apps.get(row.app_key)
        except AppUnknown as failure:
            return self._settle(job, Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS))
        closed_for = self._circuits.admit(app_circuit(app.key))
        if closed_for is not None:
            return self._settle(job, Hold("provider_unavailable", "", closed_for * (1 + self._jitter())))
        if not self._jobs.renew(job):
            return Done()
        return self._look(job, app, row, now)

    def _look(self, job: LeasedJob, app: OfferedApp, row: Row[Any], proven_from: datetime) -> Outcome:
        try:
            found = self._ask(app, row)
            if found.account is None:
                return self._still_waiting(job, row, found)
            return self._connect(job, app, row, found.account, proven_from)
        except AccountTaken:
            return self._give_up(job, row, AccountTaken.code)
        except AccountEnding:
            return self._settle(job, Later(ENDING_SECONDS))
        except AccountSuspended:
            # Approved, and not usable yet: it may be as long as the request is kept.
            return self._settle(job, Later(self._next(row)))
        except DatabaseUnavailable:
            raise
        except BrokerError as failure:
            log.warning("approval.failed", connection=row.ref, error=failure.code, detail=failure.detail)
            # A look that failed says nothing of the request, so it is never given up for that.
            return self._settle(job, Hold(failure.code, failure.detail, LONGEST_RETRY_SECONDS))

    def _ask(self, app: OfferedApp, row: Row[Any]) -> Approval:
        if app.provider.approval is None:
            return Approval(None, row.account_facts)
        call = calls_within(self._http, ASK_SECONDS)
        with self._circuits.watching(app_circuit(app.key)):
            return app.provider.approval(app.config, row.requester_id, row.account_facts, call, self._clock.now())

    def _still_waiting(self, job: LeasedJob, row: Row[Any], found: Approval) -> Outcome:
        now, outcome = self._clock.now(), Later(self._next(row))
        with self._database.write() as connection:
            # Asked for again meanwhile, by a webhook perhaps: what it told must not be written over.
            if self._jobs.settle(connection, job, outcome):
                connection.execute(
                    sa.update(_connections)
                    .where(
                        _connections.c.id == row.id,
                        _connections.c.account_id.is_(None),
                        _connections.c.updated_at == row.updated_at,
                    )
                    .values(
                        account_facts=dict(found.facts), account_name=", ".join(found.asked)[:200], probed_at=now,
                        updated_at=now,
                    )
                )  # fmt: skip
        return outcome

    def _next(self, row: Row[Any]) -> float:
        waited: float = (self._clock.now() - row.connected_at).total_seconds()
        wait = min(LATEST_SECONDS, max(SOONEST_SECONDS, waited * SHARE))
        return wait * (1 - 0.25 * self._jitter())

    # --- the end of waiting ----------------------------------------------------------------------------

    def _connect(
        self, job: LeasedJob, app: OfferedApp, row: Row[Any], account: Account, proven_from: datetime
    ) -> Outcome:
        """Raises AccountTaken or AccountEnding."""
        now = self._clock.now()
        with self._database.write() as connection:
            claim_account(connection, app.key, account, row.end_user_id)
            require_settled(connection, app.key, account, proven_from)
            if not self._jobs.settle(connection, job, Done()):
                # Rolls the claim back too.
                connection.rollback()
                return Done()
            became = self._become(connection, app, row, account, now)
            if became is None:
                connection.rollback()
                return self._settle(job, Done())
            connection_id, ref = became
            audit.record(
                connection, at=now, actor_kind="provider", actor=row.provider, action="connection.approved",
                target=ref, detail={"app": app.key, "account": account.id, "mode": account.mode},
            )  # fmt: skip
            events.changed(connection, connection_id, at=now, what=EventType.CONNECTED)
        self._jobs.wakeup.set()
        log.info("approval.connected", connection=ref)
        return Done()

    def _become(
        self, connection: Connection, app: OfferedApp, row: Row[Any], account: Account, now: datetime
    ) -> tuple[int, str] | None:
        """Turn what waited into the connection, or into the one that this person has with the account already.

        Returns None when it was taken back meanwhile.
        """
        values = {
            "account_name": account.name,
            "account_type": account.type,
            "account_facts": dict(account.facts),
            **afresh(now),
        }
        existing = connection.execute(
            sa.select(_connections).where(
                _connections.c.end_user_id == row.end_user_id,
                _connections.c.app_key == app.key,
                _connections.c.account_id == account.id,
                _connections.c.mode == account.mode,
            )
        ).one_or_none()
        if existing is None:
            self._jobs.enqueue(connection, "import", row.id)
            changed = connection.execute(
                sa.update(_connections)
                .where(_connections.c.id == row.id, *_waiting())
                .values(account_id=account.id, mode=account.mode, **values)
                .returning(_connections.c.id)
            ).one_or_none()
            return None if changed is None else (row.id, row.ref)
        self._renew(connection, existing, values)
        if not _end(connection, row.id, now):
            return None
        events.changed(connection, row.id, at=now, what=EventType.DISCONNECTED)
        # Whoever looks at the page of the request sees what became of it.
        for each in (_flows, _uses):
            connection.execute(sa.update(each).where(each.c.connection_id == row.id).values(connection_id=existing.id))
        return existing.id, existing.ref

    def _renew(self, connection: Connection, existing: Row[Any], values: dict[str, object]) -> None:
        """Bring an ended connection back to life; one that lives needs nothing."""
        if (existing.disconnected_at or existing.revoked_at or existing.interrupted_at) is None:
            return
        after = timedelta(0)
        if existing.disconnected_at is not None:
            after = take_back_ending(connection, existing.id, self._jobs)
            # The credential is made anew, and has no metadata.
            values = values | {"metadata_digest": None}
        self._jobs.enqueue(connection, "import", existing.id, after=after)
        connection.execute(
            sa.update(_connections)
            .where(_connections.c.id == existing.id)
            .values(token_version=existing.token_version + 1, grant_sealed=None, **values)
        )

    def _give_up(self, job: LeasedJob, row: Row[Any], why: str) -> Outcome:
        now = self._clock.now()
        with self._database.write() as connection:
            if self._jobs.settle(connection, job, Done()) and _end(connection, row.id, now):
                events.changed(connection, row.id, at=now, what=EventType.DISCONNECTED)
                audit.record(
                    connection, at=now, actor_kind="worker", actor="approval", action="connection.not_approved",
                    target=row.ref, detail={"found": why},
                )  # fmt: skip
        log.info("approval.ended", connection=row.ref, error=why)
        return Done()

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome


def _waiting() -> tuple[sa.ColumnElement[bool], ...]:
    return _connections.c.account_id.is_(None), _connections.c.disconnected_at.is_(None)


def _waits(app_key: str, requester_id: str) -> tuple[sa.ColumnElement[bool], ...]:
    return *_waiting(), _connections.c.app_key == app_key, _connections.c.requester_id == requester_id


def _end(connection: Connection, connection_id: int, now: datetime) -> bool:
    """End what waited: nothing was given, so that there is nothing to clean up."""
    changed = connection.execute(
        sa.update(_connections)
        .where(_connections.c.id == connection_id, *_waiting())
        .values(
            disconnected_at=now, updated_at=now, revocation=CleanUp.NOT_NEEDED, removal=CleanUp.NOT_NEEDED,
            import_state=ImportState.PENDING,
        )
        .returning(_connections.c.id)
    ).scalar_one_or_none()  # fmt: skip
    return changed is not None
