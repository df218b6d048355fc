"""Lists of many connections: every way to narrow, sort, page and count them looks at few rows, on both databases."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from broker.connection_search import ConnectionFilters, Count, Order
from broker.db import Database
from broker.status import Status
from tests.conftest import DATABASES
from tests.crowd import RARE, crowd, ref_of, standing_of
from tests.databases import Databases
from tests.house import START, House, open_house

MANY = 25_000
BIG = {"connections", "end_users", "jobs", "connection_metadata"}
A_SCAN = MANY // 2
COUNTED = 1_000
TWO_DAYS = 2 * 86_400.0

FILTERS: dict[str, dict[str, Any]] = {
    "all": {},
    "reference": {"search": ref_of(77)},
    "account": {"search": "acct_000000000077"},
    "sequin": {"search": "crd-000000000077"},
    "end user": {"search": "user-77"},
    "e-mail": {"search": "PERSON777@"},
    "name": {"search": "Acme 888"},
    "many names": {"search": "Acme"},
    "nothing": {"search": "nobody-has-this"},
    "provider": {"provider": "github"},
    "no provider": {"provider": "gitlab"},
    "app": {"app": "stripe-test"},
    "kind": {"kind": "github_app"},
    "mode": {"mode": "test"},
    "account id": {"account": "acct_000000000078"},
    "person": {"end_user": "user-78"},
    "metadata": {"metadata": {"plan": "pro"}},
    "one's metadata": {"metadata": {"tenant": "t-78"}},
    "rare metadata": {"metadata": {"pilot": "yes", "plan": "free"}},
    "two metadata": {"metadata": {"plan": "pro", "pilot": "yes"}},
    "two metadata that many have": {"metadata": {"plan": "pro", "region": "eu"}},
    "provider and rare status": {"provider": "stripe", "status": Status.INTERRUPTED, "mode": "live"},
    "provider and status": {"provider": "stripe", "status": Status.UNKNOWN},
    "days": {"connected_from": START.replace(year=2025), "connected_before": START.replace(year=2025, month=12)},
    "days and provider": {"connected_before": START.replace(year=2025), "provider": "github"},
    **{f"status {status}": {"status": status} for status in Status},
}


@pytest.fixture(scope="module", params=DATABASES)
def house(request: pytest.FixtureRequest) -> Iterator[House]:
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        crowd(url, MANY, START)
        with open_house(url) as opened:
            yield opened


@pytest.fixture(autouse=True)
def counts_few(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in ("MOST_COUNTED", "MOST_TRIED"):
        monkeypatch.setattr(f"broker.connection_search.{most}", COUNTED)


@contextmanager
def asked(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Note the statements that go to the database."""
    seen: list[tuple[str, Any]] = []

    def note(_c: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> None:
        seen.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def rows_looked_at(database: Database, statement: str, parameters: Any) -> int:
    """Run a statement and return how many rows it has touched, and thrown away, on the way."""
    with database.read() as connection:
        if not database.is_sqlite:
            (plan,) = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters
            ).scalar_one()  # fmt: skip
            return max(_touched(plan["Plan"]))
        plain = connection.connection.driver_connection
        assert isinstance(plain, sqlite3.Connection)
        steps = 0

        def step() -> None:
            nonlocal steps
            steps += 1

        plain.set_progress_handler(step, 100)
        connection.exec_driver_sql(statement, parameters).all()
        plain.set_progress_handler(None, 0)
    # Looking at a row takes some eight of its machine's steps.
    return steps * 100 // 8


def _touched(plan: dict[str, Any]) -> Iterator[int]:
    if plan.get("Relation Name") in BIG:
        thrown = plan.get("Rows Removed by Filter", 0) + plan.get("Rows Removed by Index Recheck", 0)
        yield int((plan["Actual Rows"] + thrown) * plan["Actual Loops"])
    else:
        yield 0
    for below in plan.get("Plans", []):
        yield from _touched(below)


def counted(house: House, **narrowed: Any) -> Count:
    """Return how many rows a list has, as its page tells."""
    count = house.connections.page(ConnectionFilters(**narrowed), limit=1, counted=True).count
    assert count is not None
    return count


def plan_of(database: Database, statement: str, parameters: Any) -> str:
    with database.read() as connection:
        if database.is_sqlite:
            told = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            return "\n".join(str(row[3]) for row in told)
        return json.dumps(connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).scalar_one())


def walk(house: House, filters: ConnectionFilters, order: Order) -> None:
    """Look at the first page, at the one behind the middle, at the last, and count."""
    deep = house.value(sa.text("SELECT max(id) / 2 FROM connections"))  # type: ignore[arg-type]
    page = house.connections.page(filters, limit=50, order=order)
    if page.next_cursor is not None:
        _ref, dot, moment = page.next_cursor.partition(".")
        middle = f"{ref_of(deep)}{dot}{moment and int(moment) // 2}"
        house.connections.page(filters, limit=50, order=order, cursor=middle)
        house.connections.page(filters, limit=50, order=order, before=f"{ref_of(deep)}{dot}{moment}")
    house.connections.page(filters, limit=1, order=order, counted=True)


@pytest.mark.parametrize(
    ("named", "order"),
    # A name that thousands begin with is the one thing that is sorted before it is cut, and only by the last change.
    [(n, o) for n, o in product(FILTERS, Order) if (n, o) != ("many names", Order.CHANGED)],
)
def test_no_list_looks_at_all_rows(house: House, named: str, order: Order) -> None:
    with asked(house.database) as seen:
        walk(house, ConnectionFilters(**FILTERS[named]), order)
    asked_for = [(statement, parameters) for statement, parameters in seen if statement.startswith("SELECT")]
    looked_at = {
        plan_of(house.database, *each) + "\n" + each[0]: rows_looked_at(house.database, *each) for each in asked_for
    }
    assert asked_for
    assert {told: count for told, count in looked_at.items() if count > A_SCAN} == {}


def test_what_is_found_is_what_there_is(house: House) -> None:
    for status in Status:
        numbers = [number for number in range(1, MANY + 1) if standing_of(number) == status]
        page = house.connections.page(ConnectionFilters(status=status), limit=50)
        assert [item.ref for item in page.items] == [ref_of(number) for number in numbers[::-1][:50]]
        count = counted(house, status=status)
        assert count.is_all == (len(numbers) <= COUNTED)
        assert count.number == len(numbers) if count.is_all else 0 < count.number <= COUNTED
    assert counted(house, status=Status.INTERRUPTED) == Count(RARE, is_all=True)
    assert counted(house).is_all is False
    # Nobody asked.
    assert house.connections.page(ConnectionFilters(), limit=1).count is None


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("named", ["days and provider", "provider and status", "two metadata", "many names", "app"])
def test_pages_of_a_long_list_follow_each_other(house: House, named: str, order: Order) -> None:
    filters = ConnectionFilters(**FILTERS[named])
    seen: list[str] = []
    cursor: str | None = None
    for _ in range(4):
        page = house.connections.page(filters, limit=40, order=order, cursor=cursor)
        seen += [item.ref for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    at_once = house.connections.page(filters, limit=100, order=order)
    assert seen[:100] == [item.ref for item in at_once.items]


def test_a_status_that_many_have_outlived_is_found_too(house: House) -> None:
    house.clock.advance(TWO_DAYS)
    try:
        with asked(house.database) as seen:
            assert house.connections.page(ConnectionFilters(status=Status.OK), limit=50).items == ()
            unknown = house.connections.page(ConnectionFilters(status=Status.UNKNOWN), limit=50, counted=True)
    finally:
        house.clock.advance(-TWO_DAYS)
    assert len(unknown.items) == 50
    for statement, parameters in seen:
        if statement.startswith("SELECT"):
            assert rows_looked_at(house.database, statement, parameters) <= A_SCAN


def test_a_filter_alone_is_not_looked_at_twice(house: House) -> None:
    with asked(house.database) as seen:
        house.connections.page(ConnectionFilters(mode="test"), limit=50)
    assert len([statement for statement, _ in seen if statement.startswith("SELECT")]) == 2


def test_filters_that_many_pass_are_looked_at_once_for_the_list_and_its_count(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.connection_search.MOST_NAMED", 5)
    filters = ConnectionFilters(provider="stripe", mode="live", status=Status.OK)
    with asked(house.database) as seen:
        page = house.connections.page(filters, limit=5, counted=True)
    assert len(page.items) == 5
    assert page.count is not None
    assert not page.count.is_all
    # Whether few pass any of them; the keys of the page; its rows; how many there are.
    assert len([statement for statement, _ in seen if statement.startswith("SELECT")]) == 4
