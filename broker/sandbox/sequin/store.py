"""What Sequin keeps: credentials and OAuth apps."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from broker.clock import Clock
from broker.sandbox.secrets import Secrets
from broker.sandbox.sequin.kinds import KINDS, Kind

# OAuth apps that were there before this sandbox started: a fixed date, so that a restart changes nothing.
REGISTERED_AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class OAuthApp:
    """One OAuth app."""

    id: str
    provider: str
    name: str
    client_id: str
    client_secret: str
    created_at: datetime
    updated_at: datetime
    metadata: Mapping[str, object] = field(default_factory=dict)


@dataclass
class Health:
    """How a credential was when last looked at."""

    status: str
    notes: list[str]
    time: datetime


@dataclass
class Credential:
    """One credential. `import_count` is the sandbox's own: how often it was imported."""

    id: str
    kind: str
    rules: Kind
    oauth_app_id: str
    properties: Mapping[str, object]
    health: Health
    created_at: datetime
    updated_at: datetime
    name: str | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    import_count: int = 1


class Store:
    """Credentials and OAuth apps, in the order they were made. Its caller holds the lock."""

    def __init__(self, secrets: Secrets, clock: Clock) -> None:
        self._clock = clock
        self.token = secrets.sequin_api_token
        self.credentials: dict[str, Credential] = {}
        self.apps: dict[str, OAuthApp] = {}
        self.kinds: dict[str, Kind] = dict(KINDS)
        self._by_account: dict[tuple[str, str, str], str] = {}
        registered = (
            (secrets.sequin_stripe_app_id, "stripe", "stripe", secrets.stripe_client_id, secrets.stripe_secret_key),
            (
                secrets.sequin_stripe_apps_app_id, "stripe", "stripe app", secrets.stripe_app_client_id,
                secrets.stripe_app_secret_key,
            ),
            (secrets.sequin_github_app_id, "github", "github", secrets.github_client_id, secrets.github_client_secret),
            (
                secrets.sequin_github_oauth_app_id, "github", "github oauth", secrets.github_oauth_client_id,
                secrets.github_oauth_client_secret,
            ),
        )  # fmt: skip
        for app_id, provider, name, client_id, secret in registered:
            self.preregister(app_id, provider, name, client_id, secret)

    def preregister(self, app_id: str, provider: str, name: str, client_id: str, secret: str) -> None:
        """Add an OAuth app that was there before this sandbox started."""
        self.apps[app_id] = OAuthApp(
            app_id, provider, f"Sandbox {name}", client_id, secret, REGISTERED_AT, REGISTERED_AT
        )

    def upsert(
        self,
        kind: str,
        app: OAuthApp,
        properties: Mapping[str, object],
        *,
        name: str | None,
        metadata: Mapping[str, object] | None,
    ) -> Credential:
        """Import: the same upstream account, app and kind is the same credential."""
        rules = self.kinds[kind]
        key = (app.id, kind, rules.account(properties))
        known = self.credentials.get(self._by_account.get(key, ""))
        now = self._clock.now()
        if known is None:
            made = Credential(
                str(uuid.uuid4()),
                kind,
                rules,
                app.id,
                properties,
                Health("ok", [], now),
                now,
                now,
                name,
                metadata or {},
            )
            self.credentials[made.id] = made
            self._by_account[key] = made.id
            return made
        known.properties, known.updated_at = properties, now
        known.import_count += 1
        if name is not None:
            known.name = name
        if metadata is not None:
            known.metadata = metadata
        if known.health.status != "ok":
            known.health = Health("ok", [], now)
        return known

    def alter(self, credential: Credential, app: OAuthApp, properties: Mapping[str, object]) -> None:
        """Change a credential as no import would: move it to an OAuth app, let it speak of another account."""
        self._by_account.pop(self._key(credential), None)
        credential.oauth_app_id = app.id
        credential.properties = {**credential.properties, **properties}
        self._by_account[self._key(credential)] = credential.id

    def _key(self, credential: Credential) -> tuple[str, str, str]:
        return (credential.oauth_app_id, credential.kind, credential.rules.account(credential.properties))

    def delete(self, credential: Credential) -> None:
        """Forget a credential."""
        del self.credentials[credential.id]
        self._by_account.pop(self._key(credential), None)

    def register(
        self, provider: str, name: str, client_id: str, client_secret: str, metadata: Mapping[str, object]
    ) -> OAuthApp:
        """Add an OAuth app; the same client id twice makes two."""
        now = self._clock.now()
        app = OAuthApp(str(uuid.uuid4()), provider, name, client_id, client_secret, now, now, metadata)
        self.apps[app.id] = app
        return app

    def in_use(self, app: OAuthApp) -> bool:
        """Tell whether a credential belongs to an OAuth app."""
        return any(credential.oauth_app_id == app.id for credential in self.credentials.values())

    def now(self) -> datetime:
        """Return the time of a change made from outside."""
        return self._clock.now()
