"""`broker apikey|operator|links|connections|jobs …`: looking after what the database holds."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click
from flask.cli import with_appcontext

from broker.answers import connection_answer
from broker.apikeys import Scope
from broker.audit import COMMAND_LINE
from broker.cli.checks import check, forget
from broker.cli.moving import export_connections, import_connections
from broker.cli.printing import iso, json_option, say_json, say_table
from broker.connection_search import ConnectionFilters
from broker.connections import ConnectionView
from broker.links import LinkRequest
from broker.models import Role
from broker.secret import Secret
from broker.status import Status
from broker.web import services

PAGE = 100


# --- API keys -----------------------------------------------------------------------------------------


@click.group()
def apikey() -> None:
    """Keys with which the host's backend calls the API."""


@apikey.command("create")
@click.option("--name", required=True, help="What the key is for; shown in lists and in the audit trail.")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="Repeat it; all by default.",
)
@json_option
@with_appcontext
def create_key(name: str, scopes: tuple[str, ...], *, as_json: bool) -> None:
    """Make a key; it is shown this once."""
    public_id, key = services().api_keys.create(name, scopes or None)
    if as_json:
        say_json({"id": public_id, "key": key.reveal()})
        return
    click.echo(f"{key.reveal()}\nThis is {public_id}. The key is shown only now: put it where your backend reads it.")


@apikey.command("list")
@json_option
@with_appcontext
def list_keys(*, as_json: bool) -> None:
    """List keys, without the keys themselves."""
    found = services().api_keys.list()
    if as_json:
        say_json({"data": [asdict(key) | _times(key, "created_at", "last_used_at", "revoked_at") for key in found]})
        return
    say_table(
        ("id", "name", "scopes", "created", "last used", "revoked"),
        [(key.id, key.name, key.scopes, key.created_at, key.last_used_at, key.revoked_at) for key in found],
    )


@apikey.command("revoke")
@click.argument("key_id")
@with_appcontext
def revoke_key(key_id: str) -> None:
    """Make a key useless from its next call on."""
    services().api_keys.revoke(key_id)
    click.echo(f"{key_id} is revoked.")


# --- operators ----------------------------------------------------------------------------------------


@click.group()
def operator() -> None:
    """Staff who watch connections."""


@operator.command("create")
@click.option("--email", required=True)
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@json_option
@with_appcontext
def create_operator(email: str, role: str, *, as_json: bool) -> None:
    """Make an operator; the password comes from the prompt, or from standard input when that is no terminal."""
    if sys.stdin.isatty():
        password = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    created = services().operators.create(email, Secret(password), role)
    if as_json:
        say_json({"email": created.email, "role": created.role})
        return
    click.echo(f"{created.email} may now sign in at {services().settings.public_url}/ops/ as {created.role}.")


@operator.command("list")
@json_option
@with_appcontext
def list_operators(*, as_json: bool) -> None:
    """List operators."""
    found = services().operators.list()
    if as_json:
        say_json({"data": [
            {
                "email": one.email, "role": one.role, "openid": one.has_openid, "sessions": one.sessions,
                **_times(one, "created_at", "disabled_at"),
            }
            for one in found
        ]})  # fmt: skip
        return
    say_table(
        ("email", "role", "OpenID", "signed in", "created", "disabled"),
        [
            (o.email, o.role, "yes" if o.has_openid else "no", o.sessions, o.created_at, o.disabled_at) for o in found
        ],
    )  # fmt: skip


@operator.command("disable")
@click.option("--email", required=True)
@with_appcontext
def disable_operator(email: str) -> None:
    """Stop an operator from signing in, and sign them out everywhere."""
    services().operators.disable(email)
    click.echo(f"{email} can no longer sign in.")


@operator.command("sign-out")
@click.option("--email", required=True)
@with_appcontext
def sign_out_operator(email: str) -> None:
    """Sign an operator out in every browser; they may sign in again."""
    count = services().sessions.end_all(email)
    click.echo(f"{email} is signed out of {count} {'browser' if count == 1 else 'browsers'}.")


@operator.command("unlink")
@click.option("--email", required=True)
@with_appcontext
def unlink_operator(email: str) -> None:
    """Forget which account at the OpenID provider is this operator's, so that another can be."""
    services().operators.unlink(email)
    click.echo(f"{email} is no longer tied to an account at the OpenID provider.")


# --- connect links ------------------------------------------------------------------------------------


@click.group()
def links() -> None:
    """Connect links."""


@links.command("create")
@click.option("--end-user", required=True, help="The host's own id of the person.")
@click.option("--email", help="Shown to the person, so that they see whose account it is.")
@click.option("--app", "apps", multiple=True, help="Key of an OAuth app to offer; repeat it; all by default.")
@click.option("--return-url", help="Where 'Back' leads; its origin must be in BROKER_RETURN_ORIGINS.")
@click.option("--manage", is_flag=True, help="Open the person's whole page of connected accounts.")
@json_option
@with_appcontext
def create_link(
    end_user: str, email: str | None, apps: tuple[str, ...], return_url: str | None, *, manage: bool, as_json: bool
) -> None:
    """Make a connect link for one person; its address is shown this once."""
    request = LinkRequest(end_user_id=end_user, email=email, apps=apps or None, return_url=return_url, manage=manage)
    created = services().links.create(request, created_by="cli")
    if as_json:
        say_json({"id": created.id, "url": created.url, "expires_at": iso(created.expires_at)})
        return
    click.echo(f"{created.url}\nThis is {created.id}. It works until {iso(created.expires_at)}.")


@links.command("list")
@json_option
@with_appcontext
def list_links(*, as_json: bool) -> None:
    """List the newest links and how far each has come."""
    found = services().links.list(limit=PAGE)
    if as_json:
        say_json({"data": [
            {"id": one.id, "state": one.state, "end_user": one.end_user_id, "apps": one.apps,
             **_times(one, "created_at", "expires_at")}
            for one in found
        ]})  # fmt: skip
        return
    say_table(
        ("id", "state", "end user", "apps", "created", "expires"),
        [(one.id, one.state, one.end_user_id, one.apps or "all", one.created_at, one.expires_at) for one in found],
    )


@links.command("revoke")
@click.argument("link_id")
@with_appcontext
def revoke_link(link_id: str) -> None:
    """Take a link back."""
    services().links.revoke(link_id)
    click.echo(f"{link_id} is revoked.")


# --- connections --------------------------------------------------------------------------------------


@click.group()
def connections() -> None:
    """Connected accounts."""


@connections.command("list")
@click.option("--end-user", help="Only this person's.")
@click.option("--status", type=click.Choice([status.value for status in Status]), help="Only with this status.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=PAGE, show_default=True)
@json_option
@with_appcontext
def list_connections(end_user: str | None, status: str | None, limit: int, *, as_json: bool) -> None:
    """List connections, newest first."""
    filters = ConnectionFilters(end_user=end_user, status=Status(status) if status else None)
    found: list[ConnectionView] = []
    cursor = None
    while len(found) < limit:
        page = services().connections.page(filters, limit=min(PAGE, limit - len(found)), cursor=cursor)
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    if as_json:
        say_json({"data": [connection_answer(one).model_dump(mode="json") for one in found]})
        return
    say_table(
        ("ref", "status", "app", "account", "mode", "end user", "imported"),
        [
            (
                one.ref,
                one.status,
                one.app,
                one.account.name if one.account else None,
                one.account.mode if one.account else None,
                one.end_user.id,
                one.hand_off.imported_at,
            )
            for one in found
        ],
    )


@connections.command("show")
@click.argument("ref")
@json_option
@with_appcontext
def show_connection(ref: str, *, as_json: bool) -> None:
    """Show one connection."""
    found = services().connections.find(ref)
    answer = connection_answer(found).model_dump(mode="json")
    if as_json:
        say_json(answer)
        return
    steps = answer.pop("steps")
    for name, value in answer.items():
        click.echo(f"{name:12} {value}")
    for step in steps:
        click.echo(f"{step['name']:12} {step['state']:8} {step['at'] or ''}".rstrip())
    click.echo(f"{'cure':12} {found.operator_note}")


@connections.command("retry")
@click.argument("ref")
@with_appcontext
def retry_connection(ref: str) -> None:
    """Import a connection again that did not arrive."""
    services().connections.retry(ref, actor=COMMAND_LINE)
    click.echo(f"{ref} will be imported again.")


@connections.command("disconnect")
@click.argument("ref")
@with_appcontext
def disconnect_connection(ref: str) -> None:
    """End a connection: here at once, at the provider and in Sequin by the worker."""
    services().disconnections.request(ref, actor=COMMAND_LINE)
    ended = services().connections.find(ref)
    click.echo(f"{ref} is disconnected. {ended.operator_note}")


connections.add_command(check)
connections.add_command(forget)
connections.add_command(export_connections)
connections.add_command(import_connections)


# --- jobs ---------------------------------------------------------------------------------------------


@click.group()
def jobs() -> None:
    """Work that waits, runs, or is parked."""


@jobs.command("list")
@json_option
@with_appcontext
def list_jobs(*, as_json: bool) -> None:
    """List unfinished jobs, parked ones first."""
    found = services().jobs.unfinished()
    if as_json:
        say_json({"data": [asdict(job) | _times(job, "due_at", "failing_since") for job in found]})
        return
    say_table(
        ("id", "kind", "state", "due", "failures", "since", "error", "detail"),
        [(j.id, j.kind, j.state, j.due_at, j.failures, j.failing_since, j.error, j.error_detail) for j in found],
    )


@jobs.command("retry")
@click.argument("job_id", type=int, required=False)
@click.option("--all", "everything", is_flag=True, help="Every parked job.")
@with_appcontext
def retry_jobs(job_id: int | None, *, everything: bool) -> None:
    """Run a parked job again, or all of them."""
    if (job_id is None) == (not everything):
        raise click.UsageError("Name a job, or say --all.")
    count = services().jobs.rearm(job_id)
    click.echo(f"{count} {'job' if count == 1 else 'jobs'} will run again.")


def _times(record: object, *names: str) -> dict[str, str | None]:
    return {name: iso(getattr(record, name)) for name in names}
