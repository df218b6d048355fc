"""Erasure on request: everything ends at once, the rows go once it is cleared up, and nothing begins in between."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.audit import Actor
from broker.errors import EndUserErased, EndUserUnknown
from broker.jobs import Done, Later
from broker.links import LinkRequest
from broker.models import (
    BrowserSession,
    CleanUp,
    ConnectedAccount,
    EndUser,
    Event,
    Flow,
    FlowEvent,
    Hop,
    Link,
    LinkUse,
)
from broker.models import Claim as AccountClaim
from tests.connecting import Bench, open_bench

HOST = Actor("api_key", "key_host")
OF_A_PERSON = (AccountClaim, ConnectedAccount, EndUser, Event, Flow, FlowEvent, Hop, Link, LinkUse, BrowserSession)


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def cleared_up(bench: Bench) -> None:
    """Say of every clean-up that it is over, and of every event that nobody has still to be told of it."""
    with bench.database.write() as connection:
        connection.execute(sa.update(Event).values(dispatched_at=bench.clock.now()))
        connection.execute(sa.update(ConnectedAccount).values(revocation=CleanUp.DONE, removal=CleanUp.DONE))


def test_everything_ends_at_once_and_what_is_left_is_said(bench: Bench) -> None:
    done = bench.connect()
    under_way = bench.leave()
    erasure = bench.services.erasures.request("user-1", actor=HOST)

    assert erasure.connections_left == 1
    assert "audit trail" in erasure.remains[0]
    (connection,) = bench.rows(ConnectedAccount)
    assert connection.disconnected_at is not None
    assert all(link.revoked_at is not None for link in bench.rows(Link))
    assert bench.flow(done.flow_ref).state == "done"
    assert {flow.failure for flow in bench.rows(Flow)} == {None, "end_user_forgotten"}
    assert bench.come_back(under_way).flow_ref
    assert len(bench.rows(ConnectedAccount)) == 1


def test_the_rows_stay_until_everything_is_cleared_up_and_then_go(bench: Bench) -> None:
    bench.connect()
    bench.services.sessions.open_end_user(None, bench.row(EndUser).id, None)
    bench.services.erasures.request("user-1", actor=HOST)

    assert isinstance(bench.services.erasures.run(bench.lease("forget")), Later)
    assert bench.row(EndUser).external_id == "user-1"
    cleared_up(bench)
    bench.later(seconds=10)
    assert isinstance(bench.services.erasures.run(bench.lease("forget")), Done)

    assert all(not bench.rows(model) for model in OF_A_PERSON)
    with pytest.raises(EndUserUnknown):
        bench.services.erasures.request("user-1", actor=HOST)


def test_the_host_is_told_that_it_ended_before_it_is_forgotten(bench: Bench) -> None:
    bench.connect()
    bench.services.erasures.request("user-1", actor=HOST)
    cleared_up(bench)
    with bench.database.write() as connection:
        connection.execute(sa.update(Event).values(dispatched_at=None))

    assert isinstance(bench.services.erasures.run(bench.lease("forget")), Later)


def test_other_people_s_rows_stay(bench: Bench) -> None:
    bench.connect(end_user="user-2")
    bench.stripe("acct_2")
    bench.connect(end_user="user-1")
    bench.services.erasures.request("user-1", actor=HOST)
    cleared_up(bench)
    bench.services.erasures.run(bench.lease("forget"))

    assert [person.external_id for person in bench.rows(EndUser)] == ["user-2"]
    assert [connection.account_id for connection in bench.rows(ConnectedAccount)] == ["acct_1"]
    assert len(bench.rows(Flow)) == 1


def test_nothing_new_begins_until_it_is_over_and_then_the_id_is_free(bench: Bench) -> None:
    bench.connect()
    bench.services.erasures.request("user-1", actor=HOST)
    with pytest.raises(EndUserErased):
        bench.services.links.create(LinkRequest("user-1"), created_by="cli")
    cleared_up(bench)
    bench.services.erasures.run(bench.lease("forget"))

    bench.services.links.create(LinkRequest("user-1"), created_by="cli")
    assert bench.row(EndUser).erasure_asked_at is None


def test_asking_again_changes_nothing(bench: Bench) -> None:
    bench.connect()
    first = bench.services.erasures.request("user-1", actor=HOST)

    assert bench.services.erasures.request("user-1", actor=HOST) == first
    assert [entry[2] for entry in bench.house.audited()].count("end_user.erasure_asked") == 1


def test_somebody_unknown_is_unknown(bench: Bench) -> None:
    for nobody in ("nobody", "\x00", "\ud800"):
        with pytest.raises(EndUserUnknown):
            bench.services.erasures.request(nobody, actor=HOST)


def test_what_a_call_cut_off_half_way_left_is_ended_by_the_job(bench: Bench) -> None:
    bench.connect()
    with bench.database.write() as connection:
        connection.execute(sa.update(EndUser).values(erasure_asked_at=bench.clock.now()))
        bench.jobs.enqueue(connection, "forget", bench.row(EndUser).id)

    assert isinstance(bench.services.erasures.run(bench.lease("forget")), Later)
    assert bench.row(ConnectedAccount).disconnected_at is not None


def test_a_person_nobody_asked_to_forget_is_not_touched(bench: Bench) -> None:
    bench.connect()
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "forget", bench.row(EndUser).id)

    assert isinstance(bench.services.erasures.run(bench.lease("forget")), Done)
    assert bench.row(ConnectedAccount).disconnected_at is None
