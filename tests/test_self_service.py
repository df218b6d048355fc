"""A person who signed in connects accounts for themself; the host’s word about them stays the host’s."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.circuits import OPENS_AFTER, PROBE_SECONDS, app_circuit
from broker.errors import FlowUnknown, OtherBrowser, ProviderDown, TooManyFlows
from broker.journal import MOST_OPEN_FLOWS
from broker.models import ConnectedAccount, Link
from broker.providers.base import ProviderUnavailable
from tests.connecting import Bench, open_bench, state_in


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


def begin(bench: Bench) -> str:
    """Let the person whom the host calls user-1 leave by themself."""
    return bench.services.self_service.begin(bench.row(ConnectedAccount).end_user_id, "stripe", bench.browser)


def test_what_the_host_says_of_a_connection_outlives_the_person_connecting_it_again(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect(metadata={"plan": "pro"})
    bench.come_back(state_in(begin(bench)))
    renewed = bench.row(ConnectedAccount)
    assert (renewed.host_metadata, renewed.token_version) == ({"plan": "pro"}, 2)
    bench.connect(metadata={"plan": "max"})
    assert bench.row(ConnectedAccount).host_metadata == {"plan": "max"}


def test_a_new_secret_keeps_what_is_the_persons_own_and_nothing_else(bench: Bench) -> None:
    bench.stripe("acct_1")
    mine = bench.connect()
    away = state_in(begin(bench))
    others = bench.leave(link=bench.link("user-2"))
    fresh = bench.services.self_service.renewed(bench.row(ConnectedAccount).end_user_id, bench.browser)
    assert fresh != bench.browser
    assert bench.services.flow_pages.page(mine.flow_ref, fresh).connection is not None
    with pytest.raises(FlowUnknown):
        bench.services.flow_pages.page(mine.flow_ref, bench.browser)
    with pytest.raises(OtherBrowser):
        bench.come_back(others, browser=fresh)
    assert bench.come_back(away, browser=fresh).flow_ref
    assert bench.row(ConnectedAccount).token_version == 2


def test_a_browser_that_never_was_here_gets_a_secret(bench: Bench) -> None:
    assert bench.services.self_service.renewed(1, None).secret


def test_while_the_provider_is_away_nothing_is_left_behind(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect()
    made = len(bench.rows(Link))
    for _ in range(OPENS_AFTER):
        bench.services.circuits.failed(app_circuit("stripe"), ProviderUnavailable("503"))
    mine = bench.services.connections.find(bench.row(ConnectedAccount).ref)
    for _ in range(2):
        with pytest.raises(ProviderDown):
            begin(bench)
        with pytest.raises(ProviderDown):
            bench.services.reconnects.begin(mine, bench.browser)
    assert len(bench.rows(Link)) == made
    bench.later(seconds=PROBE_SECONDS)
    assert begin(bench), "one may go and see"
    assert len(bench.rows(Link)) == made + 1


def test_a_person_begins_only_so_many_by_themself_and_may_again_once_they_are_over(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect()
    states = [state_in(begin(bench)) for _ in range(MOST_OPEN_FLOWS)]
    made = len(bench.rows(Link))
    mine = bench.services.connections.find(bench.row(ConnectedAccount).ref)
    with pytest.raises(TooManyFlows):
        begin(bench)
    with pytest.raises(TooManyFlows):
        bench.services.reconnects.begin(mine, bench.browser)
    assert len(bench.rows(Link)) == made
    # A link of the host is not held up by it.
    bench.leave()
    bench.come_back(states[0])
    assert begin(bench)
