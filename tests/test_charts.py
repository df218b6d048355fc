"""Where the marks of a chart stand."""

from __future__ import annotations

import itertools

import pytest

from broker import charts
from broker.charts import BOTTOM, HEIGHT, LEAST, LEAST_SHARE, TOP


@pytest.mark.parametrize(
    ("value", "round_number"),
    [(0, 1), (1, 1), (1.1, 1.5), (3, 3), (7, 8), (9, 10), (11, 15), (99, 100), (100, 100), (0.7, 0.8), (0.02, 0.02)],
)
def test_a_scale_ends_at_a_round_number(value: float, round_number: float) -> None:
    assert charts.nice(value) == pytest.approx(round_number)


def test_columns_stand_on_each_other_from_the_baseline_up() -> None:
    chart = charts.columns([[3, 0], [1, 2], [0, 0]], ["Mon", "Tue"])

    first, second, third = chart.bars
    assert (first.series, second.series, third.series) == (0, 1, 1)
    assert first.y + first.height == chart.baseline == HEIGHT - BOTTOM
    assert second.y + second.height == pytest.approx(first.y)
    assert first.height == pytest.approx(3 * second.height)
    assert third.y + third.height == chart.baseline
    assert (first.x, first.width) == (second.x, second.width)
    assert third.x - first.x == pytest.approx(50)


@pytest.mark.parametrize("values", [[7, 1, 12], [1_000_000, 1, 3], [0, 0, 0]])
@pytest.mark.parametrize("series", [1, 3])
def test_columns_stay_between_their_lines_and_beside_each_other(values: list[float], series: int) -> None:
    chart = charts.columns([values] * series, ["a", "b", "c"])

    for bar in chart.bars:
        assert 0 <= bar.x < bar.x + bar.width <= 100
        assert bar.y >= TOP - LEAST * series
        assert bar.height >= LEAST
    places = sorted({bar.x for bar in chart.bars})
    for one, other in itertools.pairwise(places):
        assert other >= one + chart.bars[0].width


def test_nothing_is_drawn_for_nothing() -> None:
    assert charts.columns([[0, 0]], ["a", "b"]).bars == ()
    assert charts.lines([[None, None]], ["a", "b"]).dots == ()
    assert charts.up_and_down([], [], []).labels == ()


def test_the_scale_is_written_at_its_line() -> None:
    (tick,) = charts.columns([[1_450]], ["a"]).ticks
    assert (tick.text, tick.y) == ("1,500", TOP)
    assert tick.text_y < tick.y


def test_one_rises_and_the_other_hangs_by_one_scale() -> None:
    chart = charts.up_and_down([4], [2], ["a"])

    up, down = chart.bars
    assert (up.series, down.series) == (1, 0)
    assert up.y + up.height == chart.baseline == down.y
    assert up.height == pytest.approx(2 * down.height)
    assert down.y + down.height <= HEIGHT - BOTTOM
    assert [tick.text for tick in chart.ticks] == ["4", "4"]


def test_a_line_breaks_where_nothing_is_known() -> None:
    chart = charts.lines([[1, 2, None, 4]], ["a", "b", "c", "d"], unit=" s")

    assert [dot.x for dot in chart.dots] == [12.5, 37.5, 87.5]
    (stroke,) = chart.strokes
    assert (stroke.x1, stroke.x2) == (12.5, 37.5)
    assert chart.dots[0].y > chart.dots[1].y > chart.dots[2].y >= TOP
    assert chart.ticks[0].text == "4 s"


def test_few_words_stand_along_a_chart_and_none_outside() -> None:
    labels = charts.columns([[1] * 30], [f"day {n}" for n in range(30)]).labels
    assert [(label.text, label.anchor) for label in labels] == [
        ("day 0", "start"), ("day 15", "middle"), ("day 29", "end")
    ]  # fmt: skip
    assert [label.text for label in charts.columns([[1]], ["only"]).labels] == ["only"]


def test_a_bar_is_as_long_as_its_share_of_all_and_never_too_short_to_see() -> None:
    assert charts.shares([10, 5, 0, 0.0001], 20) == (50, 25, 0, LEAST_SHARE)
    assert charts.shares([0, 0], 0) == (0, 0)
    assert charts.shares([], 0) == ()
