"""API keys: how the host's backend proves who it is. A key is shown once; its digest is what is kept."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import sqlalchemy as sa

from broker import audit
from broker.audit import COMMAND_LINE, Actor
from broker.clock import Clock
from broker.db import Database
from broker.errors import Refused
from broker.models import ApiKey
from broker.references import new_id
from broker.secret import Secret, digest, random_token
from broker.text import storable

PREFIX = "brk_"
LONGEST_NAME = 100
USED_EVERY = timedelta(minutes=1)

_HEADER = re.compile(r"Bearer +(brk_[A-Za-z0-9_-]{43})", re.IGNORECASE)


class Scope(StrEnum):
    """What a key may do."""

    LINKS_WRITE = "links:write"
    LINKS_READ = "links:read"
    CONNECTIONS_READ = "connections:read"
    CONNECTIONS_WRITE = "connections:write"
    APPS_READ = "apps:read"
    EVENTS_READ = "events:read"
    WEBHOOKS_READ = "webhooks:read"
    WEBHOOKS_WRITE = "webhooks:write"
    END_USERS_ERASE = "end_users:erase"


class ApiKeyInvalid(Refused):
    """A key cannot be created as asked; the detail says why."""

    code = "api_key_invalid"
    status = 422


class ApiKeyUnknown(Refused):
    """No key has this id."""

    code = "api_key_unknown"
    status = 404


class Unauthenticated(Refused):
    """No key, a malformed one, an unknown one and a revoked one all get this answer."""

    code = "unauthenticated"
    status = 401
    heading = "A valid API key is needed"
    advice = "Send it as `Authorization: Bearer brk_…`."
    cure = "Create a key with `broker apikey create`."


class ScopeMissing(Refused):
    """The key is good but may not do this; `scope` is what it lacks."""

    code = "scope_missing"
    status = 403
    heading = "This API key may not do that"
    cure = "Create a key with the scope named in the detail."

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        super().__init__(f"the scope {scope.value} is needed")


@dataclass(frozen=True)
class Caller:
    """The host's backend behind one call."""

    # The key's public id.
    id: str
    scopes: frozenset[str]

    def require(self, scope: Scope) -> None:
        """Raise ScopeMissing unless this key has `scope`."""
        if scope.value not in self.scopes:
            raise ScopeMissing(scope)


@dataclass(frozen=True)
class ApiKeyView:
    """A key as operators see it, without the key."""

    id: str
    name: str
    scopes: tuple[str, ...]
    created_at: datetime
    last_used_at: datetime | None
    revoked_at: datetime | None


class ApiKeys:
    """Create, list, revoke and recognise keys. Nothing is cached: a revoked key fails its next call."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(
        self, name: str, scopes: Iterable[str] | None = None, *, actor: Actor = COMMAND_LINE
    ) -> tuple[str, Secret]:
        """Return the id and the key of a new key, all scopes by default. Raises ApiKeyInvalid."""
        name = name.strip()
        granted = _checked_scopes(scopes)
        if not name or len(name) > LONGEST_NAME or not storable(name) or not name.isprintable():
            raise ApiKeyInvalid(f"the name must be one line of 1 to {LONGEST_NAME} characters")
        public_id, key, now = new_id("key"), Secret(PREFIX + random_token()), self._clock.now()
        with self._database.write() as connection:
            connection.execute(
                sa.insert(ApiKey).values(
                    public_id=public_id, name=name, key_hash=digest(key.reveal()), scopes=granted, created_at=now
                )
            )
            audit.record(
                connection, at=now, actor_kind=actor.kind, actor=actor.name,
                action="api_key.created", target=public_id, detail={"name": name, "scopes": granted},
            )  # fmt: skip
        return public_id, key

    def list(self) -> tuple[ApiKeyView, ...]:
        """Return every key, oldest first."""
        columns = (
            ApiKey.public_id, ApiKey.name, ApiKey.scopes, ApiKey.created_at, ApiKey.last_used_at, ApiKey.revoked_at
        )  # fmt: skip
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*columns).order_by(ApiKey.id)).all()
        return tuple(ApiKeyView(row[0], row[1], tuple(row[2]), row[3], row[4], row[5]) for row in rows)

    def revoke(self, public_id: str, *, actor: Actor = COMMAND_LINE) -> None:
        """Make a key useless from its next call on. Raises ApiKeyUnknown."""
        now = self._clock.now()
        with self._database.write() as connection:
            row = None
            if storable(public_id):
                row = connection.execute(
                    sa.select(ApiKey.id, ApiKey.revoked_at).where(ApiKey.public_id == public_id)
                ).one_or_none()
            if row is None:
                raise ApiKeyUnknown
            if row.revoked_at is None:
                connection.execute(sa.update(ApiKey).where(ApiKey.id == row.id).values(revoked_at=now))
                audit.record(
                    connection, at=now, actor_kind=actor.kind, actor=actor.name,
                    action="api_key.revoked", target=public_id,
                )  # fmt: skip

    def authenticate(self, header: str | None) -> Caller:
        """Return who calls with this Authorization header. Raises Unauthenticated."""
        found = _HEADER.fullmatch(header.strip()) if header else None
        if found is None:
            raise Unauthenticated
        now = self._clock.now()
        with self._database.read() as connection:
            row = connection.execute(
                sa.select(ApiKey.id, ApiKey.public_id, ApiKey.scopes, ApiKey.last_used_at).where(
                    ApiKey.key_hash == digest(found[1]), ApiKey.revoked_at.is_(None)
                )
            ).one_or_none()
        if row is None:
            raise Unauthenticated
        if row.last_used_at is None or now - row.last_used_at >= USED_EVERY:
            self._used(row.id, now)
        return Caller(row.public_id, frozenset(row.scopes))

    def _used(self, key: int, now: datetime) -> None:
        with self._database.write() as connection:
            connection.execute(sa.update(ApiKey).where(ApiKey.id == key).values(last_used_at=now))


def _checked_scopes(scopes: Iterable[str] | None) -> list[str]:
    if scopes is None:
        return [scope.value for scope in Scope]
    wanted = list(dict.fromkeys(scopes))
    if not wanted or any(scope not in set(Scope) for scope in wanted):
        raise ApiKeyInvalid(f"scopes must be some of {', '.join(Scope)}")
    return [Scope(scope).value for scope in wanted]
