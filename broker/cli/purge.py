"""`broker purge`: forgetting what the retention settings say."""

from __future__ import annotations

import click
from flask.cli import with_appcontext

from broker.cli.printing import json_option, say_json, say_table
from broker.web import services


@click.command()
@json_option
@with_appcontext
def purge(*, as_json: bool) -> None:
    """Forget now what is older than [retention] allows; a worker does the same every hour, a part at a time."""
    found = dict(services().purge.purge(budget=1_000_000))
    if as_json:
        say_json({"purged": found})
        return
    say_table(("what", "forgotten"), list(found.items()))
