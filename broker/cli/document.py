"""`broker openapi`: the API's document, without settings or a running broker."""

from __future__ import annotations

import click

from broker.cli.printing import say_json
from broker.web.api.openapi import document


@click.command()
def openapi() -> None:
    """Print the OpenAPI document of the host API; a running broker serves its own at /openapi.json."""
    say_json(document())
