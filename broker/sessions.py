"""Signed-in browsers. A session is a row, so that sign-out, disabling and limits happen here and not in a cookie."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.audit import COMMAND_LINE, Actor
from broker.clock import Clock
from broker.db import Database
from broker.errors import EndUserErased
from broker.models import BrowserSession, EndUser, Operator, Role
from broker.operators import find_operator
from broker.secret import Secret, digest, random_token
from broker.text import storable

IDLE_LIMIT = timedelta(minutes=30)
END_USER_LIMIT = timedelta(minutes=30)
OPERATOR_LIMIT = timedelta(hours=12)
SEEN_EVERY = timedelta(minutes=1)

_Row = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class SignedInOperator:
    """The member of staff behind a session."""

    id: int
    email: str
    role: Role


@dataclass(frozen=True)
class SignedIn:
    """Who a cookie stands for: exactly one of an end user and an operator."""

    end_user_id: int | None
    # The link whose connections an end user sees; None shows all of that person's.
    link_id: int | None
    operator: SignedInOperator | None
    expires_at: datetime
    opened_at: datetime | None = None
    by_sign_in: bool = False
    """Whether an end user signed in as themself, so that they may connect what is configured."""


class Sessions:
    """Open, find and end sessions. Only a digest of the cookie is stored."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def open_end_user(
        self,
        connection: Connection | None,
        end_user_id: int,
        link_id: int | None,
        *,
        life: timedelta = END_USER_LIMIT,
        by_sign_in: bool = False,
    ) -> Secret:
        """Return the cookie of a new end user's session, in the caller's transaction when it has one.

        Raises EndUserErased for a person who is being forgotten, or has been.
        """
        life = min(life, END_USER_LIMIT)
        whose = {"end_user_id": end_user_id, "link_id": link_id, "by_sign_in": by_sign_in}
        if connection is not None:
            _require_welcome(connection, end_user_id)
            return self._open(connection, life, **whose)
        with self._database.write() as own:
            _require_welcome(own, end_user_id)
            return self._open(own, life, **whose)

    def open_operator(self, operator_id: int) -> Secret:
        """Return the cookie of a new operator's session."""
        with self._database.write() as connection:
            return self._open(connection, OPERATOR_LIMIT, operator_id=operator_id)

    def find(self, token: str | None) -> SignedIn | None:
        """Return who is signed in with this cookie; None when it is unknown, too old, idle or the operator disabled."""
        if not token or not storable(token):
            return None
        now = self._clock.now()
        with self._database.read() as connection:
            row = connection.execute(_found(digest(token), now)).one_or_none()
        if row is None:
            return None
        if now - row.seen_at >= SEEN_EVERY:
            self._seen(digest(token), now)
        return _signed_in(row)

    def end(self, token: str | None) -> None:
        """End the session with this cookie; nothing happens when there is none."""
        if not token or not storable(token):
            return
        with self._database.write() as connection:
            ended = connection.execute(
                sa.delete(BrowserSession)
                .where(BrowserSession.id_hash == digest(token))
                .returning(BrowserSession.operator_id)
            ).one_or_none()
            if ended is not None and ended.operator_id is not None:
                self._record_sign_out(connection, ended.operator_id)

    def end_all(self, email: str, *, actor: Actor = COMMAND_LINE) -> int:
        """End every session of an operator and return how many there were. Raises OperatorUnknown."""
        with self._database.write() as connection:
            operator_id = find_operator(connection, email)
            ended = connection.execute(
                sa.delete(BrowserSession)
                .where(BrowserSession.operator_id == operator_id)
                .returning(BrowserSession.id_hash)
            ).all()
            audit.record(
                connection,
                at=self._clock.now(),
                actor_kind=actor.kind,
                actor=actor.name,
                action="operator.signed_out_everywhere",
                target=email.strip().lower(),
                detail={"sessions": len(ended)},
            )
        return len(ended)

    def purge(self) -> int:
        """Forget the sessions whose time is over and return how many there were."""
        with self._database.write() as connection:
            return connection.execute(
                sa.delete(BrowserSession).where(BrowserSession.expires_at <= self._clock.now())
            ).rowcount

    def _open(self, connection: Connection, limit: timedelta, **whose: int | bool | None) -> Secret:
        token, now = random_token(), self._clock.now()
        connection.execute(
            sa.insert(BrowserSession).values(
                id_hash=digest(token), created_at=now, seen_at=now, expires_at=now + limit, **whose
            )
        )
        return Secret(token)

    def _record_sign_out(self, connection: Connection, operator_id: int) -> None:
        email = connection.execute(sa.select(Operator.email).where(Operator.id == operator_id)).scalar_one()
        audit.record(
            connection,
            at=self._clock.now(),
            actor_kind="operator",
            actor=email,
            action="operator.signed_out",
            target=email,
        )

    def _seen(self, id_hash: str, now: datetime) -> None:
        with self._database.write() as connection:
            connection.execute(sa.update(BrowserSession).where(BrowserSession.id_hash == id_hash).values(seen_at=now))


def _require_welcome(connection: Connection, end_user_id: int) -> None:
    """Raise EndUserErased unless this person's session is one that an erasure beginning now would find and end."""
    query = sa.select(EndUser.erasure_asked_at).where(EndUser.id == end_user_id).with_for_update(read=True)
    person = connection.execute(query).one_or_none()
    if person is None or person.erasure_asked_at is not None:
        raise EndUserErased


def _found(id_hash: str, now: datetime) -> sa.Select[*tuple[Any, ...]]:
    return (
        sa.select(
            BrowserSession.end_user_id,
            BrowserSession.link_id,
            BrowserSession.by_sign_in,
            BrowserSession.created_at,
            BrowserSession.seen_at,
            BrowserSession.expires_at,
            Operator.id.label("operator_id"),
            Operator.email,
            Operator.role,
        )
        .outerjoin(Operator, Operator.id == BrowserSession.operator_id)
        .where(
            BrowserSession.id_hash == id_hash,
            BrowserSession.expires_at > now,
            BrowserSession.seen_at > now - IDLE_LIMIT,
            Operator.disabled_at.is_(None),
        )
    )


def _signed_in(row: _Row) -> SignedIn:
    staff = SignedInOperator(row.operator_id, row.email, Role(row.role)) if row.operator_id is not None else None
    return SignedIn(row.end_user_id, row.link_id, staff, row.expires_at, row.created_at, row.by_sign_in)
