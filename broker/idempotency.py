"""Calls that may be repeated: a host that did not get the answer asks again with the same key and gets it then.

A key is claimed in one statement before the call is worked on, on either database, so that of any number of equal
calls at once one is worked on. Only what was accepted is kept; a refused call changed nothing and may be corrected.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from broker.clock import Clock
from broker.db import Database, table
from broker.errors import Refused
from broker.models import IdempotentCall
from broker.secret import digest, random_token
from broker.vault import Binding, Vault

KEPT_FOR = timedelta(hours=24)
"""How long a key stands for its answer; afterwards it is forgotten."""
WORKED_ON_AT_MOST = timedelta(seconds=60)
"""A claim that is older belongs to a process that has died: no call takes that long."""
PURGED_AT_ONCE = 1_000

_calls = table(IdempotentCall)


class KeyInvalid(Refused):
    """The Idempotency-Key is not 1 to 255 visible ASCII characters."""

    code = "idempotency_key_invalid"
    status = 400
    heading = "The Idempotency-Key cannot be used"
    advice = "Send 1 to 255 visible ASCII characters, such as a UUID."


class KeyReused(Refused):
    """The key stood for another request before."""

    code = "idempotency_key_reused"
    status = 409
    heading = "This Idempotency-Key was used for another request"
    advice = "Use a new key for a new request, and the same key only to repeat the very same one."


class InProgress(Refused):
    """The same request is being worked on right now."""

    code = "idempotency_in_progress"
    status = 409
    heading = "This request is being worked on"
    advice = "Repeat it in a second: it then gets the answer of the first."
    retry_after = 1.0


@dataclass(frozen=True)
class Kept:
    """An answer given before."""

    status: int
    body: str = field(repr=False)
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Claim:
    """The right to work on a call."""

    key_hash: str
    token: str


class IdempotentCalls:
    """Claims keys, keeps answers, forgets both."""

    def __init__(self, database: Database, clock: Clock, vault: Vault) -> None:
        self._database = database
        self._clock = clock
        self._vault = vault

    def claim(self, caller: str, key: str, *, request: bytes) -> Claim | Kept:
        """Return the right to work on the call, or the answer it got before.

        `caller` is the API key's id: keys of two callers never meet. `request` is everything that makes two calls
        the same. Raises KeyInvalid, KeyReused or InProgress.
        """
        if not 1 <= len(key) <= 255 or not all("\x21" <= letter <= "\x7e" for letter in key):
            raise KeyInvalid
        now = self._clock.now()
        claim = Claim(digest(f"{caller}\n{key}"), random_token(128))
        request_hash = digest(request.decode("latin-1"))
        fresh = {
            "request_hash": request_hash,
            "claim": claim.token,
            "claimed_at": now,
            "answer_sealed": None,
            "expires_at": now + KEPT_FOR,
        }
        with self._database.write() as connection:
            insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
            over = _calls.c.expires_at <= now
            abandoned = sa.and_(_calls.c.answer_sealed.is_(None), _calls.c.claimed_at <= now - WORKED_ON_AT_MOST)
            same = _calls.c.request_hash == request_hash
            claimed = connection.execute(
                insert(_calls)
                .values(key_hash=claim.key_hash, **fresh)
                .on_conflict_do_update(
                    index_elements=["key_hash"], set_=fresh, where=sa.or_(over, sa.and_(abandoned, same))
                )
                .returning(_calls.c.key_hash)
            ).scalar_one_or_none()
            if claimed is not None:
                return claim
            found = connection.execute(sa.select(_calls).where(_calls.c.key_hash == claim.key_hash)).one()
        if found.request_hash != request_hash:
            raise KeyReused
        if found.answer_sealed is None:
            raise InProgress
        return Kept(**json.loads(self._vault.open(found.answer_sealed, answer_binding(claim.key_hash))))

    def keep(self, claim: Claim, answer: Kept) -> None:
        """Keep the answer for whoever repeats the call."""
        content = {"status": answer.status, "body": answer.body, "headers": dict(answer.headers)}
        sealed = self._vault.seal(json.dumps(content).encode(), answer_binding(claim.key_hash))
        with self._database.write() as connection:
            connection.execute(sa.update(_calls).where(*_mine(claim)).values(answer_sealed=sealed))

    def release(self, claim: Claim) -> None:
        """Give the key back: the call was refused, and nothing was changed."""
        with self._database.write() as connection:
            connection.execute(sa.delete(_calls).where(*_mine(claim)))

    def purge(self) -> int:
        """Forget some of what is over, and return how many that were."""
        now: datetime = self._clock.now()
        with self._database.read() as connection:
            query = sa.select(_calls.c.key_hash).where(_calls.c.expires_at <= now).limit(PURGED_AT_ONCE)
            over = connection.execute(query).scalars().all()
        if over:
            with self._database.write() as connection:
                connection.execute(sa.delete(_calls).where(_calls.c.key_hash.in_(over), _calls.c.expires_at <= now))
        return len(over)


def _mine(claim: Claim) -> tuple[sa.ColumnElement[bool], ...]:
    return (_calls.c.key_hash == claim.key_hash, _calls.c.claim == claim.token)


def answer_binding(key_hash: str) -> Binding:
    """Return where a kept answer may be opened."""
    return Binding("idempotent_calls", "answer", key_hash)
