"""An outage of Sequin is over and thousands of deliveries wait: how fast they drain, and what each costs.

Sequin is down, the worker's circuit opens, Sequin comes back: from there on it is measured until everything is
imported and read back. Beside it the floor: a bare script that sends the same requests and makes the same commits.

Run as a program this is that script: `python -m benchmarks.import_backlog THREADS`, the rest from the environment.
"""

from __future__ import annotations

import itertools
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
import requests
import sqlalchemy as sa

from benchmarks.framework import Benchmark, Report, Setting, cpu_seconds
from tests.e2e.backlog import plant
from tests.e2e.world import ROOT, World

THREADS = 4
BATCH = 8
LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 3600.0
"""Longer than any of this takes: what hangs ends some day."""


@dataclass(frozen=True)
class Drain:
    """What one drain came to."""

    imported_seconds: float
    done_seconds: float
    cpu_seconds: float | None
    displaced: int


def run(setting: Setting) -> Report:
    """Drain the backlog on each database: by the bare script, by one worker, by two."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        floor: float | None = None
        for who, workers in (("bare script", 0), ("1 worker", 1), ("2 workers", 2)):
            setting.say(f"{kind}: {who}, {THREADS} threads each …")
            with setting.world(kind) as world:
                refs = plant(world, setting.size)
                drain = _by_workers(world, refs, workers) if workers else _by_script(world, refs)
            cost = drain.cpu_seconds and 1000 * drain.cpu_seconds / setting.size
            floor = floor or cost
            rows.append(
                [
                    kind, who, setting.size / drain.imported_seconds, setting.size / drain.done_seconds, cost,
                    cost and floor and cost / floor, drain.displaced,
                ]
            )  # fmt: skip
    return Report(
        ("database", "by", "imported/s", "verified/s", "CPU ms each", "× floor", "displaced"),
        rows,
        (
            "imported/s: until the last import was answered; verified/s: until everything was read back as well.",
            "CPU ms each: of the importing processes, for import and check together; without sandbox and PostgreSQL.",
            "displaced: by how many places a delivery was sent out of order, at most.",
        ),
    )


BENCHMARK = Benchmark("import-backlog", "Import backlog drain", "deliveries", 10_000, run)


# --- by workers ---------------------------------------------------------------------------------------


def _by_workers(world: World, refs: list[str], workers: int) -> Drain:
    world.fault("sequin.import", "status", status=503)
    names = [f"worker-{number}" for number in range(workers)]
    for name in names:
        world.start_worker(name, threads=THREADS)
    _until(lambda: _count(world, "SELECT count(*) FROM circuits WHERE opened_at IS NOT NULL") > 0)
    pids = [world.processes[name].pid for name in names]
    before = [cpu_seconds(pid) for pid in pids]
    world.end_outage()
    _until(lambda: not _count(world, "SELECT count(*) FROM connections WHERE verified_at IS NULL"))
    after = [cpu_seconds(pid) for pid in pids]
    used = [end - start for start, end in zip(before, after, strict=True) if start is not None and end is not None]
    return _read(world, refs, sum(used) if len(used) == workers else None)


def _count(world: World, query: str) -> int:
    with world.database() as connection:
        return int(connection.execute(sa.text(query)).scalar_one())


def _until(look: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE_SECONDS
    while not look():
        if time.monotonic() > ends:
            raise SystemExit("The backlog does not drain.")
        time.sleep(LOOK_SECONDS)


def _read(world: World, refs: list[str], cpu: float | None) -> Drain:
    """Read from the sandbox's log how it went. Raises SystemExit when anything was lost or doubled."""
    log = world.control("log")["data"]
    imports = [one for one in log if one["method"] == "POST" and one["status"] == 200]
    checks = [one for one in log if one["method"] == "GET" and "/credentials/" in one["path"]]
    sent = [json.loads(one["body"])["metadata"]["broker_connection_id"] for one in imports]
    if sorted(sent) != sorted(refs) or len(checks) < len(refs):
        raise SystemExit(f"{len(refs)} deliveries led to {len(sent)} imports of {len(set(sent))} connections.")
    place = {ref: number for number, ref in enumerate(refs)}
    began = _time(imports[0])
    return Drain(
        imported_seconds=_time(imports[-1]) - began,
        done_seconds=_time(checks[-1]) - began,
        cpu_seconds=cpu,
        displaced=max(abs(place[ref] - number) for number, ref in enumerate(sent)),
    )


def _time(entry: dict[str, Any]) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()


# --- by a bare script ---------------------------------------------------------------------------------


def _by_script(world: World, refs: list[str]) -> Drain:
    script = subprocess.run(
        [sys.executable, "-m", "benchmarks.import_backlog", str(THREADS)],
        env=world.environment, cwd=ROOT, check=True, stdout=subprocess.PIPE, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    return _read(world, refs, json.loads(script.stdout)["cpu_seconds"])


def bare(threads: int) -> None:
    """Do with drivers and requests alone what a hand-off sends and commits, and print the CPU time it took."""
    connect = driver(os.environ["DATABASE_URL"])
    database = connect()
    jobs = iter(database("SELECT id, subject_id FROM jobs WHERE kind = 'import' ORDER BY due_at, id"))
    lock = threading.Lock()
    workers = [threading.Thread(target=_work, args=(jobs, lock, connect())) for _ in range(threads)]
    before = time.process_time()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(json.dumps({"cpu_seconds": time.process_time() - before}))


Run = Callable[..., list[Any]]
"""Runs statements, each with its parameters, in one transaction; gives the rows of the last."""


def driver(url: str) -> Callable[[], Run]:
    """Return what opens a connection to the database at `url`, by its driver alone."""
    if url.startswith("sqlite"):
        return lambda: _sqlite(url.removeprefix("sqlite:///"))
    return lambda: _postgresql(url.replace("+psycopg", ""))


def _sqlite(path: str) -> Run:
    database = sqlite3.connect(path, isolation_level=None, timeout=60, check_same_thread=False)
    database.execute("PRAGMA synchronous = FULL")

    def run(*statements: str | tuple[str, Sequence[object]]) -> list[Any]:
        # One after the other, as SQLite writes anyway: its own way of waiting sleeps far too long.
        with _writing:
            database.execute("BEGIN IMMEDIATE")
            rows = [database.execute(*_pair(each)).fetchall() for each in statements]
            database.execute("COMMIT")
        return rows[-1]

    return run


_writing = threading.Lock()


def _postgresql(url: str) -> Run:
    database = psycopg.connect(url, autocommit=True)

    def run(*statements: str | tuple[str, Sequence[object]]) -> list[Any]:
        with database.transaction():
            for each in statements:
                text, values = _pair(each)
                cursor = database.execute(text.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    return run


def _pair(statement: str | tuple[str, Sequence[object]]) -> tuple[str, Sequence[object]]:
    return (statement, ()) if isinstance(statement, str) else statement


def _work(jobs: Iterator[Any], lock: threading.Lock, database: Run) -> None:
    sequin = requests.Session()
    sequin.trust_env = False
    sequin.headers["Authorization"] = f"Bearer {os.environ['SEQUIN_API_TOKEN']}"
    address = f"{os.environ['SEQUIN_API_URL']}/v1/credentials"
    listed = sequin.get(f"{os.environ['SEQUIN_API_URL']}/v1/oauth-apps").json()["data"]
    app = next(one["id"] for one in listed if one["provider"] == "stripe")
    while True:
        with lock:
            batch = list(itertools.islice(jobs, BATCH))
        if not batch:
            return
        _lease(database, batch)
        for job, key in batch:
            _import(sequin, address, app, database, job, key)
        # As the worker does: checks are jobs of their own.
        _lease(database, batch)
        for job, key in batch:
            _check(sequin, address, database, job, key)


def _lease(database: Run, batch: list[Any]) -> None:
    leased = "UPDATE jobs SET state = 'running', fence = fence + 1 WHERE id = ?"
    database(*[(leased, (job,)) for job, _ in batch])


def _import(sequin: requests.Session, address: str, app: str, database: Run, job: int, key: int) -> None:
    ((ref, account, name),) = database(
        ("SELECT ref, account_id, account_name FROM connections WHERE id = ?", (key,))
    )  # fmt: skip
    properties = {"kind": "stripe_oauth2", "secret": f"sk_{account}", "test": True, "name": name}
    body = {"properties": properties | {"stripe_user_id": account}, "oauth_app_id": app, "name": name}
    answer = sequin.post(address, json=body | {"metadata": {"broker_connection_id": ref}}).json()
    imported = "UPDATE connections SET import_state = 'imported', credential_id = ?, imported_at = ? WHERE id = ?"
    database(
        ("UPDATE jobs SET state = 'waiting' WHERE id = ? AND state = 'running'", (job,)),
        (imported, (answer["id"], NOW, key)),
        (NOTED, (NOW, ref)),
    )


def _check(sequin: requests.Session, address: str, database: Run, job: int, key: int) -> None:
    ((ref, credential),) = database(("SELECT ref, credential_id FROM connections WHERE id = ?", (key,)))
    assert sequin.get(f"{address}/{credential}").json()["id"] == credential
    database(
        ("UPDATE jobs SET state = 'done' WHERE id = ? AND state = 'running'", (job,)),
        ("UPDATE connections SET verified_at = ?, grant_sealed = NULL WHERE id = ?", (NOW, key)),
        (NOTED, (NOW, ref)),
    )


NOW = "2026-01-01 00:00:00+00"
NOTED = (
    "INSERT INTO audit (at, actor_kind, actor, action, target, detail) "
    "VALUES (?, 'worker', 'bare', 'connection.imported', ?, '{}')"
)

if __name__ == "__main__":
    bare(int(sys.argv[1]))
