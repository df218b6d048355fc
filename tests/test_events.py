"""Events: one for each thing a host should know of, written with the change or not at all, and never twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from broker.audit import COMMAND_LINE
from broker.connection_search import CursorUnknown
from broker.events import EventFilters, Events, EventType, EventView, as_told, changed
from broker.jobs import GIVE_UP_AFTER, Park
from broker.models import ConnectedAccount, Event, ImportState, Link
from broker.status import NEEDS_ATTENTION, Status, attention_after
from tests.connecting import ACCESS, CREDENTIAL, REFRESH, SEQUIN, SEQUIN_STRIPE_APP, Bench, open_bench

READ_BACK = f"{SEQUIN}/v1/credentials/{CREDENTIAL}"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe("acct_1")
        opened.sequin()
        yield opened


def listed(bench: Bench, **filters: Any) -> list[EventView]:
    """Return what happened, the newest first."""
    return list(Events(bench.database).page(EventFilters(**filters), limit=100).items)


def types(bench: Bench) -> list[str]:
    """Return what happened, in its order."""
    return [event.type for event in reversed(listed(bench))]


def verify(bench: Bench, **answer: Any) -> None:
    """Let Sequin answer like this and run the check that is due."""
    whole = {"id": CREDENTIAL, "kind": "stripe_oauth2", "oauth_app_id": SEQUIN_STRIPE_APP, "properties": {}}
    bench.network.upsert("GET", READ_BACK, **(answer or {"json": whole}))
    bench.services.verifications.run(bench.lease("verify"))


def check_again(bench: Bench, **answer: Any) -> None:
    bench.services.connections.check(bench.row(ConnectedAccount).ref)
    verify(bench, **answer)


# --- what is written --------------------------------------------------------------------------------------


def test_a_connection_that_goes_well_is_connected_and_imported(bench: Bench) -> None:
    bench.connect(metadata={"plan": "pro"})
    bench.later(seconds=1)
    bench.deliver()
    verify(bench)
    assert types(bench) == ["connection.connected", "connection.imported"]
    row = bench.row(ConnectedAccount)
    imported, connected = listed(bench)
    assert as_told(connected) == {
        "id": connected.id,
        "type": "connection.connected",
        "timestamp": "2026-11-20T10:00:00Z",
        "data": {
            "ref": row.ref,
            "end_user": {"id": "user-1"},
            "provider": "stripe",
            "app": "stripe",
            "kind": "stripe_oauth2",
            "account": {"id": "acct_1", "name": row.account_name, "type": "standard", "mode": "live"},
            "scopes": ["read_write"],
            "status": "pending",
            "reason": None,
            "sequin": {"credential_id": None, "oauth_app_id": None, "imported_at": None, "verified_at": None},
            "metadata": {"plan": "pro"},
            "created_at": "2026-11-20T10:00:00Z",
        },
    }
    assert imported.data["sequin"] == {
        "credential_id": CREDENTIAL,
        "oauth_app_id": SEQUIN_STRIPE_APP,
        "imported_at": "2026-11-20T10:00:01Z",
        "verified_at": None,
    }
    assert imported.id.startswith("evt_")


def test_no_event_holds_a_secret(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    bench.services.disconnections.request(bench.row(ConnectedAccount).ref, actor=COMMAND_LINE)
    whole = json.dumps([as_told(event) for event in listed(bench)])
    assert len(listed(bench)) == 3
    for secret in (ACCESS, REFRESH, "never_to_be_seen"):
        assert secret not in whole


def test_what_cannot_be_connected_leaves_no_event(bench: Bench) -> None:
    bench.connect()
    bench.connect(end_user="user-2")
    assert types(bench) == ["connection.connected", "flow.failed"]


def test_a_flow_that_ends_without_a_connection_says_why_and_for_which_link(bench: Bench) -> None:
    link = bench.link("user-7", metadata={"seat": 3})
    bench.come_back(bench.leave(link=link), code=None, error="access_denied")
    (event,) = listed(bench)
    assert event.type == EventType.FLOW_FAILED
    assert event.data["reason"] == "consent_denied"
    assert event.data["state"] == "failed"
    assert event.data["end_user"] == {"id": "user-7"}
    assert event.data["metadata"] == {"seat": 3}
    assert event.data["app"] == "stripe"
    assert event.data["link"] == bench.house.value(sa.select(Link.public_id))


def test_a_flow_whose_time_is_over_has_failed_once(bench: Bench) -> None:
    bench.leave()
    bench.later(hours=2)
    bench.journal.sweep()
    bench.journal.sweep()
    (event,) = listed(bench)
    assert (event.type, event.data["state"]) == ("flow.failed", "expired")


def test_disconnecting_twice_is_one_event(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    for _ in range(2):
        bench.services.disconnections.request(bench.row(ConnectedAccount).ref, actor=COMMAND_LINE)
    assert types(bench) == ["connection.connected", "connection.imported", "connection.disconnected"]
    assert listed(bench)[0].data["status"] == "disconnected"


def test_a_change_that_is_rolled_back_leaves_no_event(bench: Bench) -> None:
    bench.connect()
    key = bench.row(ConnectedAccount).id
    with bench.database.write() as connection:
        changed(connection, key, at=bench.clock.now(), what=EventType.IMPORTED)
        connection.rollback()
    assert types(bench) == ["connection.connected"]


# --- what needs attention ---------------------------------------------------------------------------------


def test_drift_needs_attention_once_and_recovers_once(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    verify(bench)
    for _ in range(2):
        check_again(bench, status=404, json={})
    assert types(bench)[2:] == ["connection.needs_attention"]
    assert listed(bench)[0].data["status"] == "error"
    assert listed(bench)[0].data["reason"] == "credential_missing"
    for _ in range(2):
        check_again(bench)
    assert types(bench)[2:] == ["connection.needs_attention", "connection.recovered"]
    assert listed(bench)[0].data["status"] == "ok"
    assert listed(bench)[0].data["reason"] is None


def test_a_parked_import_that_is_tried_again_has_recovered_only_once_it_is_verified(bench: Bench) -> None:
    bench.connect()
    bench.sequin(status=422, json={"error": {"properties.secret": ["is invalid"]}})
    bench.deliver()
    assert types(bench)[1:] == ["connection.needs_attention"]
    assert listed(bench)[0].data["reason"] == "sequin_refused"
    ref = bench.row(ConnectedAccount).ref
    bench.services.connections.retry(ref, actor=COMMAND_LINE)
    bench.deliver()
    assert types(bench)[1:] == ["connection.needs_attention"]
    bench.services.connections.retry(ref, actor=COMMAND_LINE)
    bench.sequin()
    bench.deliver()
    assert types(bench)[2:] == ["connection.imported"]
    verify(bench)
    assert types(bench)[2:] == ["connection.imported", "connection.recovered"]


def test_a_short_outage_of_sequin_is_nobodys_business(bench: Bench) -> None:
    bench.connect()
    bench.sequin(status=503, json={})
    bench.deliver()
    bench.later(minutes=1)
    bench.sequin()
    bench.deliver()
    verify(bench)
    assert types(bench) == ["connection.connected", "connection.imported"]


def test_a_reconnect_after_trouble_recovers_when_it_is_verified(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    verify(bench, status=404, json={})
    bench.connect()
    bench.deliver()
    assert types(bench)[2:] == ["connection.needs_attention", "connection.connected", "connection.imported"]
    verify(bench)
    assert types(bench)[-1] == "connection.recovered"


def test_what_was_disconnected_in_trouble_starts_afresh(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    verify(bench, status=404, json={})
    bench.services.disconnections.request(bench.row(ConnectedAccount).ref, actor=COMMAND_LINE)
    assert types(bench)[-1] == "connection.disconnected"
    assert bench.row(ConnectedAccount).attention is None


def test_a_failure_nobody_foresaw_needs_attention_when_it_is_parked(bench: Bench) -> None:
    bench.connect()
    job = bench.lease("import")
    bench.deliveries.failed(job, Park("internal_error", "KeyError"))
    assert bench.row(ConnectedAccount).import_state == ImportState.PARKED
    assert types(bench)[-1] == "connection.needs_attention"


def test_another_kind_of_trouble_is_told_again(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    verify(bench, status=404, json={})
    row = bench.row(ConnectedAccount)
    bench.house.run(sa.update(ConnectedAccount).values(revoked_at=bench.clock.now()))
    for _ in range(2):
        with bench.database.write() as connection:
            changed(connection, row.id, at=bench.clock.now())
    assert [event.data["status"] for event in listed(bench, type=EventType.NEEDS_ATTENTION)] == ["revoked", "error"]


def test_only_a_passed_check_ends_what_needs_attention() -> None:
    for trouble in NEEDS_ATTENTION:
        assert attention_after(None, trouble) is trouble
        for waiting in (Status.PENDING, Status.UNKNOWN, Status.AWAITING_APPROVAL):
            assert attention_after(trouble, waiting) is trouble
            assert attention_after(None, waiting) is None
        for over in (Status.OK, Status.DISCONNECTED):
            assert attention_after(trouble, over) is None


# --- reading ----------------------------------------------------------------------------------------------


def test_events_are_listed_page_by_page_newest_first(bench: Bench) -> None:
    for number in range(5):
        bench.stripe(f"acct_{number}")
        bench.connect(end_user=f"user-{number}")
    events = Events(bench.database)
    seen, cursor = [], None
    while True:
        page = events.page(EventFilters(), limit=2, cursor=cursor)
        seen += [event.data["end_user"]["id"] for event in page.items]  # type: ignore[index]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"user-{number}" for number in (4, 3, 2, 1, 0)]


def test_a_list_is_narrowed_by_type_connection_person_and_time(bench: Bench) -> None:
    bench.connect(end_user="user-1")
    bench.deliver()
    bench.later(hours=1)
    bench.stripe("acct_2")
    bench.connect(end_user="user-2")
    first, second = bench.rows(ConnectedAccount)

    def refs(**filters: Any) -> list[object]:
        return [event.data["ref"] for event in listed(bench, **filters)]

    assert refs(type=EventType.CONNECTED) == [second.ref, first.ref]
    assert refs(connection=first.ref) == [first.ref, first.ref]
    assert refs(end_user="user-2") == [second.ref]
    assert refs(since=bench.clock.now()) == [second.ref]
    assert refs(since=bench.clock.now() - timedelta(hours=1)) == [second.ref, first.ref, first.ref]
    assert refs(connection=second.ref, type=EventType.IMPORTED) == []
    assert refs(end_user="a\x00b") == []
    assert refs(connection="\ud800") == []


@pytest.mark.parametrize("cursor", ["", "evt_nothing", "a\x00", "\ud800"])
def test_an_unknown_place_in_the_list_is_refused(bench: Bench, cursor: str) -> None:
    with pytest.raises(CursorUnknown):
        Events(bench.database).page(EventFilters(), limit=2, cursor=cursor)


def test_events_name_what_they_are_about(bench: Bench) -> None:
    bench.connect()
    bench.leave()
    bench.later(hours=2)
    bench.journal.sweep()
    kept = [(row.type, row.connection_ref is None, row.flow_ref is None) for row in bench.rows(Event)]
    assert kept == [("connection.connected", False, True), ("flow.failed", True, False)]


def test_giving_up_an_import_after_three_days_needs_attention(bench: Bench) -> None:
    bench.connect()
    bench.sequin(status=503, json={})
    bench.deliver()
    bench.later(seconds=GIVE_UP_AFTER.total_seconds())
    bench.deliver()
    assert types(bench) == ["connection.connected", "connection.needs_attention"]
