"""`broker keys …`: the key ring that seals grants."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from broker.settings import generate_key
from broker.web import services


@click.group()
def keys() -> None:
    """Make and check encryption keys."""


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
    click.echo("Every key opens its canary.")
