"""`broker …`: the command line. Also `python -m broker` and, for what needs the application, `flask --app wsgi …`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TextIO

import click
from flask import Flask
from flask.cli import AppGroup, ScriptInfo

from broker import __version__
from broker.errors import BrokerError

COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "web": "processes",
        "worker": "processes",
        "demo": "rehearsal",
        "sandbox": "rehearsal",
        "doctor": "doctor",
        "purge": "purge",
        "audit": "audit",
        "apps": "apps",
        "apikey": "records",
        "operator": "records",
        "links": "records",
        "connections": "records",
        "jobs": "records",
        "keys": "keys",
        "db": "schema",
        "openapi": "document",
    }
)
"""Where each command is. Its module is imported when the command is used: a sandbox needs no database library."""


class BrokerCommands(AppGroup):
    """The commands, found when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, ours and those added to the application."""
        return sorted({*COMMANDS, *super().list_commands(ctx)})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by name, None when there is no such command."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        found: click.Command = getattr(import_module(f"{__name__}.{COMMANDS[cmd_name]}"), cmd_name)
        return found

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; every error of ours ends as a sentence on standard error and exit code 1."""
        try:
            return super().invoke(ctx)
        except BrokerError as failure:
            from broker.cli.printing import complain

            complain(failure)
            ctx.exit(1)


@click.group(cls=BrokerCommands, name="broker")
@click.version_option(__version__, prog_name="broker")
@click.option(
    "--env-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read settings from this file instead of ./.env; the environment still wins.",
)
@click.pass_context
def broker(context: click.Context, env_file: Path | None) -> None:
    """Run and look after the OAuth broker."""
    # Built by the first command that needs it: `--help`, `keys generate` and `sandbox` work without settings.
    # A server's events are its output; a command's output is what it prints, so there they go to standard error.
    serves = context.invoked_subcommand in ("web", "worker")
    log_to = sys.stdout if serves else sys.stderr
    context.obj = ScriptInfo(create_app=lambda: _application(env_file, log_to))


def _application(env_file: Path | None, log_to: TextIO) -> Flask:
    from broker.app import create_app, read_settings

    return create_app(read_settings(env_file), log_to=log_to)


def main() -> None:
    """Run the command line."""
    # Tables hold people's names; a terminal without UTF-8 must not end the command.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    broker.main(prog_name="broker")
