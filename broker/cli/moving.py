"""`broker connections export|import`: moving out, and moving in with what a team has."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import click
from flask.cli import with_appcontext

from broker.moving import WRITTEN_AT_ONCE, LineOutcome, LineRefused, Outcome
from broker.settings import EncryptionKey, one_key
from broker.web import services

PROGRESS_EVERY = 1_000
BREATH_SECONDS = 0.03
"""Between two transactions, so that whoever else writes gets their turn."""

_Item = TypeVar("_Item")

key_file = click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with one kid:base64 key (`broker keys generate`) that grants are sealed for.",
)


@click.command("export")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write there; standard output if not.")
@key_file
@click.option("--after", help="Reference of the last connection that an export broken off has written.")
@with_appcontext
def export_connections(output: Path | None, key_file: Path | None, after: str | None) -> None:
    """Write every live connection as a JSON line; without --key-file their grants stay here."""
    lines = services().moving.export(key=_key(key_file), after=after)
    # Grants are sealed, but names and addresses of people are nobody else's business either.
    if output is None:
        _write(lines, sys.stdout.buffer.write)
        sys.stdout.buffer.flush()
        return
    output.touch(mode=0o600)
    with output.open("wb" if after is None else "ab") as file:
        _write(lines, file.write)


def _write(lines: Iterable[str], write: Callable[[bytes], object]) -> None:
    count = 0
    for line in _with_progress(lines, "written"):
        write(f"{line}\n".encode())
        count += 1
    click.echo(f"{count:,} connections written.", err=True)


@click.command("import")
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--csv", "as_table", is_flag=True, help="It is a CSV of existing tokens, and not an export.")
@key_file
@with_appcontext
def import_connections(source: Path, key_file: Path | None, *, as_table: bool) -> None:
    """Move connections in; what is here already is left alone, so it can be run again. Exit 1 when a line was bad."""
    # In a shell with another key of the same name everything would go in, and nothing of it would open.
    services().key_ring.require_sealing()
    moving = services().moving
    counts = dict.fromkeys(Outcome, 0)
    if as_table:
        with source.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as rows:
            _count(moving.take_table(rows), counts)
    else:
        with source.open("rb") as lines:
            _count(moving.take_lines(lines, key=_key(key_file)), counts)
    click.echo(
        f"{counts[Outcome.SAVED]:,} moved in, {counts[Outcome.HERE_ALREADY]:,} were here already, "
        f"{counts[Outcome.BAD]:,} bad."
    )
    if counts[Outcome.BAD]:
        raise SystemExit(1)


def _count(outcomes: Iterable[LineOutcome], counts: dict[Outcome, int]) -> None:
    for number, each in enumerate(_with_progress(outcomes, "read"), 1):
        counts[each.outcome] += 1
        if number % WRITTEN_AT_ONCE == 0:
            time.sleep(BREATH_SECONDS)
        if each.outcome is Outcome.BAD:
            click.echo(f"line {each.line}: {each.problem}", err=True)


def _with_progress(items: Iterable[_Item], verb: str) -> Iterator[_Item]:
    """Hand items on and say on standard error how far it has come."""
    started = time.monotonic()
    for number, item in enumerate(items, 1):
        yield item
        if number % PROGRESS_EVERY == 0:
            rate = number / max(time.monotonic() - started, 0.001)
            click.echo(f"{number:,} {verb}, {rate:,.0f} per second", err=True)


def _key(path: Path | None) -> EncryptionKey | None:
    if path is None:
        return None
    try:
        return one_key(path.read_text().strip())
    except ValueError as problem:
        raise LineRefused(f"{path}: {problem}") from None
