"""`broker doctor`: is everything as it must be, and if not, what mends it."""

from __future__ import annotations

from dataclasses import asdict

import click
from flask.cli import with_appcontext

from broker.cli.printing import iso, json_option, say_json
from broker.web import services


@click.command()
@json_option
@with_appcontext
def doctor(*, as_json: bool) -> None:
    """Check everything this deployment depends on; exit 1 when something is wrong."""
    report = services().doctor.examine()
    if as_json:
        say_json(
            {
                "checked_at": iso(report.at),
                "ok": not report.has_failures,
                "checks": [asdict(check) for check in report.checks],
                "register": [asdict(address) for address in report.addresses],
            }
        )
    else:
        for check in report.checks:
            about = f"{check.name} ({check.app})" if check.app else check.name
            click.echo(f"{check.state.upper():4}  {about:24}  {check.sentence}")
            if check.fix and check.state in ("fail", "warn"):
                click.echo(f"{'':32}{check.fix}")
        click.echo("\nAddresses to register at the providers, where they cannot be read:")
        for address in report.addresses:
            click.echo(f"  {address.title} ({address.app}), {address.what}: {address.address}")
    if report.has_failures:
        raise SystemExit(1)
