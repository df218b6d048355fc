"""Operators: who they are, how they sign in, and what stops somebody from guessing."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from broker import audit, throttle
from broker.audit import COMMAND_LINE, Actor
from broker.clock import Clock
from broker.db import Database
from broker.errors import Refused, SignInFailure
from broker.models import BrowserSession, Operator, Role
from broker.secret import Secret, digest, random_token
from broker.text import storable
from broker.throttle import Counter

# OWASP's Argon2id figures: 19 MiB, two passes, one lane; about 25 ms of one core.
ARGON2_MEMORY_KIB, ARGON2_PASSES, ARGON2_LANES = 19_456, 2, 1
# OWASP ASVS 5.0, 6.2.1; the throttle below stands in front of it.
SHORTEST_PASSWORD, LONGEST_PASSWORD = 8, 1_024
LONGEST_EMAIL = 320
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


class OperatorNotPermitted(SignInFailure):
    """Somebody proved who they are, and no role goes with it; `shown` is the account's name, for that person alone."""

    code = "operator_not_permitted"
    status = 403
    heading = "You are not an operator here"
    advice = "You signed in, but your account has no role here. Ask an admin for one, or use another account."
    cure = "Give the account one of the values under `[operators.sign_in]` in the claim named by `role_claim`."

    def __init__(self, detail: str = "", *, shown: str = "") -> None:
        self.shown = shown
        super().__init__(detail)


class OperatorDisabled(OperatorNotPermitted):
    """Somebody proved who they are, and is disabled here."""

    code = "operator_disabled"
    advice = "You signed in, but your account is disabled here. Ask an admin."
    cure = "Whoever was disabled stays so; let them sign in with another account if that was a mistake."


class OperatorEmailTaken(OperatorNotPermitted):
    """Another operator has this e-mail, and nothing proves that it is the same person."""

    code = "operator_email_taken"
    status = 409
    heading = "Another operator has your e-mail address"
    advice = "You signed in, but we could not make sure that this operator is you. Ask an admin."
    cure = (
        "Let the OpenID provider send `email_verified`, or run `broker operator unlink` for who had the address "
        "before. Where `issuer` was changed, run it for each operator once."
    )


@dataclass(frozen=True)
class OperatorView:
    """An operator, without the password."""

    id: int
    email: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None
    has_openid: bool = False
    """Whether an account at the OpenID provider belongs to it."""
    sessions: int = 0
    """In how many browsers it is signed in."""


@dataclass(frozen=True)
class Identity:
    """Who somebody is at the OpenID provider, proven, and the role that goes with it."""

    issuer: str
    subject: str
    email: str
    email_verified: bool
    role: Role | None


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
        open_sessions = (
            sa.select(sa.func.count())
            .where(BrowserSession.operator_id == Operator.id, BrowserSession.expires_at > self._clock.now())
            .scalar_subquery()
        )
        columns = (
            Operator.id, Operator.email, Operator.role, Operator.created_at, Operator.disabled_at, Operator.subject,
            open_sessions.label("sessions"),
        )  # fmt: skip
        with self._database.read() as connection:
            rows = connection.execute(sa.select(*columns).order_by(Operator.email)).all()
        return tuple(
            OperatorView(
                row.id,
                row.email,
                Role(row.role),
                row.created_at,
                row.disabled_at,
                row.subject is not None,
                row.sessions,
            )
            for row in rows
        )

    def exist(self) -> bool:
        """Tell whether anybody can sign in at all."""
        with self._database.read() as connection:
            query = sa.select(Operator.id).where(Operator.disabled_at.is_(None)).limit(1)
            return connection.execute(query).first() is not None

    def disable(self, email: str, *, actor: Actor = COMMAND_LINE) -> None:
        """Stop an operator from signing in and end every session at once. Raises OperatorUnknown."""
        email, now = _normalised(email), self._clock.now()
        with self._database.write() as connection:
            operator_id = find_operator(connection, email)
            _end_sessions(connection, operator_id)
            stopped = connection.execute(
                sa.update(Operator)
                .where(Operator.id == operator_id, Operator.disabled_at.is_(None))
                .values(disabled_at=now)
                .returning(Operator.id)
            ).one_or_none()
            if stopped is not None:
                _audit(connection, now, actor, "operator.disabled", email)

    def unlink(self, email: str, *, actor: Actor = COMMAND_LINE) -> None:
        """Forget which account at the OpenID provider an operator has, so that another can take its place.

        Ends every session. Raises OperatorUnknown.
        """
        email, now = _normalised(email), self._clock.now()
        with self._database.write() as connection:
            operator_id = find_operator(connection, email)
            _end_sessions(connection, operator_id)
            connection.execute(sa.update(Operator).where(Operator.id == operator_id).values(issuer=None, subject=None))
            _audit(connection, now, actor, "operator.unlinked", email)

    def admit(self, who: Identity, address: str) -> int:
        """Return the key of the operator who came from the OpenID provider, made or brought up to date.

        The role is the provider's, every time. Whoever has lost theirs is signed out everywhere. Raises
        OperatorNotPermitted, OperatorDisabled, OperatorEmailTaken, or OperatorInvalid for an unusable e-mail.
        """
        email, now = _normalised(who.email), self._clock.now()
        _check_email(email)
        # Made before the transaction: it takes its time, and nobody will ever know what it is the hash of.
        unknown_password = self._hasher.hash(random_token())
        refused: OperatorNotPermitted | None = None
        with self._database.write() as connection:
            try:
                operator_id, name = _admitted(connection, who, email, unknown_password, now)
            except OperatorNotPermitted as refusal:
                # Kept until the record of it is committed.
                refused = refusal
                detail: dict[str, object] = {"why": refusal.code, "address": throttle.network(address)}
                _audit(connection, now, Actor("operator", email), "operator.sign_in_failed", email, detail)
            else:
                _audit(connection, now, Actor("operator", name), "operator.signed_in", name, {"by": "openid"})
        if refused is not None:
            raise refused
        return operator_id

    def sign_in(self, email: str, password: Secret, address: str) -> int:
        """Return the key of the operator with this password. Raises SignInRefused or SignInThrottled.

        An attempt counts as failed before the password is looked at, so that many at once cannot slip through.
        """
        email, now = _normalised(email), self._clock.now()
        counters = _counters(email, address)
        with self._database.write() as connection:
            throttle.count(connection, counters, now)
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
                    {"address": throttle.network(address)},
                )
            else:
                # The e-mail starts afresh, the address keeps its other failures.
                throttle.forget(connection, counters[0])
                throttle.take_back(connection, counters[1])
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


def find_operator(connection: Connection, email: str) -> int:
    """Return the key of the operator with this e-mail. Raises OperatorUnknown."""
    email = _normalised(email)
    found = None
    if storable(email):
        found = connection.execute(sa.select(Operator.id).where(Operator.email == email)).scalar_one_or_none()
    if found is None:
        raise OperatorUnknown(email)
    return found


def _end_sessions(connection: Connection, operator_id: int) -> None:
    connection.execute(sa.delete(BrowserSession).where(BrowserSession.operator_id == operator_id))


def _admitted(
    connection: Connection, who: Identity, email: str, unknown_password: str, now: datetime
) -> tuple[int, str]:
    """Find or make the operator, bring it up to date, and return its key and the e-mail it goes by.

    Raises OperatorNotPermitted.
    """
    columns = sa.select(Operator.id, Operator.email, Operator.role, Operator.disabled_at, Operator.subject)
    by_account = columns.where(Operator.issuer == who.issuer, Operator.subject == who.subject).with_for_update()
    known = connection.execute(by_account).one_or_none()
    if who.role is None:
        if known is not None:
            _end_sessions(connection, known.id)
        raise OperatorNotPermitted("the ID token holds none of the configured roles", shown=email)
    if known is None:
        made = _insert(connection, email, who.role, unknown_password, now, issuer=who.issuer, subject=who.subject)
        if made is not None:
            _audit(connection, now, Actor("operator", email), "operator.created", email, {"role": who.role.value})
            return made, email
        # The same person may have come in by another tab in the same moment.
        known = connection.execute(by_account).one_or_none()
    if known is None:
        known = connection.execute(columns.where(Operator.email == email).with_for_update()).one_or_none()
        # Who proves to own the address that an operator was created under is that operator.
        if known is None or known.subject is not None or not who.email_verified:
            raise OperatorEmailTaken("an operator with this e-mail signs in otherwise", shown=email)
    if known.disabled_at is not None:
        raise OperatorDisabled("disabled", shown=email)
    if known.subject is None:
        _audit(connection, now, Actor("operator", email), "operator.linked", email)
    taken = sa.select(Operator.id).where(Operator.email == email, Operator.id != known.id)
    # The audit trail names operators by it: nobody takes a name that the provider does not vouch for.
    may_change = who.email_verified and connection.execute(taken).first() is None
    kept_email = email if may_change else known.email
    connection.execute(
        sa.update(Operator)
        .where(Operator.id == known.id)
        .values(role=who.role.value, email=kept_email, issuer=who.issuer, subject=who.subject)
    )
    if known.role != who.role:
        detail: dict[str, object] = {"from": known.role, "to": who.role.value}
        _audit(connection, now, Actor("operator", kept_email), "operator.role_changed", kept_email, detail)
    return known.id, kept_email


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


def _insert(
    connection: Connection, email: str, role: Role, password_hash: str, now: datetime, **identity: str
) -> int | None:
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    fresh = insert(Operator).values(
        email=email, role=role.value, password_hash=password_hash, created_at=now, **identity
    )
    return connection.execute(fresh.on_conflict_do_nothing().returning(Operator.id)).scalar_one_or_none()


# --- the throttle -----------------------------------------------------------------------------------


def _counters(email: str, address: str) -> tuple[Counter, Counter]:
    """Return what is counted, always in this order."""
    by_email = throttle.counter(f"email:{email}" if storable(email) else "email:", FAILURES_PER_EMAIL)
    return by_email, throttle.counter(f"address:{throttle.network(address)}", FAILURES_PER_ADDRESS)


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
