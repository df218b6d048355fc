"""Erasure on request: everything of one person is ended at once, and forgotten as soon as it is cleared up.

What was granted has to be taken back at the provider and in Sequin first, and only the connection knows how. So the
person's rows go last, when no clean-up is pending any more; until then the id is not accepted for anything new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.db import Database, table
from broker.disconnection import Disconnections
from broker.errors import EndUserForgotten, EndUserUnknown
from broker.jobs import Done, Jobs, Later, LeasedJob, Outcome
from broker.journal import FlowJournal, Step
from broker.models import (
    BrowserSession,
    BulkItem,
    Claim,
    CleanUp,
    ConnectedAccount,
    EndUser,
    Event,
    Flow,
    FlowEvent,
    Hop,
    Job,
    Link,
    LinkUse,
    MetadataMember,
    SendState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from broker.text import storable

LOOKS_AGAIN_SECONDS = 10.0
"""How often an erasure looks whether everything is cleared up."""
KINDS_ABOUT_CONNECTIONS = ("import", "verify", "probe", "refresh", "revoke", "remove")
REMAINS = (
    "The audit trail, and what providers have reported, name references, account ids and this id for a while longer.",
    "The audit trail also tells from which network addresses the person signed in, if they did.",
    "What the provider or Sequin has stored for itself stays there: synced data, and an app the person installed.",
)

log = structlog.get_logger(__name__)

_claims = table(Claim)
_connections = table(ConnectedAccount)
_attempts = table(WebhookAttempt)
_deliveries = table(WebhookDelivery)
_endpoints = table(WebhookEndpoint)
_events = table(FlowEvent)
_flows = table(Flow)
_happenings = table(Event)
_hops = table(Hop)
_items = table(BulkItem)
_jobs = table(Job)
_links = table(Link)
_members = table(MetadataMember)
_people = table(EndUser)
_sessions = table(BrowserSession)
_uses = table(LinkUse)


@dataclass(frozen=True)
class Erasure:
    """An erasure under way."""

    end_user_id: str
    # Connections whose clean-up is not over.
    connections_left: int
    # What is still there afterwards, in sentences.
    remains: Sequence[str] = REMAINS


class Erasures:
    """Ends and forgets what belongs to one person."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        jobs: Jobs,
        journal: FlowJournal,
        disconnections: Disconnections,
    ) -> None:
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._journal = journal
        self._disconnections = disconnections

    def request(self, end_user_id: str, *, actor: Actor) -> Erasure:
        """End everything of this person now and forget it once it is cleared up; repeating it changes nothing.

        Raises EndUserUnknown, also for somebody who was forgotten.
        """
        key = self._begin(end_user_id, actor)
        self._end_flows(key)
        self._disconnect(key, actor)
        self._jobs.wakeup.set()
        return Erasure(end_user_id, len(self._pending(key)))

    def _begin(self, end_user_id: str, actor: Actor) -> int:
        """Close the door: from this commit on nothing new begins for the person."""
        now = self._clock.now()
        with self._database.write() as connection:
            person = None
            if storable(end_user_id):
                # Locked: a link that is being made meanwhile comes either before this, or not at all.
                person = connection.execute(
                    sa.select(_people.c.id, _people.c.erasure_asked_at)
                    .where(_people.c.external_id == end_user_id)
                    .with_for_update()
                ).one_or_none()
            if person is None:
                raise EndUserUnknown
            key: int = person.id
            if person.erasure_asked_at is None:
                connection.execute(sa.update(_people).where(_people.c.id == key).values(erasure_asked_at=now))
                connection.execute(
                    sa.update(_links).where(_links.c.end_user_id == key, _links.c.revoked_at.is_(None)).values(
                        revoked_at=now
                    )
                )  # fmt: skip
                connection.execute(sa.delete(_sessions).where(_sessions.c.end_user_id == key))
                self._jobs.enqueue(connection, "forget", key)
                audit.record(
                    connection, at=now, actor_kind=actor.kind, actor=actor.name, action="end_user.erasure_asked",
                    target=end_user_id,
                )  # fmt: skip
        return key

    def _end_flows(self, key: int) -> None:
        # Links are revoked already, so no flow can be added to these.
        with self._database.read() as connection:
            under_way = connection.execute(
                sa.select(_flows.c.id, _flows.c.ref).where(
                    _flows.c.link_id.in_(_links_of(key)), _flows.c.ended_at.is_(None)
                )
            ).all()
        for flow in under_way:
            self._journal.end(Step(flow.id, flow.ref), EndUserForgotten())

    def _disconnect(self, key: int, actor: Actor) -> None:
        with self._database.read() as connection:
            refs = (
                connection.execute(
                    sa.select(_connections.c.ref)
                    .join(_people, _people.c.id == _connections.c.end_user_id)
                    .where(
                        _people.c.id == key,
                        # A key may come back for somebody else once its row is gone.
                        _people.c.erasure_asked_at.is_not(None),
                        _connections.c.disconnected_at.is_(None),
                    )
                )
                .scalars()
                .all()
            )
        for ref in refs:
            self._disconnections.request(ref, actor=actor)

    def _pending(self, key: int) -> Sequence[int]:
        with self._database.read() as connection:
            return _pending(connection, key)

    # --- the job ---------------------------------------------------------------------------------------

    def run(self, job: LeasedJob) -> Outcome:
        """Forget the person a job speaks of if everything is cleared up, record the outcome, and return it."""
        actor = Actor("worker", "forget")
        if not self._is_asked_for(job.subject_id):
            with self._database.write() as connection:
                self._jobs.settle(connection, job, Done())
            return Done()
        # Again, in case the call that asked was cut off half-way.
        self._end_flows(job.subject_id)
        self._disconnect(job.subject_id, actor)
        now = self._clock.now()
        outcome: Outcome = Done()
        with self._database.write() as connection:
            if (
                _pending(connection, job.subject_id)
                or _undiscarded(connection, job.subject_id)
                or _untold(connection, job.subject_id)
            ):
                outcome = Later(LOOKS_AGAIN_SECONDS)
            if self._jobs.settle(connection, job, outcome) and isinstance(outcome, Done):
                self._forget(connection, job.subject_id, now)
        return outcome

    def _is_asked_for(self, key: int) -> bool:
        with self._database.read() as connection:
            query = sa.select(_people.c.erasure_asked_at).where(_people.c.id == key)
            return connection.execute(query).scalar_one_or_none() is not None

    def _forget(self, connection: Connection, key: int, now: datetime) -> None:
        links = _links_of(key)
        flows = sa.select(_flows.c.id).where(_flows.c.link_id.in_(links))
        owned = sa.select(_connections.c.id).where(_connections.c.end_user_id == key)
        told = sa.select(_deliveries.c.id).where(_deliveries.c.event_id.in_(_about(key)))
        connection.execute(sa.delete(_attempts).where(_attempts.c.delivery_id.in_(told)))
        connection.execute(sa.delete(_deliveries).where(_deliveries.c.event_id.in_(_about(key))))
        connection.execute(sa.delete(_happenings).where(_happenings.c.id.in_(_about(key))))
        connection.execute(sa.delete(_events).where(_events.c.flow_id.in_(flows)))
        connection.execute(sa.delete(_hops).where(_hops.c.flow_id.in_(flows)))
        # Rows of finished jobs stay, for their fences; what they tell goes.
        finished = sa.and_(_jobs.c.kind.in_(["finish", "discard"]), _jobs.c.subject_id.in_(flows))
        about = sa.and_(_jobs.c.kind.in_(KINDS_ABOUT_CONNECTIONS), _jobs.c.subject_id.in_(owned))
        connection.execute(sa.update(_jobs).where(sa.or_(finished, about)).values(error=None, error_detail=None))
        connection.execute(sa.delete(_flows).where(_flows.c.link_id.in_(links)))
        connection.execute(sa.delete(_uses).where(_uses.c.link_id.in_(links)))
        connection.execute(sa.delete(_sessions).where(_sessions.c.end_user_id == key))
        connection.execute(sa.delete(_links).where(_links.c.end_user_id == key))
        connection.execute(sa.delete(_claims).where(_claims.c.end_user_id == key))
        # First, so that nothing comes to hang on them meanwhile: a bulk run that begins holds them, or finds them gone.
        connection.execute(owned.order_by(_connections.c.id).with_for_update())
        for hanging in (_members, _items):
            connection.execute(sa.delete(hanging).where(hanging.c.connection_id.in_(owned)))
        connection.execute(sa.delete(_connections).where(_connections.c.end_user_id == key))
        connection.execute(sa.delete(_people).where(_people.c.id == key))
        audit.record(
            connection, at=now, actor_kind="worker", actor="forget", action="end_user.forgotten", target="end_user"
        )
        log.info("end_user.forgotten")


def _links_of(key: int) -> sa.Select[tuple[int]]:
    return sa.select(_links.c.id).where(_links.c.end_user_id == key)


def _about(key: int) -> sa.Select[tuple[int]]:
    """Return the events that tell of a person."""
    person = sa.select(_people.c.external_id).where(_people.c.id == key).scalar_subquery()
    return sa.select(_happenings.c.id).where(_happenings.c.end_user == person)


def _untold(connection: Connection, key: int) -> bool:
    """Tell whether the host has still to be told of something; a switched-off endpoint is not waited for."""
    undispatched = _about(key).where(_happenings.c.dispatched_at.is_(None))
    waiting = (
        sa.select(_deliveries.c.id)
        .join(_endpoints, _endpoints.c.id == _deliveries.c.endpoint_id)
        .where(
            _deliveries.c.event_id.in_(_about(key)),
            _deliveries.c.state == SendState.PENDING,
            _endpoints.c.disabled_at.is_(None),
        )
    )
    return any(connection.execute(query.limit(1)).first() is not None for query in (undispatched, waiting))


def _undiscarded(connection: Connection, key: int) -> bool:
    """Tell whether something that came to nothing is still to be ended at a provider."""
    query = sa.select(_flows.c.id).where(_flows.c.link_id.in_(_links_of(key)), _flows.c.grant_sealed.is_not(None))
    return connection.execute(query.limit(1)).first() is not None


def _pending(connection: Connection, key: int) -> Sequence[int]:
    """Return the connections of a person that are not cleared up."""
    return (
        connection.execute(
            sa.select(_connections.c.id).where(
                _connections.c.end_user_id == key,
                sa.or_(
                    _connections.c.disconnected_at.is_(None),
                    _connections.c.revocation == CleanUp.PENDING,
                    _connections.c.removal == CleanUp.PENDING,
                ),
            )
        )
        .scalars()
        .all()
    )
