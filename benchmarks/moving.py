"""A team moves in with its existing tokens, out again, and into another broker: lines per second, CPU and memory.

All of it by the commands that people use: a CSV into an empty broker, an export with grants sealed for a key, that
export into a second empty broker, and once more, when everything is there already.
"""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from benchmarks.framework import Benchmark, Report, Setting
from tests.e2e.world import ROOT, World

PROGRESS = re.compile(r"^([\d,]+) (?:read|written), ")
KILO = 1024
QUIET = {"BROKER_LOG_LEVEL": "ERROR"}
TABLES = ("connections", "claims", "end_users", "jobs", "audit")
"""Each is to hold one row for each line."""


@dataclass
class Move:
    """What one command came to; memory is the most it has held so far, in megabytes."""

    seconds: float
    cpu_seconds: float
    early_megabytes: float | None
    peak_megabytes: float


def run(setting: Setting) -> Report:
    """Move in, out and in again on each database."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        with setting.world(kind, **QUIET) as first, setting.world(kind, **QUIET) as second:
            table, lines, key = (first.folder / name for name in ("tokens.csv", "export.jsonl", "key"))
            key.write_text(f"move:{base64.b64encode(os.urandom(32)).decode()}")
            with table.open("w") as file:
                file.writelines(_tokens(setting.size))
            sealed = ("--key-file", str(key))
            for what, world, arguments in (
                ("CSV in", first, ("import", "--csv", str(table))),
                ("out", first, ("export", "--output", str(lines), *sealed)),
                ("export in", second, ("import", str(lines), *sealed)),
                ("again", second, ("import", str(lines), *sealed)),
            ):
                setting.say(f"{kind}: {what} …")
                move = _command(world, arguments, setting.size)
                rate, cpu = setting.size / move.seconds, 1000 * move.cpu_seconds / setting.size
                rows.append([kind, what, rate, cpu, move.early_megabytes, move.peak_megabytes])
            for world in (first, second):
                _require(world, setting.size)
    return Report(
        ("database", "what", "lines/s", "CPU ms each", "MB early", "MB peak"),
        rows,
        (
            "lines/s: of the whole command, its start included; CPU ms each: of the command, without PostgreSQL.",
            "MB early: the most it held after the first tenth, MB peak: by the end.",
        ),
    )


BENCHMARK = Benchmark("moving", "Moving in and out", "connections", 100_000, run)


def _tokens(count: int) -> Iterator[str]:
    yield "end_user_id,email,app,account_id,account_name,mode,access_token,refresh_token,scope,metadata.plan\n"
    for number in range(count):
        yield (
            f"user-{number},user-{number}@example.com,stripe,acct_{number},Account {number},test,"
            f"sk_test_{number:024},rt_{number:024},read_write,pro\n"
        )


def _command(world: World, arguments: tuple[str, ...], size: int) -> Move:
    """Run `broker connections …` to its end. Raises SystemExit when it fails."""
    began, early = time.monotonic(), None
    process = subprocess.Popen(
        [sys.executable, "-m", "broker", "connections", *arguments],
        env=world.environment, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        progress = PROGRESS.match(line)
        if progress is None:
            print(f"  {line.rstrip()}", file=sys.stderr)
        elif int(progress[1].replace(",", "")) <= size / 10:
            early = _megabytes(process.pid)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"`broker connections {arguments[0]}` ended with {process.returncode}.")
    return Move(time.monotonic() - began, used.ru_utime + used.ru_stime, early, used.ru_maxrss / KILO)


def _megabytes(pid: int) -> float | None:
    """Return the most memory a process has held so far; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / KILO if found else None


def _require(world: World, count: int) -> None:
    """Raise SystemExit unless everything has arrived, once."""
    with world.database() as connection:
        for name in TABLES:
            many = connection.execute(sa.select(sa.func.count()).select_from(sa.table(name))).scalar_one()
            if many != count:
                raise SystemExit(f"{count:,} lines led to {many:,} rows of {name}.")
