"""The chain over the audit trail: who changes the trail without the key is found out.

Records commit with what they tell of, and nobody waits for the chain. One sealer at a time follows behind: it takes
the committed records in the order of their ids and gives each a seal, a number and a digest of all before it, signed
with a key that is derived from BROKER_SECRET_KEY. The two ends of the chain are signed too, so that neither the newest
seals can be cut off nor the oldest, which a purge takes away, be dropped by anybody else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Literal

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker.clock import Clock
from broker.db import Database, table
from broker.models import AuditRecord, AuditSeal, ChainEnds
from broker.secret import Secret

SEALER = 0x617564697400
"""Names the sealer among those that must be the only ones at something."""
BATCH = 500
"""Records sealed, or looked at, at once."""
MOST_NAMED = 100
NOTHING = "0" * 64
"""The digest before the first link."""
THE_ROW = 1

log = structlog.get_logger(__name__)

_records = table(AuditRecord)
_seals = table(AuditSeal)
_ends = table(ChainEnds)

# Whoever adds a record has this lock before the record gets its id, and keeps it until the end.
_ADDING = sa.text(
    "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'relation' AND relation = 'audit'::regclass"
    " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    " AND mode = 'RowExclusiveLock' AND granted AND pid <> pg_backend_pid()"
)

Kind = Literal["altered", "deleted", "inserted", "reordered", "unknown"]


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it was sealed; number and record are None where it is about the chain itself."""

    kind: Kind
    sentence: str
    number: int | None = None
    record_id: int | None = None


@dataclass(frozen=True)
class OtherKey:
    """Links signed with a key that is not the current one; later links and the end vouch for them."""

    key_id: str
    first: int
    last: int


@dataclass(frozen=True)
class Inspection:
    """What a look at the chain found."""

    # How many links were looked at, and the numbers of the last purged and of the last one.
    looked_at: int
    anchor: int
    head: int
    # The last link as `number:digest`, to be noted elsewhere and expected later; empty when nothing is sealed.
    mark: str
    # Records that are not sealed yet, and since when the oldest of them waits.
    unsealed: int
    waiting_since: datetime | None
    other_keys: tuple[OtherKey, ...]
    # The first hundred; `count` is how many there are.
    findings: tuple[Finding, ...]
    count: int

    @property
    def is_intact(self) -> bool:
        """Whether everything is as it was sealed."""
        return not self.count


@dataclass
class _Findings:
    named: list[Finding] = field(default_factory=list)
    count: int = 0

    def add(self, kind: Kind, sentence: str, number: int | None = None, record_id: int | None = None) -> None:
        self.count += 1
        if len(self.named) < MOST_NAMED:
            self.named.append(Finding(kind, sentence, number, record_id))


@dataclass
class _Walk:
    """How far a look has come: the last link, and its digest where it is known."""

    number: int
    record_id: int
    digest: str | None
    looked_at: int = 0


class AuditChain:
    """Seals the trail, looks whether it is intact, and forgets its oldest part."""

    def __init__(self, database: Database, clock: Clock, secret_key: Secret) -> None:
        self._database = database
        self._clock = clock
        self._key = hmac.digest(secret_key.reveal().encode(), b"broker audit chain 1", "sha256")
        self.key_id = self._sign("key id")[:12]
        self._looking = threading.Lock()
        # Up to which id nobody can add a record any more; and what has to end before a higher one is known to be so.
        self._settled = 0
        self._awaited: tuple[int, frozenset[str]] | None = None

    # --- sealing ---------------------------------------------------------------------------------------

    def seal(self) -> int:
        """Seal what is committed and can get no older neighbour any more; returns how many records that were.

        Raises DatabaseUnavailable.
        """
        with self._database.read() as connection:
            # Looking first keeps idle workers from taking the embedded database's write lock.
            newest = connection.execute(sa.select(sa.func.max(_records.c.id))).scalar_one() or 0
            ends = connection.execute(sa.select(_ends)).one_or_none()
        if ends is None and not newest:
            return 0
        if ends is not None and ends.head_record_id >= newest and ends.key_id == self.key_id:
            return 0
        settled = self._settle()
        sealed = 0
        while True:
            with self._database.write() as connection:
                count = self._seal(connection, settled) if self._database.only_writer(connection, SEALER) else 0
            sealed += count
            if count < BATCH:
                return sealed

    def _settle(self) -> int:
        """Return up to which id all records there will ever be are committed.

        Ids are given out before the commit: on PostgreSQL a record can appear after one with a higher id. So whoever
        was adding records when the highest id was read must have ended first. Nobody is kept waiting.
        """
        with self._looking, self._database.read() as connection:
            newest = connection.execute(sa.select(sa.func.max(_records.c.id))).scalar_one() or 0
            if self._database.is_sqlite:
                return newest
            adding = frozenset(connection.execute(_ADDING).scalars())
            if self._awaited is not None and not self._awaited[1] & adding:
                self._settled, self._awaited = max(self._settled, self._awaited[0]), None
            if not adding:
                self._settled, self._awaited = max(self._settled, newest), None
            elif self._awaited is None:
                self._awaited = (newest, adding)
            return self._settled

    def _seal(self, connection: Connection, settled: int) -> int:
        ends = connection.execute(sa.select(_ends).with_for_update()).one_or_none()
        if ends is None and connection.execute(sa.select(_seals.c.number).limit(1)).first() is not None:
            log.error("audit.chain_broken", detail="its ends are gone")
            return 0
        if ends is not None and not self._vouches(ends):
            log.error("audit.chain_broken", detail="its ends were altered")
            return 0
        if ends is not None and ends.key_id != self.key_id:
            log.warning("audit.key_changed", number=ends.head_number, before=ends.key_id, after=self.key_id)
        number, last, digest = (0, 0, NOTHING) if ends is None else (
            ends.head_number, ends.head_record_id, ends.head_digest
        )  # fmt: skip
        query = sa.select(_records).where(_records.c.id > last, _records.c.id <= settled).order_by(_records.c.id)
        rows = connection.execute(query.limit(BATCH)).all()
        now = self._clock.now()
        seals = []
        for row in rows:
            number, last, content = number + 1, row.id, _content_of(row)
            digest = _digest_of(digest, number, row.id, content, now)
            seals.append({
                "number": number, "record_id": row.id, "content": content, "digest": digest,
                "mac": self._sign("link", digest), "key_id": self.key_id, "sealed_at": now,
            })  # fmt: skip
        if seals:
            connection.execute(sa.insert(_seals), seals)
        if seals or (ends is not None and ends.key_id != self.key_id):
            anchor = (0, 0, NOTHING) if ends is None else _anchor(ends)
            self._write_ends(connection, (number, last, digest), anchor, is_new=ends is None)
        return len(seals)

    def _write_ends(
        self, connection: Connection, head: tuple[int, int, str], anchor: tuple[int, int, str], *, is_new: bool
    ) -> None:
        values = {
            "head_number": head[0], "head_record_id": head[1], "head_digest": head[2],
            "anchor_number": anchor[0], "anchor_record_id": anchor[1], "anchor_digest": anchor[2],
            "mac": self._sign("ends", *head, *anchor), "key_id": self.key_id,
        }  # fmt: skip
        if is_new:
            connection.execute(sa.insert(_ends).values(id=THE_ROW, **values))
        else:
            connection.execute(sa.update(_ends).values(values))

    def _vouches(self, ends: Row[Any]) -> bool:
        """Tell whether the ends are as they were signed; of what another key has signed nobody can tell."""
        if ends.key_id != self.key_id:
            return True
        return hmac.compare_digest(ends.mac, self._sign("ends", *_head(ends), *_anchor(ends)))

    def _sign(self, *parts: object) -> str:
        return hmac.new(self._key, json.dumps(parts).encode(), hashlib.sha256).hexdigest()

    # --- forgetting ------------------------------------------------------------------------------------

    def forget(self, connection: Connection, *, before: datetime, most: int) -> int:
        """Remove the oldest records up to `before`, at most so many, and return how many links of the chain those were.

        The only way any goes. What is not sealed stays, and so does the newest record: its key is never given out
        again. The last link that goes stays written down as the chain's new beginning.
        """
        self._database.only_writer(connection, SEALER, wait=True)
        ends = connection.execute(sa.select(_ends).with_for_update()).one_or_none()
        if ends is None or ends.key_id != self.key_id or not self._vouches(ends):
            # What is not ours to vouch for is not ours to sign: the sealer goes first, or a person does.
            return 0
        newest = connection.execute(sa.select(sa.func.max(_records.c.id))).scalar_one() or 0
        age = sa.func.coalesce(_records.c.at, _seals.c.sealed_at)
        oldest = connection.execute(
            sa.select(_seals.c.number, _seals.c.record_id, _seals.c.digest, age.label("age"))
            .outerjoin(_records, _records.c.id == _seals.c.record_id)
            .order_by(_seals.c.number)
            .limit(most)
        ).all()
        gone = list(takewhile(lambda row: row.age < before and row.record_id < newest, oldest))
        if not gone:
            return 0
        last = gone[-1]
        connection.execute(sa.delete(_records).where(_records.c.id <= last.record_id))
        connection.execute(sa.delete(_seals).where(_seals.c.number <= last.number))
        self._write_ends(connection, _head(ends), (last.number, last.record_id, last.digest), is_new=False)
        return len(gone)

    # --- looking ---------------------------------------------------------------------------------------

    def inspect(self, *, newest: int | None = None, expected: str = "") -> Inspection:
        """Look whether the trail is as it was sealed; only at the `newest` links where told.

        `expected` is a mark that an earlier look returned: a chain that was replaced as a whole does not have it.
        Raises DatabaseUnavailable.
        """
        findings = _Findings()
        with self._database.read() as opened:
            connection = opened
            if not self._database.is_sqlite:
                # One moment for everything: sealing and purging go on meanwhile.
                connection = opened.execution_options(isolation_level="REPEATABLE READ")
            ends = connection.execute(sa.select(_ends)).one_or_none()
            if ends is None:
                if connection.execute(sa.select(_seals.c.number).limit(1)).first() is not None:
                    findings.add("deleted", "The row that says where the chain begins and ends is gone.")
                head, anchor = (0, 0, NOTHING), (0, 0, NOTHING)
                walk = _Walk(0, 0, NOTHING)
            else:
                head, anchor = _head(ends), _anchor(ends)
                self._inspect_ends(ends, findings)
                walk = self._begin(connection, head, anchor, newest)
                # A purge leaves no record behind it, so a whole look begins at the first.
                begun = walk.record_id if walk.number > anchor[0] else 0
                self._follow(connection, walk, head, findings)
                self._inspect_rest(connection, begun, head, findings)
            _compare(connection, expected, anchor, findings)
            waiting = connection.execute(
                sa.select(sa.func.count(), sa.func.min(_records.c.at)).where(_records.c.id > head[1])
            ).one()
            others = connection.execute(
                sa.select(_seals.c.key_id, sa.func.min(_seals.c.number), sa.func.max(_seals.c.number))
                .where(_seals.c.key_id != self.key_id)
                .group_by(_seals.c.key_id)
            ).all()
        return Inspection(
            looked_at=walk.looked_at,
            anchor=anchor[0],
            head=head[0],
            mark=f"{head[0]}:{head[2]}" if head[0] else "",
            unsealed=waiting[0],
            waiting_since=waiting[1],
            other_keys=tuple(sorted((OtherKey(*row) for row in others), key=lambda key: key.first)),
            findings=tuple(findings.named),
            count=findings.count,
        )

    def _inspect_ends(self, ends: Row[Any], findings: _Findings) -> None:
        if ends.key_id != self.key_id:
            sentence = f"The end of the chain is signed with another key ({ends.key_id}) than this BROKER_SECRET_KEY."
            findings.add("unknown", f"{sentence} After a change of key a worker signs it again within seconds.")
        elif not self._vouches(ends):
            findings.add("altered", "The row that says where the chain begins and ends was altered.")

    def _begin(
        self, connection: Connection, head: tuple[int, int, str], anchor: tuple[int, int, str], newest: int | None
    ) -> _Walk:
        if newest is None or head[0] - newest <= anchor[0]:
            return _Walk(*anchor)
        start = head[0] - newest
        found = connection.execute(sa.select(_seals).where(_seals.c.number == start)).one_or_none()
        return _Walk(start, 0 if found is None else found.record_id, None if found is None else found.digest)

    def _follow(self, connection: Connection, walk: _Walk, head: tuple[int, int, str], findings: _Findings) -> None:
        for row in _links(connection, walk.number, head[0]):
            if row.number > walk.number + 1:
                _tell_gap(walk.number + 1, row.number - 1, findings)
                walk.digest = None
            if row.number > walk.number:
                self._inspect_link(connection, row, walk, findings)
            walk.looked_at += 1
            # Go on from what is written, so that only what was changed is named.
            walk.number, walk.record_id, walk.digest = row.number, row.record_id, row.digest
        if walk.number < head[0]:
            _tell_gap(walk.number + 1, head[0], findings)
        elif walk.digest is not None and walk.digest != head[2]:
            findings.add(
                "altered", f"Number {walk.number} is not the end that was signed.", walk.number, walk.record_id
            )

    def _inspect_link(self, connection: Connection, row: Row[Any], walk: _Walk, findings: _Findings) -> None:
        number, record_id = row.number, row.record_id
        name = f"Record {record_id} (number {number})"
        if record_id <= walk.record_id:
            findings.add("reordered", f"{name} stands after record {walk.record_id}.", number, record_id)
        elif not self._is_genuine(row, walk.digest):
            findings.add("altered", f"The seal of record {record_id} (number {number}) was altered.", number, record_id)
        elif row.id is None:
            findings.add("deleted", f"{name} was deleted.", number, record_id)
        elif (content := _content_of(row)) != row.content:
            other = connection.execute(
                sa.select(_seals.c.record_id).where(_seals.c.content == content, _seals.c.number != number).limit(1)
            ).scalar_one_or_none()
            if other is None:
                findings.add("altered", f"{name} was altered.", number, record_id)
            else:
                findings.add("reordered", f"{name} says what record {other} said.", number, record_id)

    def _is_genuine(self, row: Row[Any], before: str | None) -> bool:
        if before is not None and row.digest != _digest_of(
            before, row.number, row.record_id, row.content, row.sealed_at
        ):
            return False
        # What another key signed is vouched for by what follows: every digest takes in all before it.
        return row.key_id != self.key_id or hmac.compare_digest(row.mac, self._sign("link", row.digest))

    def _inspect_rest(
        self, connection: Connection, begun: int, head: tuple[int, int, str], findings: _Findings
    ) -> None:
        """Find what has no place in the chain."""
        unsealed = connection.execute(
            sa.select(_records.c.id)
            .outerjoin(_seals, _seals.c.record_id == _records.c.id)
            .where(_seals.c.number.is_(None), _records.c.id <= head[1], _records.c.id > begun)
            .order_by(_records.c.id)
            .limit(MOST_NAMED)
        )
        for record_id in unsealed.scalars():
            sentence = f"Record {record_id} was inserted: later ones were sealed without it."
            findings.add("inserted", sentence, None, record_id)
        beyond = sa.select(_seals.c.number, _seals.c.record_id).where(_seals.c.number > head[0])
        for row in connection.execute(beyond.order_by(_seals.c.number).limit(MOST_NAMED)):
            sentence = f"The seal number {row.number} was inserted after the end."
            findings.add("inserted", sentence, row.number, row.record_id)


def _links(connection: Connection, after: int, to: int) -> Iterator[Row[Any]]:
    query = sa.select(_seals, _records).outerjoin(_records, _records.c.id == _seals.c.record_id)
    while True:
        chunk = query.where(_seals.c.number > after, _seals.c.number <= to).order_by(_seals.c.number).limit(BATCH)
        rows = connection.execute(chunk).all()
        yield from rows
        if len(rows) < BATCH:
            return
        after = rows[-1].number


def _compare(connection: Connection, expected: str, anchor: tuple[int, int, str], findings: _Findings) -> None:
    if not expected:
        return
    number, _, digest = expected.partition(":")
    place = int(number)
    if place < anchor[0]:
        findings.add("unknown", f"Number {place} was purged, so nobody can tell whether it was {expected}.", place)
        return
    found = connection.execute(sa.select(_seals.c.digest).where(_seals.c.number == place)).scalar_one_or_none()
    if (anchor[2] if place == anchor[0] else found) != digest:
        findings.add("deleted", f"The chain is not the one that was noted: number {place} differs or is gone.", place)


def _tell_gap(first: int, last: int, findings: _Findings) -> None:
    which = f"Number {first} is" if first == last else f"Numbers {first} to {last} are"
    findings.add("deleted", f"{which} gone from the chain.", first)


def _head(ends: Row[Any]) -> tuple[int, int, str]:
    return ends.head_number, ends.head_record_id, ends.head_digest


def _anchor(ends: Row[Any]) -> tuple[int, int, str]:
    return ends.anchor_number, ends.anchor_record_id, ends.anchor_digest


def _content_of(record: Row[Any]) -> str:
    """Return the digest of what a record says, the same on every database."""
    said = [
        record.at.astimezone(UTC).isoformat(timespec="microseconds"),
        record.actor_kind, record.actor, record.action, record.target, record.detail,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _digest_of(before: str, number: int, record_id: int, content: str, sealed_at: datetime) -> str:
    said = [before, number, record_id, content, sealed_at.astimezone(UTC).isoformat(timespec="microseconds")]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
