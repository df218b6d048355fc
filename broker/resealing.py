"""Changing the encryption key while everything runs: what an older key sealed is sealed again with the first.

Nothing is locked and nothing is overwritten: each value is replaced only if it is still the one that was read, so that
a refresh or a reconnect at the same moment wins. A run that was cut off is simply started again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Row

from broker import audit
from broker.attach import grant_binding
from broker.audit import Actor
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError, Unreadable
from broker.idempotency import answer_binding
from broker.journal import code_binding, flow_binding, hop_binding
from broker.keyring import KeyRing
from broker.models import ConnectedAccount, Flow, Hop, IdempotentCall, PendingSignIn, WebhookEndpoint, WebhookSecret
from broker.notifications import secret_binding
from broker.sign_ins import pending_binding
from broker.vault import Binding, Vault, sealed_with

AT_ONCE = 200
"""Values sealed again in one transaction, so that others get their turn at an embedded database."""
NAMED = 100
"""How many unreadable rows are named."""

log = structlog.get_logger(__name__)

_calls = table(IdempotentCall)
_connections = table(ConnectedAccount)
_endpoints = table(WebhookEndpoint)
_flows = table(Flow)
_hops = table(Hop)
_secrets = table(WebhookSecret)
_sign_ins = table(PendingSignIn)


class KeyInUse(BrokerError):
    """A key cannot be retired: it is the first, or something is still sealed with it."""

    code = "key_in_use"
    cure = "Put another key first in BROKER_ENCRYPTION_KEYS on every process and run `broker keys rotate`."


@dataclass(frozen=True)
class SealedColumn:
    """A column of sealed values, and where each of them may be opened."""

    column: sa.Column[Any]
    # Everything besides that the binding is made of.
    names: sa.Select[Any]
    binding: Callable[[Row[Any]], Binding]

    @property
    def name(self) -> str:
        """Such as connections.grant_sealed."""
        return f"{self.column.table.name}.{self.column.name}"

    @property
    def key(self) -> sa.Column[Any]:
        """The row's own key."""
        (key,) = self.column.table.primary_key.columns
        return key


SEALED: Sequence[SealedColumn] = (
    SealedColumn(
        _connections.c.grant_sealed,
        sa.select(_connections.c.id, _connections.c.ref, _connections.c.token_version),
        lambda row: grant_binding(row.ref, row.token_version),
    ),
    SealedColumn(_flows.c.code_sealed, sa.select(_flows.c.id, _flows.c.ref), lambda row: code_binding(row.ref)),
    SealedColumn(_flows.c.grant_sealed, sa.select(_flows.c.id, _flows.c.ref), lambda row: flow_binding(row.ref)),
    SealedColumn(
        _hops.c.verifier_sealed, sa.select(_hops.c.id, _hops.c.state_hash), lambda row: hop_binding(row.state_hash)
    ),
    SealedColumn(
        _secrets.c.sealed,
        sa.select(_secrets.c.id, _secrets.c.number, _endpoints.c.public_id).join_from(_secrets, _endpoints),
        lambda row: secret_binding(row.public_id, row.number),
    ),
    SealedColumn(_calls.c.answer_sealed, sa.select(_calls.c.key_hash), lambda row: answer_binding(row.key_hash)),
    SealedColumn(_sign_ins.c.sealed, sa.select(_sign_ins.c.state_hash), lambda row: pending_binding(row.state_hash)),
)
"""Every column that the vault seals, the canaries apart: each of those is about one key."""


@dataclass(frozen=True)
class Resealed:
    """What a run has done."""

    # How many values of each column were sealed again.
    counts: Mapping[str, int]
    # Where values are that no key in the ring opens, such as "connections.grant of AB12-CD34-EF56"; the first NAMED.
    unreadable: tuple[str, ...]
    unreadable_count: int


class Resealing:
    """Seals again, and retires keys."""

    def __init__(self, database: Database, vault: Vault, clock: Clock, key_ring: KeyRing) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock
        self._key_ring = key_ring

    def rotate(self, *, actor: Actor, progress: Callable[[str, int], object] = lambda _name, _count: None) -> Resealed:
        """Seal everything again that another key than the first has sealed; `progress` hears of every batch.

        Raises WrongKey.
        """
        # Under a name that processes know another key by, nothing would open for them any more.
        self._key_ring.require_sealing()
        counts: dict[str, int] = {}
        unreadable: list[str] = []
        for sealed in SEALED:
            counts[sealed.name] = 0
            for done in self._batches(sealed, unreadable):
                counts[sealed.name] += done
                progress(sealed.name, counts[sealed.name])
        first = self._vault.key_ids[0]
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action="keys.rotated",
                target=first, detail={"resealed": sum(counts.values()), "unreadable": len(unreadable)},
            )  # fmt: skip
        log.info("keys.rotated", kid=first, resealed=sum(counts.values()), unreadable=len(unreadable))
        return Resealed(MappingProxyType(counts), tuple(unreadable[:NAMED]), len(unreadable))

    def _batches(self, sealed: SealedColumn, unreadable: list[str]) -> Iterator[int]:
        key, last = sealed.key, None
        theirs = sa.not_(_is_sealed_with(sealed.column, self._vault.key_ids[0]))
        query = sealed.names.add_columns(sealed.column.label("sealed")).where(sealed.column.is_not(None), theirs)
        while True:
            with self._database.read() as connection:
                after = sa.true() if last is None else key > last
                rows = connection.execute(query.where(after).order_by(key).limit(AT_ONCE)).all()
            if not rows:
                return
            last = getattr(rows[-1], key.name)
            yield self._reseal(sealed, rows, unreadable)

    def _reseal(self, sealed: SealedColumn, rows: Sequence[Row[Any]], unreadable: list[str]) -> int:
        fresh: list[dict[str, Any]] = []
        for row in rows:
            binding = sealed.binding(row)
            try:
                value = self._vault.seal(self._vault.open(row.sealed, binding), binding)
                fresh.append({"row_key": getattr(row, sealed.key.name), "read": row.sealed, "fresh": value})
            except Unreadable as failure:
                unreadable.append(failure.detail)
        if not fresh:
            return 0
        with self._database.write() as connection:
            # Changed meanwhile: whoever did that has sealed it with the ring of today.
            statement = (
                sa.update(sealed.column.table)
                .where(sealed.key == sa.bindparam("row_key"), sealed.column == sa.bindparam("read"))
                .values({sealed.column: sa.bindparam("fresh")})
            )
            # All in one go: others wait for these rows, at an embedded database for every row.
            return connection.execute(statement, fresh).rowcount

    def retire(self, kid: str, *, actor: Actor, lost: bool = False) -> int:
        """Forget a key that nothing is sealed with, so that it may leave the settings; return what it still seals.

        A key that is `lost` may still seal something: without this the broker would never start again. What it seals
        stays, is told connection by connection, and opens again if the key is put back. Raises KeyInUse.
        """
        if kid == self._vault.key_ids[0]:
            raise KeyInUse(f"{kid} is the first key: what comes is sealed with it")
        if lost and kid in self._vault.key_ids:
            raise KeyInUse(f"{kid} is not lost: it stands in BROKER_ENCRYPTION_KEYS")
        left = {name: count for name, count in self.sealed_with(kid).items() if count}
        if left and not lost:
            told = ", ".join(f"{count} in {name}" for name, count in left.items())
            raise KeyInUse(f"{kid} still seals {told}")
        self._key_ring.retire(kid)
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action="keys.retired",
                target=kid, detail={"lost": lost, "unreadable": sum(left.values())},
            )  # fmt: skip
        log.info("keys.retired", kid=kid, unreadable=sum(left.values()))
        return sum(left.values())

    def sealed_with(self, kid: str) -> Mapping[str, int]:
        """Return how many values of each column a key has sealed."""
        with self._database.read() as connection:
            return {
                sealed.name: connection.execute(
                    sa.select(sa.func.count())
                    .select_from(sealed.column.table)
                    .where(sealed.column.is_not(None), _is_sealed_with(sealed.column, kid))
                ).scalar_one()
                for sealed in SEALED
            }


def _is_sealed_with(column: sa.Column[Any], kid: str) -> sa.ColumnElement[bool]:
    """Compare in the database: of a million values only those that need it are read."""
    start = sealed_with(kid)
    beginning = sa.func.substr(column, 1, len(start), type_=sa.LargeBinary)
    return beginning == sa.literal(start, sa.LargeBinary)
