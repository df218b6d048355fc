"""The console's overview: numbers, findings in words, drawings, tables, and links to the lists behind them."""

from __future__ import annotations

import csv
import io
import re
from datetime import timedelta

import pytest
from flask import Flask

from broker import overview
from broker.events import EventType
from broker.models import ImportState, Role
from broker.operators import Operators
from tests.house import House
from tests.test_overview import a_link, event, note
from tests.web.test_console import signed_in, text_of


@pytest.fixture
def lively(house: House) -> House:
    """A week in which this and that has happened."""
    jo = house.end_user("jo")
    for days in (0, 1, 8):
        note(house, "connection.connected", ago=timedelta(days=days), target=f"R{days}")
        note(house, "connection.imported", ago=timedelta(days=days) - timedelta(seconds=3), target=f"R{days}")
    note(house, "flow.failed", failure="consent_denied")
    note(house, "flow.expired", failure="flow_expired")
    event(house, EventType.NEEDS_ATTENTION)
    a_link(house, jo)
    house.connection(jo, health="ok", checked_at=house.clock.now())
    house.connection(jo, import_state=ImportState.PARKED, import_error="sequin_unauthorized")
    return house


FIGURES = ("attempts", "funnel", "providers", "statuses", "times", "reasons", "health")


@pytest.mark.usefixtures("lively")
def test_numbers_come_first_and_every_chart_says_its_finding(app: Flask, operators: Operators) -> None:
    page = text_of(signed_in(app, operators, Role.VIEWER).get("/ops/"))

    assert page.index('class="numbers"') < page.index("<figure")
    for words in (
        "2 accounts connected in 7 days, 1 more than in the same time in the 7 days before.",
        "1 attempt failed, and 1 was given up.",
        "Of 1 link, 0 led to an import. Most stop before “Opened”: 1.",
        "2 connections, 100 % of them through stripe.",
        "somebody has to do something",
        "1 of 2 connections needs attention.",
        "Half of the imports arrived within 3.0 s, 95 of 100 within 3.0 s.",
        "Consent denied (failed) is the most frequent: 1 of 3.",
        "1 connection began to need attention in 7 days, 0 recovered.",
    ):
        assert words in page
    assert re.findall(r'<figure class="card" id="(\w+)"', page) == list(FIGURES)
    assert page.count("View as table") == len(FIGURES)
    assert page.count('role="img"') == 3


@pytest.mark.usefixtures("lively")
def test_figures_lead_to_the_lists_behind_them(app: Flask, operators: Operators) -> None:
    client = signed_in(app, operators, Role.VIEWER)
    page = text_of(client.get("/ops/"))
    wanted = (
        "/ops/connections?status=import_failed", "/ops/connections?app=stripe", "/ops/connections?from=2026-11-14",
        "/ops/connections?from=2026-11-19&to=2026-11-19", "/ops/links?state=unopened",
        "/ops/audit?action=flow.failed&from=2026-11-14", "/ops/jobs?state=retrying",
    )  # fmt: skip
    for address in wanted:
        assert f'href="{address}"' in page
        assert client.get(address).status_code == 200


@pytest.mark.usefixtures("lively")
def test_drawings_need_neither_script_nor_styles_of_their_own(app: Flask, operators: Operators) -> None:
    page = signed_in(app, operators).get("/ops/").get_data(as_text=True)
    main = page[page.index("<main") :]
    assert "<script" not in main
    assert "style=" not in main
    assert "<rect" in main
    assert "<circle" in main


@pytest.mark.parametrize(
    ("query", "period", "parts"), [("", "7 days", 7), ("?period=24h", "24 hours", 24), ("?period=30d", "30 days", 30)]
)
def test_the_period_stands_in_the_address(
    app: Flask, lively: House, operators: Operators, query: str, period: str, parts: int
) -> None:
    page = text_of(signed_in(app, operators).get(f"/ops/{query}"))
    assert re.search(rf'aria-current="page">{period}<', page)
    assert page.count('<td data-label="Begins">') == 3 * parts
    assert f"connected in {period}" in page


def test_a_period_that_does_not_exist_is_a_week(app: Flask, operators: Operators) -> None:
    assert 'aria-current="page">7 days<' in text_of(signed_in(app, operators).get("/ops/?period=<b>"))


def test_an_empty_broker_says_what_will_stand_here(app: Flask, operators: Operators) -> None:
    page = text_of(signed_in(app, operators).get("/ops/"))
    assert "Nothing to show yet" in page
    assert "broker links create" in page
    assert "<figure" not in page


def test_a_quiet_period_says_so_at_each_chart(app: Flask, house: House, operators: Operators) -> None:
    house.connection(house.end_user("jo"))
    page = text_of(signed_in(app, operators).get("/ops/?period=24h"))
    assert page.count("Nothing to draw in these 24 hours.") == 5
    assert "1 of them not checked in the last day" in page
    assert "nothing to do" in page
    assert "somebody has to do something" not in page


def test_a_large_broker_shows_what_was_counted_last_and_when(
    app: Flask, lively: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overview, "SMALL", -1)
    client, services = signed_in(app, operators), app.extensions["broker"]
    waiting = text_of(client.get("/ops/?period=30d"))
    assert "The numbers are being counted" in waiting
    assert 'href="/ops/?period=30d">Look again</a>' in waiting
    (job,) = services.jobs.lease(["count"])
    services.overviews.run(job)
    lively.clock.advance(300)
    page = text_of(client.get("/ops/?period=30d"))
    assert "as counted at <time" in page
    assert "20 Nov 2026, 10:00 UTC" in page


@pytest.mark.usefixtures("lively")
@pytest.mark.parametrize("key", FIGURES)
def test_every_table_can_be_had_as_csv(app: Flask, operators: Operators, key: str) -> None:
    answer = signed_in(app, operators, Role.VIEWER).get(f"/ops/overview/{key}.csv?period=7d")
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    rows = list(csv.reader(io.StringIO(answer.get_data(as_text=True))))
    assert len({len(row) for row in rows}) == 1
    if key == "attempts":
        assert rows[0] == ["Begins", "Connected", "Failed", "Given up"]
        assert rows[-1] == ["2026-11-20T00:00:00Z", "1", "1", "1"]


def test_there_is_no_csv_of_another_table(app: Flask, operators: Operators) -> None:
    assert signed_in(app, operators).get("/ops/overview/secrets.csv").status_code == 404
