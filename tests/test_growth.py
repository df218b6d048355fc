"""What a step costs the database does not grow with how many connections there are."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from broker.audit import Actor
from broker.db import table
from broker.models import ConnectedAccount
from broker.provider_events import KIND
from broker.providers import discover
from broker.secret import Secret
from tests.connecting import CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, Bench, open_bench
from tests.crowd import crowd
from tests.house import START
from tests.providers.cases import CASES
from tests.providers.stripe import stripe_signs

MANY = 6_000
STEPS_AT_ONCE = 100
MOST_STEPS = MANY
"""Steps of SQLite's machine: it takes some eight of them to look at a row, so this is a look at an eighth of them."""
ACTOR = Actor("end_user", "newcomer")
SIGNING = Secret("whsec_never_to_be_seen")
connections = table(ConnectedAccount)
BIG = ("connections", "end_users", "jobs", "connection_metadata", "flows", "hops")
# Everybody is on their way, through the same app.
FLOWS = (
    "INSERT INTO flows (ref, link_id, end_user_id, app_key, browser_hash, state, confirm, trial, created_at,"
    " updated_at, expires_at) SELECT c.ref, l.id, c.end_user_id, 'stripe', 'a-browser', 'left', l.manage, l.manage,"
    " l.created_at, l.created_at, l.expires_at FROM connections AS c CROSS JOIN links AS l"
)
HOPS = (
    "INSERT INTO hops (flow_id, kind, state_hash, created_at, expires_at) "
    "SELECT id, 'authorize', ref, created_at, expires_at FROM flows"
)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    crowd(database_url, MANY, START)
    refreshing = {**discover(), "stripe": replace(discover()["stripe"], refreshes=lambda _app: True)}
    with open_bench(database_url, providers=refreshing) as opened:
        # What the crowd waits for is not what is looked at here.
        opened.house.run(sa.text("UPDATE jobs SET due_at = NULL, state = 'done'"))
        opened.link("somebody")
        for statement in (FLOWS, HOPS):
            opened.house.run(sa.text(statement))
        if not opened.database.is_sqlite:
            # As autovacuum does.
            opened.house.run(sa.text("ANALYZE"))
        opened.stripe(expires_in=3600)
        opened.sequin()
        shown = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "kind": "stripe_oauth2"}
        opened.network.upsert("GET", f"{SEQUIN}/v1/credentials/{CREDENTIAL}", json=shown)
        opened.network.upsert("DELETE", f"{SEQUIN}/v1/credentials/{CREDENTIAL}", json={"deleted": True})
        opened.network.upsert("GET", "https://api.stripe.com/v1/accounts/acct_1", json={"id": "acct_1"})
        opened.network.upsert("POST", "https://connect.stripe.com/oauth/deauthorize", json={"stripe_user_id": "acct_1"})
        opened.services.circuits.open()
        yield opened


@contextmanager
def looked_at(bench: Bench) -> Iterator[Mapping[str, Any]]:
    """Note what each statement costs meanwhile: SQLite's steps, or PostgreSQL's plan."""
    seen: dict[str, Any] = {}
    asked: list[tuple[str, Any]] = []

    def step() -> None:
        seen[asked[-1][0]] = seen.get(asked[-1][0], 0) + STEPS_AT_ONCE

    def note(_c: Any, cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        asked.append((statement, parameters))
        if isinstance(cursor, sqlite3.Cursor):
            cursor.connection.set_progress_handler(step, STEPS_AT_ONCE)

    sa.event.listen(bench.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(bench.database.engine, "before_cursor_execute", note)
    assert asked
    if not bench.database.is_sqlite:
        with bench.database.read() as connection:
            for statement, parameters in asked:
                if statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE")):
                    (plan,) = connection.exec_driver_sql(
                        f"EXPLAIN (FORMAT JSON) {statement}", parameters
                    ).scalar_one()  # fmt: skip
                    if _scans(plan["Plan"]):
                        seen[statement] = MOST_STEPS + 1


def _scans(plan: Mapping[str, Any]) -> bool:
    whole = plan["Node Type"] == "Seq Scan" and plan.get("Relation Name") in BIG
    return whole or any(_scans(below) for below in plan.get("Plans", []))


def connect(bench: Bench) -> str:
    """Go from a link to what was read back in Sequin, and return the connection's reference."""
    link = bench.link("newcomer")
    bench.services.links.opened(link, None, count=True)
    bench.come_back(bench.leave(link=link))
    bench.deliver()
    bench.services.verifications.run(bench.lease("verify"))
    return str(bench.house.value(sa.select(connections.c.ref).where(connections.c.account_id == "acct_1")))


def test_connecting_looks_at_none_of_the_others(bench: Bench) -> None:
    with looked_at(bench) as seen:
        connect(bench)
    assert {told: cost for told, cost in seen.items() if cost > MOST_STEPS} == {}


def test_what_follows_looks_at_none_of_the_others(bench: Bench) -> None:
    ref = connect(bench)
    person = bench.house.value(sa.select(connections.c.end_user_id).where(connections.c.ref == ref))
    with looked_at(bench) as seen:
        bench.services.connections.of_person(person, link_id=None)
        bench.later(hours=1)
        bench.services.refreshes.run(bench.lease("refresh"))
        bench.deliver()
        bench.later(hours=20)
        bench.services.probes.run(bench.lease("probe"))
        bench.services.connections.check(ref)
        # Connected again, and ended by its owner at the provider.
        connect(bench)
        bench.later(minutes=10)
        now = bench.clock.now()
        event = {**CASES["stripe"].event, "livemode": True, "created": int(now.timestamp())}
        body = json.dumps(event).encode()
        bench.services.provider_events.receive("stripe", stripe_signs(body, SIGNING, now), body)
        bench.services.provider_events.run(bench.lease(KIND))
        # And once more, ended here.
        ref = connect(bench)
        bench.services.disconnections.request(ref, actor=ACTOR)
        bench.services.disconnections.run_revoke(bench.lease("revoke"))
        bench.services.disconnections.run_remove(bench.lease("remove"))
    assert {told: cost for told, cost in seen.items() if cost > MOST_STEPS} == {}
