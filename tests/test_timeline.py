"""The timeline: every hop of a flow leaves a row, and the last one says where it stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.errors import FlowInterrupted
from broker.journal import Step
from broker.models import Flow, FlowState
from tests.connecting import ACCESS, CODE, Bench, open_bench, person_installation


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


def names(bench: Bench) -> list[str]:
    """Return what the only flow's timeline tells."""
    return [entry.name for entry in bench.services.timeline.of_flow(bench.row(Flow).ref)]


def test_a_connected_account_shows_every_hop_of_its_way(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    assert names(bench) == ["left", "returned", "redeemed", "attached"]
    flow = bench.row(Flow)
    (attached,) = (e for e in bench.services.timeline.of_flow(flow.ref) if e.name == "attached")
    assert [e.flow_ref for e in bench.services.timeline.of_connection(str(attached.detail))] == [flow.ref] * 4


def test_waiting_for_an_installation_is_part_of_it(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(person_installation(9))
    bench.from_installation(address, 9)
    assert names(bench) == ["left", "returned", "redeemed", "held", "returned", "attached"]


def test_the_last_entry_says_where_a_flow_stopped(bench: Bench) -> None:
    bench.leave()
    flow = bench.row(Flow)
    bench.journal.end(Step(flow.id, flow.ref), FlowInterrupted(), state=FlowState.INTERRUPTED)
    last = bench.services.timeline.of_flow(flow.ref)[-1]
    assert (last.name, last.detail) == ("interrupted", "flow_interrupted")


def test_it_tells_how_long_the_provider_took_and_no_secret(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    told = bench.services.timeline.of_flow(bench.row(Flow).ref)
    assert [entry.duration_ms for entry in told] == [None, None, 0, None]
    assert CODE not in str(told)
    assert ACCESS not in str(told)
