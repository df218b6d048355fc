"""How Alembic reaches the database: from `broker.db.upgrade`, or from `broker db …` inside the application."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import sqlalchemy as sa
from alembic import context
from sqlalchemy.engine import Connection, Engine

from broker import models  # noqa: F401 - fills the metadata
from broker.db import Base, UtcDateTime, engine_options, prepare

MIGRATION_LOCK = 0x62726F6B6572
"""Any number that nothing else in the database uses."""


def _engine() -> Engine:
    url = context.config.attributes.get("url")
    if url is None:
        from flask import current_app

        engine: Engine = current_app.extensions["migrate"].db.engine
        return engine
    engine = sa.create_engine(url, **engine_options(url))
    prepare(engine)
    return engine


def _render(kind: str, item: object, _context: object) -> str | Literal[False]:
    # Migrations must not change when our own types do.
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, UtcDateTime) else False


@contextmanager
def _copying_tables(connection: Connection) -> Iterator[None]:
    """Let SQLite replace a table by its altered copy: while keys are enforced, dropping the old one is refused."""
    if connection.dialect.name != "sqlite":
        yield
        return
    driver = connection.connection.dbapi_connection
    assert isinstance(driver, sqlite3.Connection)
    # Outside any transaction: inside one SQLite ignores it.
    driver.execute("PRAGMA foreign_keys = OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys = ON")


def _migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite's tables can only be altered by copying them; its DDL is transactional all the same.
        render_as_batch=connection.dialect.name == "sqlite",
        transactional_ddl=True,
        compare_type=True,
        render_item=_render,
    )
    with _copying_tables(connection), context.begin_transaction():
        # Several processes may start at once: one migrates, the others wait and find nothing left to do.
        # On SQLite the transaction itself takes the write lock.
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        context.run_migrations()
        if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise SystemExit("The migration would leave rows that point nowhere; nothing was changed.")


if context.is_offline_mode():
    raise SystemExit("Migrations need the database: set DATABASE_URL and run `broker db upgrade`.")

engine = _engine()
try:
    with engine.connect() as connection:
        _migrate(connection)
finally:
    if context.config.attributes.get("url") is not None:
        engine.dispose()
