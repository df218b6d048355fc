"""`broker db …`: the database's tables. For making migrations there is `flask --app wsgi migrations …`."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from broker.db import downgrade as take_back
from broker.db import newest_revision, schema_revision
from broker.db import upgrade as bring_up_to_date
from broker.web import services


@click.group()
def db() -> None:
    """The database's tables."""


@db.command()
@with_appcontext
def upgrade() -> None:
    """Bring the tables to what this version needs. Safe to run again, and from several processes at once."""
    bring_up_to_date(services().settings.database_url)
    click.echo(f"The database is at revision {newest_revision()}.")


@db.command()
@click.argument("revision")
@click.confirmation_option(prompt="Is there a backup, and is every other process stopped?")
@with_appcontext
def downgrade(*, revision: str) -> None:
    """Take the tables back to REVISION, for an older version; what only newer ones know is dropped."""
    take_back(services().settings.database_url, revision)
    with services().database.read() as connection:
        click.echo(f"The database is at revision {schema_revision(connection)}.")


@db.command()
@with_appcontext
def current() -> None:
    """Say which revision the tables are at, and which this version needs."""
    with services().database.read() as connection:
        found = schema_revision(connection)
    click.echo(f"The database is at revision {found or 'none'}; this version needs {newest_revision()}.")
