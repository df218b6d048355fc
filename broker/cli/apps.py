"""`broker apps …`: our OAuth apps and those that Sequin has."""

from __future__ import annotations

from dataclasses import asdict

import click
from flask.cli import with_appcontext

from broker.cli.printing import json_option, say_json, say_table
from broker.matching import AppMatch
from broker.web import services


@click.group()
def apps() -> None:
    """OAuth apps, and how they match Sequin's."""


@apps.command("list")
@json_option
@with_appcontext
def list_apps(*, as_json: bool) -> None:
    """List the configured OAuth apps and what Sequin has for each."""
    _show(services().oauth_apps.survey(), as_json=as_json)


@apps.command()
@click.option("--create", is_flag=True, help="Register in Sequin what is missing there.")
@json_option
@with_appcontext
def sync(*, create: bool, as_json: bool) -> None:
    """Compare with Sequin and let held imports go out; exit 1 when anything is left unmatched."""
    found = services().oauth_apps.sync(create=create, host=services().settings.branding.name)
    _show(found, as_json=as_json)
    if not all(one.is_usable for one in found):
        raise SystemExit(1)


def _show(found: list[AppMatch], *, as_json: bool) -> None:
    if as_json:
        say_json({"data": [asdict(one) for one in found]})
        return
    say_table(
        ("key", "provider", "client id", "state", "sequin id", "sequin name"),
        [(one.key, one.provider, one.client_id, one.state, one.sequin_id, one.sequin_name) for one in found],
    )
    for one in found:
        created = "Registered now. " if one.created else ""
        click.echo(f"\n{one.key}: {created}{one.sentence}")
        if one.cure:
            click.echo(f"  {one.cure}")
