"""A worker that is stopped in the middle of an import and goes on long after somebody else has taken it over."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from broker.db import table
from broker.models import ConnectedAccount, Job, JobState
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.road import Road, road_to
from tests.e2e.world import Person, World, eventually

IMPORT = ("POST", "/v1/credentials")


@pytest.fixture(scope="module", params=DATABASES)
def paved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[World, Road]]:
    """A world with a worker whose way to Sequin can be blocked; the other one's is always free."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("paused"), url, BROKER_KEEP_GRANTS="true")
        try:
            world.start_sandbox()
            with road_to(world.environment["SEQUIN_API_URL"]) as road:
                world.start_web()
                yield world, road
        finally:
            world.stop_all()


@pytest.fixture
def world(paved: tuple[World, Road], end_user: str) -> Iterator[World]:
    """The world, with only the worker that is about to be paused."""
    world, road = paved
    world.control("reset")
    world.control("consent", auto="allow", account=f"acct_1{end_user.replace('-', '')}")
    world.start_worker("slow", threads=1, SEQUIN_API_URL=road.url)
    yield world
    for name in {"slow", "quick"} & set(world.processes):
        world.stop(name)


@pytest.fixture
def road(paved: tuple[World, Road]) -> Road:
    return paved[1]


@contextmanager
def paused(world: World) -> Iterator[None]:
    """Stop the slow worker as it stands, past the end of its lease; let it go on afterwards."""
    process = world.processes["slow"]
    os.kill(process.pid, signal.SIGSTOP)
    try:
        jobs = table(Job)
        with world.database() as connection:
            # The database's clock judges: rather than waiting for half a minute, its lease ended a while ago.
            ended = sa.update(jobs).where(jobs.c.state == JobState.RUNNING, jobs.c.kind == "import")
            assert connection.execute(ended.values(due_at=datetime.now(UTC) - timedelta(seconds=1))).rowcount == 1
        world.start_worker("quick", threads=1)
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def connect(world: World, end_user: str) -> None:
    """Let a person connect this test's one account; each time the provider gives a new token."""
    assert "Stripe is connected" in Person(world).connect(world.link(end_user), "stripe").text


def latest_token(world: World) -> str:
    """Return the token that the provider gave last."""
    grants = [one for one in world.control("state")["grants"] if one["provider"] == "stripe"]
    return str(max(grants, key=lambda one: str(one["created_at"]))["access_token"])


def come_to_rest(world: World) -> None:
    """Wait until every connection is imported and proven, and nothing is under way any more."""
    unproven = "SELECT count(*) FROM connections WHERE disconnected_at IS NULL AND verified_at IS NULL"

    def look() -> bool:
        with world.database() as connection:
            return not int(connection.execute(sa.text(unproven)).scalar_one())

    eventually(look)
    world.settle()


def lease_lost(world: World, ref: str) -> bool:
    """Return whether the slow worker has noticed that somebody else had taken this connection over."""
    said = [json.loads(line) for line in (world.folder / "slow.log").read_text().splitlines() if line.endswith("}")]
    return any((one["event"], one.get("connection")) == ("delivery.lease_lost", ref) for one in said)


def token_in_sequin(world: World) -> str | None:
    """Return the token of Sequin's only credential, None while there is none."""
    found = world.credentials()
    assert len(found) <= 1
    return str(found[0]["properties"]["secret"]) if found else None


def test_a_worker_paused_before_its_send_sends_nothing(world: World, road: Road, end_user: str) -> None:
    block = road.block("GET", "/v1/oauth-apps")
    connect(world, end_user)
    block.wait_for_request()

    with paused(world):
        world.imported(end_user)
    block.let_through()
    block.let_back()
    assert world.stop("slow") == 0

    come_to_rest(world)
    assert [one["import_count"] for one in world.credentials()] == [1]


@pytest.mark.parametrize("loses_answer", [False, True], ids=["answered", "answer-lost"])
def test_a_late_send_is_followed_by_the_latest_token(
    world: World, road: Road, end_user: str, loses_answer: bool
) -> None:
    block = road.block(*IMPORT, loses_answer=loses_answer)
    connect(world, end_user)
    block.wait_for_request()
    older = latest_token(world)

    with paused(world):
        connect(world, end_user)
        newer = latest_token(world)
        eventually(lambda: token_in_sequin(world) == newer)
        come_to_rest(world)
        # What has left cannot be called back.
        block.let_through()
        assert token_in_sequin(world) == older != newer
    block.let_back()

    eventually(lambda: token_in_sequin(world) == newer)
    come_to_rest(world)
    (connection,) = world.connections(end_user)
    (credential,) = world.credentials()
    assert (connection["sequin"]["credential_id"], connection["status"]) == (credential["id"], "ok")


def test_an_outcome_that_comes_late_is_discarded(world: World, road: Road, end_user: str) -> None:
    block = road.block(*IMPORT)
    connect(world, end_user)
    block.wait_for_request()
    block.let_through()

    with paused(world):
        connect(world, end_user)
        come_to_rest(world)
        before = world.connections(end_user)[0]
    block.let_back()

    eventually(lambda: lease_lost(world, before["ref"]))
    come_to_rest(world)
    (after,) = world.connections(end_user)
    assert after["sequin"]["credential_id"] == before["sequin"]["credential_id"]
    assert token_in_sequin(world) == latest_token(world)


def test_who_holds_the_account_by_then_gets_their_token_back(world: World, road: Road, end_user: str) -> None:
    block = road.block(*IMPORT)
    connect(world, end_user)
    block.wait_for_request()
    ref = world.connections(end_user)[0]["ref"]

    with paused(world):
        assert world.api("DELETE", f"connections/{ref}").status_code == 202
        make_older(world, ref)
        connect(world, f"{end_user}-next")
        come_to_rest(world)
        block.let_through()
        (credential,) = world.credentials()
        assert credential["metadata"]["end_user_id"] == end_user
    block.let_back()

    eventually(lambda: token_in_sequin(world) == latest_token(world))
    come_to_rest(world)
    (credential,) = world.credentials()
    (theirs,) = world.connections(f"{end_user}-next")
    assert credential["metadata"] == {"broker_connection_id": theirs["ref"], "end_user_id": f"{end_user}-next"}
    assert (theirs["sequin"]["credential_id"], theirs["status"]) == (credential["id"], "ok")


def make_older(world: World, ref: str) -> None:
    """Let the disconnect lie so far back that nothing of before should arrive any more, and be over."""
    connections, jobs = table(ConnectedAccount), table(Job)
    removal = sa.select(connections.c.removal).where(connections.c.ref == ref)

    def look() -> bool:
        with world.database() as connection:
            then = datetime.now(UTC) - timedelta(minutes=2)
            connection.execute(sa.update(connections).where(connections.c.ref == ref).values(disconnected_at=then))
            waiting = (jobs.c.kind == "remove", jobs.c.state == JobState.WAITING, jobs.c.due_at > datetime.now(UTC))
            connection.execute(sa.update(jobs).where(*waiting).values(due_at=then))
            return bool(connection.execute(removal).scalar_one() in ("done", "not_needed"))

    eventually(look)
