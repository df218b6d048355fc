"""The benchmark of changing the key, in small: people connect, tokens are refreshed, and the command is killed once."""

from __future__ import annotations

from benchmarks.framework import Setting
from benchmarks.key_rotation import run

CONNECTIONS = 500
LEFT_BY_THE_KILL = 300


def test_a_key_is_changed_while_people_connect_and_the_command_is_killed() -> None:
    with Setting(["sqlite"], CONNECTIONS) as setting:
        report = run(setting)
    (row,) = report.rows
    shown = dict(zip(report.columns, row, strict=True))

    assert shown["errors"] == 0
    assert int(str(shown["after the kill"])) <= LEFT_BY_THE_KILL
    assert int(str(shown["callbacks"])) > 0
