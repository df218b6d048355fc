"""Bulk actions in the console: from the list, through a confirmation, to a page that tells how far it has come."""

from __future__ import annotations

import re
from html import unescape

import pytest
import sqlalchemy as sa
from flask import Flask
from werkzeug.test import TestResponse

from broker.models import ConnectedAccount, Role
from broker.operators import Operators
from tests.house import House
from tests.web.test_console import csrf_of, signed_in, text_of


def connections(house: House, count: int) -> list[str]:
    return [house.connection(house.end_user(f"u{number}"), account_name=f"Account {number}") for number in range(count)]


def posted(page: TestResponse) -> tuple[str, dict[str, str]]:
    """Return where the page's own form goes, and what it holds."""
    form = re.search(
        r'<form method="post" action="(/ops/bulk[^"]*)">(.*?)</form>', page.get_data(as_text=True), re.DOTALL
    )
    assert form
    return unescape(form[1]), dict(re.findall(r'name="(csrf_token|confirmed|seen)" value="([^"]*)"', form[2]))


def work(app: Flask) -> None:
    services = app.extensions["broker"]
    while jobs := services.jobs.lease(["bulk"]):
        for job in jobs:
            services.bulk_runs.run(job)


def test_those_picked_are_confirmed_done_and_counted(app: Flask, house: House, operators: Operators) -> None:
    refs = connections(house, 3)
    client = signed_in(app, operators)
    assert f'name="ref" value="{refs[0]}"' in text_of(client.get("/ops/connections"))
    page = client.get(f"/ops/bulk/new?action=disconnect&ref={refs[0]}&ref={refs[2]}&mode=live")
    told = text_of(page)
    assert "Disconnect: 2 connections?" in told
    assert "Account 0" in told
    assert "Account 1" not in told
    address, form = posted(page)
    progress = client.post(address, data=form)
    assert progress.status_code == 303
    under_way = client.get(progress.headers["Location"])
    assert "0 of 2 so far" in text_of(under_way)
    assert under_way.headers["Refresh"] == "3"
    assert "Refresh" not in client.get(progress.headers["Location"] + "?still=1").headers
    work(app)
    finished = client.get(progress.headers["Location"])
    assert "Finished." in text_of(finished)
    assert "Refresh" not in finished.headers
    assert "Disconnect: 2" in text_of(client.get("/ops/bulk"))
    done = [target for _, actor, action, target in house.audited() if action == "connection.disconnected"]
    assert sorted(done) == sorted([refs[0], refs[2]])


def test_all_that_match_are_taken_from_every_page(
    app: Flask, house: House, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.web.console.connections.ON_A_PAGE", 2)
    connections(house, 5)
    house.connection(house.end_user("test"), mode="test")
    client = signed_in(app, operators)
    listed = text_of(client.get("/ops/connections?mode=live"))
    assert '<input type="hidden" name="mode" value="live">' in listed
    page = client.get("/ops/bulk/new?action=check&all=1&mode=live&ref=ignored")
    assert "Check now: 5 connections?" in text_of(page)
    address, form = posted(page)
    progress = client.post(address, data=form, follow_redirects=True)
    assert "0 of 5 so far" in text_of(progress)
    assert "mode: live" in text_of(progress)


def test_ending_many_asks_for_their_number(app: Flask, house: House, operators: Operators) -> None:
    connections(house, 11)
    client = signed_in(app, operators)
    address, form = posted(client.get("/ops/bulk/new?action=disconnect&all=1"))
    for typed in ({}, {"typed": "10"}, {"typed": "eleven"}):
        refused = client.post(address, data=form | typed)
        assert refused.status_code == 422
        assert "Type the number of connections as it stands above." in text_of(refused)
    assert client.post(address, data=form | {"typed": " 11 "}).status_code == 303


def test_what_has_grown_since_is_shown_again(app: Flask, house: House, operators: Operators) -> None:
    connections(house, 2)
    client = signed_in(app, operators)
    address, form = posted(client.get("/ops/bulk/new?action=check&all=1&mode=live"))
    house.connection(house.end_user("late"))
    again = client.post(address, data=form)
    assert again.status_code == 409
    assert "Check now: 3 connections?" in text_of(again)
    assert client.post(address, data=form | {"confirmed": "x" * 40}).status_code == 409


def test_as_many_others_are_not_ended_in_place_of_those_looked_at(
    app: Flask, house: House, operators: Operators
) -> None:
    refs = connections(house, 2)
    client = signed_in(app, operators)
    address, form = posted(client.get("/ops/bulk/new?action=disconnect&all=1&mode=live"))
    house.run(sa.update(ConnectedAccount).where(ConnectedAccount.ref == refs[0]).values(mode="test"))
    house.connection(house.end_user("late"), account_name="Latecomer")
    again = client.post(address, data=form)
    assert again.status_code == 409
    assert "Other connections match by now than when you looked" in text_of(again)
    assert "Latecomer" in text_of(again)
    address, form = posted(again)
    assert client.post(address, data=form).status_code == 303


@pytest.mark.parametrize(
    ("query", "status"),
    [("action=check", 409), ("action=check&ref=nobody", 409), ("action=check&all=1&mode=test", 409), ("", 400),
     ("action=erase&all=1", 400), ("action=check&all=1&status=nope", 400)],
)  # fmt: skip
def test_a_selection_that_is_none_is_a_page(
    app: Flask, house: House, operators: Operators, query: str, status: int
) -> None:
    connections(house, 1)
    client = signed_in(app, operators)
    csrf = csrf_of(client.get("/ops/connections"))
    assert client.get(f"/ops/bulk/new?{query}").status_code == status
    assert client.post(f"/ops/bulk/new?{query}", data={"csrf_token": csrf, "confirmed": "9"}).status_code == status


def test_a_run_is_stopped_by_whoever_may_and_seen_by_all(app: Flask, house: House, operators: Operators) -> None:
    connections(house, 2)
    client, viewer = signed_in(app, operators), signed_in(app, operators, Role.VIEWER)
    address, form = posted(client.get("/ops/bulk/new?action=check&all=1"))
    run = client.post(address, data=form).headers["Location"]
    assert 'name="ref"' not in text_of(viewer.get("/ops/connections"))
    assert f'action="{run}/stop"' not in text_of(viewer.get(run))
    csrf = csrf_of(client.get(run))
    stopped = client.post(f"{run}/stop", data={"csrf_token": csrf}, follow_redirects=True)
    assert "Stopped by operator@example.com." in text_of(stopped)
    assert "2 of 2 were not reached." in text_of(stopped)


def test_a_page_of_the_list_is_picked_by_its_address(app: Flask, house: House, operators: Operators) -> None:
    connections(house, 2)
    client = signed_in(app, operators)
    assert text_of(client.get("/ops/connections?sort=oldest&tick=page")).count(" checked>") == 2
    assert 'href="/ops/connections?sort=oldest&tick=page"' in text_of(client.get("/ops/connections?sort=oldest"))
