"""The encryption key is changed while people connect and tokens are refreshed, and whoever changes it is killed once.

A table of connections sealed with the old key; web and worker have the new one first and the old one behind it, as
`docs/operating.md` says. The same visitors and refreshes go on before and during `broker keys rotate`. That is killed
half way and run again, once more to see that nothing is left, and then the old key is retired. At the end every sealed
value has to open with the new key alone, and every refreshed token has to be the one that the provider takes.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

import sqlalchemy as sa

from benchmarks.connect_flows import settled, start_broker
from benchmarks.framework import Benchmark, Report, Setting
from benchmarks.planting import (
    REFRESHED_APP,
    made_up_tokens,
    plant_imported,
    plant_links,
    plant_refreshes,
    tokens_of_sandbox,
)
from benchmarks.visitors import Visit, Visitors
from broker.attach import grant_binding
from broker.db import table
from broker.errors import Unreadable
from broker.models import ConnectedAccount
from broker.oauth import Grant
from broker.resealing import SEALED
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.e2e.world import ROOT, World

VISITORS = 4
VISITS_PER_SECOND = 8.0
REFRESHES_PER_SECOND = 4.0
BEFORE_SECONDS = 20.0
SHORTEST_SECONDS = 3.0
"""Of the traffic, however few the rows."""
ROWS_PER_SECOND = 5_000
"""How many rows make the traffic before a second longer, so that a small run stays a short one."""
REFRESHED_SHARE = 100
LINKS = 4_000
WARM_UP = 8
LIFETIME = 3600
ROWS_AT_ONCE = 1_000
KILO = 1024
QUIET = {"BROKER_LOG_LEVEL": "ERROR"}
PROGRESS = re.compile(r"^(\S+): (\d+) sealed again$")
PLANTED = "connections.grant_sealed"


@dataclass
class Run:
    """What a run of the command came to, or had come to when it was killed."""

    resealed: Mapping[str, int]
    seconds: float
    cpu_seconds: float
    peak_megabytes: float


def run(setting: Setting) -> Report:
    """Rotate on each database."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        life = {"STRIPE_APP_ACCESS_SECONDS": str(LIFETIME)}
        with setting.world(kind, BROKER_LIMITS="off", **life) as world:
            rows.append([kind, *_rotation(setting, world, kind)])
    return Report(
        (
            "database", "resealed/s", "CPU µs each", "MB peak", "after the kill", "refreshed meanwhile", "callbacks",
            "errors", "p99 before", "p99 during",
        ),
        rows,
        (
            "resealed/s, CPU µs each: of the killed run and the one after it together, their starts included.",
            "after the kill: what the second run found to do; errors: of visitors, imports, refreshes and logs.",
            f"p99: of callbacks in milliseconds, beside {REFRESHES_PER_SECOND:.0f} refreshes a second both times.",
        ),
    )  # fmt: skip


BENCHMARK = Benchmark("key-rotation", "Changing the key while all goes on", "connections", 100_000, run)


def _rotation(setting: Setting, world: World, kind: str) -> list[object]:
    new = f"new:{base64.b64encode(os.urandom(32)).decode()}"
    setting.say(f"{kind}: planting …")
    world.control("consent", auto="allow")
    # A refresh token that is spent twice ends its family: that could not stay unnoticed.
    world.control("tokens", lifetime=float(LIFETIME), revoke_family=True)
    refreshed = _planted(world, setting.size)
    links = iter(plant_links(world, LINKS))
    old = world.environment["BROKER_ENCRYPTION_KEYS"]
    world.environment["BROKER_ENCRYPTION_KEYS"] = f"{new},{old}"
    start_broker(world)

    seconds = min(BEFORE_SECONDS, SHORTEST_SECONDS + setting.size / ROWS_PER_SECOND)
    setting.say(f"{kind}: people connect …")
    _live(world, list(islice(links, WARM_UP)), until_told=False).met()
    early = int(REFRESHES_PER_SECOND * seconds)
    _refresh(world, refreshed[:early])
    visitors = _live(world, list(islice(links, LINKS // 4)))
    time.sleep(seconds)
    visitors.enough()
    before = visitors.met()

    setting.say(f"{kind}: the key is changed meanwhile …")
    already = _refreshes(world)
    _refresh(world, refreshed[early:])
    visitors = _live(world, list(links))
    began = time.monotonic()
    first = _rotate(world, kill_at=setting.size // 2)
    second = _rotate(world)
    meanwhile = _refreshes(world) - already
    # Of a small table hardly anybody would have seen the rotation otherwise.
    time.sleep(max(0.0, SHORTEST_SECONDS - (time.monotonic() - began)))
    visitors.enough()
    during = visitors.met()

    setting.say(f"{kind}: all of it is looked at …")
    found = [f"a visitor: {failure}" for met in (before, during) for failure in met.failures]
    if (again := _rotate(world).resealed) and any(again.values()):
        found.append(f"a further run found {sum(again.values())} values to seal again")
    connected = WARM_UP + sum(len(met.took.get("callback", [])) for met in (before, during))
    if (imported := settled(world, connected)) != connected:
        found.append(f"{connected} people connected and {imported} were imported")
    world.run("keys", "check")
    world.run("keys", "retire", old.partition(":")[0])
    # Whoever watches the processes asks on while they still have the old key.
    world.answers()
    found += _stopped(world)
    families = world.control("state")["families"]
    with world.database() as connection:
        found += problems(connection, families, new)
    world.environment["BROKER_ENCRYPTION_KEYS"] = new
    world.run("keys", "check")
    for one in found[:20]:
        setting.say(one)
    total = sum(first.resealed.values()) + sum(second.resealed.values())
    took, used = first.seconds + second.seconds, first.cpu_seconds + second.cpu_seconds
    return [
        total / took, 1_000_000 * used / total, max(first.peak_megabytes, second.peak_megabytes),
        sum(second.resealed.values()), meanwhile, len(during.took.get("callback", [])), len(found),
        before.percentile(0.99, "callback"), during.percentile(0.99, "callback"),
    ]  # fmt: skip


def _planted(world: World, size: int) -> list[int]:
    """Add the connections; return the keys of those, one among many, whose tokens the provider knows."""
    every = min(REFRESHED_SHARE, max(2, size // 20))
    known = tokens_of_sandbox(world, size // every)
    keys = plant_imported(world, _mixed(size, every, known), app=REFRESHED_APP, lifetime=LIFETIME)
    return keys[every - 1 :: every]


def _mixed(size: int, every: int, known: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, made_up in enumerate(made_up_tokens(size), 1):
        yield made_up if number % every else known[number // every - 1]


def _live(world: World, links: list[str], *, until_told: bool = True) -> Visitors:
    return Visitors(Visit(world.url, links, at_once=VISITORS, per_second=VISITS_PER_SECOND, until_told=until_told))


def _refresh(world: World, keys: list[int]) -> None:
    """Let these be due one after the other, from now on."""
    plant_refreshes(world, keys, apart=timedelta(seconds=1 / REFRESHES_PER_SECOND))


def _refreshes(world: World) -> int:
    return sum(family["refreshes"] for family in world.control("state")["families"])


def _rotate(world: World, *, kill_at: int | None = None) -> Run:
    """Run `broker keys rotate`, to its end or until so many are sealed again. Raises SystemExit when it fails."""
    began, resealed = time.monotonic(), dict[str, int]()
    process = subprocess.Popen(
        [sys.executable, "-m", "broker", "keys", "rotate"],
        env=world.environment | QUIET, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as told:
        for line in told:
            progress = PROGRESS.match(line)
            if progress is None:
                print(f"  {line.rstrip()}", file=sys.stderr)
                continue
            resealed[progress[1]] = int(progress[2])
            if kill_at is not None and resealed.get(PLANTED, 0) >= kill_at:
                process.kill()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode and kill_at is None:
        raise SystemExit(f"`broker keys rotate` ended with {process.returncode}.")
    return Run(resealed, time.monotonic() - began, used.ru_utime + used.ru_stime, used.ru_maxrss / KILO)


def _stopped(world: World) -> list[str]:
    """Stop web and worker, so that nothing changes any more, and return what they took for an error."""
    found: list[str] = []
    for name in ("worker", "web"):
        world.stop(name)
        for line in (world.folder / f"{name}.log").read_text().splitlines():
            with suppress(ValueError):
                said = json.loads(line)
                if said.get("level") in ("error", "critical"):
                    found.append(f"{name}: {said.get('event')}")
    return found


def problems(connection: sa.Connection, families: Iterable[Mapping[str, Any]], ring: str) -> list[str]:
    """Return what must not be after a rotation, when nothing goes on and `ring`, one key, is all there is.

    `families` are the refresh tokens that the sandbox knows to have replaced one another.
    """
    kid, _, key = ring.partition(":")
    vault = Vault((EncryptionKey(kid, base64.b64decode(key)),))
    found: list[str] = []
    for sealed in SEALED:
        query = sealed.names.add_columns(sealed.column.label("sealed")).where(sealed.column.is_not(None))
        for row in connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE)):
            try:
                vault.open(row.sealed, sealed.binding(row))
            except Unreadable as failure:
                found.append(f"the new key does not open {failure.detail}")
    by_account = {family["account"]: family for family in families}
    found += [f"a refresh token of {name} was spent twice" for name, one in by_account.items() if one["reuses"]]
    accounts = table(ConnectedAccount)
    for row in connection.execute(sa.select(accounts).where(accounts.c.token_version > 1)):
        family = by_account.pop(row.account_id, None)
        if family is None or _refresh_token(vault, row) != family["refresh_token"]:
            found.append(f"{row.ref} has another refresh token than the provider")
    found += [f"the refreshed token of {name} was lost" for name in by_account]
    ended = sa.or_(accounts.c.interrupted_at.is_not(None), accounts.c.revoked_at.is_not(None))
    found += [f"{ref} has ended" for ref in connection.execute(sa.select(accounts.c.ref).where(ended)).scalars()]
    return found


def _refresh_token(vault: Vault, row: sa.Row[Any]) -> str | None:
    with suppress(Unreadable):
        grant = Grant.from_json(vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version)))
        return grant.refresh_token.reveal() if grant.refresh_token else None
    return None
