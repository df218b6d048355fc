"""`broker connections check`: reading credentials back from Sequin, one or all, and sweeping for orphans."""

from __future__ import annotations

from collections.abc import Iterator

import click
from flask.cli import with_appcontext

from broker.audit import COMMAND_LINE
from broker.cli.printing import json_option, say_json, say_table
from broker.connection_search import ConnectionFilters
from broker.connections import ConnectionView
from broker.errors import BrokerError
from broker.web import services

PAGE = 100


@click.command("check")
@click.argument("ref", required=False)
@click.option("--all", "everything", is_flag=True, help="Every connection, and a sweep for credentials nobody owns.")
@json_option
@with_appcontext
def check(ref: str | None, *, everything: bool, as_json: bool) -> None:
    """Check in Sequin what was imported; exit 1 when that could not be done."""
    if (ref is None) == (not everything):
        raise click.UsageError("Name a connection, or say --all.")
    wanted = _all() if ref is None else iter([services().connections.find(ref)])
    found = [_checked(connection) for connection in wanted]
    orphans = [
        {"credential_id": orphan.credential_id, "claimed_ref": orphan.claimed_ref}
        for orphan in (services().reconciliation.sweep() if everything else [])
    ]
    if as_json:
        say_json({"data": found, "orphans": orphans})
    else:
        _print(found, orphans)
    if any(each["state"] == "unchecked" for each in found):
        raise SystemExit(1)


def _all() -> Iterator[ConnectionView]:
    cursor = None
    while True:
        page = services().connections.page(ConnectionFilters(), limit=PAGE, cursor=cursor)
        yield from page.items
        cursor = page.next_cursor
        if cursor is None:
            return


def _checked(connection: ConnectionView) -> dict[str, str | None]:
    """Check one; what stops one does not stop the others."""
    told: dict[str, str | None] = {"ref": connection.ref, "state": "ok", "found": None, "sentence": None, "cure": None}
    if connection.disconnected_at is not None or connection.hand_off.imported_at is None:
        return told | {"state": "skipped", "sentence": connection.operator_note}
    try:
        drift = services().verifications.check(connection.id)
    except BrokerError as failure:
        return told | {"state": "unchecked", "found": failure.code, "sentence": failure.detail, "cure": failure.cure}
    if drift is None:
        return told
    return told | {"state": "drift", "found": drift.code, "sentence": drift.sentence, "cure": drift.remedy}


def _print(found: list[dict[str, str | None]], orphans: list[dict[str, str]]) -> None:
    wrong = [each for each in found if each["state"] in ("drift", "unchecked")]
    say_table(("ref", "found", "sentence", "cure"), [(w["ref"], w["found"], w["sentence"], w["cure"]) for w in wrong])
    for orphan in orphans:
        click.echo(
            f"Credential {orphan['credential_id']} in Sequin names {orphan['claimed_ref']}, which does not own it: "
            f"`broker connections forget {orphan['credential_id']}` deletes it there."
        )
    passed = sum(each["state"] == "ok" for each in found)
    click.echo(f"{passed} of {len(found)} passed, {len(wrong)} did not, {len(orphans)} nobody owns.")


@click.command("forget")
@click.argument("credential_id")
@with_appcontext
def forget(credential_id: str) -> None:
    """Delete in Sequin a credential that the sweep found and no connection owns."""
    services().reconciliation.forget(credential_id, actor=COMMAND_LINE)
    click.echo(f"{credential_id} is deleted in Sequin.")
