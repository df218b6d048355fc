"""Where the marks of a chart stand. Nothing here knows how they are drawn or what they mean.

Lengths along a chart are percentages of its width, so that one drawing fits every screen and letters keep their size;
heights are pixels, counted from the top.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

HEIGHT = 168.0
TOP = 28.0
"""Room above the highest mark, for the word at its line."""
BOTTOM = 28.0
"""Room below the lowest mark, for the words along the chart."""
FILLED = 0.72
"""How much of its place a column fills."""
LEAST = 2.0
"""The height of a mark that is not nothing: it must be seen beside one a thousand times as high."""
LEAST_SHARE = 0.6
"""The same for the length of a bar, in percent."""

ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
"""What a scale may end at, times a power of ten."""

Anchor = Literal["start", "middle", "end"]


@dataclass(frozen=True)
class Bar:
    """A rectangle of one series."""

    series: int
    x: float
    width: float
    y: float
    height: float


@dataclass(frozen=True)
class Stroke:
    """A straight piece of one series' line."""

    series: int
    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True)
class Dot:
    """One point of a series."""

    series: int
    x: float
    y: float


@dataclass(frozen=True)
class Tick:
    """A line across the chart, and where its word stands."""

    y: float
    text_y: float
    text: str


@dataclass(frozen=True)
class Label:
    """A word below the chart."""

    x: float
    anchor: Anchor
    text: str


@dataclass(frozen=True)
class Chart:
    """Everything that is drawn."""

    height: float
    # Where nothing is: marks stand on it.
    baseline: float
    ticks: tuple[Tick, ...]
    labels: tuple[Label, ...]
    bars: tuple[Bar, ...] = ()
    strokes: tuple[Stroke, ...] = ()
    dots: tuple[Dot, ...] = ()


def nice(value: float) -> float:
    """Return the next round number that is not below a positive value; 1 for nothing."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    # A hair's breadth of tolerance: 0.1 * 3 is no reason to go up to the next step.
    return next(step * power for step in ROUND if step * power >= value * (1 - 1e-9))


def columns(series: Sequence[Sequence[float]], labels: Sequence[str], *, height: float = HEIGHT) -> Chart:
    """Return columns, one for each label, in which the series stand on each other. Values are counts, not negative."""
    places = len(labels)
    tallest = max((sum(values) for values in zip(*series, strict=True)), default=0.0)
    top = nice(max(tallest, 1.0))
    plot = height - TOP - BOTTOM
    bars = []
    for place in range(places):
        floor = height - BOTTOM
        for number, values in enumerate(series):
            tall = _tall(values[place], top, plot)
            if tall:
                floor -= tall
                bars.append(_bar(number, place, places, floor, tall))
    return Chart(
        height, height - BOTTOM, (Tick(TOP, TOP - 6, _short(top)),), _along(labels), bars=tuple(bars)
    )  # fmt: skip


def up_and_down(up: Sequence[float], down: Sequence[float], labels: Sequence[str], *, height: float = HEIGHT) -> Chart:
    """Return columns that rise and others that hang down, both to one scale; what hangs down is series 0."""
    places = len(labels)
    top = nice(max((*up, *down, 1.0)))
    plot = (height - TOP - BOTTOM - TOP) / 2
    middle = TOP + plot
    bars = []
    for place in range(places):
        rise, fall = _tall(up[place], top, plot), _tall(down[place], top, plot)
        if rise:
            bars.append(_bar(1, place, places, middle - rise, rise))
        if fall:
            bars.append(_bar(0, place, places, middle, fall))
    ticks = (Tick(TOP, TOP - 6, _short(top)), Tick(middle + plot, middle + plot + 18, _short(top)))
    return Chart(height, middle, ticks, _along(labels), bars=tuple(bars))


def lines(
    series: Sequence[Sequence[float | None]], labels: Sequence[str], *, unit: str = "", height: float = HEIGHT
) -> Chart:
    """Return a line for each series, broken where it has no value. Values are not negative."""
    places = len(labels)
    known = [value for values in series for value in values if value is not None]
    top = nice(max(known, default=1.0))
    plot = height - TOP - BOTTOM
    strokes, dots = [], []
    for number, values in enumerate(series):
        before: Dot | None = None
        for place, value in enumerate(values):
            if value is None:
                before = None
                continue
            here = Dot(number, _middle(place, places), height - BOTTOM - value / top * plot)
            dots.append(here)
            if before is not None:
                strokes.append(Stroke(number, before.x, before.y, here.x, here.y))
            before = here
    ticks = (Tick(TOP, TOP - 6, f"{_short(top)}{unit}"),)
    return Chart(
        height, height - BOTTOM, ticks, _along(labels), strokes=tuple(strokes), dots=tuple(dots)
    )  # fmt: skip


def shares(values: Sequence[float], whole: float) -> tuple[float, ...]:
    """Return how long each bar is, in percent of `whole`; what is not nothing is long enough to be seen."""
    return tuple(max(value / whole * 100, LEAST_SHARE) if value > 0 else 0.0 for value in values)


def _tall(value: float, top: float, plot: float) -> float:
    return max(value / top * plot, LEAST) if value > 0 else 0.0


def _bar(series: int, place: int, places: int, y: float, height: float) -> Bar:
    width = 100 / places
    return Bar(series, place * width + width * (1 - FILLED) / 2, width * FILLED, y, height)


def _middle(place: int, places: int) -> float:
    return (place + 0.5) * 100 / places


def _along(labels: Sequence[str]) -> tuple[Label, ...]:
    """Return the first, the middle and the last word: more would not fit on a small screen."""
    found = [Label(0, "start", labels[0])] if labels else []
    if len(labels) > 4:
        middle = len(labels) // 2
        found.append(Label(_middle(middle, len(labels)), "middle", labels[middle]))
    if len(labels) > 1:
        found.append(Label(100, "end", labels[-1]))
    return tuple(found)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"
