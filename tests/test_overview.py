"""Counting for the overview: attempts, links, import times, health, and how connections stand."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from broker import audit, overview
from broker.db import table
from broker.events import EventType
from broker.models import AuditRecord, Event, FlowState, ImportState, Job, JobState, Link
from broker.overview import Overview, Overviews, Period, percentile
from broker.references import new_id
from tests.house import House, open_house


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def overviews(house: House) -> Overviews:
    return Overviews(house.database, house.clock, house.jobs)


def known(overviews: Overviews, period: Period = Period.WEEK) -> Overview:
    found = overviews.find(period)
    assert found is not None
    return found


def note(house: House, action: str, *, ago: timedelta = timedelta(0), target: str = "R", **detail: object) -> None:
    with house.database.write() as connection:
        audit.record(
            connection, at=house.clock.now() - ago, actor_kind="worker", actor="x", action=action, target=target,
            detail=detail,
        )  # fmt: skip


def event(house: House, what: EventType, ago: timedelta = timedelta(0)) -> None:
    values = {"public_id": new_id("evt"), "type": what, "at": house.clock.now() - ago, "end_user": "jo", "data": {}}
    house.run(sa.insert(table(Event)).values(values))


def a_link(house: House, user: int, *, ago: timedelta = timedelta(0), **changes: object) -> int:
    now = house.clock.now() - ago
    values = {
        "public_id": new_id("lnk"), "token_hash": new_id("x"), "end_user_id": user, "host_metadata": {},
        "created_by": "cli", "created_at": now, "expires_at": now + timedelta(hours=1),
    }  # fmt: skip
    return house.insert(Link, **(values | changes))


def test_with_nothing_there_is_nothing(overviews: Overviews) -> None:
    found = known(overviews)
    assert found.is_empty
    assert (found.attempts, found.connected_before, found.groups, found.reasons) == (0, 0, (), ())
    assert found.times.median_of_all is None


@pytest.mark.parametrize(
    ("period", "parts", "first", "last"),
    [
        (Period.DAY, 24, datetime(2026, 11, 19, 11, tzinfo=UTC), datetime(2026, 11, 20, 10, tzinfo=UTC)),
        (Period.WEEK, 7, datetime(2026, 11, 14, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC)),
        (Period.MONTH, 30, datetime(2026, 10, 22, tzinfo=UTC), datetime(2026, 11, 20, tzinfo=UTC)),
    ],
)
def test_parts_are_aligned_and_the_last_one_is_now(
    overviews: Overviews, period: Period, parts: int, first: datetime, last: datetime
) -> None:
    starts = known(overviews, period).starts
    assert (len(starts), starts[0], starts[-1]) == (parts, first, last)


def test_attempts_are_counted_by_how_they_ended_and_when(house: House, overviews: Overviews) -> None:
    note(house, "connection.connected")
    note(house, "connection.connected", ago=timedelta(days=1))
    note(house, "flow.failed", failure="consent_denied")
    note(house, "flow.interrupted", failure="flow_interrupted")
    note(house, "flow.expired", ago=timedelta(days=6), failure="flow_expired")
    note(house, "flow.failed", ago=timedelta(days=7), failure="too_old")
    note(house, "connection.retry")

    found = known(overviews)

    assert found.connected == (0, 0, 0, 0, 0, 1, 1)
    assert found.failed == (0, 0, 0, 0, 0, 0, 2)
    assert found.abandoned == (1, 0, 0, 0, 0, 0, 0)
    assert found.attempts == 5
    assert {(each.action, each.code, each.count) for each in found.reasons} == {
        ("flow.failed", "consent_denied", 1), ("flow.interrupted", "flow_interrupted", 1),
        ("flow.expired", "flow_expired", 1),
    }  # fmt: skip


def test_the_time_before_is_as_long_as_the_time_so_far(house: House, overviews: Overviews) -> None:
    note(house, "connection.connected", ago=timedelta(days=7, hours=1))
    # Then, but later in the day than it is now.
    note(house, "connection.connected", ago=timedelta(days=6, hours=23))
    note(house, "connection.connected", ago=timedelta(days=14))
    assert known(overviews).connected_before == 1


def test_health_that_changed_is_counted_both_ways(house: House, overviews: Overviews) -> None:
    event(house, EventType.NEEDS_ATTENTION, timedelta(days=1))
    event(house, EventType.NEEDS_ATTENTION)
    event(house, EventType.RECOVERED)
    event(house, EventType.IMPORTED)
    found = known(overviews)
    assert found.broke == (0, 0, 0, 0, 0, 1, 1)
    assert found.recovered == (0, 0, 0, 0, 0, 0, 1)


def test_links_are_followed_to_the_import(house: House, overviews: Overviews) -> None:
    jo, now = house.end_user("jo"), house.clock.now()
    a_link(house, jo, ago=timedelta(days=8))
    a_link(house, jo, manage=True)
    a_link(house, jo)
    a_link(house, jo, opened_at=now)
    left = a_link(house, jo, opened_at=now, started_at=now)
    house.flow(left, "x", state=FlowState.EXPIRED)
    denied = a_link(house, jo, started_at=now)
    house.flow(denied, "x", state=FlowState.FAILED)
    for state in (ImportState.PENDING, ImportState.IMPORTED):
        used = a_link(house, jo, opened_at=now, started_at=now)
        house.flow(used, "x", state=FlowState.DONE)
        house.spend(
            used, house.connection(jo, import_state=state, imported_at=now if state == ImportState.IMPORTED else None)
        )

    funnel = known(overviews).funnel

    assert (funnel.created, funnel.opened, funnel.left) == (6, 5, 4)
    assert (funnel.returned, funnel.connected, funnel.imported) == (3, 2, 1)


def test_import_times_run_from_the_connect_to_the_import_after_it(house: House, overviews: Overviews) -> None:
    note(house, "connection.connected", ago=timedelta(seconds=60), target="A")
    note(house, "connection.imported", ago=timedelta(seconds=58), target="A")
    # Renewed later: the first import after the connect counts.
    note(house, "connection.imported", target="A")
    note(house, "connection.connected", ago=timedelta(days=1, seconds=20), target="B")
    note(house, "connection.imported", ago=timedelta(days=1, seconds=10), target="B")
    note(house, "connection.connected", target="never imported")

    times = known(overviews).times

    assert times.median == (None, None, None, None, None, 10.0, 2.0)
    assert (times.median_of_all, times.slow_of_all) == (2.0, 10.0)
    assert (times.looked_at, times.of) == (2, 3)


def test_of_very_many_one_in_so_many_is_looked_at(
    house: House, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    jo = house.end_user("jo")
    for number in range(40):
        note(house, "connection.connected", target=f"C{number}")
        note(house, "connection.imported", target=f"C{number}")
        a_link(house, jo, opened_at=house.clock.now())
    monkeypatch.setattr(overview, "SAMPLE", 20)

    found = known(overviews)

    assert 5 < found.times.looked_at < 35
    assert found.times.of == 40
    assert 5 < found.funnel.followed < 35
    # Those that were not followed count as well.
    assert found.funnel.created == found.funnel.opened == 2 * found.funnel.followed


def test_connections_are_grouped_by_app_status_and_error(house: House, overviews: Overviews) -> None:
    jo = house.end_user("jo")
    house.connection(jo, health="ok", checked_at=house.clock.now())
    house.connection(jo)
    for _ in range(2):
        house.connection(jo, app_key="stripe-test", import_state=ImportState.PARKED, import_error="sequin_unauthorized")

    groups = known(overviews).groups

    assert [(each.app, each.status, each.error, each.count) for each in groups] == [
        ("stripe", "ok", None, 1), ("stripe", "unknown", None, 1),
        ("stripe-test", "import_failed", "sequin_unauthorized", 2),
    ]  # fmt: skip
    assert overview.total(groups, ["ok", "unknown"]) == 2


# --- a large database -------------------------------------------------------------------------------------


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overview, "SMALL", -1)


def run_jobs(house: House, overviews: Overviews) -> int:
    jobs = house.jobs.lease([overview.KIND])
    for job in jobs:
        overviews.run(job)
    return len(jobs)


@pytest.mark.usefixtures("large")
def test_a_large_database_is_counted_by_the_worker_once_for_all_who_ask(house: House, overviews: Overviews) -> None:
    note(house, "connection.connected")
    assert overviews.find(Period.WEEK) is None
    assert overviews.find(Period.WEEK) is None
    assert house.value(sa.select(sa.func.count()).select_from(Job)) == 1

    assert run_jobs(house, overviews) == 1

    found = known(overviews)
    assert (found.attempts, found.at) == (1, house.clock.now())
    assert found == Overviews(house.database, house.clock, house.jobs).find(Period.WEEK)
    assert overviews.find(Period.DAY) is None


@pytest.mark.usefixtures("large")
def test_numbers_that_grew_old_are_shown_until_there_are_new_ones(house: House, overviews: Overviews) -> None:
    overviews.find(Period.DAY)
    run_jobs(house, overviews)
    first = known(overviews, Period.DAY)
    note(house, "connection.connected")
    house.clock.advance(299)
    assert known(overviews, Period.DAY) == first
    assert run_jobs(house, overviews) == 0

    house.clock.advance(2)
    assert known(overviews, Period.DAY) == first
    assert run_jobs(house, overviews) == 1
    assert known(overviews, Period.DAY).attempts == 1


@pytest.mark.usefixtures("large")
def test_a_job_that_counted_is_done(house: House, overviews: Overviews) -> None:
    overviews.find(Period.MONTH)
    run_jobs(house, overviews)
    assert house.value(sa.select(Job.state)) == JobState.DONE


def test_how_large_a_database_is_stands_in_its_newest_keys(
    house: House, overviews: Overviews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SMALL", 2)
    for _ in range(2):
        note(house, "connection.connected")
    assert overviews.find(Period.DAY) is not None
    note(house, "connection.connected")
    assert overviews.find(Period.DAY) is None
    assert house.value(sa.select(sa.func.count()).select_from(AuditRecord)) == 3


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([], 50, None), ([3], 95, 3), ([1, 2, 3, 4], 50, 2), (range(1, 101), 95, 95), ([5, 1], 1, 1)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], percent: int, expected: float | None) -> None:
    assert percentile(values, percent) == expected
