"""Tables for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

from broker.errors import BrokerError, SettingsError

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


until_eof = click.option("--until-eof", is_flag=True, hidden=True, help="Stop when standard input ends.")


def complain(failure: BrokerError) -> None:
    """Say on standard error what is wrong and what mends it."""
    if isinstance(failure, SettingsError):
        count = len(failure.problems)
        click.echo(f"The settings cannot be used ({count} {'problem' if count == 1 else 'problems'}):", err=True)
        for problem in failure.problems:
            click.echo(f"  - {problem}", err=True)
        return
    click.echo(f"Error: {failure.detail or failure.heading} [{failure.code}]", err=True)
    click.echo(f"  {failure.cure}", err=True)


def say_json(content: object) -> None:
    """Print one JSON document."""
    click.echo(json.dumps(content, ensure_ascii=False, indent=2, default=str))


def say_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or a sentence when it has no rows."""
    cells = [[_cell(value) for value in row] for row in rows]
    if not cells:
        click.echo("None.")
        return
    widths = [max(len(line[n]) for line in [list(headings), *cells]) for n in range(len(headings))]
    for line in [[heading.upper() for heading in headings], *cells]:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return iso(value) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value)


def iso(value: datetime | None) -> str | None:
    """Return a time as ISO 8601 in UTC with `Z`, None for None."""
    return None if value is None else f"{value.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
