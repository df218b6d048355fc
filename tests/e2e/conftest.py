"""A running world on each kind of database, reset between tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.kill_sweep import Journey, Run
from tests.e2e.world import Person, World

_numbers = itertools.count(1)


@pytest.fixture(scope="package", params=DATABASES)
def running_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Sandbox, two web processes and a worker on one database for all tests of this folder."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("world"), url)
        try:
            world.start_sandbox()
            world.start_web(processes=2)
            world.start_worker()
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def world(running_world: World) -> Iterator[World]:
    """The running world, its sandbox emptied and everything allowed at the providers."""
    running_world.control("reset")
    running_world.close_circuits()
    running_world.control("consent", auto="allow")
    yield running_world
    running_world.end_outage()
    running_world.settle()


@pytest.fixture
def person(world: World) -> Person:
    """Somebody with a fresh browser."""
    return Person(world)


@pytest.fixture
def end_user() -> str:
    """The host's id of a person nobody has seen before."""
    return f"person-{next(_numbers)}"


kill_runs = pytest.StashKey[dict[str, dict[Journey, list[Run]]]]()
