"""The one transaction that turns a grant into a connection: claim, connection, link, audit row, delivery."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import OfferedApp
from broker.connection_metadata import index_metadata
from broker.db import table
from broker.errors import AccountDisconnected, AccountTaken, BrokerError, LinkSpent, Unreadable, Verdict
from broker.events import EventType
from broker.jobs import Jobs
from broker.journal import flow_binding
from broker.links import BY_PERSON
from broker.models import Claim, ConnectedAccount, EndUser, Flow, FlowState, ImportState, Job, JobState, Link, LinkUse
from broker.oauth import Grant
from broker.providers.base import Account
from broker.references import new_ref
from broker.timeline import note
from broker.vault import Binding, Vault

END_REPLACED_AFTER = timedelta(minutes=2)
"""When a token that a reconnect has replaced is ended at the earliest: Sequin is still using it."""

_claims = table(Claim)
_connections = table(ConnectedAccount)
_flows = table(Flow)
_jobs = table(Job)
_links = table(Link)
_uses = table(LinkUse)
_people = table(EndUser)

# Built once: every flow runs them, and building a statement costs more than running it. What is written is given with
# the parameters.
_FLOW = sa.update(_flows).where(_flows.c.id == sa.bindparam("key"))
_END_FLOW = _FLOW.where(_flows.c.state == FlowState.REDEEMING).returning(
    _flows.c.end_user_id, _flows.c.link_id, _flows.c.grant_received_at, _flows.c.selector, _flows.c.chosen_account_id
)
_HOST = (
    sa.select(_links.c.host_metadata, _links.c.created_by, _people.c.external_id)
    .join(_people, _people.c.id == _links.c.end_user_id)
    .where(_links.c.id == sa.bindparam("link"))
)
_CONNECTED_BEFORE = sa.select(
    _connections.c.id, _connections.c.ref, _connections.c.disconnected_at, _connections.c.host_metadata,
).where(
    _connections.c.end_user_id == sa.bindparam("person"),
    _connections.c.app_key == sa.bindparam("app"),
    _connections.c.account_id == sa.bindparam("account"),
    _connections.c.mode == sa.bindparam("mode"),
)  # fmt: skip
_HELD = sa.select(_connections.c.token_version, _connections.c.grant_sealed).where(
    _connections.c.id == sa.bindparam("key")
)
_ADD = sa.insert(_connections).returning(_connections)
_RENEW = sa.update(_connections).where(_connections.c.id == sa.bindparam("key")).returning(_connections)
_ENDS_CONNECTION = (
    # The jobs that end access to an account after a disconnect.
    sa.select(_jobs.c.id)
    .join(_connections, _connections.c.id == _jobs.c.subject_id)
    .where(
        _jobs.c.kind == "revoke",
        _connections.c.app_key == sa.bindparam("app"),
        _connections.c.account_id == sa.bindparam("account"),
        _connections.c.mode == sa.bindparam("mode"),
    )
)
_ENDS_FLOW = (
    # And after a flow that made no connection.
    sa.select(_jobs.c.id)
    .join(_flows, _flows.c.id == _jobs.c.subject_id)
    .where(
        _jobs.c.kind == "discard",
        _flows.c.app_key == sa.bindparam("app"),
        _flows.c.account_id == sa.bindparam("account"),
        _flows.c.account_mode == sa.bindparam("mode"),
    )
)
_ENDING = (
    sa.select(_jobs.c.state, _jobs.c.updated_at)
    # Apart, so that each way is found through its own index.
    .where(_jobs.c.id.in_(_ENDS_CONNECTION.union_all(_ENDS_FLOW)))
    .with_for_update()
)


def _claiming(insert: Any) -> Any:
    return (
        insert(_claims)
        .on_conflict_do_update(
            index_elements=["app_key", "account_id", "mode"], set_={"end_user_id": _claims.c.end_user_id}
        )
        .returning(_claims.c.end_user_id)
    )


_CLAIM = {"sqlite": _claiming(sqlite.insert), "postgresql": _claiming(postgresql.insert)}
# RETURNING and not the row count: drivers disagree on what that is here.
_SPEND = {
    "sqlite": sqlite.insert(_uses).on_conflict_do_nothing().returning(_uses.c.link_id),
    "postgresql": postgresql.insert(_uses).on_conflict_do_nothing().returning(_uses.c.link_id),
}


class AccountEnding(BrokerError):
    """Access to this account was being ended at the provider while it was proven: it has to be proven again."""

    code = "account_ending"
    verdict = Verdict.RETRY
    cure = "Nothing to do: it is tried again by itself."


@dataclass(frozen=True)
class Attachment:
    """What is to become a connection: a proven account and the grant that reaches it."""

    flow_id: int
    flow_ref: str
    app: OfferedApp
    account: Account
    grant: Grant
    # When the proof began.
    proven_from: datetime


def account_wanted(connection: Connection, connection_id: int | None) -> tuple[str, str] | None:
    """Return id and mode of the account of a connection that is to be connected again; None when it is gone."""
    row = connection.execute(
        sa.select(_connections.c.account_id, _connections.c.mode).where(_connections.c.id == connection_id)
    ).one_or_none()
    return None if row is None else (row.account_id, row.mode)


def grant_binding(ref: str, token_version: int) -> Binding:
    """Return where a connection's sealed grant may be opened."""
    return Binding("connections", "grant", ref, token_version)


def attach(connection: Connection, what: Attachment, *, vault: Vault, jobs: Jobs, now: datetime) -> str | None:
    """Do it all in the caller's transaction and return the connection's reference.

    Returns None when the flow has ended meanwhile (another process finished it). Raises AccountTaken,
    AccountDisconnected, AccountEnding or LinkSpent; the caller must then roll back.
    """
    flow = connection.execute(
        _END_FLOW,
        {
            "key": what.flow_id, "state": FlowState.DONE, "hold": None, "grant_sealed": None, "choices": None,
            "updated_at": now, "ended_at": now,
        },
    ).one_or_none()  # fmt: skip
    if flow is None:
        return None
    claim_account(connection, what.app.key, what.account, flow.end_user_id)
    require_settled(connection, what.app.key, what.account, what.proven_from)
    host = connection.execute(_HOST, {"link": flow.link_id}).one()
    saved = _save(connection, what, flow, host, vault=vault, jobs=jobs, now=now)
    connection.execute(_FLOW, {"key": what.flow_id, "connection_id": saved.id})
    spend_link(connection, flow.link_id, what.app.key, saved.id, now)
    ref: str = saved.ref
    note(connection, what.flow_id, "attached", at=now, detail=ref)
    audit.record(
        connection, at=now, actor_kind="end_user", actor=what.flow_ref, action="connection.connected",
        target=ref, detail={"app": what.app.key, "account": what.account.id, "mode": what.account.mode},
    )  # fmt: skip
    events.changed_row(connection, saved, host.external_id, at=now, what=EventType.CONNECTED)
    jobs.cancel(connection, "finish", what.flow_id)
    return ref


def claim_account(connection: Connection, app_key: str, account: Account, end_user_id: int) -> None:
    """Take the account for this end user. Raises AccountTaken when somebody else has it."""
    if _claim(connection, app_key, account, end_user_id) != end_user_id:
        raise AccountTaken


def _claim(connection: Connection, app_key: str, account: Account, end_user_id: int) -> int:
    """Take the account for this end user unless somebody has it, and return who has it then.

    The row also serialises whatever is decided about one account.
    """
    claim = {"app_key": app_key, "account_id": account.id, "mode": account.mode, "end_user_id": end_user_id}
    owner: int = connection.execute(_CLAIM[connection.dialect.name], claim).scalar_one()
    return owner


def outwait(connection: Connection, app_key: str, account: Account, end_user_id: int) -> None:
    """Wait until nobody is in the middle of attaching this account; whoever begins after that sees what was
    committed before. Rolls the caller's transaction back, so that it leaves nothing behind.
    """
    _claim(connection, app_key, account, end_user_id)
    connection.rollback()


def require_settled(connection: Connection, app_key: str, account: Account, proven_from: datetime) -> None:
    """Raise AccountEnding when access to this account is being ended at the provider, or was while it was proven.

    Ending it there ends it for every grant of the account, so the one in hand may be dead by now. The rows stay
    locked until this commits: nobody takes up such work meanwhile, and afterwards they see this connection. (Work
    that only now finds out which account it is about waits for the claim instead: `outwait`.)
    """
    which = {"app": app_key, "account": account.id, "mode": account.mode}
    rows = connection.execute(_ENDING, which).all()
    if any(row.state == JobState.RUNNING or row.updated_at > proven_from for row in rows):
        raise AccountEnding


def _save(
    connection: Connection,
    what: Attachment,
    flow: Row[Any],
    host: Row[Any, Any, Any],
    *,
    vault: Vault,
    jobs: Jobs,
    now: datetime,
) -> Row[Any]:
    """Save the connection with its delivery and return its row; in place when the account was connected before."""
    account = what.account
    key = {"person": flow.end_user_id, "app": what.app.key, "account": account.id, "mode": account.mode}
    existing = connection.execute(_CONNECTED_BEFORE, key).one_or_none()
    # What the host says of a connection is not for the person to take away, who makes a link that says nothing.
    told = existing if existing is not None and host.created_by == BY_PERSON else host
    metadata: dict[str, Any] = told.host_metadata
    ref, version, revived = new_ref(), 1, None
    if existing:
        # Jobs before the connection, as the worker takes them: the other order could deadlock.
        revived = _revive(connection, flow, existing, jobs) if existing.disconnected_at else None
        jobs.enqueue(connection, "import", existing.id, after=revived or timedelta(0))
        jobs.cancel(connection, "refresh", existing.id)
        # A refresh commits with the import's job in hand, so from here on nothing changes what is held.
        held = connection.execute(_HELD, {"key": existing.id}).one()
        ref, version = existing.ref, held.token_version + 1
        _end_later(connection, what, ref, held, vault=vault, jobs=jobs)
    values: dict[str, Any] = {
        "provider": what.app.provider.name,
        "kind": what.app.kind,
        "account_name": account.name,
        "account_type": account.type,
        "account_facts": dict(account.facts),
        "scopes": list(what.grant.scopes),
        "host_metadata": metadata,
        "grant_sealed": vault.seal(what.grant.to_json(), grant_binding(ref, version)),
        "grant_expires_at": what.grant.expires_at,
        "refresh_expires_at": what.grant.refresh_expires_at,
        "token_version": version,
        **afresh(now),
    }
    if existing:
        _refresh_in_time(connection, existing.id, what, jobs=jobs, now=now)
        if revived is not None:
            # The credential is made anew, and has no metadata.
            values["metadata_digest"] = None
        index_metadata(connection, existing.id, metadata)
        return connection.execute(_RENEW, {"key": existing.id, **values}).one()
    created = connection.execute(
        _ADD,
        {
            "ref": ref, "end_user_id": flow.end_user_id, "app_key": what.app.key, "account_id": account.id,
            "mode": account.mode, "created_at": now, **values,
        },
    ).one()  # fmt: skip
    index_metadata(connection, created.id, metadata, is_new=True)
    jobs.enqueue(connection, "import", created.id)
    _refresh_in_time(connection, created.id, what, jobs=jobs, now=now)
    return created


def _end_later(
    connection: Connection, what: Attachment, ref: str, held: Row[Any, Any], *, vault: Vault, jobs: Jobs
) -> None:
    """Leave the token that this connection had to the flow that brings another one, and to the job that ends it.

    It works for as long as Sequin has nothing newer. Unless it is ended it stays at the provider, which may keep only
    so many of them for a person.
    """
    if held.grant_sealed is None or not what.app.provider.ends_replaced:
        return
    try:
        before = Grant.from_json(vault.open(held.grant_sealed, grant_binding(ref, held.token_version))).access_token
    except Unreadable:
        return
    if before is None or before == what.grant.access_token:
        return
    left = json.dumps({"access_token": before.reveal(), "token_type": "bearer"}).encode()
    sealed = vault.seal(left, flow_binding(what.flow_ref))
    connection.execute(_FLOW, {"key": what.flow_id, "grant_sealed": sealed})
    jobs.enqueue(connection, "discard", what.flow_id, after=END_REPLACED_AFTER)


def afresh(now: datetime) -> dict[str, object]:
    """Return what every connection starts with, and starts with again when it is renewed."""
    nothing = (
        "refreshing_since", "interrupted_at", "import_error", "import_error_detail", "imported_at", "verified_at",
        "health", "health_note", "checked_at", "failing_since", "trouble", "probed_at", "revoked_at",
        "disconnected_at", "revocation", "removal", "drift", "drifted_at",
    )  # fmt: skip
    return {
        **dict.fromkeys(nothing), "import_state": ImportState.PENDING, "connected_at": now, "updated_at": now,
    }  # fmt: skip


def _refresh_in_time(
    connection: Connection, connection_id: int, what: Attachment, *, jobs: Jobs, now: datetime
) -> None:
    if not what.app.refreshes:
        return
    after = what.grant.refresh_after(now, random.random())  # noqa: S311 - spreads work out
    if after is not None:
        jobs.enqueue(connection, "refresh", connection_id, after=after)


def _revive(connection: Connection, flow: Row[Any], ended: Row[*tuple[Any, ...]], jobs: Jobs) -> timedelta:
    """Take back what a disconnect still has to do and return how long the import has to wait for it.

    Raises AccountDisconnected when the person did nothing for this flow after the disconnect, which then wins.
    """
    # An account picked on the way was picked after the grant arrived, maybe after the disconnect too.
    picked = flow.selector is not None or flow.chosen_account_id is not None
    if flow.grant_received_at is not None and flow.grant_received_at < ended.disconnected_at and not picked:
        raise AccountDisconnected
    return take_back_ending(connection, ended.id, jobs)


def take_back_ending(connection: Connection, connection_id: int, jobs: Jobs) -> timedelta:
    """Take back what a disconnect still has to do and return how long the next import has to wait for it."""
    jobs.cancel(connection, "revoke", connection_id)
    # A deletion under way may still reach Sequin: an import before it would be deleted again.
    return jobs.take_back(connection, "remove", connection_id) or timedelta(0)


def spend_link(connection: Connection, link_id: int, app_key: str, connection_id: int, now: datetime) -> None:
    """Spend a link for an OAuth app. Raises LinkSpent when it was spent before."""
    use = {"link_id": link_id, "app_key": app_key, "connection_id": connection_id, "spent_at": now}
    if connection.execute(_SPEND[connection.dialect.name], use).scalar_one_or_none() is None:
        raise LinkSpent
