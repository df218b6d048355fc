"""Whether the keys in the settings are the ones that sealed this database: each has a canary, opened at start.

A key gets its canary when it stands first. Standing behind it seals nothing, so it may be made known to one process
after the other, and a retired one taken from them, without any of them missing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker.attach import grant_binding
from broker.clock import Clock
from broker.db import Database
from broker.errors import BrokerError, Unreadable
from broker.journal import flow_binding
from broker.models import ConnectedAccount, Flow, KeyCanary, WebhookEndpoint, WebhookSecret
from broker.notifications import secret_binding
from broker.vault import Binding, Vault, key_id

_SENTENCE = b"the key that sealed this sentence still opens it"


class WrongKey(BrokerError):
    """The first key has the name of a key that sealed values in this database, and is another."""

    code = "wrong_key"
    cure = "Put the right key back into BROKER_ENCRYPTION_KEYS, or give the new key another name."


@dataclass(frozen=True)
class Sample:
    """What came of opening some sealed values."""

    opened: int
    # References of the rows that do not open.
    unreadable: tuple[str, ...]
    # Keys besides the first that nothing is sealed with; empty when not everything was looked at.
    unused: tuple[str, ...]


class KeyRing:
    """Writes and opens the canaries."""

    def __init__(self, database: Database, vault: Vault, clock: Clock) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock

    def check(self) -> list[str]:
        """Return every problem with the key ring, one sentence each; a sealing key without a canary gets one first."""
        kept = self._with_sealing()
        known = [kid for kid in self._vault.key_ids if kid in kept]
        unopened = [_WRONG.format(kid=kid) for kid in known if not self._opens(kid, kept[kid])]
        absent = [_ABSENT.format(kid=kid) for kid in sorted(kept) if kid not in self._vault.key_ids]
        return unopened + absent

    def require_sealing(self) -> None:
        """Raise WrongKey unless the first key is the one of its name, which gets its canary here where it has none."""
        sealing = self._vault.key_ids[0]
        if not self._opens(sealing, self._with_sealing()[sealing]):
            raise WrongKey(_WRONG.format(kid=sealing))

    def sample(self, most: int = 200) -> Sample:
        """Open what was sealed last, up to `most` grants of connections and of flows each, and the webhook secrets."""
        kept = sa.select(ConnectedAccount.ref, ConnectedAccount.token_version, ConnectedAccount.grant_sealed)
        kept = kept.where(ConnectedAccount.grant_sealed.is_not(None)).order_by(ConnectedAccount.id.desc())
        waiting = sa.select(Flow.ref, Flow.grant_sealed).where(Flow.grant_sealed.is_not(None)).order_by(Flow.id.desc())
        with self._database.read() as connection:
            connections = connection.execute(kept.limit(most)).all()
            flows = connection.execute(waiting.limit(most)).all()
            # Few: there are not many endpoints, and two secrets each at most.
            signing = connection.execute(
                sa.select(WebhookEndpoint.public_id, WebhookSecret.number, WebhookSecret.sealed).join(
                    WebhookSecret, WebhookSecret.endpoint_id == WebhookEndpoint.id
                )
            ).all()
        found = [(row.ref, grant_binding(row.ref, row.token_version), row.grant_sealed) for row in connections]
        found += [(row.ref, flow_binding(row.ref), row.grant_sealed) for row in flows]
        found += [(row.public_id, secret_binding(row.public_id, row.number), row.sealed) for row in signing]
        used: set[str] = set()
        unreadable: list[str] = []
        for ref, binding, sealed in found:
            try:
                used.add(key_id(sealed))
                self._vault.open(sealed, binding)
            except Unreadable:
                unreadable.append(ref)
        unused = [kid for kid in self._vault.key_ids[1:] if kid not in used]
        is_whole = len(connections) < most and len(flows) < most
        return Sample(len(found), tuple(unreadable), tuple(unused) if is_whole else ())

    def retire(self, kid: str) -> None:
        """Forget the canary of a key that nothing is sealed with any more, so that it may leave the ring."""
        with self._database.write() as connection:
            connection.execute(sa.delete(KeyCanary).where(KeyCanary.kid == kid))

    def _with_sealing(self) -> dict[str, bytes]:
        """Return the canaries by key, that of the sealing key among them."""
        kept, sealing = self._kept(), self._vault.key_ids[0]
        if sealing not in kept:
            with self._database.write() as connection:
                self._plant(connection, sealing)
            # Read again: another process may have planted its own first.
            kept = self._kept()
        return kept

    def _kept(self) -> dict[str, bytes]:
        with self._database.read() as connection:
            rows = connection.execute(sa.select(KeyCanary.kid, KeyCanary.sealed)).all()
        return {row.kid: row.sealed for row in rows}

    def _plant(self, connection: Connection, kid: str) -> None:
        insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
        sealed = self._vault.seal(_SENTENCE, _binding(kid), kid=kid)
        fresh = insert(KeyCanary).values(kid=kid, sealed=sealed, created_at=self._clock.now())
        connection.execute(fresh.on_conflict_do_nothing(index_elements=["kid"]))

    def _opens(self, kid: str, sealed: bytes) -> bool:
        try:
            return key_id(sealed) == kid and self._vault.open(sealed, _binding(kid)) == _SENTENCE
        except Unreadable:
            return False


_WRONG = (
    "Key {kid} in BROKER_ENCRYPTION_KEYS is not the key of that name which sealed values in this database: "
    "put the right one back, or give the new key another name."
)
_ABSENT = (
    "Key {kid} sealed values in this database and is missing from BROKER_ENCRYPTION_KEYS: "
    "put it back at the end of the list, or run `broker keys retire {kid}` once nothing is sealed with it."
)


def _binding(kid: str) -> Binding:
    return Binding("key_canaries", "sealed", kid)
