"""Tokens that end: how many are refreshed and imported again in a second, and what each costs.

The connections are made through the sandbox's own token endpoint; all their tokens are due at once. A worker refreshes
each, keeps the rotated token, and imports it again. It ends when Sequin has every new token.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa

from benchmarks.framework import Benchmark, Report, Setting, family_cpu_seconds
from benchmarks.planting import plant_imported, plant_refreshes, tokens_of_sandbox
from broker.db import table
from broker.models import Job
from tests.e2e.world import World

APP = "stripe_app"
THREADS = 4
WORKERS = (1, 2)
LIFETIME = 3600
LOOK_SECONDS = 0.5
STALLED_SECONDS = 120.0


def run(setting: Setting) -> Report:
    """Refresh everything on each database, by one worker and by two."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        for workers in WORKERS:
            setting.say(f"{kind}: {workers} × {THREADS} threads …")
            with setting.world(kind, STRIPE_APP_ACCESS_SECONDS=str(LIFETIME)) as world:
                rows.append([kind, f"{workers} worker{'s' * (workers > 1)}", *_sweep(world, workers, setting.size)])
    return Report(
        ("database", "by", "refreshed/s", "imported again/s", "CPU ms each", "not refreshed"),
        rows,
        (
            "refreshed/s: until the last rotated token was kept; imported again/s: until Sequin had every new token.",
            "CPU ms each: of the workers, for a refresh and its import; without sandbox and PostgreSQL.",
            "A process refreshes one token of an app at a time: what one takes at the provider bounds its rate.",
        ),
    )


def _sweep(world: World, workers: int, size: int) -> list[object]:
    world.control("consent", auto="allow")
    world.control("tokens", lifetime=float(LIFETIME))
    keys = plant_imported(world, tokens_of_sandbox(world, size), app=APP, lifetime=LIFETIME)
    plant_refreshes(world, keys, due_in=timedelta(days=1))
    engine = sa.create_engine(world.database_url)
    names = [f"worker-{number}" for number in range(workers)]
    for name in names:
        world.start_worker(name, threads=THREADS)
    # Only now: what starts the workers is not what is measured.
    with world.database() as connection:
        jobs = table(Job)
        connection.execute(sa.update(jobs).where(jobs.c.kind == "refresh").values(due_at=datetime.now(UTC)))
    used, began = -_used(world, names), time.monotonic()
    refreshed_in = done_in = 0.0
    done = refreshed = -1
    try:
        while done < size and time.monotonic() - began - max(refreshed_in, done_in) < STALLED_SECONDS:
            time.sleep(LOOK_SECONDS)
            with engine.connect() as connection:
                now_refreshed, now_done = connection.execute(sa.text(PROGRESS)).one()
            if now_refreshed > refreshed:
                refreshed, refreshed_in = now_refreshed, time.monotonic() - began
            if now_done > done:
                done, done_in = now_done, time.monotonic() - began
    finally:
        engine.dispose()
    used += _used(world, names)
    return [refreshed / refreshed_in, done / done_in, 1000 * used / size, size - done]


def _used(world: World, names: list[str]) -> float:
    return sum(family_cpu_seconds(world.processes[name].pid) for name in names)


PROGRESS = (
    "SELECT coalesce(sum(CASE WHEN token_version > 1 THEN 1 ELSE 0 END), 0), coalesce(sum(CASE WHEN token_version > 1 "
    "AND import_state = 'imported' AND imported_at > connected_at THEN 1 ELSE 0 END), 0) FROM connections"
)


BENCHMARK = Benchmark("refresh-sweep", "Refreshing tokens and importing them again", "tokens", 1_000, run)
