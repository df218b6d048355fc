"""Pages with a few connections and with a million: what each costs, and how much more with the many.

Two brokers run at the same time on one machine, one over 1,000 connections and one over as many as asked for, and are
asked in turn, so that whatever else the machine does slows both. Then the large one sends its list as CSV, while its
memory is watched.
"""

from __future__ import annotations

import os
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import requests

from benchmarks.framework import Benchmark, Report, Setting
from tests.crowd import crowd, ref_of
from tests.e2e.world import World

FEW = 1_000
ROUNDS = 5
ASKED = 40
"""How often each page is asked for in a round; each round has a p95 of its own, and the table shows their median."""
WARM = 3
PASSWORD = "a-password-for-benchmarks"  # noqa: S105 - of a database that lives for minutes
LOOK_SECONDS = 0.02
CHUNK = 1 << 16

Address = Callable[[int], str]
"""The address of a page, given how many connections there are."""

PAGES: dict[str, Address] = {
    "list, first page": lambda _: "/ops/connections",
    "list, deepest page": lambda _: f"/ops/connections?after={ref_of(51)}",
    "list, middle, going back": lambda count: f"/ops/connections?before={ref_of(count // 2)}",
    "recently changed first": lambda _: "/ops/connections?sort=changed",
    "search: reference": lambda count: f"/ops/connections?q={ref_of(count // 2)}",
    "search: account id": lambda count: f"/ops/connections?q=acct_{count // 2 + 3:012}",
    "search: Sequin id": lambda count: f"/ops/connections?q=crd-{count // 2 + 3:012}",
    "search: end user": lambda count: f"/ops/connections?q=user-{count // 2}",
    "search: e-mail begins": lambda count: f"/ops/connections?q=person{count // 2}@",
    "search: name begins, many": lambda _: "/ops/connections?q=Acme",
    "filter: provider": lambda _: "/ops/connections?provider=github",
    "filter: OAuth app": lambda _: "/ops/connections?app=stripe-test",
    "filter: kind": lambda _: "/ops/connections?kind=stripe_oauth2",
    "filter: mode": lambda _: "/ops/connections?mode=test",
    "filter: status ok": lambda _: "/ops/connections?status=ok",
    "filter: status error": lambda _: "/ops/connections?status=error",
    "filter: status unknown": lambda _: "/ops/connections?status=unknown",
    "filter: rare status": lambda _: "/ops/connections?status=interrupted",
    "filter: end user": lambda count: f"/ops/connections?user=user-{count // 2}",
    "filter: metadata": lambda _: "/ops/connections?metadata.plan=pro",
    "filter: rare metadata": lambda _: "/ops/connections?metadata.pilot=yes",
    "filter: days": lambda _: "/ops/connections?from=2020-01-01&to=2026-06-30",
    "filter: provider, mode and status": lambda _: "/ops/connections?provider=stripe&mode=live&status=error",
    "API: first page": lambda _: "/api/v1/connections?limit=50",
    "API: deepest page": lambda _: f"/api/v1/connections?limit=50&cursor={ref_of(51)}",
    "API: metadata": lambda _: "/api/v1/connections?limit=50&metadata.plan=pro",
    "API: status": lambda _: "/api/v1/connections?limit=50&status=pending",
}
FIRST = "list, first page"


@dataclass
class _Place:
    """A running broker over so many connections, and somebody signed in to it."""

    world: World
    count: int
    session: requests.Session
    key: str
    first_answer_seconds: float

    def ask(self, address: Address) -> tuple[float, int]:
        """Return the milliseconds a page took, and how many connections it showed."""
        path = address(self.count)
        headers = {"Authorization": f"Bearer {self.key}"} if path.startswith("/api") else {}
        began = time.perf_counter()
        answer = self.session.get(self.world.url + path, headers=headers, timeout=120)
        took = 1000 * (time.perf_counter() - began)
        if answer.status_code != 200:
            raise SystemExit(f"{path} answered {answer.status_code}")
        shown = len(answer.json()["data"]) if headers else answer.text.count('data-label="Account"')
        return took, shown

    def memory(self) -> float:
        """Return the megabytes that the largest of the web server's processes holds."""
        return max(_resident(self.world.processes["web"].pid), default=0.0)


def run(setting: Setting) -> Report:
    """Ask both brokers for every page, on each database, then for the CSV."""
    rows: list[list[object]] = []
    notes: list[str] = []
    for kind in setting.kinds:
        with _place(setting, kind, FEW) as few, _place(setting, kind, setting.size) as many:
            rows += [_compared(kind, name, address, few, many) for name, address in PAGES.items()]
            notes += [_start(kind, one) for one in (few, many)] + [_export(kind, many)]
    return Report(
        ("database", "page", "rows", "1 k p50", "p95", f"{setting.size:,} p50", "p95", "× p50", "× p95"),
        rows,
        (
            "Milliseconds at the client, one request at a time. rows: shown with few / with many connections.",
            f"p50, p95: median of {ROUNDS} rounds of {ASKED} requests. ×: many over few, in the same round; * over the",
            "first page with few, because this one shows fewer rows with few.",
            *notes,
        ),
    )


BENCHMARK = Benchmark("pages", "Pages and API with many connections", "connections", 1_000_000, run)


def _compared(kind: str, name: str, address: Address, few: _Place, many: _Place) -> list[object]:
    # The last is what a page is held against that shows fewer rows with few connections.
    lanes = ((few, address), (many, address), (few, PAGES[FIRST]))
    shown = [max(place.ask(wanted)[1] for _ in range(WARM)) for place, wanted in lanes]
    middles: list[list[float]] = [[], [], []]
    tails: list[list[float]] = [[], [], []]
    for _ in range(ROUNDS):
        times: list[list[float]] = [[], [], []]
        for _ in range(ASKED):
            for lane, (place, wanted) in enumerate(lanes):
                times[lane].append(place.ask(wanted)[0])
        for lane in range(len(lanes)):
            middles[lane].append(statistics.median(times[lane]))
            tails[lane].append(statistics.quantiles(times[lane], n=20)[18])
    p50, p95 = [statistics.median(each) for each in middles], [statistics.median(each) for each in tails]
    star, base = ("*", 2) if shown[0] < shown[1] else ("", 0)
    ratios = [f"{times[1] / times[base]:.2f}{star}" for times in (p50, p95)]
    return [kind, name, f"{shown[0]}/{shown[1]}", p50[0], p95[0], p50[1], p95[1], *ratios]


@contextmanager
def _place(setting: Setting, kind: str, count: int) -> Iterator[_Place]:
    with setting.world(kind, BROKER_LOG_LEVEL="WARNING") as world:
        setting.say(f"{kind}: {count:,} connections are put in …")
        crowd(world.database_url, count, datetime.now(UTC))
        world.run("operator", "create", "--email", "bench@example.com", "--role", "admin", given=f"{PASSWORD}\n")
        key = world.api_key
        began = time.perf_counter()
        world.start_web()
        took = time.perf_counter() - began
        session = requests.Session()
        page = session.get(f"{world.url}/ops/sign-in", timeout=60).text
        token = re.search(r'name="csrf_token" value="([^"]+)"', page)
        assert token is not None
        form = {"email": "bench@example.com", "password": PASSWORD, "csrf_token": token[1]}
        session.post(f"{world.url}/ops/sign-in", data=form, timeout=60).raise_for_status()
        setting.say(f"{kind}: {count:,} connections, first answer after {took:.1f} s; asking …")
        yield _Place(world, count, session, key, took)


def _start(kind: str, place: _Place) -> str:
    return (
        f"{kind}, {place.count:,}: first answer {place.first_answer_seconds:.1f} s after the start; "
        f"the web process holds {place.memory():.0f} MB after all pages."
    )


def _export(kind: str, place: _Place) -> str:
    before = most = place.memory()
    began = time.perf_counter()
    lines = size = 0
    looked = began
    with place.session.get(f"{place.world.url}/ops/connections.csv", stream=True, timeout=600) as answer:
        answer.raise_for_status()
        for chunk in answer.iter_content(CHUNK):
            lines, size = lines + chunk.count(b"\r\n"), size + len(chunk)
            if time.perf_counter() - looked > LOOK_SECONDS:
                most, looked = max(most, place.memory()), time.perf_counter()
    took = time.perf_counter() - began
    return (
        f"{kind}, {place.count:,}: CSV of {lines - 1:,} rows, {size / 1e6:.1f} MB in {took:.1f} s; "
        f"the web process held {before:.0f} MB before and {most:.0f} MB at most meanwhile."
    )


def _resident(session: int) -> Iterator[float]:
    """Yield the megabytes of each process of a session; nothing where the system does not tell."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(folder.name)) != session:
                continue
            held = re.search(r"^VmRSS:\s+(\d+) kB", (folder / "status").read_text(), re.MULTILINE)
        except OSError:
            continue
        if held is not None:
            yield int(held[1]) / 1024
