"""What a flow's page is made of: above all, when the person goes back to the host by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from broker.flow_page import FlowPage, FlowPages
from tests.connecting import Bench, open_bench

BACK = "https://app.example/back?tab=accounts"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def connected(bench: Bench, **asked: Any) -> str:
    """Connect through a link; return the flow's reference."""
    return bench.connect(**asked).flow_ref or ""


def page(bench: Bench, flow: str) -> FlowPage:
    return bench.services.flow_pages.page(flow, bench.browser)


def test_a_person_goes_back_by_themselves_once_the_account_is_imported(bench: Bench) -> None:
    flow = connected(bench, return_url=BACK, auto_return=True)
    assert not page(bench, flow).goes_back
    bench.deliver()
    shown = page(bench, flow)
    assert shown.goes_back
    assert shown.connection is not None
    assert shown.return_url == f"{BACK}&status=unknown&ref={shown.connection.ref}"


def test_nobody_goes_back_by_themselves_unless_the_link_says_so_and_where(bench: Bench) -> None:
    for asked in ({"return_url": BACK}, {"auto_return": True}):
        flow = connected(bench, **asked)
        bench.deliver()
        assert not page(bench, flow).goes_back


def test_who_has_to_read_something_first_stays(bench: Bench) -> None:
    flow = connected(bench, return_url=BACK, auto_return=True)
    bench.deliver()
    assert page(bench, flow).goes_back
    bench.stripe(scope="something_else")
    lesser = connected(bench, return_url=BACK, auto_return=True)
    bench.deliver()
    shown = page(bench, lesser)
    assert shown.missing_scopes
    assert not shown.goes_back


def test_settings_of_today_decide_where_people_go_back_to(bench: Bench) -> None:
    flow = connected(bench, return_url=BACK, auto_return=True)
    bench.deliver()
    assert page(bench, flow).goes_back
    later = FlowPages(
        journal=bench.journal,
        database=bench.database,
        clock=bench.clock,
        apps=bench.apps,
        connections=bench.services.connections,
        return_origins=("https://app.example:8443", "https://elsewhere.example"),
    )
    shown = later.page(flow, bench.browser)
    assert shown.connection is not None
    assert (shown.return_url, shown.goes_back) == (None, False)
