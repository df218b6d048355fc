"""What GitHub knows: people, installations, codes and tokens of the two registered apps."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.clock import Clock
from broker.sandbox.bounded import Bounded
from broker.sandbox.github.people import (
    ADMIN,
    STARTING_INSTALLATIONS,
    Installation,
    Org,
    User,
    starting_orgs,
    starting_users,
)
from broker.sandbox.rotation import Rotations
from broker.sandbox.secrets import Secrets, alphanumeric

CODE_LIFE = timedelta(minutes=10)
TOKEN_LIFE = timedelta(seconds=28_800)
REFRESH_LIFE = timedelta(seconds=15_897_600)
MOST_TOKENS = 10


@dataclass(frozen=True)
class Client:
    """One registration: a GitHub App, or an OAuth App."""

    id: str
    secret: str
    is_app: bool

    @property
    def prefix(self) -> str:
        """Return how this client's user tokens begin."""
        return "ghu_" if self.is_app else "gho_"


@dataclass
class Code:
    """An authorization code: one use, ten minutes, pinned to its redirect address and challenge."""

    client: Client
    login: str
    redirect_uri: str
    challenge: str | None
    scopes: tuple[str, ...]
    expiring: bool
    issued_at: datetime


@dataclass
class Token:
    """A user token, with its refresh token when it expires."""

    value: str
    client: Client
    login: str
    scopes: tuple[str, ...]
    created_at: datetime
    refresh: str | None = None
    life: timedelta = TOKEN_LIFE

    def expires_at(self) -> datetime | None:
        """Return when it ends; None: it does not."""
        return self.created_at + self.life if self.refresh else None


class Refused(Exception):
    """A token request that GitHub refuses with `error`."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Hub:
    """People, installations, codes and tokens. Its caller holds the lock."""

    def __init__(self, secrets: Secrets, clock: Clock, rotations: Rotations) -> None:
        self._clock = clock
        self._rotations = rotations
        self.app_id = secrets.github_app_id
        self.app_slug = secrets.github_app_slug
        self.app = Client(secrets.github_client_id, secrets.github_client_secret, True)
        oauth_app = Client(secrets.github_oauth_client_id, secrets.github_oauth_client_secret, False)
        self._clients = {client.id: client for client in (self.app, oauth_app)}
        self.users: Bounded[str, User] = Bounded()
        self.orgs: dict[str, Org] = {org.login: org for org in starting_orgs()}
        self.installations: Bounded[int, Installation] = Bounded()
        # Scopes by (client id, login): who has authorized what before.
        self.authorizations: Bounded[tuple[str, str], tuple[str, ...]] = Bounded()
        self.requests: Bounded[str, str] = Bounded()
        self.last_auto_login: str | None = None
        self._installed: Bounded[str, int] = Bounded()
        self._codes: Bounded[str, Code] = Bounded()
        self._tokens: Bounded[str, Token] = Bounded()
        self._refreshes: Bounded[str, Token] = Bounded()
        self._owned: Bounded[tuple[str, str], list[Token]] = Bounded()
        self._number = 0
        for user in starting_users():
            self.users[user.login] = user
        for login, suspended in STARTING_INSTALLATIONS:
            installation = self.install(login)
            installation.suspended_at = clock.now() if suspended else None

    def client(self, client_id: str | None) -> Client | None:
        """Return the registration with this client id."""
        return self._clients.get(client_id or "")

    def user(self, login: str | None = None) -> User:
        """Return the person with this login; made on the spot when unknown or when no login is given."""
        if login and login in self.users:
            return self.users[login]
        number = self._fresh_number()
        user = User(number, login or f"octo-{number}", None, None, "made on demand")
        self.users[user.login] = user
        return user

    def authorize(self, code: Code) -> str:
        """Issue a code: the person said yes."""
        value = hashlib.sha256(alphanumeric(32).encode()).hexdigest()[:20]
        self._codes[value] = code
        self.authorizations[code.client.id, code.login] = code.scopes
        return value

    def redeem(self, client: Client, value: str, redirect_uri: str | None, verifier: str | None) -> Token:
        """Exchange a code. Only the right client with the right address gets as far as using it up."""
        code = self._codes.get(value)
        if code is None or code.client is not client or self._clock.now() >= code.issued_at + CODE_LIFE:
            raise Refused("bad_verification_code")
        if redirect_uri != code.redirect_uri:
            raise Refused("redirect_uri_mismatch")
        del self._codes[value]
        # GitHub does not document this error; bad_verification_code is our assumption (providers.md, 6).
        if code.challenge != challenge_of(verifier):
            raise Refused("bad_verification_code")
        return self._issue(client, code.login, code.scopes, code.expiring)

    def refresh(self, client: Client, value: str) -> Token:
        """Exchange a refresh token; the old pair stops at once."""
        old = self._refreshes.get(value)
        if old is None:
            self._spent_again(value)
        if old is None or old.client is not client or self._clock.now() >= old.created_at + REFRESH_LIFE:
            raise Refused("bad_refresh_token")
        self.revoke(old)
        new = self._issue(client, old.login, old.scopes, True)
        self._rotations.rotated("github", old.login, value, new.refresh or "")
        return new

    def _spent_again(self, value: str) -> None:
        current = self._refreshes.get(self._rotations.spent_again(value) or "")
        if current is not None:
            self.revoke(current)

    def holder(self, value: str) -> Token | None:
        """Return a token that still works."""
        token = self._tokens.get(value)
        if token is None:
            return None
        ends = token.expires_at()
        return None if ends and self._clock.now() >= ends else token

    def revoke(self, token: Token) -> None:
        """End one token, and its refresh token."""
        self._tokens.pop(token.value, None)
        self._refreshes.pop(token.refresh or "", None)

    def revoke_grant(self, client: Client, login: str) -> None:
        """End every token of a person for a client, and forget that they ever authorized it."""
        for token in self._alive(client, login):
            self.revoke(token)
        self.authorizations.pop((client.id, login), None)

    def tokens(self) -> list[Token]:
        """Return the tokens that have not been revoked, oldest first."""
        return list(self._tokens.values())

    def rotate(self, token: Token) -> Token:
        """Replace a token by a new one with the same rights (the API's "reset")."""
        self.revoke(token)
        return self._issue(token.client, token.login, token.scopes, token.refresh is not None)

    def install(self, login: str) -> Installation:
        """Install the App on a person's or an organisation's account; there is at most one per account."""
        known = self.installation_on(login)
        if known is not None:
            return known
        org = self.orgs.get(login)
        owner_id = org.id if org else self.user(login).id
        kind = "Organization" if org else "User"
        installation = Installation(self._fresh_number(), owner_id, login, kind, self._clock.now())
        self.installations[installation.id] = installation
        self._installed[login] = installation.id
        self.requests.pop(login, None)
        return installation

    def open_requests(self) -> list[tuple[Org, User]]:
        """Return who has asked the owners of which organisation, unless somebody has answered."""
        return [(self.orgs[login], self.user(asker)) for login, asker in self.requests.items() if login in self.orgs]

    def uninstall(self, installation: Installation) -> None:
        """Take the App off an account."""
        self.installations.pop(installation.id, None)
        self._installed.pop(installation.account_login, None)

    def installation_on(self, login: str) -> Installation | None:
        """Return the installation on one account."""
        return self.installations.get(self._installed.get(login, 0))

    def visible_to(self, user: User) -> list[Installation]:
        """Return the installations a person can reach: their own, and those of organisations they belong to."""
        found = [self.installation_on(login) for login in (user.login, *user.orgs)]
        return [installation for installation in found if installation is not None]

    def newest_login(self) -> str | None:
        """Return who got a token last, or else who authorized last."""
        logins = (token.login for token in reversed(self._tokens.values()))
        return next(logins, None) or next((login for _, login in reversed(self.authorizations)), None)

    def owner_of(self, login: str) -> User | None:
        """Return the person behind an account: themselves, or an organisation's owner."""
        if login in self.users:
            return self.users[login]
        return next((user for user in self.users.values() if user.orgs.get(login) == ADMIN), None)

    def _issue(self, client: Client, login: str, scopes: tuple[str, ...], expiring: bool) -> Token:
        alive = self._alive(client, login)
        alike = [token for token in alive if token.scopes == scopes]
        # Ten per person, app and scopes; the eleventh pushes the oldest out. Documented for OAuth Apps.
        if not client.is_app and len(alike) >= MOST_TOKENS:
            self.revoke(alike[0])
        refresh = f"ghr_{alphanumeric(76)}" if expiring else None
        token = Token(
            f"{client.prefix}{alphanumeric(36)}", client, login, scopes, self._clock.now(), refresh,
            self._rotations.rules.life(TOKEN_LIFE),
        )  # fmt: skip
        self._tokens[token.value] = token
        self._owned[client.id, login] = [*alive, token]
        if refresh:
            self._refreshes[refresh] = token
        return token

    def _alive(self, client: Client, login: str) -> list[Token]:
        return [token for token in self._owned.get((client.id, login), []) if token.value in self._tokens]

    def _fresh_number(self) -> int:
        # From the clock, so that ids do not come back after a reset or a restart: a broker remembers the old ones.
        self._number = max(self._number + 1, int(self._clock.now().timestamp() * 1000))
        return self._number


def challenge_of(verifier: str | None) -> str | None:
    """Return the S256 challenge (RFC 7636) that belongs to a verifier."""
    if verifier is None:
        return None
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
