"""What happens, as the host is told: a row for each event, written in the transaction of the change itself.

Who changes a connection says so here, once, and the rest follows: what needs attention and what has recovered is
worked out from the status before and after, never decided where the change is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from broker.connection_search import CursorUnknown
from broker.db import Database, table
from broker.models import ConnectedAccount, EndUser, Event, Flow, Link
from broker.references import new_id
from broker.status import NEEDS_ATTENTION, Status, attention_after, status_of
from broker.text import storable

MOST_ON_A_PAGE = 100

_connections = table(ConnectedAccount)
_events = table(Event)
_flows = table(Flow)
_links = table(Link)
_people = table(EndUser)


class EventType(StrEnum):
    """What can happen."""

    CONNECTED = "connection.connected"
    IMPORTED = "connection.imported"
    NEEDS_ATTENTION = "connection.needs_attention"
    RECOVERED = "connection.recovered"
    DISCONNECTED = "connection.disconnected"
    FLOW_FAILED = "flow.failed"


TEST = "webhook.test"
"""What an endpoint is sent when somebody asks for a test. Nothing has happened, so no list of events holds it."""


@dataclass(frozen=True)
class EventView:
    """One event. `data` says how things stood then, and holds no secret."""

    id: str
    type: str
    at: datetime
    data: Mapping[str, object]


@dataclass(frozen=True)
class EventFilters:
    """What a list is narrowed to; None leaves a field alone."""

    type: EventType | None = None
    connection: str | None = None
    end_user: str | None = None
    # Not before then.
    since: datetime | None = None


@dataclass(frozen=True)
class EventPage:
    """Some events, newest first, and where to go on; None at the end."""

    items: tuple[EventView, ...]
    next_cursor: str | None


# Built once: an import runs them each time, and building a statement costs more than running it.
_AS_IT_STANDS = (
    sa.select(_connections, _people.c.external_id)
    .join(_people, _people.c.id == _connections.c.end_user_id)
    .where(_connections.c.id == sa.bindparam("key"))
)
_ADD = sa.insert(_events).inline()
_ATTENTION = sa.update(_connections).where(_connections.c.id == sa.bindparam("key"))


# --- writing ------------------------------------------------------------------------------------------


def changed(connection: Connection, connection_id: int, *, at: datetime, what: EventType | None = None) -> None:
    """Record that a connection was changed in the caller's transaction, after it was.

    `what` is the event that the change itself is, if it is one; what the new status means for the host is found
    out here.
    """
    row = connection.execute(_AS_IT_STANDS, {"key": connection_id}).one()
    changed_row(connection, row, row.external_id, at=at, what=what)


def changed_row(
    connection: Connection, row: Row[Any], end_user: str, *, at: datetime, what: EventType | None = None
) -> None:
    """Do the same for who has the connection's whole row as it stands now, and the host's id of its end user."""
    status = status_of(row, at)
    before = Status(row.attention) if row.attention else None
    after = attention_after(before, status)
    happened = [what] if what is not None else []
    if after is not None and after is not before:
        happened.append(EventType.NEEDS_ATTENTION)
    elif before is not None and status is Status.OK:
        happened.append(EventType.RECOVERED)
    if after is not before:
        connection.execute(_ATTENTION, {"key": row.id, "attention": after})
    for event in happened:
        _add(connection, event, at, end_user, _snapshot(row, end_user, status), connection_ref=row.ref)


def flow_ended(connection: Connection, flow_id: int, *, at: datetime) -> None:
    """Record in the caller's transaction that a flow ended without a connection, after it did."""
    row = connection.execute(
        sa.select(
            _flows.c.ref, _flows.c.state, _flows.c.failure, _flows.c.app_key, _people.c.external_id,
            _links.c.public_id.label("link"), _links.c.host_metadata,
        )
        .join(_people, _people.c.id == _flows.c.end_user_id)
        .join(_links, _links.c.id == _flows.c.link_id)
        .where(_flows.c.id == flow_id)
    ).one()  # fmt: skip
    data = {
        "ref": row.ref,
        "end_user": {"id": row.external_id},
        "app": row.app_key,
        "link": row.link,
        "state": row.state,
        "reason": row.failure,
        "metadata": row.host_metadata,
    }
    _add(connection, EventType.FLOW_FAILED, at, row.external_id, data, flow_ref=row.ref)


def add_test(connection: Connection, endpoint: str, *, at: datetime) -> tuple[int, str]:
    """Add a test event for one endpoint in the caller's transaction; returns its key and its public id."""
    values = {
        "public_id": new_id("evt"), "type": TEST, "at": at, "end_user": "", "connection_ref": None, "flow_ref": None,
        "data": {"test": True, "webhook_endpoint": endpoint},
        # Nobody else is told.
        "dispatched_at": at,
    }  # fmt: skip
    key: int = connection.execute(_ADD.values(**values).returning(_events.c.id)).scalar_one()
    return key, str(values["public_id"])


def _add(
    connection: Connection, what: EventType, at: datetime, end_user: str, data: dict[str, Any], **about: str
) -> None:
    values = {"public_id": new_id("evt"), "type": what.value, "at": at, "end_user": end_user, "data": data, **about}
    connection.execute(_ADD, {"connection_ref": None, "flow_ref": None, **values})


def _snapshot(row: Row[Any], end_user: str, status: Status) -> dict[str, Any]:
    """Return how a connection stands, in the words of the API. Columns are named one by one: no secret slips in."""
    return {
        "ref": row.ref,
        "end_user": {"id": end_user},
        "provider": row.provider,
        "app": row.app_key,
        "kind": row.kind,
        "account": _account(row),
        "scopes": row.scopes,
        "status": status.value,
        "reason": _reason(row, status),
        "sequin": {
            "credential_id": row.credential_id,
            "oauth_app_id": row.sequin_oauth_app_id,
            "imported_at": _iso(row.imported_at),
            "verified_at": _iso(row.verified_at),
        },
        "metadata": row.host_metadata,
        "created_at": _iso(row.created_at),
    }


def _account(row: Row[Any]) -> dict[str, Any] | None:
    if row.account_id is None:
        return None
    return {"id": row.account_id, "name": row.account_name, "type": row.account_type, "mode": row.mode}


def _reason(row: Row[Any], status: Status) -> str | None:
    """Return the stable code of what is wrong, None where nothing is."""
    if status is Status.ERROR:
        return str(row.trouble or row.drift or "error")
    if status is Status.IMPORT_FAILED:
        return str(row.import_error or "import_failed")
    return status.value if status in NEEDS_ATTENTION else None


def _iso(value: datetime | None) -> str | None:
    return None if value is None else f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def as_told(event: EventView) -> dict[str, object]:
    """Return an event as hosts get it, in the API and in webhooks alike."""
    return {"id": event.id, "type": event.type, "timestamp": _iso(event.at), "data": dict(event.data)}


# --- reading ------------------------------------------------------------------------------------------


class Events:
    """Lists what happened."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def page(self, filters: EventFilters, *, limit: int, cursor: str | None = None) -> EventPage:
        """Return the events that match, newest first. Raises CursorUnknown."""
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        place = sa.tuple_(_events.c.at, _events.c.id)
        with self._database.read() as connection:
            wanted = _matching(filters)
            if cursor is not None:
                wanted.append(place < _place_of(connection, cursor))
            query = sa.select(_events).where(*wanted).order_by(_events.c.at.desc(), _events.c.id.desc())
            rows = connection.execute(query.limit(limit + 1)).all()
        items = tuple(EventView(row.public_id, row.type, row.at, row.data) for row in rows[:limit])
        return EventPage(items, items[-1].id if len(rows) > limit else None)


def _matching(filters: EventFilters) -> list[sa.ColumnElement[bool]]:
    texts = [text for text in (filters.connection, filters.end_user) if text is not None]
    if not all(map(storable, texts)):
        # No row can hold such text, so nothing matches it.
        return [sa.false()]
    exact = (
        (_events.c.type, filters.type),
        (_events.c.connection_ref, filters.connection),
        (_events.c.end_user, filters.end_user),
    )
    found: list[sa.ColumnElement[bool]] = [column == value for column, value in exact if value is not None]
    found.append(_events.c.type != TEST)
    if filters.since is not None:
        found.append(_events.c.at >= filters.since)
    return found


def _place_of(connection: Connection, event_id: str) -> sa.ColumnElement[Any]:
    row = None
    if storable(event_id):
        found = sa.select(_events.c.at, _events.c.id).where(_events.c.public_id == event_id)
        row = connection.execute(found).one_or_none()
    if row is None:
        raise CursorUnknown
    return sa.tuple_(sa.literal(row.at, _events.c.at.type), sa.literal(row.id, _events.c.id.type))
