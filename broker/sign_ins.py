"""Signing in at an OpenID provider, for people and for operators alike: leave, come back, be known.

Whoever leaves has a row that only their browser can take away, once; it is gone, and committed, before anybody is
asked anything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import sqlalchemy as sa
import structlog

from broker import audit, end_users, throttle
from broker.callback import CallbackAnswer
from broker.clock import Clock
from broker.contract import LONGEST_EMAIL, LONGEST_ID, LONGEST_NAME
from broker.db import Database, table
from broker.errors import (
    IdentityUnusable,
    OtherBrowser,
    SignInExpired,
    SignInFailure,
    StateUnknown,
    TooManyFlows,
    Unreadable,
)
from broker.journal import Browser
from broker.models import PendingSignIn, Role
from broker.openid import OpenIdProvider, refusal
from broker.operators import Identity, OperatorInvalid, Operators
from broker.secret import Secret, digest
from broker.settings import OperatorSignIn, PeopleSignIn, SignIn
from broker.text import one_line
from broker.throttle import Counter
from broker.vault import Binding, Vault

LIFE = timedelta(minutes=15)
"""How long somebody may take at the OpenID provider."""
MOST_PENDING = 10
"""Sign-ins that one browser has begun and not ended."""

log = structlog.get_logger(__name__)

_pending = table(PendingSignIn)


class Door(StrEnum):
    """Whose sign-in it is."""

    PEOPLE = "people"
    OPERATORS = "operators"


# People of one company come from one address; operators are few.
MOST_FAILURES: Mapping[Door, int] = {Door.PEOPLE: 100, Door.OPERATORS: 20}
"""Sign-ins begun and not ended well, from one address in a quarter of an hour."""


Admit = Callable[[Mapping[str, object], str], int]
"""Who somebody is here: takes proven claims and where they come from, returns our own key."""


@dataclass(frozen=True)
class Admitted:
    """Who was signed in, by our own key, and the page they wanted."""

    key: int
    onward: str


class SignIns:
    """One door: leaving through it and coming back."""

    def __init__(
        self,
        provider: OpenIdProvider,
        *,
        door: Door,
        admit: Admit,
        callback_url: str,
        database: Database,
        clock: Clock,
        vault: Vault,
    ) -> None:
        self.provider = provider
        self._door = door
        self._admit = admit
        self.callback_url = callback_url
        self._database = database
        self._clock = clock
        self._vault = vault

    @property
    def section(self) -> str:
        """Where it is configured."""
        return "sign_in" if self._door is Door.PEOPLE else "operators.sign_in"

    @property
    def config(self) -> SignIn:
        """The registration at the provider."""
        return self.provider.config

    def begin(self, browser: Browser, address: str, *, onward: str = "", another: bool = False) -> str:
        """Return the provider's address for somebody who comes from `address` and wants the page `onward`.

        Counted as failed until they are back. With `another` they are asked which account it is to be. Raises
        SignInThrottled, TooManyFlows, SignInUnavailable or SignInMisconfigured.
        """
        # First, so that nobody makes us ask the provider as often as they like.
        with self._database.write() as connection:
            throttle.count(connection, [self._counter(address)], self._clock.now())
        left = self.provider.depart(self.callback_url, another=another)
        kept = {"verifier": left.code_verifier.reveal(), "nonce": left.nonce.reveal(), "onward": onward}
        state_hash, now = digest(left.state.reveal()), self._clock.now()
        with self._database.write() as connection:
            mine = sa.select(sa.func.count()).where(
                _pending.c.browser_hash == browser.hash, _pending.c.expires_at > now
            )
            if connection.execute(mine).scalar_one() >= MOST_PENDING:
                raise TooManyFlows
            connection.execute(
                sa.insert(_pending).values(
                    state_hash=state_hash,
                    door=self._door.value,
                    browser_hash=browser.hash,
                    sealed=self._vault.seal(json.dumps(kept).encode(), pending_binding(state_hash)),
                    expires_at=now + LIFE,
                )
            )
        log.info("sign_in.left", door=self._door.value)
        return left.url

    def complete(self, answer: CallbackAnswer, browser: Browser | None, address: str) -> Admitted:
        """Take the provider's answer, once, and return who it is.

        Raises IssuerMismatch, StateUnknown or OtherBrowser, having changed nothing; otherwise SignInFailure, or
        EndUserErased.
        """
        self.provider.require_issuer(answer.issuer)
        kept = self._taken(answer.state, browser)
        if answer.code is None:
            raise refusal(answer.error or "")
        claims = self.provider.identify(
            code=answer.code,
            redirect_uri=self.callback_url,
            code_verifier=Secret(kept["verifier"]),
            nonce=Secret(kept["nonce"]),
            issuer=answer.issuer,
        )
        key = self._admit(claims, address)
        with self._database.write() as connection:
            throttle.take_back(connection, self._counter(address))
        return Admitted(key, kept["onward"])

    def _taken(self, state: Secret, browser: Browser | None) -> dict[str, str]:
        """Take the row away in one statement, committed before any call; of many visits exactly one gets it."""
        state_hash, now = digest(state.reveal()), self._clock.now()
        browser_hash = browser.hash if browser else ""
        mine = (_pending.c.state_hash == state_hash, _pending.c.door == self._door.value)
        with self._database.write() as connection:
            found = connection.execute(
                sa.delete(_pending)
                .where(*mine, _pending.c.browser_hash == browser_hash)
                .returning(_pending.c.sealed, _pending.c.expires_at)
            ).one_or_none()
            if found is None and connection.execute(sa.select(_pending.c.door).where(*mine)).first() is not None:
                raise OtherBrowser
        if found is None:
            raise StateUnknown
        if found.expires_at <= now:
            raise SignInExpired
        try:
            kept: dict[str, str] = json.loads(self._vault.open(found.sealed, pending_binding(state_hash)))
        except Unreadable as failure:
            raise SignInFailure(failure.detail) from None
        return kept

    def _counter(self, address: str) -> Counter:
        return throttle.counter(f"openid:{self._door}:{throttle.network(address)}", MOST_FAILURES[self._door])


class People:
    """Makes end users of who signed in."""

    def __init__(self, config: PeopleSignIn, database: Database, clock: Clock) -> None:
        self._config = config
        self._database = database
        self._clock = clock

    def admit(self, claims: Mapping[str, object], address: str) -> int:
        """Return the key of the end user these claims are about, remembered or brought up to date.

        Raises IdentityUnusable without a usable id, or EndUserErased.
        """
        external_id = claims.get(self._config.id_claim)
        if isinstance(external_id, int) and not isinstance(external_id, bool):
            external_id = str(external_id)
        if not isinstance(external_id, str) or not _fits(external_id, LONGEST_ID):
            raise IdentityUnusable(f"the ID token holds no usable {self._config.id_claim}")
        if self._config.id_claim == "email" and claims.get("email_verified") is not True:
            raise IdentityUnusable("the OpenID provider does not say that the e-mail is the person’s (email_verified)")
        email, name = claims.get("email"), claims.get("name")
        shown = isinstance(email, str) and "@" in email and claims.get("email_verified") is not False
        now = self._clock.now()
        with self._database.write() as connection:
            key = end_users.remember(
                connection,
                external_id,
                email=email if isinstance(email, str) and shown and _fits(email, LONGEST_EMAIL) else None,
                name=name if isinstance(name, str) and _fits(name, LONGEST_NAME) else None,
                now=now,
            )
            audit.record(
                connection, at=now, actor_kind="end_user", actor=external_id, action="end_user.signed_in",
                target=external_id, detail={"address": throttle.network(address)},
            )  # fmt: skip
        return key


class Staff:
    """Makes operators of who signed in, with the role that their claims give them."""

    def __init__(self, config: OperatorSignIn, operators: Operators) -> None:
        self._config = config
        self._operators = operators

    def admit(self, claims: Mapping[str, object], address: str) -> int:
        """Return the key of the operator. Raises IdentityUnusable without an e-mail, or what `Operators.admit` does."""
        email = claims.get("email")
        if not isinstance(email, str):
            raise IdentityUnusable("the ID token holds no email")
        who = Identity(
            issuer=self._config.issuer,
            subject=str(claims["sub"]),
            email=email,
            email_verified=claims.get("email_verified") is True,
            role=role_of(self._config, claims),
        )
        try:
            return self._operators.admit(who, address)
        except OperatorInvalid as failure:
            raise IdentityUnusable(failure.detail) from None


def role_of(config: OperatorSignIn, claims: Mapping[str, object]) -> Role | None:
    """Return the highest role that an ID token's claims give, None when it is none."""
    told = claims.get(config.role_claim)
    held = {one for one in (told if isinstance(told, list) else [told]) if isinstance(one, str)}
    values = {Role.VIEWER: config.viewer, Role.OPERATOR: config.operator, Role.ADMIN: config.admin}
    return next((role for role in reversed(Role) if held & set(values[role])), None)


def pending_binding(state_hash: str) -> Binding:
    """Return where what was kept of a sign-in may be opened."""
    return Binding("sign_ins", "sealed", state_hash)


def _fits(text: str, longest: int) -> bool:
    return 0 < len(text) <= longest and one_line(text) and bool(text.strip())
