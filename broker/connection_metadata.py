"""A connection's metadata as rows of their own, by which lists are narrowed; written with the connection."""

from __future__ import annotations

import json
from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.contract import LONGEST_KEY, LONGEST_VALUE
from broker.db import table
from broker.models import MetadataMember
from broker.text import storable

_members = table(MetadataMember)


def text_of(value: object) -> str:
    """Return a metadata value as it is compared: `true`, `7` and `seven` as JSON shows them, unquoted."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def index_metadata(
    connection: Connection, connection_id: int, metadata: Mapping[str, object], *, is_new: bool = False
) -> None:
    """Bring the rows of a connection up to what its metadata says, in the caller's transaction.

    What no filter can ask for, because it is null or too long, has no row.
    """
    if not is_new:
        connection.execute(sa.delete(_members).where(_members.c.connection_id == connection_id))
    index_new(connection, {connection_id: metadata})


def index_new(connection: Connection, told: Mapping[int, Mapping[str, object]]) -> None:
    """Add the rows of new connections, by their keys, in the caller's transaction."""
    rows = [
        {"connection_id": connection_id, "key": key, "value": text_of(value)}
        for connection_id, metadata in told.items()
        for key, value in metadata.items()
        if value is not None and _can_be_asked_for(key, text_of(value))
    ]
    if rows:
        connection.execute(sa.insert(_members), rows)


def _can_be_asked_for(key: str, value: str) -> bool:
    return len(key) <= LONGEST_KEY and len(value) <= LONGEST_VALUE and storable(key) and storable(value)
