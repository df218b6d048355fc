"""The client secret was changed at the provider: hardly a call reaches it, nobody is flipped, and all recover."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.db import table
from broker.errors import ClientRefused
from broker.models import ConnectedAccount, Job, JobState
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.refresh_race import CALM_LIFETIME, LIFETIME, connect_all, is_at_rest, racing_world, restart_workers
from tests.e2e.world import World, eventually

CONNECTIONS = 10
SETTING = "STRIPE_APP_CLIENT_SECRET"
TOKEN = "/stripe/v1/oauth/token"

_connections = table(ConnectedAccount)
_jobs = table(Job)


@pytest.fixture(scope="module", params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url, racing_world(tmp_path_factory.mktemp("secret"), url) as opened:
        yield opened


def refused(world: World) -> int:
    """Return how many token requests the provider has refused."""
    return sum(entry["status"] == 401 for entry in world.requests_to("POST", TOKEN))


def test_a_changed_client_secret_stops_at_a_few_calls_flips_nobody_and_heals_by_itself(world: World) -> None:
    world.control("consent", auto="allow")
    world.control("tokens", lifetime=LIFETIME, revoke_family=True)
    good = world.environment[SETTING]
    connect_all(world, CONNECTIONS, "holder")
    # The provider has another one by now: what the workers hold is refused.
    world.environment[SETTING] = good.replace(good[-8:], "replaced")
    restart_workers(world, token_life=LIFETIME)
    eventually(lambda: refused(world))

    eventually(lambda: waiting_for_the_circuit(world) == CONNECTIONS)
    assert refused(world) <= 1 + 3
    with world.database() as connection:
        flipped = sa.or_(_connections.c.revoked_at.is_not(None), _connections.c.interrupted_at.is_not(None))
        assert connection.execute(sa.select(_connections.c.ref).where(flipped)).all() == []
    assert "client_refused" in world.run("jobs", "list")

    world.environment[SETTING] = good
    world.control("tokens", lifetime=CALM_LIFETIME)
    calm_from = restart_workers(world, token_life=CALM_LIFETIME)
    eventually(lambda: is_at_rest(world, calm_from), within=60)
    assert {one["status"] for one in world.api("GET", "connections").json()["data"]} <= {"ok", "unknown"}


def waiting_for_the_circuit(world: World) -> int:
    """Return how many refreshes wait because the provider does not accept this registration."""
    held = sa.and_(_jobs.c.kind == "refresh", _jobs.c.state == JobState.WAITING, _jobs.c.error == ClientRefused.code)
    with world.database() as connection:
        return int(connection.execute(sa.select(sa.func.count()).select_from(_jobs).where(held)).scalar_one())
