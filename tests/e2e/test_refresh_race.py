"""Several processes race for refresh tokens that must be spent once: nobody burns one, whoever pauses or dies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.refresh_race import race, racing_world
from tests.e2e.world import World

CONNECTIONS = 12
SECONDS = 12.0


# One world for each race: connections of an earlier one would be counted with those of this one.
@pytest.fixture(params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url, racing_world(tmp_path_factory.mktemp("race"), url) as opened:
        yield opened


def test_no_pause_however_long_burns_a_token(world: World) -> None:
    outcome = race(world, connections=CONNECTIONS, seconds=SECONDS, kills=False)
    assert outcome.problems == []
    assert (outcome.reuses, outcome.interrupted) == (0, 0)


def test_a_kill_burns_no_token_in_a_race_and_what_it_interrupts_says_so(world: World) -> None:
    outcome = race(world, connections=CONNECTIONS, seconds=SECONDS, kills=True, seed=2)
    assert outcome.problems == []
