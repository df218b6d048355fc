"""A connection's row as the jobs read it: with the end user's id, and turned back into a provider account."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Row

from broker.db import Database, table
from broker.models import ConnectedAccount, EndUser
from broker.providers.base import Account

_connections = table(ConnectedAccount)
_people = table(EndUser)
_BY_KEY = (
    sa.select(_connections, _people.c.external_id)
    .join(_people, _people.c.id == _connections.c.end_user_id)
    .where(_connections.c.id == sa.bindparam("key"))
)


def connected_row(database: Database, connection_id: int) -> Row[Any] | None:
    """Return a connection's row with `external_id`, the host's id of its end user; None when it is gone."""
    with database.look() as connection:
        return connection.execute(_BY_KEY, {"key": connection_id}).one_or_none()


def account_of(row: Row[Any]) -> Account:
    """Return the provider account of a connection's row."""
    return Account(
        id=row.account_id, name=row.account_name, type=row.account_type, mode=row.mode, facts=row.account_facts
    )
