"""The people of the host: remembered when a link is made for them, or when they sign in."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker.errors import EndUserErased
from broker.models import EndUser


def remember(connection: Connection, external_id: str, *, email: str | None, name: str | None, now: datetime) -> int:
    """Return the key of an end user, made or brought up to date with what was told. Raises EndUserErased."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    fresh = insert(EndUser).values(external_id=external_id, email=email, name=name, created_at=now)
    told = fresh.excluded
    person = connection.execute(
        fresh.on_conflict_do_update(
            index_elements=["external_id"],
            # What is left out stays as it was.
            set_={
                "email": sa.func.coalesce(told.email, EndUser.email),
                "name": sa.func.coalesce(told.name, EndUser.name),
            },
        ).returning(EndUser.id, EndUser.erasure_asked_at)
    ).one()
    if person.erasure_asked_at is not None:
        raise EndUserErased
    found: int = person.id
    return found
