"""`broker audit …`: whether the audit trail is as it was written."""

from __future__ import annotations

import re
from dataclasses import asdict

import click
from flask.cli import with_appcontext

from broker.audit_chain import Inspection
from broker.cli.printing import iso, json_option, say_json, say_table
from broker.web import services

_MARK = re.compile(r"[1-9][0-9]{0,17}:[0-9a-f]{64}")


@click.group()
def audit() -> None:
    """The trail of who did what to what."""


def _mark(_context: click.Context, _option: click.Parameter, value: str) -> str:
    if value and not _MARK.fullmatch(value):
        raise click.BadParameter("it is NUMBER:DIGEST, as an earlier `broker audit verify` printed it.")
    return value


@audit.command()
@click.option(
    "--expect", default="", metavar="NUMBER:DIGEST", callback=_mark,
    help="A mark that an earlier run printed: finds a chain that was replaced as a whole.",
)  # fmt: skip
@json_option
@with_appcontext
def verify(expect: str, *, as_json: bool) -> None:
    """Find records that were altered, deleted, inserted or put in another order; exit 1 if any were."""
    found = services().audit_chain.inspect(expected=expect)
    if as_json:
        say_json(_as_json(found))
    else:
        _say(found)
    if not found.is_intact:
        raise SystemExit(1)


def _as_json(found: Inspection) -> dict[str, object]:
    return {
        "intact": found.is_intact,
        "verified": found.looked_at,
        "purged": found.anchor,
        "unsealed": found.unsealed,
        "unsealed_since": iso(found.waiting_since),
        "mark": found.mark or None,
        "other_keys": [asdict(key) for key in found.other_keys],
        "findings": [asdict(finding) for finding in found.findings],
        "findings_count": found.count,
    }


def _say(found: Inspection) -> None:
    if found.findings:
        say_table(
            ("what", "number", "record", "finding"),
            [(one.kind, one.number, one.record_id, one.sentence) for one in found.findings],
        )
    for key in found.other_keys:
        click.echo(f"Numbers {key.first} to {key.last} were sealed with another key, {key.key_id}.")
    if found.unsealed:
        click.echo(f"{found.unsealed} not sealed yet; a worker does it within seconds.")
    if found.mark:
        click.echo(f"Note this elsewhere, to be given to --expect: {found.mark}")
    if found.is_intact:
        click.echo(f"{found.looked_at} records are as they were sealed; {found.anchor} before them were purged.")
        return
    click.echo(f"{found.count} findings. Keep a copy of the database before anything else.", err=True)
