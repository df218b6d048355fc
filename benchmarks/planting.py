"""Connect links for people nobody has seen before, written into the database in one go."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from broker.db import table
from broker.models import EndUser, Link
from broker.references import new_id
from broker.secret import digest, random_token
from tests.e2e.world import World

ROWS_AT_ONCE = 500


def plant_links(world: World, count: int, *, app: str = "stripe") -> list[str]:
    """Add links for one OAuth app, each for a person of its own, and return their tokens."""
    tokens = [random_token() for _ in range(count)]
    with world.database() as connection:
        for start in range(0, count, ROWS_AT_ONCE):
            _plant(connection, tokens[start : start + ROWS_AT_ONCE], app)
    return tokens


def _plant(connection: sa.Connection, tokens: list[str], app: str) -> None:
    now = datetime.now(UTC)
    key = table(EndUser).c.id
    people = connection.execute(
        sa.insert(table(EndUser)).returning(key, sort_by_parameter_order=True),
        [{"external_id": new_id("usr"), "created_at": now} for _ in tokens],
    ).scalars()
    link: dict[str, Any] = {
        "apps": [app], "host_metadata": {}, "confirm": False, "manage": False, "created_by": "cli",
        "created_at": now, "expires_at": now + timedelta(hours=6),
    }  # fmt: skip
    connection.execute(
        sa.insert(table(Link)),
        [
            link | {"public_id": new_id("lnk"), "token_hash": digest(token), "end_user_id": person}
            for token, person in zip(tokens, people, strict=True)
        ],
    )
