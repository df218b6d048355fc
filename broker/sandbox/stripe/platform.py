"""What Stripe knows about the broker's platform: its clients, codes, grants and who is connected."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.clock import Clock
from broker.sandbox.bounded import Bounded
from broker.sandbox.rotation import Rotations
from broker.sandbox.secrets import Secrets, alphanumeric
from broker.sandbox.stripe.accounts import Account, new_account, starting_accounts

CODE_LIFE = timedelta(minutes=5)
APP_TOKEN_LIFE = timedelta(hours=1)
APP_REFRESH_LIFE = timedelta(days=365)
CONNECT, APPS = "connect", "apps"


@dataclass(frozen=True)
class Client:
    """One registration, for Connect or as a Stripe App: test and live mode have one each, and a secret key each."""

    id: str
    flavour: str
    livemode: bool
    secret_key: str


@dataclass
class Code:
    """An authorization code: one use, five minutes."""

    value: str
    client: Client
    account_id: str
    flavour: str
    scope: str
    issued_at: datetime
    used: bool = False


@dataclass
class Grant:
    """What one redeemed code gave. Connect tokens live until revoked; those of Stripe Apps for an hour."""

    client: Client
    account_id: str
    flavour: str
    scope: str
    access_token: str
    refresh_token: str
    publishable_key: str
    created_at: datetime
    refreshed_at: datetime
    # None: until revoked.
    life: timedelta | None
    active: bool = True

    def expired(self, now: datetime) -> bool:
        """Tell whether the access token has run out."""
        return self.life is not None and now >= self.refreshed_at + self.life


class Refused(Exception):
    """A token request that Stripe refuses with `error` and `description`."""

    def __init__(self, error: str, description: str) -> None:
        super().__init__(error)
        self.error = error
        self.description = description


class Platform:
    """Accounts, codes and grants. Its caller holds the lock."""

    def __init__(self, secrets: Secrets, clock: Clock, rotations: Rotations) -> None:
        self._clock = clock
        self._rotations = rotations
        self.platform = Client(secrets.stripe_client_id, CONNECT, False, secrets.stripe_secret_key)
        self.app = Client(secrets.stripe_app_client_id, APPS, False, secrets.stripe_app_secret_key)
        clients = (
            self.platform,
            Client(secrets.stripe_live_client_id, CONNECT, True, secrets.stripe_live_secret_key),
            self.app,
            Client(secrets.stripe_app_live_client_id, APPS, True, secrets.stripe_app_live_secret_key),
        )
        self._clients = {client.id: client for client in clients}
        self.accounts: Bounded[str, Account] = Bounded()
        for account in starting_accounts():
            self.accounts[account.id] = account
        self._codes: Bounded[str, Code] = Bounded()
        self._by_access: Bounded[str, Grant] = Bounded()
        self._by_refresh: Bounded[str, Grant] = Bounded()
        self._by_account: Bounded[tuple[str, str], list[Grant]] = Bounded()

    def client(self, client_id: str | None) -> Client | None:
        """Return the registration with this client id."""
        return self._clients.get(client_id or "")

    def keyholder(self, key: str | None) -> Client | None:
        """Return the registration whose secret key this is."""
        return next((client for client in self._clients.values() if client.secret_key == key), None)

    def account(self, account_id: str | None = None) -> Account:
        """Return the account with this id; made on the spot when unknown or when no id is given."""
        if account_id and account_id in self.accounts:
            return self.accounts[account_id]
        account = new_account(self._clock.now(), account_id)
        self.accounts[account.id] = account
        return account

    def authorize(self, client: Client, account: Account, scope: str) -> Code:
        """Issue a code: the account's owner said yes."""
        code = Code(f"ac_{alphanumeric(32)}", client, account.id, client.flavour, scope, self._clock.now())
        self._codes[code.value] = code
        return code

    def redeem(self, client: Client, value: str, flavour: str) -> Grant:
        """Exchange a code. A second time revokes the whole connection, as at Stripe."""
        code = self._codes.get(value)
        if code is None:
            raise Refused("invalid_grant", f"Authorization code does not exist: {value}")
        if code.client is not client or code.flavour != flavour:
            raise Refused("invalid_grant", "Authorization code provided does not belong to you.")
        if code.used:
            self.disconnect(client, code.account_id)
            raise Refused(
                "invalid_grant",
                "This authorization code has already been used. All tokens issued with this code have been revoked.",
            )
        if self._clock.now() >= code.issued_at + CODE_LIFE:
            raise Refused("invalid_grant", f"Authorization code expired: {value}")
        code.used = True
        return self._grant(code)

    def refresh(self, client: Client, token: str, scope: str | None, flavour: str) -> Grant:
        """Exchange a refresh token: the old access token stops; Stripe Apps roll the refresh token too."""
        grant = self._by_refresh.get(token)
        now = self._clock.now()
        if grant is None:
            self._spent_again(token)
        if grant is None or not grant.active or grant.flavour != flavour:
            raise Refused("invalid_grant", f"Refresh token does not exist: {token}")
        if flavour == APPS and (grant.client is not client or now >= grant.refreshed_at + APP_REFRESH_LIFE):
            raise Refused("invalid_grant", "Refresh token provided does not belong to you.")
        if scope and scope not in (grant.scope, "read_only"):
            raise Refused("invalid_scope", f"Requested scope is not covered by the refresh token: {scope}")
        self._by_access.pop(grant.access_token, None)
        grant.access_token, grant.refreshed_at = _access_token(client), now
        self._by_access[grant.access_token] = grant
        if flavour == APPS:
            del self._by_refresh[token]
            grant.refresh_token, grant.life = f"rt_{alphanumeric(40)}", self._rotations.rules.life(APP_TOKEN_LIFE)
            self._by_refresh[grant.refresh_token] = grant
            self._rotations.rotated("stripe", grant.account_id, token, grant.refresh_token)
        return grant

    def _spent_again(self, token: str) -> None:
        current = self._rotations.spent_again(token)
        family = self._by_refresh.get(current or "")
        if family is not None:
            family.active = False

    def holder(self, access_token: str) -> Grant | None:
        """Return the grant behind an access token that still works."""
        grant = self._by_access.get(access_token)
        return grant if grant and grant.active and not grant.expired(self._clock.now()) else None

    def uninstalled(self, access_token: str) -> bool:
        """Tell whether a token is of a Stripe App that its account has uninstalled: the API then says so."""
        grant = self._by_access.get(access_token)
        return grant is not None and grant.flavour == APPS and not grant.active

    def connected(self, client: Client, account_id: str) -> bool:
        """Tell whether an account is connected to a registration."""
        return any(grant.active for grant in self._by_account.get((client.id, account_id), []))

    def disconnect(self, client: Client, account_id: str) -> bool:
        """End a connection and every token of it; False when there was none."""
        was_connected = self.connected(client, account_id)
        for grant in self._by_account.get((client.id, account_id), []):
            grant.active = False
        return was_connected

    def newest_account(self, client: Client) -> str | None:
        """Return the account that a registration was given last."""
        found = (grant.account_id for grant in reversed(self._by_refresh.values()) if grant.client is client)
        return next(found, None)

    def grants(self) -> list[Grant]:
        """Return every grant ever made, oldest first."""
        return sorted((g for some in self._by_account.values() for g in some), key=lambda grant: grant.created_at)

    def _grant(self, code: Code) -> Grant:
        now = self._clock.now()
        mode = "live" if code.client.livemode else "test"
        grant = Grant(
            client=code.client,
            account_id=code.account_id,
            flavour=code.flavour,
            scope=code.scope,
            access_token=_access_token(code.client),
            refresh_token=f"rt_{alphanumeric(40)}",
            publishable_key=f"pk_{mode}_{alphanumeric(24)}",
            created_at=now,
            refreshed_at=now,
            life=self._rotations.rules.life(APP_TOKEN_LIFE) if code.flavour == APPS else None,
        )
        self._by_access[grant.access_token] = grant
        self._by_refresh[grant.refresh_token] = grant
        known = self._by_account.get((code.client.id, code.account_id), [])
        self._by_account[code.client.id, code.account_id] = [*known, grant]
        return grant


def _access_token(client: Client) -> str:
    return f"sk_{'live' if client.livemode else 'test'}_{alphanumeric(56)}"
