"""The database: engine settings, transactions, column types. The only module below the views that knows Flask.

SQLite and PostgreSQL run the same code. Work is done in two kinds of unit: `Database.write()` and
`Database.read()`; nothing keeps a transaction open over a network call.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache, partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import sqlalchemy as sa
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection, Dialect, Engine
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

from broker.clock import Clock
from broker.errors import BrokerError

if TYPE_CHECKING:
    from alembic.config import Config

SQLITE_BUSY_MS = 8_000
"""How long a writer waits for another process's write lock; well inside the 20 s a callback may take."""
LOOK_SECONDS = 0.0002
"""How soon such a writer looks again."""
LONGEST_LOOK_SECONDS = 0.1
"""What took longer was a pause of the whole process, and no waiting for the lock."""
_BUSY_TIMEOUT = f"PRAGMA busy_timeout = {SQLITE_BUSY_MS}"

ALONE_KEYS = 0x62726F << 40
"""Sets the keys of `Database.alone` apart from other uses of PostgreSQL's advisory locks."""

UNUSABLE = {"25006": "read-only", "42P01": "a table is missing"}
"""PostgreSQL's codes for a server that takes no writes and for tables not made yet (appendix A of its manual)."""

TRUSTED_SECONDS = 0.25
"""How long a pooled connection to PostgreSQL may have rested and still be used without asking."""
_RESTED_SINCE = "broker.rested_since"
_READING = "broker.reading"
_CLOCK = sa.select(sa.func.clock_timestamp())

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = sa.MetaData(naming_convention=NAMES)


db = SQLAlchemy(model_class=Base)


class DatabaseUnavailable(BrokerError):
    """The database cannot be reached or written to."""

    code = "database_unavailable"
    status = 503
    heading = "The service is not available"
    advice = "Try again in a few minutes."
    cure = "Check DATABASE_URL, that the database runs, and that its disk is neither full nor read-only."


class SchemaBehind(BrokerError):
    """The database's tables are not those this version needs."""

    code = "schema_behind"
    status = 503
    heading = "We are updating"
    advice = "Try again in a few minutes."
    cure = "Run `broker db upgrade`."


class NoSuchRevision(BrokerError):
    """The tables cannot be taken to a revision: this version does not know it, or it is not an older one."""

    code = "no_such_revision"
    cure = "`broker db current` tells the revisions; a version knows those up to its own."


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """A point in time: zone-aware UTC in Python, `timestamptz` on PostgreSQL, ISO text without zone on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Refuse naive times: they have no meaning once they leave this process."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime cannot be stored")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give every time read its zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""A 64-bit key; SQLite only counts up by itself when the column is called INTEGER."""

Json = sa.JSON().with_variant(JSONB(), "postgresql")


def table(model: type[Base]) -> sa.Table:
    """Return a model's table, for the hot paths that use SQLAlchemy Core."""
    return cast(sa.Table, model.__table__)


def engine_options(url: str) -> dict[str, Any]:
    """Return the engine options that `url`'s database needs."""
    # Errors quote statements with their parameters otherwise, and those hold people's data.
    options: dict[str, Any] = {"pool_size": 20, "hide_parameters": True}
    if url.startswith("sqlite"):
        return options | {"connect_args": {"timeout": SQLITE_BUSY_MS / 1000, "check_same_thread": False}}
    return options | {"max_overflow": 10, "connect_args": {"connect_timeout": 5}}


def keep_private(url: str) -> None:
    """Make sure that an embedded database's file, and what SQLite puts beside it, is its owner's alone."""
    if not url.startswith("sqlite:///"):
        return
    path = Path(url.removeprefix("sqlite:///"))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def prepare(engine: Engine) -> None:
    """Make `engine` follow the house rules for its kind of database."""
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _sqlite_connect)
        # Not as a listener to `begin`: a single one of those makes every statement a fifth to a third slower.
        engine.dialect.do_begin = _sqlite_begin  # type: ignore[assignment, method-assign]
    else:
        event.listen(engine, "checkin", _rest)
        event.listen(engine, "checkout", partial(_try_rested, engine.dialect))


def _sqlite_connect(dbapi_connection: sqlite3.Connection, _record: object) -> None:
    # The driver must not open transactions by itself: `_sqlite_begin` chooses the kind.
    dbapi_connection.isolation_level = None
    cursor = dbapi_connection.cursor()
    # Busy timeout first: switching to WAL takes a lock, and several processes start at once.
    cursor.execute(_BUSY_TIMEOUT)
    cursor.execute("PRAGMA journal_mode = WAL")
    # FULL: an acknowledged connection survives power loss, not only a crash of this program.
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA secure_delete = ON")
    cursor.close()


def _sqlite_begin(opened: PoolProxiedConnection) -> None:
    # A deferred transaction that turns into a write fails at once under contention; the busy timeout
    # does not help it. Units that write therefore take the lock first.
    driver = cast(sqlite3.Connection, opened.driver_connection)
    if _READING in opened.info:
        driver.execute("BEGIN")
        return
    # SQLite itself looks again after up to a tenth of a second, while the lock changes hands every few milliseconds.
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        _take_write_lock(driver)
    finally:
        driver.execute(_BUSY_TIMEOUT)


def _take_write_lock(driver: sqlite3.Connection) -> None:
    waited, looked = 0.0, time.monotonic()
    while True:
        try:
            driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as failure:
            if failure.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or waited > SQLITE_BUSY_MS / 1000:
                raise
        else:
            return
        time.sleep(LOOK_SECONDS)
        now = time.monotonic()
        waited, looked = waited + min(now - looked, LONGEST_LOOK_SECONDS), now


def _rest(_dbapi_connection: object, record: ConnectionPoolEntry) -> None:
    record.info[_RESTED_SINCE] = time.monotonic()


def _try_rested(dialect: Dialect, dbapi_connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
    """Ask a connection that has rested whether its server is still there.

    Asking every time, as the pool itself would, costs one more round trip for each unit of work. What was used a
    moment ago may be gone too, but that can happen in the middle of a unit as well.
    """
    since = record.info.get(_RESTED_SINCE)
    if since is None or time.monotonic() - since < TRUSTED_SECONDS:
        return
    try:
        alive = dialect.do_ping(dbapi_connection)
    except dialect.loaded_dbapi.Error:
        alive = False
    if not alive:
        # All of them were opened to the same server.
        raise sa.exc.InvalidatePoolError


@contextmanager
def _reading(connection: Connection) -> Iterator[None]:
    """Let what begins on this connection be a transaction that only reads."""
    info = connection.info
    info[_READING] = True
    try:
        yield
    finally:
        # The pool may lend it to a writer next.
        info.pop(_READING, None)


class Database:
    """Transactions on one engine. Safe to use from several threads, and after a fork."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self.engine = engine
        self._clock = clock
        # PostgreSQL takes a snapshot for each statement anyway. SQLite's begins with BEGIN, and costs no round trip.
        self._looker = engine if self.is_sqlite else engine.execution_options(isolation_level="AUTOCOMMIT")
        self._locks: _RangeLocks | None = None
        self._opening = threading.Lock()
        self._writing = threading.Lock()

    @property
    def is_sqlite(self) -> bool:
        """Whether this is the embedded database."""
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a unit of work that commits on success and leaves nothing behind on failure.

        Raises DatabaseUnavailable when the database cannot be reached or written to.
        """
        with _honest_failures(), self._turn(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a read-only snapshot. Raises DatabaseUnavailable when the database cannot be reached."""
        with _honest_failures(), self.engine.connect() as connection, _reading(connection):
            yield connection

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """Open what `read` opens, for hot paths: without a transaction where a statement has a snapshot anyway.

        That saves two round trips; nothing would take a write back. Raises DatabaseUnavailable.
        """
        with _honest_failures(), self._looker.connect() as connection, _reading(connection):
            yield connection

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Open an ORM session that commits on success; for paths that are not hot."""
        with (
            _honest_failures(),
            self._turn(),
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """Open a read-only ORM session."""
        with self.read() as connection, Session(connection, expire_on_commit=False) as session:
            yield session

    def now(self, connection: Connection) -> datetime:
        """Return the time by which leases are judged: PostgreSQL's own clock, shared by every worker.

        An embedded database has no clock of its own; there the machine's clock is the shared one.
        """
        if self.is_sqlite:
            return self._clock.now()
        return connection.execute(_CLOCK).scalar_one().astimezone(UTC)  # type: ignore[no-any-return]

    @contextmanager
    def alone(self, key: int) -> Iterator[bool]:
        """Hold the one right to `key` that any process on this database can have, and give it back at the end.

        Yields False when somebody has it. Unlike a lease it does not run out while its holder is paused, and it ends
        with the process however that dies. Behind a pooler that shares PostgreSQL sessions it protects less.
        """
        with self._hold_file(key) if self.is_sqlite else self._hold_session(key) as alone:
            yield alone

    @contextmanager
    def _hold_session(self, key: int) -> Iterator[bool]:
        which = {"key": ALONE_KEYS | key}
        # Its own session for as long as it lasts, and no transaction.
        with _honest_failures(), self.engine.connect() as opened:
            connection = opened.execution_options(isolation_level="AUTOCOMMIT")
            alone: bool = connection.execute(sa.text("SELECT pg_try_advisory_lock(:key)"), which).scalar_one()
            try:
                yield alone
            finally:
                if alone:
                    _give_back(connection, which)

    @contextmanager
    def _hold_file(self, key: int) -> Iterator[bool]:
        if self._locks is None or self._locks.pid != os.getpid():
            with self._opening:
                if self._locks is None or self._locks.pid != os.getpid():
                    self._locks = _RangeLocks(Path(f"{self.engine.url.database}-alone"))
        with self._locks.hold(key) as alone:
            yield alone

    def only_writer(self, connection: Connection, purpose: int, *, wait: bool = False) -> bool:
        """Be the only one at something, in all processes, until the caller's write ends; False when another is.

        `purpose` is any number that nothing else in the database uses; with `wait` the other is waited for. An
        embedded database has one writer anyway.
        """
        if self.is_sqlite:
            return True
        if wait:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(purpose)))
            return True
        return bool(connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(purpose))).scalar_one())

    def after_fork(self) -> None:
        """Forget the parent's connections; call once in a child process."""
        self.engine.dispose(close=False)
        self._writing = threading.Lock()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let the threads of this process write to an embedded database one after the other.

        It takes one writer at a time anyway, and lets the others sleep for much longer than it takes.
        """
        if not self.is_sqlite:
            yield
            return
        writing = self._writing
        if not writing.acquire(timeout=SQLITE_BUSY_MS / 1000):
            raise DatabaseUnavailable("locked by another thread")
        try:
            yield
        finally:
            writing.release()


def _give_back(connection: Connection, which: dict[str, int]) -> None:
    try:
        connection.execute(sa.text("SELECT pg_advisory_unlock(:key)"), which)
    except sa.exc.DBAPIError:
        # The session is gone, and the right with it; it must not come back from the pool.
        connection.invalidate()


class _RangeLocks:
    """Locks on single bytes of a file beside the embedded database; the system frees them when a process ends."""

    def __init__(self, path: Path) -> None:
        self.pid = os.getpid()
        # Open for as long as the process lives: closing any descriptor of the file would free them all.
        self._file = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        self._mine: set[int] = set()
        self._lock = threading.Lock()

    @contextmanager
    def hold(self, key: int) -> Iterator[bool]:
        """Yield whether this thread alone has the byte `key`."""
        with self._lock:
            alone = key not in self._mine and self._take(key)
            if alone:
                self._mine.add(key)
        try:
            yield alone
        finally:
            if alone:
                with self._lock:
                    fcntl.lockf(self._file, fcntl.LOCK_UN, 1, key)
                    self._mine.discard(key)

    def _take(self, key: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, key)
        except (BlockingIOError, PermissionError):
            return False
        return True


@contextmanager
def _honest_failures() -> Iterator[None]:
    try:
        yield
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.TimeoutError) as failure:
        # Statement and parameters stay out: they may hold a person's data.
        detail = type(failure.orig).__name__ if isinstance(failure, sa.exc.DBAPIError) else "pool exhausted"
        raise DatabaseUnavailable(detail) from failure
    except (sa.exc.InternalError, sa.exc.ProgrammingError) as failure:
        # PostgreSQL files these under other classes than SQLite does; anything else there is a mistake of ours.
        told = UNUSABLE.get(getattr(failure.orig, "sqlstate", None) or "")
        if told is None:
            raise
        raise DatabaseUnavailable(told) from failure


def migrations_path() -> Path:
    """Return the folder of migrations: inside an installed package, or beside it in a checkout."""
    packaged = Path(str(files("broker"))) / "migrations"
    return packaged if packaged.is_dir() else packaged.parent.parent / "migrations"


def schema_revision(connection: Connection) -> str | None:
    """Return the revision the database is at, None before the first migration."""
    from alembic.migration import MigrationContext

    return MigrationContext.configure(connection).get_current_revision()


@cache
def newest_revision() -> str | None:
    """Return the revision this version of the program needs."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(migrations_path()))
    return ScriptDirectory.from_config(config).get_current_head()


def require_current_schema(database: Database) -> None:
    """Raise SchemaBehind unless the tables are those this version needs."""
    with database.read() as connection:
        found, needed = schema_revision(connection), newest_revision()
    if found != needed:
        raise SchemaBehind(f"the database is at revision {found or 'none'}, this version needs {needed}")


def upgrade(url: str) -> None:
    """Bring the database at `url` to the newest revision. Safe to run from several processes at once."""
    from alembic import command

    keep_private(url)
    command.upgrade(_migrations(url), "head")


def downgrade(url: str, revision: str) -> None:
    """Take the database at `url` back to an older revision; what only newer ones know is dropped.

    Raises NoSuchRevision.
    """
    from alembic import command
    from alembic.util import CommandError

    try:
        command.downgrade(_migrations(url), revision)
    except CommandError as failure:
        raise NoSuchRevision(str(failure)) from None


def _migrations(url: str) -> Config:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_path()))
    config.attributes["url"] = url
    return config
