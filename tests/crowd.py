"""A crowd: as many connections as asked for, put straight into a database, the way they stand after two years."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import psycopg

AGE = timedelta(days=730)
RARE = 7
"""So many connections, the oldest ones, stand as no other does: a filter for them must not walk past all the others."""
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
NAMES = ("Acme", "Lind", "Northwind", "Borealis", "Quarry", "Tandem", "Umbra", "Vantage")

_STANDINGS = {
    "revoked": 3, "error": 10, "import_failed": 5, "awaiting_approval": 2, "pending": 5, "disconnected": 20,
    "unknown": 30, "ok": 925,
}  # fmt: skip
STANDING_OF = [standing for standing, share in _STANDINGS.items() for _ in range(share)]

PEOPLE = ("id", "external_id", "email", "name", "created_at")
CONNECTIONS = (
    "id", "ref", "end_user_id", "app_key", "provider", "kind", "account_id", "account_name", "account_type", "mode",
    "account_facts", "scopes", "host_metadata", "token_version", "import_state", "import_error", "credential_id",
    "imported_at", "verified_at", "health", "checked_at", "revoked_at", "interrupted_at", "disconnected_at",
    "revocation", "removal", "connected_at", "created_at", "updated_at",
)  # fmt: skip
MEMBERS = ("connection_id", "key", "value")
JOBS = (
    "kind", "subject_id", "state", "due_at", "fence", "generation", "failures", "created_at", "updated_at",
)  # fmt: skip


def ref_of(number: int) -> str:
    """Return the reference of one of them."""
    letters = ""
    for place in range(12):
        letters += ALPHABET[(number >> (5 * place)) % 32]
    return f"{letters[:4]}-{letters[4:8]}-{letters[8:]}"


def standing_of(number: int) -> str:
    """Return the status of one of them; checks that have passed are fresh."""
    return "interrupted" if number <= RARE else STANDING_OF[number * 7919 % len(STANDING_OF)]


def metadata_of(number: int) -> dict[str, str]:
    """Return the metadata of one of them."""
    plan = "enterprise" if number % 100 == 0 else "pro" if number % 3 == 0 else "free"
    region = "eu" if number % 2 else "us"
    return {"plan": plan, "region": region, "tenant": f"t-{number // 3}"} | ({"pilot": "yes"} if number <= RARE else {})


def crowd(url: str, count: int, now: datetime) -> None:
    """Fill a migrated, empty database. Indexes that only speed things up are made at the end, as a restore does."""
    (_into_sqlite if url.startswith("sqlite") else _into_postgresql)(url, count, now)


def _tables(count: int, now: datetime, shown: Callable[[datetime], str]) -> Iterator[
    tuple[str, Sequence[str], Iterator[tuple[object, ...]]]
]:  # fmt: skip
    numbers = range(1, count + 1)
    began, step = now - AGE, AGE / count
    times = [shown(began + number * step) for number in range(count + 1)]
    today, soon = shown(now - timedelta(hours=2)), shown(now + timedelta(hours=15))
    people = ((n, f"user-{n}", f"person{n}@example.com", f"Person {n}", times[n]) for n in numbers)
    yield "end_users", PEOPLE, people
    yield "connections", CONNECTIONS, (_connection(n, times[n], today) for n in numbers)
    members = ((n, key, value) for n in numbers for key, value in metadata_of(n).items())
    yield "connection_metadata", MEMBERS, members
    yield "jobs", JOBS, (("verify", n, "waiting", soon, 1, 0, 0, times[n], times[n]) for n in numbers)


def _connection(number: int, at: str, today: str) -> tuple[object, ...]:
    standing = standing_of(number)
    app, provider, kind, mode = (
        ("github", "github", "github_app", "live") if number % 4 == 1
        else ("stripe-test", "stripe", "stripe_oauth2", "test") if number % 20 == 0
        else ("stripe", "stripe", "stripe_oauth2", "live")
    )  # fmt: skip
    state = {"pending": "pending", "import_failed": "parked", "awaiting_approval": "pending"}.get(standing, "imported")
    is_imported = state == "imported"
    facts = json.dumps({"installation_id": number, "html_url": "https://github.com/"} if app == "github" else {})
    ended = at if standing == "disconnected" else None
    waits = standing == "awaiting_approval"
    return (
        number, ref_of(number), number, app, provider, kind, None if waits else f"acct_{number:012}",
        f"{NAMES[number % len(NAMES)]} {number}", "standard", mode, facts, '["read_write"]',
        json.dumps(metadata_of(number)), 1, state, "sequin_refused" if state == "parked" else None,
        f"crd-{number:012}" if is_imported and ended is None else None, at if is_imported else None,
        at if is_imported else None, {"ok": "ok", "error": "error"}.get(standing),
        today if standing in {"ok", "error"} else None, at if standing == "revoked" else None,
        at if standing == "interrupted" else None, ended, "done" if ended else None, "done" if ended else None,
        at, at, at,
    )  # fmt: skip


def _into_sqlite(url: str, count: int, now: datetime) -> None:
    database = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("PRAGMA cache_size = -200000")
    indexes = database.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    ).fetchall()
    for name, _ in indexes:
        database.execute(f"DROP INDEX {name}")
    database.execute("BEGIN")
    for table, columns, rows in _tables(count, now, lambda at: at.strftime("%Y-%m-%d %H:%M:%S.%f")):
        places = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({places})", rows)  # noqa: S608
    database.execute("COMMIT")
    for _, made in indexes:
        database.execute(made)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def _into_postgresql(url: str, count: int, now: datetime) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as database:
        indexes = database.execute(
            "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND NOT EXISTS"
            " (SELECT 1 FROM pg_constraint AS c WHERE c.conname = indexname)"
        ).fetchall()
        for name, _ in indexes:
            database.execute(f'DROP INDEX "{name}"'.encode())
        with database.transaction():
            for table, columns, rows in _tables(count, now, lambda at: at.astimezone(UTC).isoformat()):
                with database.cursor().copy(f"COPY {table} ({', '.join(columns)}) FROM STDIN".encode()) as copy:
                    for row in rows:
                        copy.write_row(row)
            for table in ("end_users", "connections"):
                database.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), {count})".encode())
        for _, made in indexes:
            database.execute(made.encode())
        # As autovacuum does on a server that has been running for a while.
        database.execute("VACUUM (ANALYZE)")
