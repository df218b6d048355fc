"""The database is busy, full, read-only or gone: people are told so, and nothing that was promised is lost."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
import requests
import sqlalchemy as sa
from psycopg import sql

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, eventually

TOKEN = ("POST", "/stripe/oauth/token")
IMPORT = ("POST", "/sequin/v1/credentials")
LOCKED_SECONDS = 3.0
UNAVAILABLE = "The service is not available"

Trouble = Callable[[World], AbstractContextManager[None]]


# --- what can happen to a database ----------------------------------------------------------------------


@contextmanager
def full(world: World) -> Iterator[None]:
    """Let no process of the broker write to a file any more: to SQLite that is a full disk.

    It is the system's limit on the size of files, so that no disk has to be filled and no right is needed.
    """
    pids = [pid for name in ("web", "worker") for pid in _family(world.processes[name].pid)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for pid in pids:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *(each for child in children for each in _family(int(child)))]


@contextmanager
def gone(world: World) -> Iterator[None]:
    """End every connection to the database and refuse new ones."""
    with _altered(world, "ALLOW_CONNECTIONS false", "ALLOW_CONNECTIONS true"):
        yield


@contextmanager
def read_only(world: World) -> Iterator[None]:
    """Let the server take no writes, as a standby does."""
    with _altered(world, "SET default_transaction_read_only = on", "RESET default_transaction_read_only"):
        yield


@contextmanager
def _altered(world: World, change: str, back: str) -> Iterator[None]:
    address = sa.engine.make_url(world.database_url)
    folder = str(address.query["host"])
    with psycopg.connect(host=folder, user="postgres", dbname="postgres", autocommit=True) as admin:

        def alter(what: str) -> None:
            named = sql.Identifier(str(address.database))
            admin.execute(sql.SQL("ALTER DATABASE {} {}").format(named, sql.SQL(what)))
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [address.database]
            )

        alter(change)
        try:
            yield
        finally:
            alter(back)
            # What was used a moment ago is not tried first: one request may still meet a connection that has ended.
            eventually(lambda: requests.get(f"{world.url}/readyz", timeout=60).status_code == 200)


TROUBLES: dict[str, list[Trouble]] = {"sqlite": [full], "postgresql": [gone, read_only]}


# --- the world ------------------------------------------------------------------------------------------


@contextmanager
def _running(databases: Databases, folder: Path) -> Iterator[World]:
    with databases.migrated() as url:
        world = World(folder, url)
        world.pipes_logs = True
        try:
            world.start_sandbox()
            world.start_web()
            world.start_worker()
            world.control("consent", auto="allow")
            yield world
        finally:
            world.stop_all()


@pytest.fixture(scope="module", params=DATABASES)
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of this module's own, whose database gets into trouble."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with _running(databases, tmp_path_factory.mktemp("trouble")) as world:
        yield world


@pytest.fixture
def world(standing: World) -> World:
    """The world, its sandbox emptied."""
    standing.settle()
    standing.end_outage()
    standing.control("reset")
    standing.control("consent", auto="allow")
    return standing


@pytest.fixture(params=["full", "gone", "read_only"])
def trouble(request: pytest.FixtureRequest, world: World) -> Trouble:
    """Each trouble that this kind of database can have."""
    kind = "sqlite" if world.database_url.startswith("sqlite") else "postgresql"
    found = {each.__name__: each for each in TROUBLES[kind]}
    if request.param not in found:
        pytest.skip(f"{kind} has other troubles")
    if request.param == "full" and not hasattr(resource, "prlimit"):
        pytest.skip("this system cannot limit the files of a running process")
    return found[request.param]


# --- and people in it -----------------------------------------------------------------------------------


def test_nothing_is_promised_or_spent_while_the_database_takes_nothing(
    world: World, person: Person, end_user: str, trouble: Trouble
) -> None:
    unused = world.link(f"{end_user}-late")
    callback = person.come_back(world.link(end_user), "stripe")
    beginner = Person(world)
    page = beginner.get(unused)

    with trouble(world):
        answer = person.get(callback)
        start = beginner.press(page, "/start/stripe")
        asked = world.api("POST", "connect-links", json={"end_user": {"id": end_user}})

    assert (answer.status_code, start.status_code, asked.status_code) == (503, 503, 503)
    assert UNAVAILABLE in answer.text
    assert "is connected" not in answer.text
    assert asked.headers["Content-Type"].startswith("application/problem+json")
    # The code is still good: nobody has spent it.
    assert world.requests_to(*TOKEN) == []
    assert "Stripe is connected" in person.follow(person.get(callback)).text
    assert "Stripe is connected" in beginner.connect(unused, "stripe").text
    world.imported(end_user)
    world.imported(f"{end_user}-late")
    assert [one["import_count"] for one in world.credentials()] == [1, 1]


def test_a_token_that_cannot_be_kept_is_not_called_connected(
    world: World, person: Person, end_user: str, trouble: Trouble
) -> None:
    callback = person.come_back(world.link(end_user), "stripe")
    world.fault("stripe.token", "drip", when="after", seconds=2, times=1)

    with ThreadPoolExecutor(1) as pool:
        visit = pool.submit(person.get, callback)
        eventually(lambda: world.requests_to(*TOKEN))
        with trouble(world):
            answer = visit.result(timeout=60)

    assert answer.status_code == 503
    assert UNAVAILABLE in answer.text
    assert world.connections(end_user) == []
    assert world.credentials() == []
    # Coming back sends the spent code nowhere.
    assert "is connected" not in person.follow(person.get(callback)).text
    assert len(world.requests_to(*TOKEN)) == 1
    assert parse_qs(urlsplit(callback).query)["code"][0] not in (world.folder / "web.log").read_text()


def test_an_import_whose_outcome_could_not_be_recorded_is_made_again(
    world: World, person: Person, end_user: str, trouble: Trouble
) -> None:
    world.fault("sequin.import", "drip", when="after", seconds=2, times=1)
    person.connect(world.link(end_user), "stripe")
    eventually(lambda: world.requests_to(*IMPORT))

    log = world.folder / "worker.log"
    before = log.stat().st_size
    with trouble(world):
        eventually(lambda: b"worker.job_failed" in log.read_bytes()[before:])
        assert world.processes["worker"].poll() is None

    # Its lease is still running out; that nobody has to wait for here.
    with world.database() as connection:
        connection.execute(sa.text("UPDATE jobs SET due_at = created_at WHERE kind = 'import' AND state = 'running'"))
    connection_found = world.imported(end_user)
    (credential,) = world.credentials()
    assert credential["id"] == connection_found["sequin"]["credential_id"]
    assert credential["import_count"] == 2


# --- SQLite alone -----------------------------------------------------------------------------------------


def test_people_get_through_while_somebody_else_holds_the_file_for_three_seconds(world: World, end_user: str) -> None:
    if not world.database_url.startswith("sqlite"):
        pytest.skip("only SQLite can be locked as a whole")
    returning, starting = Person(world), Person(world)
    callback = returning.come_back(world.link(f"{end_user}-returning"), "stripe")
    page = starting.get(world.link(f"{end_user}-starting"))
    other = sqlite3.connect(
        world.database_url.removeprefix("sqlite:///"), isolation_level=None, check_same_thread=False
    )

    other.execute("BEGIN IMMEDIATE")
    released = threading.Timer(LOCKED_SECONDS, other.execute, ["ROLLBACK"])
    released.start()
    with ThreadPoolExecutor(3) as pool:
        returned = pool.submit(returning.get, callback)
        started = pool.submit(starting.press, page, "/start/stripe")
        link = pool.submit(world.link, f"{end_user}-new")
    released.join()
    other.close()

    assert "Stripe is connected" in returning.follow(returned.result()).text
    assert "Stripe is connected" in starting.follow(started.result()).text
    assert "Stripe is connected" in Person(world).connect(link.result(), "stripe").text
    for which in ("returning", "starting", "new"):
        world.imported(f"{end_user}-{which}")
    assert [one["import_count"] for one in world.credentials()] == [1, 1, 1]
