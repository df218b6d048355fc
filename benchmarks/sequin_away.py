"""Sequin is slow, or away: a person who connects must not notice.

The same people come at the same pace while Sequin answers, while it takes two seconds for each answer, and while it is
down. What is compared is the callback, because that is where a person waits; all three within one run.
"""

from __future__ import annotations

from benchmarks.connect_flows import AT_ONCE, WARM_UP, settled, start_broker
from benchmarks.framework import Benchmark, Report, Setting
from benchmarks.planting import plant_links
from benchmarks.visitors import Visit, visit
from tests.e2e.world import World

PER_SECOND = 8.0
"""Well below what two cores can do: what is looked for is a wait, not a queue for the processor."""
SLOW_SECONDS = 2.0
MOODS = ("up", "slow", "down")


def run(setting: Setting) -> Report:
    """Connect under each of Sequin's moods, on each database."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        with setting.world(kind, BROKER_LIMITS="off") as world:
            start_broker(world)
            visit(Visit(world.url, plant_links(world, WARM_UP), at_once=AT_ONCE))
            settled(world, WARM_UP)
            usual: float | None = None
            for mood in MOODS:
                setting.say(f"{kind}: Sequin {mood} …")
                _set(world, mood)
                asked = Visit(world.url, plant_links(world, setting.size), at_once=AT_ONCE, per_second=PER_SECOND)
                met = visit(asked)
                shown = [met.percentile(share, "callback") for share in (0.5, 0.95, 0.99)]
                usual = usual or shown[-1]
                rows.append([kind, mood, *shown, shown[-1] / usual, len(met.failures)])
            world.end_outage()
            done = settled(world, WARM_UP + len(MOODS) * setting.size)
            rows[-1][-1] = int(str(rows[-1][-1])) + WARM_UP + len(MOODS) * setting.size - done
    return Report(
        ("database", "Sequin", "callback p50", "p95", "p99", "p99 × up", "errors"),
        rows,
        (
            "Milliseconds, as a visitor sees them; two answers of the provider are among them.",
            f"{PER_SECOND:.0f} flows start each second. slow: each answer of Sequin takes {SLOW_SECONDS:.0f} s.",
            "errors: flows that failed, and under “down” what was not imported in the end.",
        ),
    )


def _set(world: World, mood: str) -> None:
    world.end_outage()
    for point in ("sequin.import", "sequin.get"):
        if mood == "slow":
            # The answer is a true one, and comes in drops.
            world.fault(point, "drip", when="after", seconds=SLOW_SECONDS)
        elif mood == "down":
            world.fault(point, "status", status=503)


BENCHMARK = Benchmark("sequin-away", "Connecting while Sequin is slow or down", "flows in each mood", 500, run)
