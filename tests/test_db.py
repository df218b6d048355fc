"""The database: times with a zone, units that commit whole, migrations that agree with the models."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from broker import models
from broker.clock import ManualClock
from broker.db import (
    LOOK_SECONDS,
    SQLITE_BUSY_MS,
    Base,
    Database,
    DatabaseUnavailable,
    SchemaBehind,
    UtcDateTime,
    engine_options,
    migrations_path,
    newest_revision,
    prepare,
    require_current_schema,
    schema_revision,
    upgrade,
)
from broker.models import EndUser
from tests.databases import SqliteDatabases
from tests.house import START

MOMENT = datetime(2026, 11, 20, 10, 0, 0, 123456, tzinfo=UTC)


ROWS_OF_0001 = (
    "INSERT INTO end_users (id, external_id, created_at) VALUES (1, 'u1', '2026-11-20 10:00:00')",
    (
        "INSERT INTO links (id, public_id, token_hash, end_user_id, host_metadata, manage, created_by, created_at,"
        " expires_at) VALUES (1, 'l1', 'h1', 1, '{}', false, 'cli', '2026-11-20 10:00:00', '2026-11-20 10:00:00')"
    ),
    (
        "INSERT INTO connections (id, ref, end_user_id, app_key, provider, kind, account_id, account_name, mode,"
        " scopes, account_facts, host_metadata, token_version, import_state, connected_at, created_at, updated_at)"
        " VALUES (1, 'c1', 1, 'stripe', 'stripe', 'stripe_oauth2', 'acct_1', 'One', 'test', '[]', '{}',"
        """ '{"plan": "pro", "seats": 7, "share": 1.5, "beta": true, "old": false, "none": null}', 1,"""
        " 'pending', '2026-11-20 10:00:00', '2026-11-20 10:00:00', '2026-11-20 10:00:00')"
    ),
    (
        "INSERT INTO flows (id, ref, link_id, end_user_id, app_key, browser_hash, state, connection_id, created_at,"
        " updated_at, expires_at) VALUES (1, 'f1', 1, 1, 'stripe', 'b', 'done', 1, '2026-11-20 10:00:00',"
        " '2026-11-20 10:00:00', '2026-11-20 10:00:00')"
    ),
    "INSERT INTO link_uses (link_id, app_key, connection_id, spent_at) VALUES (1, 'stripe', 1, '2026-11-20 10:00:00')",
)


def migrate(url: str, direction: Callable[[Config, str], None], revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(migrations_path()))
    config.attributes["url"] = url
    direction(config, revision)


def open_database(url: str, **options: object) -> Database:
    engine = sa.create_engine(url, **(engine_options(url) | options))
    prepare(engine)
    return Database(engine, ManualClock(START))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.engine.dispose()


@pytest.fixture
def embedded(sqlite_databases: SqliteDatabases) -> Iterator[Database]:
    """The kind that takes one writer at a time."""
    with sqlite_databases.migrated() as url:
        opened = open_database(url)
        yield opened
        opened.engine.dispose()


def add(database: Database, name: str, moment: datetime = MOMENT) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(EndUser).values(external_id=name, created_at=moment))


def names(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(sa.select(EndUser.external_id).order_by(EndUser.id)).scalars())


# --- times ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=45)), timezone(timedelta(hours=-9))])
def test_a_time_comes_back_as_the_same_moment_in_utc(database: Database, zone: timezone) -> None:
    add(database, "a", MOMENT.astimezone(zone))
    with database.read() as connection:
        read = connection.execute(sa.select(EndUser.created_at)).scalar_one()
    assert read == MOMENT
    assert read.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(sa.exc.StatementError, match="naive"):
        add(database, "a", MOMENT.replace(tzinfo=None))
    assert names(database) == []


def test_times_compare_as_moments_whatever_their_zone(database: Database) -> None:
    add(database, "a")
    later = (MOMENT + timedelta(microseconds=1)).astimezone(timezone(timedelta(hours=-11)))
    query = sa.select(sa.func.count()).select_from(EndUser)
    with database.read() as connection:
        assert connection.execute(query.where(EndUser.created_at < later)).scalar_one() == 1
        assert connection.execute(query.where(EndUser.created_at >= later)).scalar_one() == 0


def test_no_time_stays_no_time(database: Database) -> None:
    with database.read() as connection:
        assert connection.execute(sa.select(sa.literal(None, UtcDateTime()))).scalar_one() is None


def test_every_column_with_a_time_has_a_zone() -> None:
    wrong = [
        str(column)
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, sa.DateTime)
    ]
    assert wrong == []


def test_leases_are_judged_by_postgresqls_clock_and_by_this_machines_where_there_is_none(database: Database) -> None:
    with database.write() as connection:
        first, second = database.now(connection), database.now(connection)
    assert first.utcoffset() == timedelta(0)
    if database.is_sqlite:
        assert first == second == START
    else:
        assert first < second, "the clock goes on within a transaction"


# --- units of work --------------------------------------------------------------------------------------


class Mishap(Exception):
    """Something went wrong in the middle."""


def fail_after_writing(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.insert(EndUser).values(external_id="lost", created_at=MOMENT))
        raise Mishap


def test_a_unit_that_fails_leaves_nothing_behind(database: Database) -> None:
    with pytest.raises(Mishap):
        fail_after_writing(database)
    assert names(database) == []


def test_a_unit_that_only_reads_keeps_nothing_it_writes(database: Database) -> None:
    with database.read() as connection:
        connection.execute(sa.insert(EndUser).values(external_id="a", created_at=MOMENT))
    assert names(database) == []


def test_a_session_commits_on_success_and_its_objects_can_still_be_read(database: Database) -> None:
    with database.session() as session:
        person = EndUser(external_id="a", created_at=MOMENT)
        session.add(person)
    assert person.external_id == "a"
    with database.reading() as session:
        assert session.scalars(sa.select(EndUser.external_id)).all() == ["a"]


def test_many_writers_that_read_before_they_write_all_succeed(database: Database) -> None:
    add(database, "0")
    start = threading.Barrier(8)
    failures: list[BaseException] = []

    def count_up() -> None:
        try:
            start.wait(10)
            for _ in range(5):
                with database.write() as connection:
                    value = connection.execute(sa.select(EndUser.external_id).with_for_update()).scalar_one()
                    connection.execute(sa.update(EndUser).values(external_id=str(int(value) + 1)))
        except BaseException as failure:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=count_up) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert names(database) == ["40"]


def test_reading_goes_on_while_somebody_writes(database: Database) -> None:
    add(database, "a")
    with database.write() as connection:
        connection.execute(sa.insert(EndUser).values(external_id="b", created_at=MOMENT))
        assert names(database) == ["a"]
    assert names(database) == ["a", "b"]


def test_a_writer_takes_the_embedded_databases_lock_at_once_and_a_reader_never(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL locks rows")
    begun: list[str] = []
    # What the driver runs: the transaction's beginning goes to it directly.
    sa.event.listen(database.engine, "connect", lambda opened, _: opened.set_trace_callback(begun.append))
    with database.write():
        pass
    with database.read() as connection:
        connection.execute(sa.text("SELECT 1"))
    assert [each for each in begun if each.startswith("BEGIN")] == ["BEGIN IMMEDIATE", "BEGIN"]


@pytest.mark.parametrize("unit", ["read", "look", "reading"])
def test_what_a_reader_gives_back_is_lent_to_a_writer_as_to_any(database: Database, unit: str) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL locks rows")
    begun: list[str] = []
    sa.event.listen(database.engine, "connect", lambda opened, _: opened.set_trace_callback(begun.append))
    # The first one begins nothing.
    with getattr(database, unit)():
        pass
    with getattr(database, unit)() as opened:
        opened.execute(sa.text("SELECT 1"))
    with database.write():
        pass
    assert [each for each in begun if each.startswith("BEGIN")] == ["BEGIN", "BEGIN IMMEDIATE"]


def test_the_embedded_database_survives_power_loss_and_keeps_its_rules(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL has these by default")
    with database.read() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}


def test_a_row_that_points_nowhere_is_refused(database: Database) -> None:
    with pytest.raises(sa.exc.IntegrityError), database.write() as connection:
        connection.execute(sa.insert(models.Claim).values(app_key="a", account_id="b", mode="live", end_user_id=10**9))


# --- failures -------------------------------------------------------------------------------------------


def test_a_database_that_cannot_be_reached_is_unavailable(tmp_path_factory: pytest.TempPathFactory) -> None:
    nowhere = tmp_path_factory.mktemp("nowhere")
    for url in (f"sqlite:///{nowhere}/missing/broker.sqlite", f"postgresql+psycopg://u@/x?host={nowhere}"):
        database = open_database(url)
        for unit in (database.write, database.read):
            with pytest.raises(DatabaseUnavailable) as caught, unit() as connection:
                connection.execute(sa.text("SELECT 1"))
            assert caught.value.status == 503
        database.engine.dispose()


def query_a_missing_table(database: Database, value: str) -> None:
    with database.write() as connection:
        connection.execute(sa.text("SELECT :value FROM no_such_table"), {"value": value})


def test_a_failure_shows_no_parameter_not_even_in_its_traceback(database: Database) -> None:
    kinds = (DatabaseUnavailable, sa.exc.ProgrammingError)
    value = f"{START.year}-person@example.com"
    with pytest.raises(kinds) as caught:
        query_a_missing_table(database, value)
    assert value not in str(caught.value)
    assert value not in "".join(traceback.format_exception(caught.value))


def test_a_duplicate_shows_no_parameter_either(database: Database) -> None:
    add(database, "a-person")
    with pytest.raises(sa.exc.IntegrityError) as caught:
        add(database, "a-person")
    # PostgreSQL itself quotes the key of a duplicate; nothing else of the row may be told.
    assert str(MOMENT.year) not in str(caught.value)


def test_a_database_that_may_only_be_read_is_unavailable_to_writers(database_url: str) -> None:
    if database_url.startswith("sqlite"):
        path = database_url.removeprefix("sqlite:///")
        database = open_database(f"sqlite:///file:{path}?mode=ro&uri=true")
    else:
        database = open_database(database_url, connect_args={"options": "-c default_transaction_read_only=on"})
    try:
        assert names(database) == []
        with pytest.raises(DatabaseUnavailable):
            add(database, "a")
    finally:
        database.engine.dispose()


def test_an_exhausted_pool_is_an_unavailable_database(database_url: str) -> None:
    database = open_database(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    with database.read(), pytest.raises(DatabaseUnavailable, match="pool exhausted"), database.read():
        pass
    database.engine.dispose()


# --- being alone with something ---------------------------------------------------------------------------


HOLDER = """
import sys
import sqlalchemy as sa
from broker.clock import SystemClock
from broker.db import Database, engine_options, prepare
engine = sa.create_engine(sys.argv[1], **engine_options(sys.argv[1]))
prepare(engine)
with Database(engine, SystemClock()).alone(7) as alone:
    print(alone, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(url: str) -> Iterator[subprocess.Popen[str]]:
    """Lend a process that holds, or tries to hold, the right to key 7."""
    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def told(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_alone_has_a_right_for_as_long_as_it_lives_even_while_it_is_paused(
    database: Database, database_url: str
) -> None:
    with another_process(database_url) as holder:
        assert told(holder) == "True"
        with another_process(database_url) as other:
            assert told(other) == "False"
        os.kill(holder.pid, signal.SIGSTOP)
        with database.alone(7) as alone, database.alone(8) as other_key:
            assert (alone, other_key) == (False, True)
        os.kill(holder.pid, signal.SIGKILL)
        holder.wait()
        assert wait_until_alone(database)


def wait_until_alone(database: Database) -> bool:
    """Tell whether the right comes free; PostgreSQL takes a moment to see that a client is gone."""
    ends = time.monotonic() + 20
    while time.monotonic() < ends:
        with database.alone(7) as alone:
            if alone:
                return True
    return False


def test_the_threads_of_one_process_keep_each_other_out_too(database: Database) -> None:
    with database.alone(7) as first, database.alone(7) as second:
        assert (first, second) == (True, False)
    with database.alone(7) as again:
        assert again


def test_a_failure_gives_the_right_back(database: Database) -> None:
    with pytest.raises(ValueError, match="inside"), database.alone(7):
        raise ValueError("inside")
    with database.alone(7) as alone:
        assert alone


def test_connections_that_the_server_has_ended_are_not_used_once_they_have_rested(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    if database.is_sqlite:
        pytest.skip("an embedded database has no server")
    monkeypatch.setattr("broker.db.TRUSTED_SECONDS", 0.0)
    with database.read() as first, database.read() as second:
        for connection in (first, second):
            connection.execute(sa.text("SELECT 1"))
    with database.write() as connection:
        ended = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert connection.execute(sa.text(ended)).scalars().all() == [True]
    for _ in range(3):
        assert names(database) == []


def test_threads_write_to_an_embedded_database_one_after_the_other(database: Database) -> None:
    if not database.is_sqlite:
        pytest.skip("PostgreSQL takes many writers at once")
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with database.write():
            order.append("second")

    with database.write():
        thread = threading.Thread(target=second)
        thread.start()
        waiting.wait()
        with database.read():
            order.append("a reader in between")
        order.append("first")
    thread.join()
    assert order == ["a reader in between", "first", "second"]


def test_a_thread_that_waits_too_long_for_its_turn_is_told_so(
    embedded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.db.SQLITE_BUSY_MS", 10)
    with embedded.write(), pytest.raises(DatabaseUnavailable, match="locked"), embedded.write():
        pass


@pytest.fixture
def another_writer(embedded: Database) -> Iterator[sqlite3.Connection]:
    """One that is writing to the embedded database."""
    with closing(sqlite3.connect(str(embedded.engine.url.database), isolation_level=None)) as opened:
        opened.execute("BEGIN IMMEDIATE")
        yield opened


@pytest.mark.parametrize("pause", [0.0, 60.0])
def test_a_writer_looks_soon_and_often_whether_another_writer_is_done(
    embedded: Database, another_writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            another_writer.execute("ROLLBACK")

    # Of this module alone: other threads may be asleep. A pause of the whole process is no waiting for the lock.
    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: len(slept) * pause)
    monkeypatch.setattr("broker.db.time", clock)
    with embedded.write() as connection:
        # What else may find it busy waits as before.
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar_one() == SQLITE_BUSY_MS
    assert slept == [LOOK_SECONDS] * 3


def test_a_writer_that_waits_too_long_for_another_writer_is_told_so(
    embedded: Database, another_writer: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.db.SQLITE_BUSY_MS", 10)
    with pytest.raises(DatabaseUnavailable), embedded.write():
        pass
    another_writer.execute("ROLLBACK")
    with embedded.write():
        pass


# --- migrations -----------------------------------------------------------------------------------------


def revision(url: str) -> str | None:
    database = open_database(url)
    try:
        with database.read() as connection:
            return schema_revision(connection)
    finally:
        database.engine.dispose()


def tables(url: str) -> set[str]:
    engine = sa.create_engine(url)
    try:
        return set(sa.inspect(engine).get_table_names())
    finally:
        engine.dispose()


@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    def named(name: str | None, kind: str, _parents: object) -> bool:
        # Indexes over expressions cannot be compared.
        return not (kind == "index" and (name or "").endswith(("_begins", "_standing_id")))

    with database.engine.connect() as connection:
        opts = {"compare_type": True, "compare_server_default": True, "include_name": named}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, Base.metadata) == []


def test_a_migrated_database_is_current(database_url: str) -> None:
    database = open_database(database_url)
    require_current_schema(database)
    assert revision(database_url) == newest_revision()
    database.engine.dispose()


def test_an_empty_database_is_behind_and_the_error_says_what_to_run(empty_database_url: str) -> None:
    database = open_database(empty_database_url)
    with pytest.raises(SchemaBehind) as behind:
        require_current_schema(database)
    assert "broker db upgrade" in behind.value.cure
    database.engine.dispose()


def test_upgrading_twice_changes_nothing(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    before = tables(empty_database_url)
    upgrade(empty_database_url)
    assert tables(empty_database_url) == before == set(Base.metadata.tables) | {"alembic_version"}


def test_upgrading_from_several_places_at_once_works(empty_database_url: str) -> None:

    code = "import sys; from broker.db import upgrade; upgrade(sys.argv[1])"
    started = [
        subprocess.Popen([sys.executable, "-c", code, empty_database_url], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    told = [process.communicate(timeout=120)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], told
    assert revision(empty_database_url) == newest_revision()


def test_what_a_database_holds_survives_every_migration(empty_database_url: str) -> None:
    migrate(empty_database_url, command.upgrade, "0001")
    engine = sa.create_engine(empty_database_url)
    prepare(engine)
    with engine.begin() as connection:
        for statement in ROWS_OF_0001:
            connection.exec_driver_sql(statement)
    engine.dispose()

    migrate(empty_database_url, command.upgrade, "head")
    migrate(empty_database_url, command.downgrade, "0001")
    migrate(empty_database_url, command.upgrade, "head")

    engine = sa.create_engine(empty_database_url)
    with engine.connect() as connection:
        kept = connection.exec_driver_sql(
            "SELECT c.ref, f.ref FROM flows f JOIN connections c ON c.id = f.connection_id "
            "JOIN link_uses u ON u.connection_id = c.id"
        ).all()
        members = connection.exec_driver_sql("SELECT key, value FROM connection_metadata").all()
    engine.dispose()
    assert [tuple(row) for row in kept] == [("c1", "f1")]
    # Those of before are found by their metadata too.
    told = {"plan": "pro", "seats": "7", "share": "1.5", "beta": "true", "old": "false"}
    assert {row.key: row.value for row in members} == told


def test_downgrading_to_nothing_and_back_works(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    migrate(empty_database_url, command.downgrade, "base")
    assert tables(empty_database_url) == {"alembic_version"}
    upgrade(empty_database_url)
    assert revision(empty_database_url) == newest_revision()


def test_an_embedded_database_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "broker.db"
    upgrade(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
