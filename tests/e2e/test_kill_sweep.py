"""Killed at every step in turn, web and worker: nothing acknowledged is lost, nothing is doubled, nothing is stuck."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.conftest import DATABASES, SWEPT
from tests.databases import Databases
from tests.e2e.conftest import kill_runs
from tests.e2e.kill_sweep import (
    JOURNEYS,
    NAMED,
    STARTS_AGAIN,
    DoomedWorld,
    Journey,
    doomed_world,
    outcome,
    summary,
    sweep,
)


@pytest.fixture(scope="module", params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DoomedWorld]:
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with doomed_world(databases, tmp_path_factory.mktemp("doomed")) as world:
        yield world


@pytest.mark.parametrize("journey", JOURNEYS, ids=str)
def test_a_kill_at_any_step_leaves_nothing_amiss(
    world: DoomedWorld, journey: Journey, request: pytest.FixtureRequest
) -> None:
    runs = list(sweep(world, journey))

    by_database = request.config.stash.setdefault(kill_runs, {})
    by_database.setdefault(world.engine.dialect.name, {})[journey] = runs
    assert [f"{run.point}: {outcome(run)}" for run in runs if not run.is_good] == []
    # The person is asked to start again only where the code was spent and its token was in the dead process alone.
    assert {run.point for run in runs if run.started_again} == {run.point for run in runs} & STARTS_AGAIN


def test_the_kill_points_of_the_promise_are_among_the_steps(
    request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    swept = request.config.stash.get(kill_runs, {})
    whole = {database: runs for database, runs in swept.items() if set(runs) == set(JOURNEYS)}
    if not whole:
        pytest.skip("the sweep itself was left out")
    record_property(SWEPT, summary(whole))
    for database, journeys in whole.items():
        steps = {run.step for runs in journeys.values() for run in runs}
        assert {name for name, step in NAMED.items() if step not in steps} == set(), database
