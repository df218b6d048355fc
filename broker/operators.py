"""Operators: who they are, how they sign in, and what stops somebody from guessing."""

from __future__ import annotations

import ipaddress
import math
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker import audit
from broker.audit import COMMAND_LINE, Actor
from broker.clock import Clock
from broker.db import Database
from broker.errors import Refused
from broker.models import BrowserSession, Operator, Role, SignInThrottle
from broker.secret import Secret, digest, random_token
from broker.text import storable

# OWASP's Argon2id figures: 19 MiB, two passes, one lane; about 25 ms of one core.
ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES = 19_456, 2, 1
# OWASP ASVS 5.0, 6.2.1; the throttle below stands in front of it.
SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 1_024
LONGEST_EMAIL = 320
THROTTLE_WINDOW = timedelta(minutes=15)
FAILURES_PER_EMAIL, FAILURES_PER_ADDRESS = 5, 20


class OperatorInvalid(Refused):
    """An operator cannot be created as asked; the detail says why."""

    code = "operator_invalid"
    status = 422


class OperatorUnknown(Refused):
    """No operator has this e-mail address."""

    code = "operator_unknown"
    status = 404


class SignInRefused(Refused):
    """E-mail or password is wrong, or the operator is disabled: the same answer for all three."""

    code = "sign_in_refused"
    status = 401
    heading = "E-mail or password is not right"
    advice = "Check both and try again."


class SignInThrottled(Refused):
    """Too many failed sign-ins for this e-mail or from this address; `minutes` says how long to wait."""

    code = "sign_in_throttled"
    status = 429
    heading = "Too many tries"

    def __init__(self, wait: timedelta) -> None:
        self.retry_after = max(1, math.ceil(wait.total_seconds()))
        self.minutes = math.ceil(self.retry_after / 60)
        super().__init__(f"again in {self.minutes} min")


@dataclass(frozen=True)
class OperatorView:
    """An operator, without the password."""

    id: int
    email: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None


class Operators:
    """Create, list, disable and sign in operators. There is no default account."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._hasher = PasswordHasher(time_cost=ARGON2_PASSES, memory_cost=ARGON2_MEMORY_KIB, parallelism=ARGON2_LANES)
        # Checked for unknown e-mails, so that they take as long as known ones. Nobody knows its password.
        self._nobody = self._hasher.hash(random_token())

    def create(self, email: str, password: Secret, role: Role | str, *, actor: Actor = COMMAND_LINE) -> OperatorView:
        """Create an operator. Raises OperatorInvalid."""
        email = _normalised(email)
        role = _checked_role(role)
        _check_email(email)
        _check_password(password, email)
        password_hash, now = self._hasher.hash(password.reveal()), self._clock.now()
        with self._database.write() as connection:
            key = _insert(connection, email, role, password_hash, now)
            if key is None:
                raise OperatorInvalid(f"{email} is an operator already")
            _audit(connection, now, actor, "operator.created", email, {"role": role.value})
        return OperatorView(key, email, role, now, None)

    def list(self) -> tuple[OperatorView, ...]:
        """Return every operator, by e-mail."""
        columns = (Operator.id, Operator.email, Operator.role, Operator.created_at, Operator.disabled_at)
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*columns).order_by(Operator.email)).all()
        return tuple(OperatorView(row.id, row.email, Role(row.role), row.created_at, row.disabled_at) for row in rows)

    def exist(self) -> bool:
        """Tell whether anybody can sign in at all."""
        with self._database.read() as connection:
            query = sa.select(Operator.id).where(Operator.disabled_at.is_(None)).limit(1)
            return connection.execute(query).first() is not None

    def disable(self, email: str, *, actor: Actor = COMMAND_LINE) -> None:
        """Stop an operator from signing in and end every session at once. Raises OperatorUnknown."""
        email, now = _normalised(email), self._clock.now()
        with self._database.write() as connection:
            found = None
            if storable(email):
                found = connection.execute(
                    sa.select(Operator.id, Operator.disabled_at).where(Operator.email == email)
                ).one_or_none()
            if found is None:
                raise OperatorUnknown(email)
            connection.execute(sa.delete(BrowserSession).where(BrowserSession.operator_id == found.id))
            if found.disabled_at is None:
                connection.execute(sa.update(Operator).where(Operator.id == found.id).values(disabled_at=now))
                _audit(connection, now, actor, "operator.disabled", email)

    def sign_in(self, email: str, password: Secret, address: str) -> int:
        """Return the key of the operator with this password. Raises SignInRefused or SignInThrottled.

        An attempt counts as failed before the password is looked at, so that many at once cannot slip through.
        """
        email, now = _normalised(email), self._clock.now()
        counters = _counters(email, address)
        with self._database.write() as connection:
            for key_hash, most in counters:
                _count_attempt(connection, key_hash, most, now)
        operator_id = self._verified(email, password)
        with self._database.write() as connection:
            if operator_id is None:
                who = _shown(email)
                _audit(
                    connection,
                    now,
                    Actor("operator", who),
                    "operator.sign_in_failed",
                    who,
                    {"address": _network(address)},
                )
            else:
                _forgive(connection, counters)
                _audit(connection, now, Actor("operator", email), "operator.signed_in", email)
        if operator_id is None:
            raise SignInRefused
        return operator_id

    def _verified(self, email: str, password: Secret) -> int | None:
        row = None
        if storable(email) and storable(password.reveal()):
            with self._database.read() as connection:
                row = connection.execute(
                    sa.select(Operator.id, Operator.password_hash, Operator.disabled_at).where(Operator.email == email)
                ).one_or_none()
        usable = row is not None and row.disabled_at is None and len(password) <= LONGEST_PASSWORD
        matches = self._matches(row.password_hash if row is not None and usable else self._nobody, password)
        return row.id if row is not None and usable and matches else None

    def _matches(self, password_hash: str, password: Secret) -> bool:
        try:
            return self._hasher.verify(password_hash, password.reveal()[:LONGEST_PASSWORD].encode(errors="replace"))
        except (VerificationError, InvalidHashError):
            return False


def _normalised(email: str) -> str:
    return email.strip().lower()


def _shown(email: str) -> str:
    """Return a typed e-mail as the audit trail keeps it: people type passwords into that field, so never in full."""
    return f"unknown:{digest(email)[:12]}" if storable(email) else "unknown"


def _checked_role(role: Role | str) -> Role:
    try:
        return Role(role)
    except ValueError:
        raise OperatorInvalid(f"the role must be one of {', '.join(Role)}") from None


def _check_email(email: str) -> None:
    name, _, domain = email.rpartition("@")
    plain = storable(email) and email.isprintable() and " " not in email
    if not (name and domain and plain and len(email) <= LONGEST_EMAIL):
        raise OperatorInvalid("the e-mail address is not one")


def _check_password(password: Secret, email: str) -> None:
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise OperatorInvalid(f"the password must have {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    if not storable(password.reveal()) or len(set(password.reveal())) < 4 or password.reveal().lower() == email:
        raise OperatorInvalid("the password is too easy to guess")


def _insert(connection: Connection, email: str, role: Role, password_hash: str, now: datetime) -> int | None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    fresh = insert(Operator).values(email=email, role=role.value, password_hash=password_hash, created_at=now)
    return connection.execute(
        fresh.on_conflict_do_nothing(index_elements=["email"]).returning(Operator.id)
    ).scalar_one_or_none()


# --- the throttle -----------------------------------------------------------------------------------


def _counters(email: str, address: str) -> tuple[tuple[str, int], ...]:
    """Return what is counted and how often it may fail; always in this order, so that no two sign-ins deadlock."""
    by_email = digest(f"email:{email}") if storable(email) else digest("email:")
    return ((by_email, FAILURES_PER_EMAIL), (digest(f"address:{_network(address)}"), FAILURES_PER_ADDRESS))


def _network(address: str) -> str:
    """Return what counts as one address: for IPv6 the /64, since one machine may use all of it."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    if isinstance(parsed, ipaddress.IPv6Address):
        return (
            str(ipaddress.ip_network((parsed, 64), strict=False)) if not parsed.ipv4_mapped else str(parsed.ipv4_mapped)
        )
    return str(parsed)


def _count_attempt(connection: Connection, key_hash: str, most: int, now: datetime) -> None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    over = SignInThrottle.since <= now - THROTTLE_WINDOW
    count = insert(SignInThrottle).values(key_hash=key_hash, failures=1, since=now)
    row = connection.execute(
        count.on_conflict_do_update(
            index_elements=["key_hash"],
            set_={
                "failures": sa.case((over, 1), else_=SignInThrottle.failures + 1),
                "since": sa.case((over, now), else_=SignInThrottle.since),
            },
        ).returning(SignInThrottle.failures, SignInThrottle.since)
    ).one()
    if row.failures > most:
        # Raised inside the transaction: an attempt that was not let through does not count.
        raise SignInThrottled(row.since + THROTTLE_WINDOW - now)


def _forgive(connection: Connection, counters: tuple[tuple[str, int], ...]) -> None:
    """Take back the attempt that turned out right; the e-mail starts afresh, the address keeps its other failures."""
    (email_hash, _), (address_hash, _) = counters
    connection.execute(sa.delete(SignInThrottle).where(SignInThrottle.key_hash == email_hash))
    connection.execute(
        sa.update(SignInThrottle)
        .where(SignInThrottle.key_hash == address_hash, SignInThrottle.failures > 0)
        .values(failures=SignInThrottle.failures - 1)
    )


def _audit(
    connection: Connection,
    at: datetime,
    actor: Actor,
    action: str,
    target: str,
    detail: dict[str, object] | None = None,
) -> None:
    audit.record(
        connection, at=at, actor_kind=actor.kind, actor=actor.name, action=action, target=target, detail=detail
    )
