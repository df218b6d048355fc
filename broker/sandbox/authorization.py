"""An authorization server as RFC 6749 has it: what the smaller stand-ins have in common, with what differs as data."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from broker.clock import Clock
from broker.sandbox.bounded import Bounded
from broker.sandbox.rotation import Rotations
from broker.sandbox.secrets import alphanumeric


@dataclass(frozen=True)
class Account:
    """Somebody who can consent. `facts` is whatever else the service tells of them."""

    id: str
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rules:
    """How one service differs from the next."""

    scopes: frozenset[str]
    accounts: tuple[Account, ...]
    # Makes an account that nobody has seen before, with the id that is asked for or a new one.
    new_account: Callable[[str | None], Account]
    client_auth: Literal["client_secret_basic", "client_secret_post"]
    pkce: Literal["required", "taken", "ignored"]
    scope_separator: str = " "
    code_life: timedelta = timedelta(minutes=5)
    token_life: timedelta = timedelta(hours=1)
    refresh_life: timedelta | None = None
    # Whether each refresh replaces the refresh token, and for how long the one before then answers as the new one.
    rotates: bool = True
    grace: timedelta = timedelta(0)


@dataclass(frozen=True)
class Client:
    """The broker's registration."""

    id: str
    secret: str


@dataclass
class Code:
    """An authorization code: one use."""

    account: Account
    redirect_uri: str
    scopes: tuple[str, ...]
    challenge: str | None
    issued_at: datetime
    used: bool = False


@dataclass
class Grant:
    """What one consent gave; its tokens change with each refresh."""

    account: Account
    scopes: tuple[str, ...]
    access_token: str
    refresh_token: str
    created_at: datetime
    refreshed_at: datetime
    life: timedelta
    active: bool = True


class Refused(Exception):
    """A request that is refused, with an error code of OAuth's and a sentence."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


class AuthorizationServer:
    """Accounts, codes and grants of one service. Its caller holds the world's lock."""

    def __init__(self, name: str, rules: Rules, client: Client, clock: Clock, rotations: Rotations) -> None:
        self.name = name
        self.rules = rules
        self.client = client
        self._clock = clock
        self._rotations = rotations
        self.accounts: Bounded[str, Account] = Bounded()
        for account in rules.accounts:
            self.accounts[account.id] = account
        self._codes: Bounded[str, Code] = Bounded()
        self._grants: list[Grant] = []
        self._by_access: Bounded[str, Grant] = Bounded()
        self._by_refresh: Bounded[str, Grant] = Bounded()
        self._replaced_at: Bounded[str, datetime] = Bounded()

    def account(self, account_id: str | None = None) -> Account:
        """Return the account with this id; made on the spot when unknown or when no id is given."""
        if account_id and account_id in self.accounts:
            return self.accounts[account_id]
        made = self.rules.new_account(account_id)
        self.accounts[made.id] = made
        return made

    def authorize(self, account: Account, redirect_uri: str, scopes: tuple[str, ...], challenge: str | None) -> str:
        """Issue a code: the person said yes."""
        value = alphanumeric(40)
        self._codes[value] = Code(account, redirect_uri, scopes, challenge, self._clock.now())
        return value

    def redeem(self, value: str, redirect_uri: str, verifier: str | None) -> Grant:
        """Exchange a code, once."""
        code = self._codes.get(value)
        if code is None or code.used or self._clock.now() >= code.issued_at + self.rules.code_life:
            raise Refused("invalid_grant", "The code is unknown, used or expired.")
        if redirect_uri != code.redirect_uri:
            raise Refused("invalid_grant", "The redirect_uri is not the one of the authorization request.")
        if self.rules.pkce != "ignored" and code.challenge != challenge_of(verifier):
            raise Refused("invalid_grant", "The code_verifier does not belong to the code_challenge.")
        code.used = True
        now = self._clock.now()
        life = self._rotations.rules.life(self.rules.token_life)
        grant = Grant(code.account, code.scopes, self._token("at"), self._token("rt"), now, now, life)
        self._grants.append(grant)
        self._by_access[grant.access_token] = self._by_refresh[grant.refresh_token] = grant
        return grant

    def refresh(self, token: str) -> Grant:
        """Exchange a refresh token; a replaced one is noted, and may end the grant (see rotation.py)."""
        grant, now = self._by_refresh.get(token), self._clock.now()
        if grant is None or not grant.active or self._has_expired(grant, now):
            raise Refused("invalid_grant", "The refresh token is unknown, expired or revoked.")
        if token != grant.refresh_token:
            if now < self._replaced_at[token] + self.rules.grace:
                return grant
            if self._rotations.spent_again(token) is not None:
                self.end(grant)
            raise Refused("invalid_grant", "The refresh token was replaced.")
        self._by_access.pop(grant.access_token, None)
        grant.access_token, grant.refreshed_at = self._token("at"), now
        grant.life = self._rotations.rules.life(self.rules.token_life)
        self._by_access[grant.access_token] = grant
        if self.rules.rotates:
            grant.refresh_token = self._token("rt")
            self._by_refresh[grant.refresh_token] = grant
            self._replaced_at[token] = now
            self._rotations.rotated(self.name, grant.account.id, token, grant.refresh_token)
        return grant

    def _has_expired(self, grant: Grant, now: datetime) -> bool:
        return self.rules.refresh_life is not None and now >= grant.refreshed_at + self.rules.refresh_life

    def holder(self, access_token: str | None) -> Grant | None:
        """Return the grant behind an access token that works."""
        grant = self._by_access.get(access_token or "")
        works = grant is not None and grant.active and self._clock.now() < grant.refreshed_at + grant.life
        return grant if works else None

    def known(self, token: str) -> Grant | None:
        """Return the living grant that a token of either kind is, or was, of now."""
        found = self._by_access.get(token) or self._by_refresh.get(token)
        current = found is not None and found.active and token in (found.access_token, found.refresh_token)
        return found if current else None

    def end(self, grant: Grant) -> None:
        """End a grant and its tokens."""
        grant.active = False

    def end_account(self, account_id: str) -> int:
        """End every grant of an account, as its owner does at the service; return how many there were."""
        ended = [grant for grant in self._grants if grant.active and grant.account.id == account_id]
        for grant in ended:
            self.end(grant)
        return len(ended)

    def grants(self) -> list[Grant]:
        """Return every grant ever made, oldest first."""
        return list(self._grants)

    def _token(self, kind: str) -> str:
        return f"{self.name[:3]}{kind}_{alphanumeric(40)}"


def challenge_of(verifier: str | None) -> str | None:
    """Return the S256 challenge (RFC 7636) that belongs to a verifier."""
    if verifier is None:
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
