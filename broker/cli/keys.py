"""`broker keys …`: the key ring that seals grants."""

from __future__ import annotations

import time

import click
from flask.cli import with_appcontext

from broker.audit import COMMAND_LINE
from broker.cli.printing import json_option, say_json, say_table
from broker.settings import generate_key
from broker.web import services

BREATH_SECONDS = 0.03
"""Between two transactions, so that whoever else writes gets their turn."""


@click.group()
def keys() -> None:
    """Make, check and change encryption keys."""


@keys.command()
def generate() -> None:
    """Print a new key for BROKER_ENCRYPTION_KEYS."""
    click.echo(generate_key())


@keys.command()
@with_appcontext
def check() -> None:
    """Tell whether the key ring opens what the database holds; exit 1 if not."""
    problems = services().key_ring.check()
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise SystemExit(1)
    click.echo("Every key that has sealed anything opens its canary.")


@keys.command()
@json_option
@with_appcontext
def rotate(*, as_json: bool) -> None:
    """Seal everything again with the first key, while all goes on; run it again if it was cut off."""
    resealed = services().resealing.rotate(actor=COMMAND_LINE, progress=_between_batches)
    if as_json:
        say_json(
            {
                "resealed": dict(resealed.counts),
                "unreadable": list(resealed.unreadable),
                "unreadable_count": resealed.unreadable_count,
            }
        )
    else:
        say_table(("column", "sealed again"), resealed.counts.items())
        for place in resealed.unreadable:
            click.echo(f"No key in BROKER_ENCRYPTION_KEYS opens {place}.", err=True)
    if resealed.unreadable_count:
        click.echo(
            f"{resealed.unreadable_count} left as they are: put the key that sealed them back and run this again, "
            "or ask those people to reconnect.",
            err=True,
        )
        raise SystemExit(1)


def _between_batches(column: str, count: int) -> None:
    click.echo(f"{column}: {count} sealed again", err=True)
    time.sleep(BREATH_SECONDS)


@keys.command()
@click.argument("kid")
@click.option("--lost", is_flag=True, help="It is gone for good: give up what it sealed, unless it is put back.")
@with_appcontext
def retire(*, kid: str, lost: bool) -> None:
    """Forget a key that nothing is sealed with any more, so that it can leave BROKER_ENCRYPTION_KEYS."""
    left = services().resealing.retire(kid, actor=COMMAND_LINE, lost=lost)
    if left:
        click.echo(f"{kid} is given up, and {left} values with it. `broker doctor` names those that are missed.")
        return
    click.echo(f"Nothing is sealed with {kid}. Remove it from BROKER_ENCRYPTION_KEYS.")
