"""`broker demo` and `broker sandbox`: the broker without any outside account."""

from __future__ import annotations

from pathlib import Path

import click

from broker.cli.printing import until_eof
from broker.lifeline import stop_at_end_of_input


@click.command()
@click.option("--port", type=int, envvar="PORT", default=8000, show_default=True)
@click.option("--sandbox-port", type=int, envvar="SANDBOX_PORT", default=8100, show_default=True)
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), envvar="DATA_DIR", default=Path("instance"),
    show_default=True,
)  # fmt: skip
def demo(port: int, sandbox_port: int, data_dir: Path) -> None:
    """Start sandbox, broker and worker in one go."""
    from broker.demo import Demo

    Demo(port=port, sandbox_port=sandbox_port, data_dir=data_dir).run(click.echo)


@click.command()
@click.option("--port", type=int, envvar="SANDBOX_PORT", default=8100, show_default=True)
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), envvar="DATA_DIR", default=Path("instance"),
    show_default=True,
)  # fmt: skip
@click.option("--print-env", is_flag=True, help="Print the settings that point a broker at this sandbox, and exit.")
@until_eof
def sandbox(port: int, data_dir: Path, *, print_env: bool, until_eof: bool) -> None:
    """Serve stand-ins for the providers and Sequin on this machine."""
    from broker.sandbox import print_environment, serve

    if print_env:
        click.echo(print_environment(port, data_dir), nl=False)
        return
    if until_eof:
        stop_at_end_of_input()
    serve(port, data_dir, announce=click.echo)
