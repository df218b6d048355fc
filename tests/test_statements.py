"""What each step costs the database: statements, commits, and questions for the time, counted exactly.

A number that goes up is a decision: on PostgreSQL each of them is a round trip.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.sql.compiler import SQLCompiler

import broker
from broker.connection_search import ConnectionFilters
from broker.models import ConnectedAccount
from broker.providers import discover
from tests.connecting import CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, Bench, ManualDatabase, open_bench


@dataclass
class Cost:
    """What was asked of the database."""

    statements: int = 0
    commits: int = 0
    # Questions for the time: on PostgreSQL a statement each.
    clock: int = 0


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        shown = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "kind": "stripe_oauth2"}
        opened.network.upsert("GET", f"{SEQUIN}/v1/credentials/{CREDENTIAL}", json=shown)
        yield opened


@contextmanager
def counted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cost]:
    """Count what is asked of the database meanwhile."""
    cost, now = Cost(), ManualDatabase.now
    # Read once a second, whatever happens.
    bench.services.circuits.open()

    def statement(*_: Any) -> None:
        cost.statements += 1

    def commit(_connection: Any) -> None:
        cost.commits += 1

    def ask(self: ManualDatabase, connection: Any) -> Any:
        cost.clock += 1
        return now(self, connection)

    engine = bench.database.engine
    with monkeypatch.context() as patched:
        patched.setattr(ManualDatabase, "now", ask)
        sa.event.listen(engine, "before_cursor_execute", statement)
        sa.event.listen(engine, "commit", commit)
        try:
            yield cost
        finally:
            sa.event.remove(engine, "before_cursor_execute", statement)
            sa.event.remove(engine, "commit", commit)


def test_the_page_of_a_link(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    link = bench.link()
    with counted(bench, monkeypatch) as first:
        bench.services.links.opened(link, None, count=True)
    assert first == Cost(statements=3, commits=1)

    with counted(bench, monkeypatch) as again:
        bench.services.links.opened(link, bench.browser.hash, count=True)
    assert again == Cost(statements=3)


def test_a_start(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    link = bench.link()
    with counted(bench, monkeypatch) as cost:
        bench.leave(link=link)
    assert cost == Cost(statements=7, commits=1)


def test_a_callback_commits_the_hop_the_grant_and_the_connection(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    state = bench.leave()
    with counted(bench, monkeypatch) as cost:
        bench.come_back(state)
    assert cost == Cost(statements=20, commits=3, clock=2)


def test_a_lease(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.connect()
    # An embedded database is looked at first, so that idle workers never take its write lock.
    looks = 1 if bench.database.is_sqlite else 0
    with counted(bench, monkeypatch) as cost:
        assert bench.jobs.lease(["import", "verify"], most=8)
    assert cost == Cost(statements=2 + looks, commits=1, clock=1 + looks)


def test_a_delivery(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.connect()
    job = bench.lease("import")
    with counted(bench, monkeypatch) as cost:
        bench.deliveries.run(job)
    assert cost == Cost(statements=8, commits=1, clock=2)


def test_the_first_verification_and_a_later_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.connect()
    bench.deliver()
    job = bench.lease("verify")
    with counted(bench, monkeypatch) as first:
        bench.services.verifications.run(job)
    # The job, the connection, its record; and the provider is asked from now on.
    assert first == Cost(statements=5, commits=1, clock=1)

    bench.later(days=1)
    job = bench.lease("verify")
    with counted(bench, monkeypatch) as later:
        bench.services.verifications.run(job)
    assert later == Cost(statements=3, commits=1, clock=1)


def test_a_refresh(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refreshing = {**discover(), "stripe": replace(discover()["stripe"], refreshes=lambda _app: True)}
    with open_bench(database_url, providers=refreshing) as bench:
        bench.stripe(expires_in=3600)
        bench.sequin()
        bench.connect()
        bench.deliver()
        bench.later(hours=1)
        job = bench.lease("refresh")
        # PostgreSQL keeps the right to one connection, an embedded database keeps it in a file.
        alone = 0 if bench.database.is_sqlite else 2
        with counted(bench, monkeypatch) as cost:
            bench.services.refreshes.run(job)
        assert cost == Cost(statements=7 + alone, commits=2, clock=2)


def test_lists_cost_the_same_however_much_is_on_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        bench.stripe(f"acct_{number}")
        bench.connect(end_user=f"user-{number}")
    person = bench.rows(ConnectedAccount)[0].end_user_id
    with counted(bench, monkeypatch) as own:
        assert bench.services.connections.of_person(person, link_id=None)
    assert own == Cost(statements=1)

    with counted(bench, monkeypatch) as page:
        assert len(bench.services.connections.page(ConnectionFilters(), limit=2).items) == 2
    # Which they are, then what they are: the first look needs an index only.
    assert page == Cost(statements=2)


def built_once() -> Iterator[tuple[str, SQLCompiler]]:
    """Yield every statement that stands in a module of the broker, as it is sent."""
    for found in pkgutil.walk_packages(broker.__path__, "broker."):
        if found.name.endswith("__main__"):
            continue
        for name, value in vars(import_module(found.name)).items():
            values = value if isinstance(value, dict) else {"": value}
            for key, statement in values.items():
                if isinstance(statement, sa.Executable) and isinstance(statement, sa.ClauseElement):
                    url = sa.make_url("postgresql+psycopg://" if key == "postgresql" else "sqlite://")
                    compiled = statement.compile(dialect=url.get_dialect()())
                    assert isinstance(compiled, SQLCompiler)
                    yield f"{found.name}.{name} {key}", compiled


def test_what_a_statement_built_once_is_given_goes_by_its_columns_type() -> None:
    """A time whose type nobody knows would be written as the driver likes, which Python 3.12 calls deprecated."""
    seen = dict(built_once())
    assert len(seen) > 50
    untyped = {
        f"{where}: {name}"
        for where, statement in seen.items()
        for name, bound in statement.binds.items()
        if isinstance(bound.type, sa.types.NullType)
    }
    assert untyped == set()
