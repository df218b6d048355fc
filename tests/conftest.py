"""Fixtures for every test: databases, a browser, and which tests may open a socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import chromium
from tests.databases import Databases, PostgresqlDatabases, SqliteDatabases, postgresql

TESTS = Path(__file__).parent
RESOLVE = socket.getaddrinfo
NETWORK_FOLDERS = {"browser", "e2e", "sandbox"}
LOOPBACK = ["127.0.0.1", "::1", "localhost"]
DATABASES = [name for name in os.environ.get("BROKER_TEST_DATABASES", "sqlite,postgresql").split(",") if name]
"""Which databases the tests that need one run on; `BROKER_TEST_DATABASES=sqlite` is quicker while working."""
SWEPT = "kill sweep"
"""The property of a test under which it tells the summary what was swept: tests run in other processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep every socket closed except, on loopback, for the tests that are about the network."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in NETWORK_FOLDERS:
            item.add_marker(pytest.mark.network)
        if item.get_closest_marker("network"):
            item.add_marker(pytest.mark.allow_hosts(LOOPBACK))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Let names be resolved again.

    pytest-socket puts a guard in the resolver's place for a test. A test that resolved names in a way of its own has
    put that guard back after it had been lifted, and the next one may be a test that may use the network.
    """
    socket.getaddrinfo = RESOLVE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say loudly what was not tested, and how much was swept."""
    # From the reports, not from this process's memory: the tests ran in others.
    if any(chromium.MISSING in str(report.longrepr) for report in terminalreporter.getreports("skipped")):
        terminalreporter.write_sep("!", chromium.MISSING, red=True, bold=True)
    for report in terminalreporter.getreports("passed"):
        for name, said in report.user_properties:
            if name == SWEPT:
                terminalreporter.write_line(f"{SWEPT}: {said}")
    left_out = {"sqlite", "postgresql"} - set(DATABASES)
    if left_out:
        terminalreporter.write_sep("!", f"NOT TESTED ON: {', '.join(sorted(left_out))}", red=True, bold=True)


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """A Chromium that starts; without one the test is skipped and the summary says so."""
    path = chromium.find()
    if path is None:
        pytest.skip(chromium.MISSING)
    return path


@pytest.fixture(scope="session")
def sqlite_databases(tmp_path_factory: pytest.TempPathFactory) -> SqliteDatabases:
    """SQLite databases, migrated once."""
    return SqliteDatabases(tmp_path_factory.mktemp("sqlite"), _upgrade)


@pytest.fixture(scope="session")
def postgresql_databases() -> Iterator[PostgresqlDatabases]:
    """A real PostgreSQL, started for the first test that asks and gone after the last."""
    with postgresql() as folder:
        databases = PostgresqlDatabases(folder, _upgrade)
        try:
            yield databases
        finally:
            databases.close()


@pytest.fixture(params=DATABASES)
def databases(request: pytest.FixtureRequest) -> Databases:
    """Databases of either kind: a test that asks for them runs once on each."""
    found: Databases = request.getfixturevalue(f"{request.param}_databases")
    return found


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """The address of a fresh database with the current schema; the test runs once on SQLite and once on PostgreSQL."""
    with databases.migrated() as url:
        yield url


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """The address of a fresh database without any table; for tests of the migrations."""
    with databases.empty() as url:
        yield url


def _upgrade(url: str) -> None:
    from broker.db import upgrade

    upgrade(url)
