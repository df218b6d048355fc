"""The audit trail: who did what to what, written in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.db import table
from broker.models import AuditRecord

ActorKind = Literal["end_user", "operator", "api_key", "provider", "worker", "cli"]
LONGEST_NAME = 320


@dataclass(frozen=True)
class Actor:
    """Who acts: an operator by e-mail, an API key by public id, the command line as "cli"."""

    kind: ActorKind
    name: str


# Built once; without RETURNING, because nobody asks for the key.
_RECORD = sa.insert(table(AuditRecord)).inline()

COMMAND_LINE = Actor("cli", "cli")


def record(
    connection: Connection,
    *,
    at: datetime,
    actor_kind: ActorKind,
    actor: str,
    action: str,
    target: str,
    detail: Mapping[str, object] | None = None,
) -> None:
    """Add one record in the caller's transaction. `detail` holds facts, never a secret."""
    record_all(connection, at=at, actor_kind=actor_kind, actor=actor, action=action, details={target: detail or {}})


def record_all(
    connection: Connection,
    *,
    at: datetime,
    actor_kind: ActorKind,
    actor: str,
    action: str,
    details: Mapping[str, Mapping[str, object]],
) -> None:
    """Add a record for each target in the caller's transaction; `details` are facts by target, never a secret."""
    fixed = {"at": at, "actor_kind": actor_kind, "actor": actor[:LONGEST_NAME], "action": action}
    rows = [fixed | {"target": target[:LONGEST_NAME], "detail": dict(detail)} for target, detail in details.items()]
    connection.execute(_RECORD, rows)
