"""A race for refresh tokens: several workers, tokens that live for two seconds, and a provider that forgives nothing.

    python -m tests.e2e.refresh_race [CONNECTIONS] [SECONDS] [sqlite|postgresql]

The stand-in ends a whole family when a rotated refresh token comes again. Meanwhile workers are paused at random,
their leases are made to run out under them, and, unless told otherwise, they are killed. What must come of it: no
grant is burned because two raced for it; a kill between the provider's rotation and our commit, which nobody can
prevent, ends in an honest `interrupted`, and there are no more of those than kills allow.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from broker.db import table, upgrade
from broker.models import ConnectedAccount, Job, JobState
from tests.databases import Databases, PostgresqlDatabases, SqliteDatabases, postgresql
from tests.e2e.world import Person, World, eventually

WORKERS = 4
THREADS = 2
LIFETIME = 2.0
LONGEST_PAUSE = 4.0
CALM_LIFETIME = 3600.0
CONNECTING_AT_ONCE = 4
REST_SECONDS = 180.0

_connections = table(ConnectedAccount)
_jobs = table(Job)


@dataclass
class Outcome:
    """What came of a race."""

    connections: int
    # Refreshes that the provider has made, and rotated tokens that it saw again.
    refreshes: int
    reuses: int
    pauses: int
    kills: int
    # Connections that say that their refresh was cut off, and those that say that access was taken away.
    interrupted: int
    revoked: int
    # Families that the provider has ended although their connection says that all is well.
    burned_in_silence: int
    # Connections that were refreshed once more when all was calm again.
    going_on: int

    @property
    def problems(self) -> list[str]:
        """What was promised and not kept."""
        found = {
            "burned by a race": self.revoked,
            "burned, and nobody was told": self.burned_in_silence,
            "interrupted without a kill to explain it": max(0, self.interrupted - self.kills * THREADS),
            "lost": self.connections - self.going_on - self.interrupted - self.revoked,
        }
        return [f"{count} {what}" for what, count in found.items() if count]

    def __str__(self) -> str:
        return (
            f"{self.connections} connections, {self.refreshes} refreshes, {self.pauses} pauses, {self.kills} kills: "
            f"{self.going_on} go on, {self.interrupted} interrupted, {self.revoked} burned by a race, "
            f"{self.reuses} rotated tokens seen again"
        )


@contextmanager
def racing_world(folder: Path, database_url: str) -> Iterator[World]:
    """Start sandbox and web, and as many workers as race."""
    life = {"STRIPE_APP_ACCESS_SECONDS": f"{LIFETIME:.0f}"}
    world = World(folder, database_url, BROKER_LOG_LEVEL="INFO", **life)
    try:
        world.start_sandbox()
        world.start_web()
        for number in range(WORKERS):
            world.start_worker(_name(number), threads=THREADS)
        yield world
    finally:
        for number in range(WORKERS):
            _signal(world, _name(number), signal.SIGCONT)
        world.stop_all()


def race(world: World, *, connections: int, seconds: float, kills: bool, seed: int = 1) -> Outcome:
    """Connect, cause trouble for so many `seconds`, let everything come to rest, and count."""
    world.control("reset")
    world.control("consent", auto="allow")
    world.control("tokens", lifetime=LIFETIME, revoke_family=True)
    restart_workers(world, token_life=LIFETIME)
    connect_all(world, connections, f"racer-{seed}")
    pauses, killed = _cause_trouble(world, random.Random(seed), seconds, kills=kills)
    world.control("tokens", lifetime=CALM_LIFETIME)
    calm_from = restart_workers(world, token_life=CALM_LIFETIME)
    eventually(lambda: is_at_rest(world, calm_from), within=REST_SECONDS)
    return _count(world, connections, pauses, killed, calm_from)


def connect_all(world: World, count: int, name: str) -> None:
    """Connect so many people with the provider whose tokens are refreshed here."""
    with ThreadPoolExecutor(CONNECTING_AT_ONCE) as pool:
        list(pool.map(lambda number: _connect(world, f"{name}-{number}"), range(count)))


def restart_workers(world: World, *, token_life: float) -> datetime:
    """Stop them as an update would, and start them with another idea of how long tokens live: Stripe does not say.

    Returns when the last one had started.
    """
    world.environment["STRIPE_APP_ACCESS_SECONDS"] = f"{token_life:.0f}"
    for number in range(WORKERS):
        world.stop(_name(number))
    # Not one by one: those that still hold other settings would tell another story meanwhile.
    for number in range(WORKERS):
        world.start_worker(_name(number), threads=THREADS)
    return datetime.now(UTC)


def _connect(world: World, end_user: str) -> None:
    answer = Person(world).connect(world.link(end_user, apps=["stripe_app"]), "stripe_app")
    assert answer.status_code == 200, answer.text


def _cause_trouble(world: World, chance: random.Random, seconds: float, *, kills: bool) -> tuple[int, int]:
    pauses = killed = 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        name = _name(chance.randrange(WORKERS))
        if kills and chance.random() < 0.3:
            world.kill(name)
            world.start_worker(name, threads=THREADS)
            killed += 1
            continue
        _signal(world, name, signal.SIGSTOP)
        pauses += 1
        if chance.random() < 0.7:
            # As if the pause had lasted for longer than any lease.
            _let_leases_run_out(world)
        # Not waiting for anything: this is the pause.
        time.sleep(chance.uniform(0.05, LONGEST_PAUSE))
        _signal(world, name, signal.SIGCONT)
    return pauses, killed


def _let_leases_run_out(world: World) -> None:
    over = datetime.now(UTC) - timedelta(seconds=1)
    running = sa.and_(_jobs.c.kind == "refresh", _jobs.c.state == JobState.RUNNING)
    # Whoever was paused in the middle of a write keeps others out, us too, and wakes up only once we are through here:
    # out of SQLite as a whole, out of a row of PostgreSQL.
    with suppress(sa.exc.OperationalError), world.database() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(sa.text("SET LOCAL lock_timeout = '1s'"))
        connection.execute(sa.update(_jobs).where(running).values(due_at=over))


def is_at_rest(world: World, calm_from: datetime) -> bool:
    """Tell whether every connection has a token from after the trouble, or says why not."""
    ended = sa.or_(_connections.c.interrupted_at.is_not(None), _connections.c.revoked_at.is_not(None))
    fresh = _connections.c.grant_expires_at > calm_from + timedelta(minutes=30)
    with world.database() as connection:
        left = connection.execute(
            sa.select(sa.func.count())
            .select_from(_connections)
            .where(sa.not_(sa.or_(ended, sa.func.coalesce(fresh, sa.false()))))
        ).scalar_one()
        importing = connection.execute(
            sa.select(sa.func.count())
            .select_from(_jobs)
            .where(_jobs.c.kind == "import", _jobs.c.state.in_([JobState.WAITING, JobState.RUNNING]))
        ).scalar_one()
    return left == 0 and importing == 0


def _count(world: World, connections: int, pauses: int, kills: int, calm_from: datetime) -> Outcome:
    state = world.control("state")
    families = {family["account"]: family for family in state["families"]}
    with world.database() as connection:
        rows = connection.execute(sa.select(_connections)).all()
    well = [row for row in rows if row.interrupted_at is None and row.revoked_at is None]
    return Outcome(
        connections=connections,
        refreshes=sum(family["refreshes"] for family in families.values()),
        reuses=len(state["reuses"]),
        pauses=pauses,
        kills=kills,
        interrupted=sum(row.interrupted_at is not None for row in rows),
        revoked=sum(row.revoked_at is not None for row in rows),
        burned_in_silence=sum(families[row.account_id]["burned"] for row in well if row.account_id in families),
        going_on=sum(row.grant_expires_at > calm_from + timedelta(minutes=30) for row in well),
    )


def _name(number: int) -> str:
    return f"racer-{number}"


def _signal(world: World, name: str, which: signal.Signals) -> None:
    if name in world.processes:
        os.killpg(world.processes[name].pid, which)


def main(arguments: list[str]) -> int:
    """Race on the command line and print what came of it; the exit status says whether the promise was kept."""
    connections, seconds = int(arguments[0]) if arguments else 200, float(arguments[1]) if arguments[1:] else 120.0
    kinds = arguments[2:] or ["sqlite", "postgresql"]
    failed = False
    for kind in kinds:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            world = stack.enter_context(racing_world(folder, stack.enter_context(_database(kind, folder))))
            outcome = race(world, connections=connections, seconds=seconds, kills=True)
        print(f"{kind}: {outcome}", flush=True)
        for problem in outcome.problems:
            failed = True
            print(f"{kind}: {problem}", flush=True)
    return int(failed)


@contextmanager
def _database(kind: str, folder: Path) -> Iterator[str]:
    with ExitStack() as stack:
        databases: Databases
        if kind == "sqlite":
            databases = SqliteDatabases(folder, upgrade)
        else:
            databases = PostgresqlDatabases(stack.enter_context(postgresql()), upgrade)
            stack.callback(databases.close)
        with databases.migrated() as url:
            yield url


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
