"""What the API takes and gives about events and webhook endpoints; the rules are those of `schemas`."""

from __future__ import annotations

from datetime import UTC
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from broker.contract import Given, Taken, Time, whole
from broker.events import MOST_ON_A_PAGE, EventFilters, EventType, EventView, as_told
from broker.models import SendState
from broker.secret import Secret
from broker.text import MAYBE_ONE_LINE
from broker.webhook_endpoints import (
    LONGEST_ADDRESS,
    LONGEST_DESCRIPTION,
    LONGEST_OVERLAP,
    AttemptView,
    DeliveryView,
    EndpointChanges,
    EndpointRequest,
    EndpointView,
)

# JSON has no enumerations: a strict model would refuse the words that name them.
_Types = Annotated[list[Annotated[EventType, Field(strict=False)]], Field(min_length=1)]


# In development http on this machine is taken too.
_PUBLIC = r"^https:\/\/(?:[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?\.)+[a-z]{2,10}(?:\/[A-Za-z0-9._~-]*)*$"
_ADDRESS: JsonDict = {"maxLength": LONGEST_ADDRESS, "pattern": _PUBLIC, "examples": ["https://app.example.com/hooks"]}
_LINE: JsonDict = {"maxLength": LONGEST_DESCRIPTION, "pattern": MAYBE_ONE_LINE}
_OVERLAP: JsonDict = {"minimum": 0, "maximum": int(LONGEST_OVERLAP.total_seconds())}


def _no_number(value: object) -> object:
    """Refuse seconds since 1970, which would be taken for a time otherwise."""
    if isinstance(value, str) and "-" not in value[1:]:
        raise ValueError("must be a time as ISO 8601 writes it")
    return value


class EventQuery(Taken):
    """The query of GET /events."""

    model_config = ConfigDict(strict=False)

    type: EventType | None = None
    connection: str | None = None
    end_user: str | None = None
    since: Annotated[AwareDatetime, BeforeValidator(_no_number)] | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_ON_A_PAGE)] = 50
    cursor: str | None = None

    def filters(self) -> EventFilters:
        """Return what the use case takes."""
        since = self.since.astimezone(UTC) if self.since else None
        return EventFilters(type=self.type, connection=self.connection, end_user=self.end_user, since=since)


class DeliveryQuery(Taken):
    """The query of GET /webhook-endpoints/<id>/deliveries."""

    model_config = ConfigDict(strict=False)

    state: SendState | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_ON_A_PAGE)] = 50
    cursor: str | None = None


class EndpointBody(Taken):
    """The body of POST /webhook-endpoints. Without `events` every event is sent."""

    url: Annotated[str, Field(json_schema_extra=_ADDRESS)]
    description: Annotated[str, Field(json_schema_extra=_LINE)] = ""
    events: _Types | None = None

    def request(self) -> EndpointRequest:
        """Return what the use case takes."""
        types = None if self.events is None else tuple(self.events)
        return EndpointRequest(url=self.url, description=self.description, types=types)


class EndpointChangesBody(Taken):
    """The body of PATCH /webhook-endpoints/<id>: what is left out stays; `events: null` means every event."""

    url: Annotated[str, Field(json_schema_extra=_ADDRESS)] | None = None
    description: Annotated[str, Field(json_schema_extra=_LINE)] | None = None
    events: _Types | None = None
    enabled: bool | None = None

    def changes(self) -> EndpointChanges:
        """Return what the use case takes."""
        types = tuple(self.events or ()) if "events" in self.model_fields_set else None
        return EndpointChanges(url=self.url, description=self.description, types=types, enabled=self.enabled)


class RotateBody(Taken):
    """The body of POST /webhook-endpoints/<id>/rotate-secret; may be empty."""

    # Seconds for which the secret before goes on signing too; a day unless told otherwise, at most a week.
    previous_expires_in: Annotated[int, Field(json_schema_extra=_OVERLAP), BeforeValidator(whole)] | None = None


# --- answers ----------------------------------------------------------------------------------------


class EventAnswer(Given):
    """One event, as it is in the body of a webhook too."""

    id: str
    type: str
    timestamp: str
    data: dict[str, Any]

    @classmethod
    def of(cls, event: EventView) -> EventAnswer:
        """Return the answer for an event."""
        return cls.model_validate(as_told(event))


class EventsAnswer(Given):
    """A page of events, newest first."""

    data: list[EventAnswer]
    next_cursor: str | None


class EndpointAnswer(Given):
    """A webhook endpoint."""

    id: str
    url: str
    description: str
    # Null means every event.
    events: list[str] | None
    enabled: bool
    # Why it is not enabled: gone (it answered 410) or switched_off.
    disabled_reason: str | None
    disabled_at: Time | None
    last_delivered_at: Time | None
    # Since when it does not take the next event, why, and when that is tried again.
    failing_since: Time | None
    error: str | None
    next_attempt_at: Time | None
    # Events that wait their turn, and those given up after three days until they are sent again.
    waiting: int
    parked: int
    previous_secret_expires_at: Time | None
    created_at: Time
    updated_at: Time

    @classmethod
    def of(cls, view: EndpointView) -> EndpointAnswer:
        """Return the answer for an endpoint."""
        return cls(**_members(view))


class NewSecretAnswer(EndpointAnswer):
    """A webhook endpoint with its new secret, which is never shown again."""

    secret: str

    @classmethod
    def with_secret(cls, view: EndpointView, secret: Secret) -> NewSecretAnswer:
        """Return the answer that shows a secret."""
        return cls(**_members(view), secret=secret.reveal())


def _members(view: EndpointView) -> dict[str, Any]:
    return {
        "id": view.id,
        "url": view.url,
        "description": view.description,
        "events": None if view.types is None else list(view.types),
        "enabled": view.disabled_at is None,
        "disabled_reason": view.disabled_reason,
        "disabled_at": view.disabled_at,
        "last_delivered_at": view.delivered_at,
        "failing_since": view.failing_since,
        "error": view.error or None,
        "next_attempt_at": view.next_attempt_at,
        "waiting": view.waiting,
        "parked": view.parked,
        "previous_secret_expires_at": view.previous_secret_until,
        "created_at": view.created_at,
        "updated_at": view.updated_at,
    }


class EndpointsAnswer(Given):
    """Every webhook endpoint, oldest first."""

    data: list[EndpointAnswer]


class AttemptAnswer(Given):
    """One try to send one event. Without an HTTP status, `error` says why there was no answer."""

    at: Time
    status: int | None
    error: str | None
    duration_ms: int

    @classmethod
    def of(cls, view: AttemptView) -> AttemptAnswer:
        """Return the answer for one try."""
        return cls(at=view.at, status=view.status, error=view.error, duration_ms=view.duration_ms)


class DeliveryAnswer(Given):
    """One event on its way to one endpoint: pending, delivered or parked."""

    event: str
    type: str
    state: str
    happened_at: Time
    delivered_at: Time | None
    attempts: int
    last_attempt: AttemptAnswer | None

    @classmethod
    def of(cls, view: DeliveryView) -> DeliveryAnswer:
        """Return the answer for a delivery."""
        last = view.last_attempt
        return cls(
            event=view.event,
            type=view.type,
            state=view.state.value,
            happened_at=view.happened_at,
            delivered_at=view.delivered_at,
            attempts=view.attempts,
            last_attempt=AttemptAnswer.of(last) if last else None,
        )


class DeliveriesAnswer(Given):
    """A page of deliveries, newest first."""

    data: list[DeliveryAnswer]
    next_cursor: str | None


class ResentAnswer(Given):
    """How many events are sent again."""

    resent: int


class DeliveryDetailsAnswer(Given):
    """One delivery with its last hundred tries, newest first."""

    delivery: DeliveryAnswer
    attempts: list[AttemptAnswer]
