"""The provider takes most of a second for each answer: how many people are on their way, and what others notice.

Each flow then holds a thread of the web server for as long as the provider's two answers take. While they do, somebody
else looks at the page of a link again and again.
"""

from __future__ import annotations

from benchmarks.connect_flows import AT_ONCE, WARM_UP, settled, start_broker
from benchmarks.framework import Benchmark, Report, Setting
from benchmarks.planting import plant_links
from benchmarks.visitors import Met, Visit, Visitors, visit
from tests.e2e.world import World

SLOW_SECONDS = 0.8
CROWDS = (0, 8, 12)
"""How many people are on their way at once; a web process has 16 threads."""
LOOKERS = 2
LOOKS_PER_SECOND = 10.0
LOOK_SECONDS = 20.0


def run(setting: Setting) -> Report:
    """Let crowds of several sizes connect, on each database."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        with setting.world(kind, BROKER_LIMITS="off") as world:
            start_broker(world)
            visit(Visit(world.url, plant_links(world, WARM_UP), at_once=AT_ONCE))
            settled(world, WARM_UP)
            for point in ("stripe.token", "stripe.account"):
                world.fault(point, "drip", when="after", seconds=SLOW_SECONDS)
            done = WARM_UP
            usual: float | None = None
            for crowd in CROWDS:
                setting.say(f"{kind}: {crowd} people on their way …")
                flows, pages = _together(world, crowd, setting.size if crowd else 0)
                done += setting.size if crowd else 0
                lost = done - settled(world, done)
                shown = [pages.percentile(share, "page") for share in (0.5, 0.99)]
                usual = usual or shown[-1]
                callback = flows.percentile(0.5, "callback") if crowd else None
                on_their_way = sum(flows.took.get("callback", [])) / flows.seconds if crowd else 0.0
                rate = setting.size / flows.seconds if crowd else None
                errors = len(flows.failures) + len(pages.failures) + lost
                rows.append([kind, crowd, rate, on_their_way, callback, *shown, shown[-1] / usual, errors])
    return Report(
        ("database", "people", "flows/s", "in flight", "callback p50", "page p50", "page p99", "p99 × idle", "errors"),
        rows,
        (
            f"The provider takes {SLOW_SECONDS} s for a token and again for the account; one web process, 16 threads.",
            "in flight: callbacks under way on average; page: that of a link, looked at by somebody else meanwhile.",
        ),
    )


def _together(world: World, crowd: int, size: int) -> tuple[Met, Met]:
    looking = Visit(
        world.url, plant_links(world, 20), at_once=LOOKERS, per_second=LOOKS_PER_SECOND, look_for=LOOK_SECONDS
    )
    lookers = Visitors(looking)
    flows = visit(Visit(world.url, plant_links(world, size), at_once=crowd)) if crowd else Met()
    return flows, lookers.met()


BENCHMARK = Benchmark("provider-slow", "Other pages while the provider is slow", "flows by each crowd", 150, run)
