"""The benchmarks' framework: what is found, and how it is shown. The benchmarks themselves run with `make bench`."""

from __future__ import annotations

import os

from benchmarks.framework import Report, cpu_seconds, discover, table


def test_a_benchmark_is_found_because_its_module_is_there() -> None:
    found = discover()

    assert "import-backlog" in found
    assert all(benchmark.size > 0 and benchmark.title and benchmark.unit for benchmark in found.values())


def test_a_table_has_words_to_the_left_and_figures_to_the_right() -> None:
    report = Report(("by", "each", "×"), [("a script", 2.345, 1.0), ("us", 12.0, None)], ("× is a ratio.",))

    assert table(report).splitlines() == [
        "by        each    ×",
        "--------  ----  ---",
        "a script   2.3  1.0",
        "us        12.0    –",
        "",
        "× is a ratio.",
    ]


def test_cpu_time_is_read_where_the_system_tells_it() -> None:
    used = cpu_seconds(os.getpid())

    assert used is None or used > 0
    assert cpu_seconds(2**22 + 1) is None
