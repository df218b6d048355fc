"""Webhook endpoints: the host's addresses that are told what happens, their secrets, and what was sent to them."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.connection_search import CursorUnknown
from broker.db import Database, table
from broker.errors import AddressRefused, NetworkError, Refused
from broker.events import TEST, EventType, add_test
from broker.http import Http
from broker.jobs import Jobs
from broker.models import (
    Event,
    Job,
    JobState,
    SendState,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
    WebhookSecret,
)
from broker.notifications import NOTIFY, Notifications, secret_binding
from broker.references import new_id
from broker.secret import Secret
from broker.settings import addresses
from broker.text import one_line, storable
from broker.vault import Vault

MOST_ENDPOINTS = 20
MOST_ON_A_PAGE = 100
MOST_ATTEMPTS = 100
LONGEST_ADDRESS = 2000
LONGEST_DESCRIPTION = 200
SECRET_BYTES = 32
PREFIX = "whsec_"
OVERLAP = timedelta(hours=24)
"""How long a replaced secret goes on signing unless told otherwise, so that the host can change over at leisure."""
LONGEST_OVERLAP = timedelta(days=7)

_attempts = table(WebhookAttempt)
_deliveries = table(WebhookDelivery)
_endpoints = table(WebhookEndpoint)
_events = table(Event)
_jobs = table(Job)
_secrets = table(WebhookSecret)


class EndpointUnknown(Refused):
    """No webhook endpoint has this id."""

    code = "webhook_endpoint_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or go back to the list of webhook endpoints."


class DeliveryUnknown(Refused):
    """This event was not meant for this endpoint, or there is no such event."""

    code = "webhook_delivery_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or go back to the list of deliveries."


class EndpointDisabled(Refused):
    """Nothing is sent to this endpoint, a test neither."""

    code = "webhook_endpoint_disabled"
    status = 409
    heading = "This webhook endpoint is switched off"
    advice = "Switch it on first; what has waited goes out then, and shows as well whether it works."


class EndpointInvalid(Refused):
    """An endpoint cannot be as asked; `fields` gives the reasons by field."""

    code = "webhook_endpoint_invalid"
    status = 422
    heading = "Some fields cannot be accepted"

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self.fields = dict(fields)
        super().__init__("; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in self.fields.items()))


class TooManyEndpoints(Refused):
    """There are as many endpoints as there can be."""

    code = "webhook_endpoints_exhausted"
    status = 409
    heading = "There are too many webhook endpoints"
    advice = f"Delete one first: there can be {MOST_ENDPOINTS}."


@dataclass(frozen=True)
class EndpointRequest:
    """What an endpoint is to be."""

    url: str
    description: str = ""
    # None means every event, those of later versions included.
    types: tuple[EventType, ...] | None = None


@dataclass(frozen=True)
class EndpointChanges:
    """What is to change; None leaves a field alone."""

    url: str | None = None
    description: str | None = None
    # An empty one means every event.
    types: tuple[EventType, ...] | None = None
    enabled: bool | None = None


@dataclass(frozen=True)
class EndpointView:
    """An endpoint as its host and operators see it: everything but its secrets."""

    id: str
    url: str
    description: str
    types: tuple[str, ...] | None
    created_by: str
    created_at: datetime
    updated_at: datetime
    # None while it is sent to; then why: `gone` (it answered 410) or `switched_off`.
    disabled_at: datetime | None
    disabled_reason: str | None
    # When it last took an event, and since when it has not taken the next one.
    delivered_at: datetime | None
    failing_since: datetime | None
    # Why the last try failed, and when the next one is; empty and None while all is well.
    error: str
    next_attempt_at: datetime | None
    # Events that wait their turn, and those that were given up until somebody sends them again.
    waiting: int
    parked: int
    # Until when the secret before the newest one signs too; None when it does not.
    previous_secret_until: datetime | None


@dataclass(frozen=True)
class AttemptView:
    """One try. `status` is the HTTP status; without one, `error` says why there was no answer."""

    at: datetime
    status: int | None
    error: str | None
    duration_ms: int


@dataclass(frozen=True)
class DeliveryView:
    """One event on its way to one endpoint."""

    event: str
    type: str
    # What it is about: a connection's or a flow's reference; None for a test.
    subject: str | None
    happened_at: datetime
    state: SendState
    attempts: int
    delivered_at: datetime | None
    last_attempt: AttemptView | None


@dataclass(frozen=True)
class DeliveryPage:
    """Some deliveries, newest first, and where to go on; None at the end."""

    items: tuple[DeliveryView, ...]
    next_cursor: str | None


class WebhookEndpoints:
    """Make, change and delete endpoints; show what was sent, and send it again."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        vault: Vault,
        http: Http,
        jobs: Jobs,
        notifications: Notifications,
        https_only: bool,
    ) -> None:
        """`http` is what webhooks are sent through: an address that it would refuse cannot be saved."""
        self._database = database
        self._clock = clock
        self._vault = vault
        self._http = http
        self._jobs = jobs
        self._notifications = notifications
        self._https_only = https_only

    # --- endpoints -------------------------------------------------------------------------------------

    def create(self, request: EndpointRequest, *, actor: Actor) -> tuple[EndpointView, Secret]:
        """Make an endpoint, told of what happens from now on; its secret is returned this once.

        Raises EndpointInvalid or TooManyEndpoints.
        """
        url = self._checked(request.url, request.description, request.types)
        public_id, now = new_id("whe"), self._clock.now()
        with self._database.write() as connection:
            # What happened before is not its business.
            self._notifications.dispatch_all(connection)
            if connection.execute(sa.select(sa.func.count()).select_from(_endpoints)).scalar_one() >= MOST_ENDPOINTS:
                raise TooManyEndpoints
            key = connection.execute(
                sa.insert(_endpoints)
                .values(
                    public_id=public_id, url=url, description=request.description, types=_kept(request.types),
                    created_by=actor.name, created_at=now, updated_at=now,
                )
                .returning(_endpoints.c.id)
            ).scalar_one()  # fmt: skip
            secret = self._add_secret(connection, key, public_id, 1)
            self._audit(connection, actor, "created", public_id)
            return _view(connection, public_id), secret

    def list(self) -> tuple[EndpointView, ...]:
        """Return every endpoint, oldest first."""
        with self._database.read() as connection:
            ids = connection.execute(sa.select(_endpoints.c.public_id).order_by(_endpoints.c.id)).scalars().all()
            return tuple(_view(connection, each) for each in ids)

    def find(self, public_id: str) -> EndpointView:
        """Return one endpoint. Raises EndpointUnknown."""
        with self._database.read() as connection:
            return _view(connection, public_id)

    def change(self, public_id: str, changes: EndpointChanges, *, actor: Actor) -> EndpointView:
        """Change an endpoint; what waited while it was disabled goes out once it is enabled.

        Raises EndpointUnknown or EndpointInvalid.
        """
        values: dict[str, object] = {"updated_at": self._clock.now()}
        if changes.types is not None:
            values["types"] = _kept(changes.types or None)
        if changes.description is not None:
            values["description"] = changes.description
        url = self._checked(changes.url, changes.description, changes.types or None)
        if changes.url is not None:
            values["url"] = url
        if changes.enabled is not None:
            off = {"disabled_at": self._clock.now(), "disabled_reason": "switched_off"}
            values |= {"disabled_at": None, "disabled_reason": None, "failing_since": None} if changes.enabled else off
        with self._database.write() as connection:
            key = _key_of(connection, public_id)
            # The job before the endpoint, as the worker takes them.
            if changes.enabled or changes.url is not None:
                self._jobs.enqueue(connection, NOTIFY, key)
            connection.execute(sa.update(_endpoints).where(_endpoints.c.id == key).values(**values))
            self._audit(connection, actor, "changed", public_id, fields=sorted(values.keys() - {"updated_at"}))
            view = _view(connection, public_id)
        self._jobs.wakeup.set()
        return view

    def rotate(self, public_id: str, *, overlap: timedelta = OVERLAP, actor: Actor) -> tuple[EndpointView, Secret]:
        """Give an endpoint a new secret, returned this once; the one before goes on signing for `overlap`.

        Raises EndpointUnknown or EndpointInvalid.
        """
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            longest = int(LONGEST_OVERLAP.total_seconds())
            raise EndpointInvalid({"previous_expires_in": [f"must be between 0 and {longest} seconds"]})
        now = self._clock.now()
        with self._database.write() as connection:
            key = _key_of(connection, public_id, lock=True)
            newest = sa.select(sa.func.max(_secrets.c.number)).where(_secrets.c.endpoint_id == key)
            number: int = connection.execute(newest).scalar_one()
            own = _secrets.c.endpoint_id == key
            # Only the one before stays: at no time are there more than two.
            connection.execute(sa.delete(_secrets).where(own, _secrets.c.number < number))
            connection.execute(
                sa.update(_secrets).where(own, _secrets.c.number == number).values(expires_at=now + overlap)
            )
            secret = self._add_secret(connection, key, public_id, number + 1)
            self._audit(connection, actor, "secret_rotated", public_id, overlap=int(overlap.total_seconds()))
            return _view(connection, public_id), secret

    def delete(self, public_id: str, *, actor: Actor) -> None:
        """Forget an endpoint with everything that was or was to be sent to it. Raises EndpointUnknown."""
        with self._database.write() as connection:
            # A dispatcher takes the endpoint before the job: the two could wait for each other.
            self._notifications.hold_dispatch(connection)
            key = _key_of(connection, public_id)
            # The job before the endpoint, as the worker takes them.
            self._jobs.cancel(connection, NOTIFY, key)
            _key_of(connection, public_id, lock=True)
            sent = sa.select(_deliveries.c.id).where(_deliveries.c.endpoint_id == key)
            connection.execute(sa.delete(_attempts).where(_attempts.c.delivery_id.in_(sent)))
            connection.execute(sa.delete(_deliveries).where(_deliveries.c.endpoint_id == key))
            connection.execute(sa.delete(_secrets).where(_secrets.c.endpoint_id == key))
            connection.execute(sa.delete(_endpoints).where(_endpoints.c.id == key))
            self._audit(connection, actor, "deleted", public_id)

    # --- what is sent ----------------------------------------------------------------------------------

    def deliveries(
        self, public_id: str, *, state: SendState | None = None, limit: int, cursor: str | None = None
    ) -> DeliveryPage:
        """Return what was and is to be sent, newest first. Raises EndpointUnknown or CursorUnknown."""
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        with self._database.read() as connection:
            key = _key_of(connection, public_id)
            wanted = [_deliveries.c.endpoint_id == key]
            if state is not None:
                wanted.append(_deliveries.c.state == state)
            if cursor is not None:
                try:
                    wanted.append(_deliveries.c.id < _delivery_key(connection, key, cursor))
                except DeliveryUnknown:
                    raise CursorUnknown from None
            rows = connection.execute(_sent().where(*wanted).order_by(_deliveries.c.id.desc()).limit(limit + 1)).all()
            last = _last_attempts(connection, [row.id for row in rows[:limit]])
        items = tuple(_delivery_view(row, last.get(row.id)) for row in rows[:limit])
        return DeliveryPage(items, items[-1].event if len(rows) > limit else None)

    def delivery(self, public_id: str, event_id: str) -> tuple[DeliveryView, tuple[AttemptView, ...]]:
        """Return one delivery and its tries, the last ones first. Raises EndpointUnknown or DeliveryUnknown."""
        with self._database.read() as connection:
            key = _delivery_key(connection, _key_of(connection, public_id), event_id)
            row = connection.execute(_sent().where(_deliveries.c.id == key)).one()
            tries = connection.execute(
                sa.select(_attempts)
                .where(_attempts.c.delivery_id == key)
                .order_by(_attempts.c.id.desc())
                .limit(MOST_ATTEMPTS)
            ).all()
        attempts = tuple(map(_attempt_view, tries))
        return _delivery_view(row, attempts[0] if attempts else None), attempts

    def resend(self, public_id: str, event_id: str, *, actor: Actor) -> DeliveryView:
        """Send one event again, whatever became of it, before those that came after it.

        Raises EndpointUnknown or DeliveryUnknown.
        """
        with self._database.write() as connection:
            endpoint = _key_of(connection, public_id)
            key = _delivery_key(connection, endpoint, event_id)
            if not self._again(connection, endpoint, _deliveries.c.id == key):
                # Taken back with its endpoint since it was looked up.
                raise DeliveryUnknown
            self._audit(connection, actor, "event_resent", public_id, event=event_id)
            view = _delivery_view(
                connection.execute(_sent().where(_deliveries.c.id == key)).one(),
                _last_attempts(connection, [key]).get(key),
            )
        self._jobs.wakeup.set()
        return view

    def test(self, public_id: str, *, actor: Actor) -> DeliveryView:
        """Send a test event, behind what waits already; one that still waits is tried at once instead.

        Raises EndpointUnknown or EndpointDisabled.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            endpoint = _key_of(connection, public_id)
            # The job before the endpoint, as the worker takes them; armed afresh, so that nothing waits out a failure.
            self._jobs.enqueue(connection, NOTIFY, endpoint)
            if self._is_disabled(connection, endpoint):
                raise EndpointDisabled
            waiting = sa.select(_events.c.public_id).join(_deliveries, _deliveries.c.event_id == _events.c.id)
            event_id: str | None = connection.execute(
                waiting.where(
                    _deliveries.c.endpoint_id == endpoint,
                    _deliveries.c.state == SendState.PENDING,
                    _events.c.type == TEST,
                ).limit(1)
            ).scalar_one_or_none()
            if event_id is None:
                key, event_id = add_test(connection, public_id, at=now)
                queued = {"event_id": key, "endpoint_id": endpoint, "queued_at": now, "attempts": 0}
                connection.execute(sa.insert(_deliveries).values(state=SendState.PENDING.value, **queued))
            self._audit(connection, actor, "tested", public_id, event=event_id)
            key = _delivery_key(connection, endpoint, event_id)
            view = _delivery_view(
                connection.execute(_sent().where(_deliveries.c.id == key)).one(),
                _last_attempts(connection, [key]).get(key),
            )
        self._jobs.wakeup.set()
        return view

    def _is_disabled(self, connection: Connection, endpoint: int) -> bool:
        """Tell whether nothing is sent to an endpoint, and keep it from being deleted. Raises EndpointUnknown."""
        query = sa.select(_endpoints.c.disabled_at).where(_endpoints.c.id == endpoint)
        # As weak as a dispatcher's lock, which is taken before the job's: the two never wait for each other.
        row = connection.execute(query.with_for_update(read=True, key_share=True)).one_or_none()
        if row is None:
            raise EndpointUnknown
        return row.disabled_at is not None

    def resend_parked(self, public_id: str, *, actor: Actor) -> int:
        """Send everything again that was given up, in its old order; returns how many. Raises EndpointUnknown."""
        with self._database.write() as connection:
            endpoint = _key_of(connection, public_id)
            count = self._again(connection, endpoint, _deliveries.c.state == SendState.PARKED)
            self._audit(connection, actor, "parked_resent", public_id, count=count)
        self._jobs.wakeup.set()
        return count

    def _again(self, connection: Connection, endpoint: int, which: sa.ColumnElement[bool]) -> int:
        # The job before its deliveries, as the worker takes them; armed afresh, so that nothing waits out a failure.
        self._jobs.enqueue(connection, NOTIFY, endpoint)
        return connection.execute(
            sa.update(_deliveries)
            .where(_deliveries.c.endpoint_id == endpoint, which)
            .values(state=SendState.PENDING.value, queued_at=self._clock.now(), delivered_at=None)
        ).rowcount

    # --- the parts -------------------------------------------------------------------------------------

    def _add_secret(self, connection: Connection, endpoint: int, public_id: str, number: int) -> Secret:
        secret = Secret(PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode())
        sealed = self._vault.seal(secret.reveal().encode(), secret_binding(public_id, number))
        connection.execute(
            sa.insert(_secrets).values(endpoint_id=endpoint, number=number, sealed=sealed, created_at=self._clock.now())
        )
        return secret

    def _audit(self, connection: Connection, actor: Actor, what: str, public_id: str, **detail: object) -> None:
        audit.record(
            connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name,
            action=f"webhook_endpoint.{what}", target=public_id, detail=detail,
        )  # fmt: skip

    def _checked(self, url: str | None, description: str | None, types: Iterable[EventType] | None) -> str:
        """Return the address in its one form, empty without one. Raises EndpointInvalid with every problem."""
        problems: dict[str, list[str]] = {}
        form = ""
        if url is not None:
            try:
                form = self._address(url)
            except ValueError as problem:
                problems["url"] = [str(problem)]
        if description and not (one_line(description) and len(description) <= LONGEST_DESCRIPTION):
            problems["description"] = [f"must be one line of at most {LONGEST_DESCRIPTION} characters"]
        if types is not None and not list(types):
            problems["events"] = ["must name at least one event; leave it out for all of them"]
        if problems:
            raise EndpointInvalid(problems)
        return form

    def _address(self, text: str) -> str:
        """Return an address in its one form. Raises ValueError with what is wrong with it."""
        parsed = addresses.parse(text)
        form = parsed.origin + (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")
        if len(form) > LONGEST_ADDRESS:
            raise ValueError(f"is longer than {LONGEST_ADDRESS} characters")
        if parsed.scheme != "https" and (self._https_only or not parsed.loopback):
            raise ValueError("is not https")
        try:
            self._http.check(form)
        except AddressRefused:
            raise ValueError(
                "leads to an address that is not on the public internet; [webhooks] private_networks can allow it"
            ) from None
        except NetworkError:
            raise ValueError("cannot be called") from None
        return form


def _kept(types: Iterable[EventType] | None) -> list[str] | None:
    return None if types is None else [each.value for each in dict.fromkeys(types)]


def _key_of(connection: Connection, public_id: str, *, lock: bool = False) -> int:
    found: int | None = None
    if storable(public_id):
        query = sa.select(_endpoints.c.id).where(_endpoints.c.public_id == public_id)
        found = connection.execute(query.with_for_update() if lock else query).scalar_one_or_none()
    if found is None:
        raise EndpointUnknown
    return found


def _view(connection: Connection, public_id: str) -> EndpointView:
    key = _key_of(connection, public_id)
    row = connection.execute(
        sa.select(_endpoints, _jobs.c.state.label("job_state"), _jobs.c.due_at, _jobs.c.error, _jobs.c.failures)
        .outerjoin(_jobs, sa.and_(_jobs.c.kind == NOTIFY, _jobs.c.subject_id == _endpoints.c.id))
        .where(_endpoints.c.id == key)
    ).one()
    counted = sa.select(_deliveries.c.state, sa.func.count().label("many")).where(
        _deliveries.c.endpoint_id == key, _deliveries.c.state.in_([SendState.PENDING, SendState.PARKED])
    )
    counts = {each.state: each.many for each in connection.execute(counted.group_by(_deliveries.c.state))}
    until = sa.select(sa.func.max(_secrets.c.expires_at)).where(_secrets.c.endpoint_id == key)
    is_on = row.disabled_at is None
    return EndpointView(
        id=row.public_id,
        url=row.url,
        description=row.description,
        types=None if row.types is None else tuple(row.types),
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        disabled_at=row.disabled_at,
        disabled_reason=row.disabled_reason,
        delivered_at=row.delivered_at,
        failing_since=row.failing_since,
        error=(row.error or "") if is_on else "",
        next_attempt_at=row.due_at if is_on and row.error and row.job_state == JobState.WAITING else None,
        waiting=counts.get(SendState.PENDING, 0),
        parked=counts.get(SendState.PARKED, 0),
        previous_secret_until=connection.execute(until).scalar_one(),
    )


def _sent() -> sa.Select[*tuple[Any, ...]]:
    return sa.select(
        _deliveries.c.id, _deliveries.c.state, _deliveries.c.attempts, _deliveries.c.delivered_at,
        _events.c.public_id.label("event"), _events.c.type, _events.c.at,
        sa.func.coalesce(_events.c.connection_ref, _events.c.flow_ref).label("subject"),
    ).join(_events, _events.c.id == _deliveries.c.event_id)  # fmt: skip


def _delivery_key(connection: Connection, endpoint: int, event_id: str) -> int:
    found: int | None = None
    if storable(event_id):
        found = connection.execute(
            sa.select(_deliveries.c.id)
            .join(_events, _events.c.id == _deliveries.c.event_id)
            .where(_deliveries.c.endpoint_id == endpoint, _events.c.public_id == event_id)
        ).scalar_one_or_none()
    if found is None:
        raise DeliveryUnknown
    return found


def _last_attempts(connection: Connection, keys: list[int]) -> dict[int, AttemptView]:
    newest = sa.select(sa.func.max(_attempts.c.id)).where(_attempts.c.delivery_id.in_(keys))
    query = sa.select(_attempts).where(_attempts.c.id.in_(newest.group_by(_attempts.c.delivery_id)))
    return {row.delivery_id: _attempt_view(row) for row in connection.execute(query)}


def _attempt_view(row: Row[Any]) -> AttemptView:
    return AttemptView(row.at, row.status, row.error, row.duration_ms)


def _delivery_view(row: Row[Any], last: AttemptView | None) -> DeliveryView:
    return DeliveryView(
        event=row.event,
        type=row.type,
        subject=row.subject,
        happened_at=row.at,
        state=SendState(row.state),
        attempts=row.attempts,
        delivered_at=row.delivered_at,
        last_attempt=last,
    )
