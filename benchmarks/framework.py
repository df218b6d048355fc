"""What every benchmark stands on: databases, a running world, CPU time, and a table at the end.

A benchmark is a module of this package with a `BENCHMARK`; nothing has to be listed anywhere. It is handed a `Setting`
and returns a `Report`.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType

import benchmarks
from broker.db import upgrade
from tests.databases import Databases, PostgresqlDatabases, SqliteDatabases, postgresql
from tests.e2e.world import World

DATABASES = ("sqlite", "postgresql")


@dataclass(frozen=True)
class Report:
    """What a benchmark found: a table, and sentences on how to read it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Benchmark:
    """One benchmark. `size` is how much of it there is by default, counted in `unit`."""

    name: str
    title: str
    unit: str
    size: int
    run: Callable[[Setting], Report]


@dataclass
class Setting:
    """What a benchmark runs in; a context manager that owns the databases."""

    kinds: Sequence[str]
    size: int
    _stack: ExitStack = field(default_factory=ExitStack)
    _databases: dict[str, Databases] = field(default_factory=dict)

    def __enter__(self) -> Setting:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    @cached_property
    def _folder(self) -> Path:
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="broker-bench-")))

    @contextmanager
    def world(self, kind: str, **settings: str) -> Iterator[World]:
        """Lend a world on a fresh, migrated database of this kind, its sandbox running; everything ends afterwards."""
        with self._kind(kind).migrated() as url, tempfile.TemporaryDirectory(dir=self._folder) as folder:
            world = World(Path(folder), url, **({"BROKER_LOG_LEVEL": "INFO"} | settings))
            try:
                world.start_sandbox()
                yield world
            finally:
                world.stop_all()

    def say(self, sentence: str) -> None:
        """Tell whoever waits what is being done."""
        print(f"  {sentence}", file=sys.stderr, flush=True)

    def _kind(self, kind: str) -> Databases:
        if kind not in self._databases:
            if kind == "postgresql":
                databases = PostgresqlDatabases(self._stack.enter_context(postgresql()), upgrade)
                self._stack.callback(databases.close)
                self._databases[kind] = databases
            else:
                self._databases[kind] = SqliteDatabases(self._folder, upgrade)
        return self._databases[kind]


def discover() -> dict[str, Benchmark]:
    """Return every benchmark of this package by its name."""
    modules = [importlib.import_module(f"benchmarks.{one.name}") for one in pkgutil.iter_modules(benchmarks.__path__)]
    found = [module.BENCHMARK for module in modules if hasattr(module, "BENCHMARK")]
    return {one.name: one for one in found}


def cpu_seconds(pid: int) -> float | None:
    """Return the CPU time a process has used, user and system together; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything; what follows it does not.
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def family_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children; what the system does not tell counts as none."""
    return sum(cpu_seconds(each) or 0.0 for each in _family(pid))


def family_memory(pid: int) -> float:
    """Return the resident memory of a process and its children in megabytes, what they share counted once.

    Where the system does not tell, it counts as none.
    """
    kilobytes = 0
    for each in _family(pid):
        with suppress(OSError):
            told = Path(f"/proc/{each}/smaps_rollup").read_text()
            kilobytes += sum(int(line.split()[1]) for line in told.splitlines() if line.startswith("Pss:"))
    return kilobytes / 1024


def _family(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [pid, *map(int, children.read_text().split())]
    except OSError:
        return [pid]


def machine() -> str:
    """Describe this machine in one line."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{cores} cores, {_processor()}, {platform.system()}, Python {platform.python_version()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(report: Report) -> str:
    """Lay a report out for a terminal: the first columns to the left, figures to the right."""
    cells = [[*report.columns], *[[_shown(value) for value in row] for row in report.rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(report.columns))]
    is_text = [all(isinstance(row[column], str) for row in report.rows) for column in range(len(report.columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if left else cell.rjust(width)
            for cell, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in cells
    ]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:], *([""] if report.notes else []), *report.notes])


def _shown(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
