"""A backlog: connections whose import has been waiting, as an outage of Sequin leaves them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import sqlalchemy as sa

from broker.attach import grant_binding
from broker.db import table
from broker.models import Claim, ConnectedAccount, EndUser, ImportState, Job, JobState
from broker.oauth import Grant
from broker.references import new_ref
from broker.secret import Secret
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.e2e.world import World

APART = timedelta(milliseconds=10)
ROWS_AT_ONCE = 500


def plant(world: World, count: int, *, waiting_for: timedelta = timedelta(hours=1)) -> list[str]:
    """Add connections that wait for their import, the oldest first, and return their references in that order.

    The rows are what the callback would have left: a sealed Stripe token of its own, a claim, a delivery.
    """
    began = datetime.now(UTC) - waiting_for
    kid, _, key = world.environment["BROKER_ENCRYPTION_KEYS"].partition(":")
    vault = Vault((EncryptionKey(kid, base64.b64decode(key)),))
    refs = [new_ref() for _ in range(count)]
    with world.database() as connection:
        for start in range(0, count, ROWS_AT_ONCE):
            numbers = range(start, min(start + ROWS_AT_ONCE, count))
            _plant(connection, vault, {number: refs[number] for number in numbers}, began)
    return refs


def _plant(connection: sa.Connection, vault: Vault, refs: dict[int, str], began: datetime) -> None:
    times = {number: began + number * APART for number in refs}
    people = _added(
        connection, EndUser, [{"external_id": f"waiting-{number}", "created_at": times[number]} for number in refs]
    )
    connections = _added(
        connection,
        ConnectedAccount,
        [
            {
                "ref": ref, "end_user_id": person, "app_key": "stripe", "provider": "stripe", "kind": "stripe_oauth2",
                "account_id": account_of(number), "account_name": f"Account {number}", "account_type": "standard",
                "mode": "test", "account_facts": {}, "scopes": ["read_write"], "host_metadata": {},
                "grant_sealed": vault.seal(_grant(number).to_json(), grant_binding(ref, 1)), "token_version": 1,
                "import_state": ImportState.PENDING, "connected_at": times[number], "created_at": times[number],
                "updated_at": times[number],
            }
            for (number, ref), person in zip(refs.items(), people, strict=True)
        ],
    )  # fmt: skip
    connection.execute(
        sa.insert(table(Claim)),
        [
            {"app_key": "stripe", "account_id": account_of(number), "mode": "test", "end_user_id": person}
            for number, person in zip(refs, people, strict=True)
        ],
    )
    connection.execute(
        sa.insert(table(Job)),
        [
            {
                "kind": "import", "subject_id": key, "state": JobState.WAITING, "due_at": times[number], "fence": 0,
                "generation": 0, "failures": 0, "created_at": times[number], "updated_at": times[number],
            }
            for number, key in zip(refs, connections, strict=True)
        ],
    )  # fmt: skip


def _added(connection: sa.Connection, model: type[Any], rows: list[dict[str, Any]]) -> list[int]:
    """Insert rows and return their keys in the same order."""
    key = table(model).c.id
    statement = sa.insert(table(model)).returning(key, sort_by_parameter_order=True)
    return list(connection.execute(statement, rows).scalars())


def account_of(number: int) -> str:
    """Return the Stripe account of one of the connections that wait."""
    return f"acct_waiting{number:06}"


def _grant(number: int) -> Grant:
    return Grant(
        access_token=Secret(f"sk_test_waiting{number:06}"), refresh_token=None, token_type="bearer",
        scopes=("read_write",), expires_at=None, refresh_expires_at=None,
        extra={"stripe_user_id": account_of(number), "livemode": False},
    )  # fmt: skip
