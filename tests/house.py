"""A small house for tests: settings, a catalogue, collaborators on a real database, and rows to fill it with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from broker.apps import AppCatalogue
from broker.clock import ManualClock
from broker.connection_metadata import index_metadata
from broker.connections import Connections
from broker.db import Base, Database, engine_options, prepare
from broker.jobs import Jobs
from broker.links import Links
from broker.models import AuditRecord, ConnectedAccount, EndUser, Flow, FlowState, ImportState, Job, Link, LinkUse
from broker.providers import discover
from broker.references import new_ref
from broker.secret import Secret
from broker.settings import EncryptionKey, OAuthApp, Settings

START = datetime(2026, 11, 20, 10, 0, tzinfo=UTC)


def stripe_app(key: str) -> OAuthApp:
    """Return a configured OAuth app of the provider that needs nothing besides."""
    return OAuthApp(
        key=key,
        provider="stripe",
        client_id=f"ca_{key}",
        client_secrets=(Secret("sk_never_to_be_seen"),),
        scopes=(),
        sequin_oauth_app_id=None,
        webhook_secrets=(Secret("whsec_never_to_be_seen"),),
        why="So Acme can show your revenue.",
        options=discover()["stripe"].options(),
    )


def app_of(key: str, provider: str, **changes: Any) -> OAuthApp:
    """Return a configured OAuth app of a provider that needs nothing besides."""
    options = discover()[provider].options.model_validate(changes.pop("options", {}))
    return replace(stripe_app(key), provider=provider, options=options, **changes)


def make_settings(database_url: str = "sqlite://", **changes: Any) -> Settings:
    """Return development settings with two OAuth apps and one allowed origin."""
    values: dict[str, Any] = {
        "public_url": "http://localhost:8000",
        "secret_key": Secret("a-key-for-tests-that-is-long-enough-0123456789"),
        "encryption_keys": (EncryptionKey("k1", bytes(range(32))),),
        "environment": "development",
        "database_url": database_url,
        "data_dir": Path("/nonexistent"),
        "port": 8000,
        "sequin_api_token": Secret("sequin_never_to_be_seen"),
        "sequin_api_url": "http://localhost:8100/sequin",
        "apps": {"stripe": stripe_app("stripe"), "stripe-test": stripe_app("stripe-test")},
        "return_origins": ("https://app.example", "http://127.0.0.1:9000"),
        "workers": 0,
    }
    return Settings(**(values | changes))


@dataclass
class House:
    """Collaborators on one database, and short ways to put rows into it."""

    database: Database
    clock: ManualClock
    settings: Settings
    apps: AppCatalogue
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def jobs(self) -> Jobs:
        """The job table."""
        return Jobs(self.database, self.clock)

    @property
    def links(self) -> Links:
        """Connect links."""
        return Links(self.database, self.clock, self.apps, self.settings)

    @property
    def connections(self) -> Connections:
        """Connections."""
        return Connections(self.database, self.clock, self.apps, self.jobs)

    def insert(self, table: type[Base], **values: Any) -> int:
        """Add a row and return its key."""
        with self.database.write() as connection:
            return connection.execute(sa.insert(table).values(**values).returning(table.id)).scalar_one()  # type: ignore[attr-defined, no-any-return]

    def run(self, statement: sa.Executable) -> None:
        """Run one statement in a transaction of its own."""
        with self.database.write() as connection:
            connection.execute(statement)

    def value(self, query: sa.Select[Any]) -> Any:
        """Return the one value a query finds, None when it finds none."""
        with self.database.read() as connection:
            return connection.execute(query).scalar_one_or_none()

    def end_user(self, external_id: str, **values: Any) -> int:
        """Add an end user."""
        return self.insert(EndUser, external_id=external_id, created_at=self.clock.now(), **values)

    def connection(self, end_user_id: int, **changes: Any) -> str:
        """Add an imported connection and return its reference."""
        now, number = self.clock.now(), next(self.numbers)
        values: dict[str, Any] = {
            "ref": new_ref(),
            "end_user_id": end_user_id,
            "app_key": "stripe",
            "provider": "stripe",
            "kind": "stripe_oauth2",
            "account_id": f"acct_{number}",
            "account_name": f"Account {number}",
            "account_type": "standard",
            "mode": "live",
            "account_facts": {},
            "scopes": ["read_write"],
            "host_metadata": {},
            "import_state": ImportState.IMPORTED,
            "connected_at": now,
            "created_at": now,
            "updated_at": now,
        }
        told = values | changes
        key = self.insert(ConnectedAccount, **told)
        with self.database.write() as connection:
            index_metadata(connection, key, told["host_metadata"], is_new=True)
        return str(told["ref"])

    def key_of(self, ref: str) -> int:
        """Return a connection's key."""
        return int(self.value(sa.select(ConnectedAccount.id).where(ConnectedAccount.ref == ref)))

    def flow(self, link_id: int, browser_hash: str, **changes: Any) -> int:
        """Add a flow that has left for the provider."""
        now = self.clock.now()
        person = self.value(sa.select(Link.end_user_id).where(Link.id == link_id))
        values: dict[str, Any] = {
            "ref": new_ref(),
            "link_id": link_id,
            "end_user_id": person,
            "app_key": "stripe",
            "browser_hash": browser_hash,
            "state": FlowState.LEFT,
            "created_at": now,
            "updated_at": now,
            "expires_at": now.replace(hour=now.hour + 1),
        }
        return self.insert(Flow, **(values | changes))

    def bind(self, link_id: int, browser_hash: str) -> None:
        """Bind a link to a browser, as its first start does."""
        self.run(
            sa.update(Link).where(Link.id == link_id).values(browser_hash=browser_hash, started_at=self.clock.now())
        )

    def spend(self, link_id: int, ref: str, app: str = "stripe") -> None:
        """Spend a link for a connection."""
        key = self.key_of(ref)
        self.run(sa.insert(LinkUse).values(link_id=link_id, app_key=app, connection_id=key, spent_at=self.clock.now()))

    def asked_for(self) -> set[str]:
        """Return the kinds of work that was asked for."""
        with self.database.read() as connection:
            return set(connection.execute(sa.select(Job.kind)).scalars())

    def audited(self) -> list[tuple[str, str, str, str]]:
        """Return the audit trail: actor kind, actor, action, target."""
        columns = (AuditRecord.actor_kind, AuditRecord.actor, AuditRecord.action, AuditRecord.target)
        with self.database.read() as connection:
            rows = connection.execute(sa.select(*columns).order_by(AuditRecord.id)).all()
        return [(row[0], row[1], row[2], row[3]) for row in rows]


@contextmanager
def open_house(database_url: str, **changes: Any) -> Iterator[House]:
    """Lend a house on a migrated database."""
    engine = sa.create_engine(database_url, **engine_options(database_url))
    prepare(engine)
    clock = ManualClock(START)
    settings = make_settings(database_url, **changes)
    try:
        yield House(Database(engine, clock), clock, settings, AppCatalogue(settings.apps, discover()))
    finally:
        engine.dispose()
