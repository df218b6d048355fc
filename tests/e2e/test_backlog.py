"""Sequin was away for a long time and much has piled up: it drains in order, once, and newcomers need not wait."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from broker.db import table
from broker.models import Circuit
from broker.worker import BATCH
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.backlog import plant
from tests.e2e.road import road_to
from tests.e2e.world import Person, World, eventually

WAITING = 300
WORKERS = ("worker-1", "worker-2")
THREADS = 2
IMPORT = ("POST", "/sequin/v1/credentials")
DRAINED_SECONDS = 180


@dataclass
class Drained:
    """What the sandbox saw from the recovery on, and what is left."""

    waited: list[str]
    newcomer: str
    imports: list[dict[str, Any]]
    credentials: list[dict[str, Any]]
    most_at_once: int

    @property
    def sent(self) -> list[str]:
        """The connections that were imported, in this order."""
        return [json.loads(one["body"])["metadata"]["broker_connection_id"] for one in self.imports]


@pytest.fixture(scope="module", params=DATABASES)
def drained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drained]:
    """An outage with hundreds of deliveries waiting, somebody who connects late in it, and its end."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("backlog"), url)
        world.start_sandbox()
        with road_to(world.environment["SEQUIN_API_URL"]) as road:
            world.environment["SEQUIN_API_URL"] = road.url
            try:
                world.start_web()
                yield _drain(world, road.most_at_once)
            finally:
                world.stop_all()


def _drain(world: World, most_at_once: dict[str, int]) -> Drained:
    world.control("consent", auto="allow")
    link, person = world.link("newcomer"), Person(world)
    waited = plant(world, WAITING)
    world.fault("sequin.import", "status", status=503)
    for name in WORKERS:
        world.start_worker(name, threads=THREADS)
    eventually(lambda: _count(world, "SELECT count(*) FROM circuits WHERE opened_at IS NOT NULL"))
    # The last in a long line, right before it begins to move.
    assert "Stripe is connected" in person.connect(link, "stripe").text
    world.end_outage()
    _probe_now(world)

    unproven = "SELECT count(*) FROM connections WHERE verified_at IS NULL"
    eventually(lambda: not _count(world, unproven), within=DRAINED_SECONDS)
    (newcomer,) = world.connections("newcomer")
    return Drained(waited, newcomer["ref"], _imports(world), world.credentials(), most_at_once["POST"])


def _count(world: World, query: str) -> int:
    with world.database() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


def _probe_now(world: World) -> None:
    """Let the next look at Sequin be due, instead of waiting for it."""
    circuits = table(Circuit)
    with world.database() as connection:
        connection.execute(sa.update(circuits).values(probe_at=datetime.now(UTC) - timedelta(seconds=1)))


def _imports(world: World) -> list[dict[str, Any]]:
    return [one for one in world.requests_to(*IMPORT) if one["status"] == 200]


def test_everything_arrives_once(drained: Drained) -> None:
    assert sorted(drained.sent) == sorted([*drained.waited, drained.newcomer])
    owners = [one["metadata"]["broker_connection_id"] for one in drained.credentials]
    assert sorted(owners) == sorted(drained.sent)
    assert {one["import_count"] for one in drained.credentials} == {1}


def test_the_line_keeps_its_order(drained: Drained) -> None:
    place = {ref: number for number, ref in enumerate(drained.waited)}
    order = [place[ref] for ref in drained.sent if ref in place]
    # Each thread works through a batch of its own; what the outage had met first is not sent last.
    under_way = len(WORKERS) * THREADS * BATCH
    assert max(abs(number - where) for where, number in enumerate(order)) <= 2 * under_way


def test_no_more_goes_out_at_once_than_there_are_threads(drained: Drained) -> None:
    assert 1 < drained.most_at_once <= len(WORKERS) * THREADS


def test_somebody_who_connects_meanwhile_does_not_wait_for_the_whole_line(drained: Drained) -> None:
    assert drained.sent.index(drained.newcomer) <= 2 * len(WORKERS) * THREADS * BATCH < WAITING
