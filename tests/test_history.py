"""What people read of their connection's history, and of how a flow went."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from broker import audit
from broker.audit import Actor
from broker.flow_page import FlowPage
from broker.history import MOST_SHOWN, Event, Happening, History
from broker.models import ConnectedAccount
from tests.connecting import Bench, open_bench

BACK = "https://app.example/settings"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def history(bench: Bench) -> list[Event]:
    return History(bench.database).of_connection(bench.row(ConnectedAccount).ref)


def page(bench: Bench, **answer: Any) -> FlowPage:
    """Go to Stripe and back and return the page that follows."""
    state = bench.leave(link=bench.link(return_url=BACK))
    onward = bench.come_back(state, **answer)
    return bench.services.flow_pages.page(onward.flow_ref or "", bench.browser)


def told(page: FlowPage) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.return_url or "").query)


def test_a_first_connection_is_the_persons_own_doing(bench: Bench) -> None:
    bench.connect()

    assert history(bench) == [Event(bench.clock.now(), Happening.CONNECTED, by_person=True)]


def test_what_happened_is_told_newest_first(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    bench.later(hours=1)
    bench.connect()
    bench.services.disconnections.request(bench.row(ConnectedAccount).ref, actor=Actor("operator", "o@example.com"))

    events = history(bench)

    assert [event.what for event in events] == [
        Happening.DISCONNECTED, Happening.RECONNECTED, Happening.SET_UP, Happening.CONNECTED,
    ]  # fmt: skip
    assert [event.by_person for event in events] == [False, True, False, True]


def test_other_peoples_history_is_not_told(bench: Bench) -> None:
    bench.connect()

    assert History(bench.database).of_connection("0000-0000-0000") == []


def test_a_long_history_is_cut_and_does_not_claim_a_beginning(bench: Bench) -> None:
    bench.connect()
    ref = bench.row(ConnectedAccount).ref
    with bench.database.write() as connection:
        for _ in range(MOST_SHOWN + 1):
            audit.record(
                connection, at=bench.clock.now(), actor_kind="end_user", actor="x", action="connection.connected",
                target=ref,
            )  # fmt: skip

    events = history(bench)

    assert len(events) == MOST_SHOWN
    assert {event.what for event in events} == {Happening.RECONNECTED}


def test_a_host_is_told_that_the_person_said_no(bench: Bench) -> None:
    denied = page(bench, code=None, error="access_denied")

    assert told(denied) == {"status": ["denied"], "ref": [denied.ref]}
    assert told(page(bench, code=None, error="server_error"))["status"] == ["failed"]


def test_what_a_provider_said_is_shown_only_where_it_failed(bench: Bench) -> None:
    assert page(bench, code=None, error="server_error").failure_detail == "server_error"
    assert len(page(bench, code=None, error="x" * 400).failure_detail or "") <= 300
    assert page(bench, code=None, error="invalid_client").failure_detail is None
    assert page(bench, code=None, error="access_denied").failure_detail is None


def test_an_account_connected_before_is_known_again(bench: Bench) -> None:
    first = page(bench)
    bench.later(minutes=5)
    second = page(bench)

    assert (first.was_connected_before, second.was_connected_before) == (False, True)
    assert first.connection is not None
    assert told(second) == {"status": ["pending"], "ref": [first.connection.ref]}


def test_permissions_that_were_asked_for_and_not_given_are_named(bench: Bench) -> None:
    assert page(bench).missing_scopes == ()
    bench.stripe(scope="read_only")
    assert page(bench).missing_scopes == ("read_write",)
    # Nobody knows what an answer without a scope allows.
    bench.stripe(scope=None)
    assert page(bench).missing_scopes == ()
