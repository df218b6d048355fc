"""Refresh: ahead of its end, one at a time, the rotated token committed first, and honest when that was cut off."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import pytest
import requests
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.app import build_services
from broker.apps import AppCatalogue
from broker.attach import grant_binding
from broker.audit import Actor
from broker.db import DatabaseUnavailable
from broker.http import Http
from broker.jobs import Later, LeasedJob
from broker.models import CleanUp, ConnectedAccount, Job, JobState
from broker.oauth import Grant, OAuth
from broker.providers import discover
from broker.providers.base import Provider
from broker.refresh import FAILING, Refreshes
from broker.secret import Secret
from broker.status import Status
from tests.connecting import STRIPE_TOKEN, Bench, ManualDatabase, open_bench
from tests.house import stripe_app

HOUR = 3600
NEW_ACCESS = "SENTINEL-ACCESS-2"
NEW_REFRESH = "SENTINEL-REFRESH-2"
RENEWED = {"access_token": NEW_ACCESS, "refresh_token": NEW_REFRESH, "token_type": "bearer", "expires_in": HOUR}
REFUSED = {"status": 400, "json": {"error": "invalid_grant", "error_description": "no longer good"}}


def providers() -> dict[str, Provider]:
    """Return the providers, one of them with grants that the broker refreshes."""
    return {**discover(), "stripe": replace(discover()["stripe"], refreshes=lambda _app: True, probe=None)}


def refreshes(bench: Bench, **changes: Any) -> Refreshes:
    given: dict[str, Any] = {
        "database": bench.database, "clock": bench.clock, "vault": bench.vault, "jobs": bench.jobs,
        "apps": AppCatalogue(bench.house.settings.apps, providers()), "circuits": bench.services.circuits,
        "oauth": OAuth(Http(allow_plain_loopback=True, user_agent="test"), bench.clock),
        "jitter": lambda: 0.0, "pause": bench.clock.advance,
    }  # fmt: skip
    return Refreshes(**(given | changes))


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url, providers=providers()) as opened:
        opened.stripe("acct_1", expires_in=HOUR)
        opened.sequin()
        opened.connect()
        opened.deliver()
        yield opened


def row(bench: Bench) -> Any:
    return bench.row(ConnectedAccount)


def grant(bench: Bench) -> Grant:
    found = row(bench)
    return Grant.from_json(bench.vault.open(found.grant_sealed, grant_binding(found.ref, found.token_version)))


def due(bench: Bench) -> LeasedJob:
    """Let time pass until the refresh is due and lease it."""
    bench.later(seconds=max(0.0, (bench.job("refresh").due_at - bench.clock.now()).total_seconds()))
    return bench.lease("refresh")


def answer(bench: Bench, **told: Any) -> None:
    bench.network.upsert("POST", STRIPE_TOKEN, **(told or {"json": RENEWED}))


def sent(bench: Bench) -> list[str]:
    """Return the refresh tokens that were sent."""
    forms = [parse_qs(str(request.body)) for request in bench.calls(STRIPE_TOKEN)]
    return [form["refresh_token"][0] for form in forms if form["grant_type"] == ["refresh_token"]]


def status(bench: Bench) -> Status:
    return bench.services.connections.find(row(bench).ref).status


# --- in time --------------------------------------------------------------------------------------------


def test_a_grant_that_ends_is_refreshed_ahead_of_its_end_and_imported_again(bench: Bench) -> None:
    job = due(bench)
    assert bench.clock.now() < row(bench).grant_expires_at
    answer(bench)

    outcome = refreshes(bench).run(job)

    assert isinstance(outcome, Later)
    assert grant(bench).access_token == Secret(NEW_ACCESS)
    assert row(bench).token_version == 2
    assert (row(bench).grant_expires_at - bench.clock.now()).total_seconds() == HOUR
    bench.deliver()
    assert [each["properties"]["secret"] for each in bench.imports()][1:] == [NEW_ACCESS]


def test_the_next_refresh_spends_the_rotated_token(bench: Bench) -> None:
    for _ in range(2):
        answer(bench)
        refreshes(bench).run(due(bench))
    assert sent(bench) == ["SENTINEL-REFRESH", NEW_REFRESH]


def test_a_refresh_token_that_the_answer_leaves_out_is_kept(bench: Bench) -> None:
    answer(bench, json={"access_token": NEW_ACCESS, "token_type": "bearer", "expires_in": HOUR})
    refreshes(bench).run(due(bench))
    assert grant(bench).refresh_token == Secret("SENTINEL-REFRESH")


def test_a_grant_that_no_longer_ends_is_not_refreshed_again(bench: Bench) -> None:
    answer(bench, json={"access_token": NEW_ACCESS, "refresh_token": NEW_REFRESH, "token_type": "bearer"})
    refreshes(bench).run(due(bench))
    assert bench.job("refresh").state == JobState.DONE


def test_an_app_whose_tokens_are_handed_over_is_never_refreshed(database_url: str) -> None:
    with open_bench(database_url) as bench:
        bench.stripe("acct_1", expires_in=HOUR)
        bench.sequin()
        bench.connect()
        assert "refresh" not in {each.kind for each in bench.rows(Job)}


# --- one at a time --------------------------------------------------------------------------------------


def test_while_another_process_is_at_it_nothing_is_sent(bench: Bench, database_url: str) -> None:
    job = due(bench)
    with bench.database.alone(row(bench).id) as alone:
        assert alone
        assert isinstance(refreshes(bench).run(job), Later)
    assert sent(bench) == []


def test_whoever_held_it_meanwhile_may_have_renewed_it_so_the_token_is_read_again(bench: Bench) -> None:
    first, late = refreshes(bench), refreshes(bench)
    job = due(bench)
    answer(bench)
    first.run(job)

    bench.later(seconds=HOUR)
    bench.services.jobs.lease(["refresh"])
    late.run(job)

    # The lease was lost: the second run sends nothing.
    assert sent(bench) == ["SENTINEL-REFRESH"]


def test_a_lease_lost_during_the_call_does_not_lose_the_token(bench: Bench) -> None:
    job = due(bench)

    def slow(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        bench.later(seconds=31)
        (other,) = bench.services.jobs.lease(["refresh"])
        assert other.fence == job.fence + 1
        return 200, {}, json.dumps(RENEWED)

    bench.answering("POST", STRIPE_TOKEN, slow)
    refreshes(bench).run(job)
    assert grant(bench).refresh_token == Secret(NEW_REFRESH)


def test_a_reconnect_during_the_call_wins(bench: Bench) -> None:
    job = due(bench)

    def reconnect_meanwhile(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        with bench.database.write() as connection:
            connection.execute(sa.update(ConnectedAccount).values(token_version=7))
        return 200, {}, json.dumps(RENEWED)

    before = row(bench).grant_sealed
    bench.answering("POST", STRIPE_TOKEN, reconnect_meanwhile)
    refreshes(bench).run(job)
    assert (row(bench).grant_sealed, row(bench).token_version) == (before, 7)
    assert bench.job("refresh").state == JobState.DONE


def test_what_comes_to_life_during_a_disconnect_is_ended_too(bench: Bench) -> None:
    job = due(bench)

    def disconnect_meanwhile(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        bench.services.disconnections.request(row(bench).ref, actor=Actor("cli", "test"))
        return 200, {}, json.dumps(RENEWED)

    bench.answering("POST", STRIPE_TOKEN, disconnect_meanwhile)
    refreshes(bench).run(job)
    assert grant(bench).access_token == Secret(NEW_ACCESS)
    assert (row(bench).revocation, bench.job("revoke").state) == (CleanUp.PENDING, JobState.WAITING)
    assert bench.job("import").state == JobState.DONE


# --- failures -------------------------------------------------------------------------------------------


def test_a_refused_grant_means_reconnect(bench: Bench) -> None:
    answer(bench, **REFUSED)
    refreshes(bench).run(due(bench))
    assert row(bench).revoked_at == bench.clock.now()
    assert status(bench) is Status.REVOKED
    assert bench.job("refresh").state == JobState.DONE
    assert ("worker", "refresh", "connection.revoked_by_provider", row(bench).ref) in bench.house.audited()


def test_a_refresh_that_was_cut_off_is_tried_once_more_and_then_called_interrupted(bench: Bench) -> None:
    answer(bench, body=requests.ReadTimeout("nothing came"))
    refreshes(bench).run(due(bench))
    assert row(bench).refreshing_since is not None
    assert bench.job("refresh").state == JobState.WAITING

    answer(bench, **REFUSED)
    refreshes(bench).run(due(bench))

    assert sent(bench) == ["SENTINEL-REFRESH"] * 2
    assert status(bench) is Status.INTERRUPTED
    view = bench.services.connections.find(row(bench).ref)
    assert "Reconnect" in view.note
    assert bench.job("refresh").state == JobState.DONE


def test_a_refresh_that_was_cut_off_before_the_token_was_spent_goes_on(bench: Bench) -> None:
    answer(bench, body=requests.ReadTimeout("nothing came"))
    refreshes(bench).run(due(bench))
    answer(bench)
    refreshes(bench).run(due(bench))
    assert grant(bench).refresh_token == Secret(NEW_REFRESH)
    assert row(bench).refreshing_since is None


def test_a_reconnect_heals_what_was_interrupted(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(sa.update(ConnectedAccount).values(interrupted_at=bench.clock.now()))
    bench.stripe("acct_1", expires_in=HOUR)
    bench.connect()
    assert row(bench).interrupted_at is None
    assert bench.job("refresh").state == JobState.WAITING


def test_a_refused_client_flips_nobody_and_stops_after_the_first_call(bench: Bench) -> None:
    answer(bench, status=401, json={"error": "invalid_client"})
    for _ in range(10):
        refreshes(bench).run(due(bench))
    # One that found it out, and one that looked whether it has passed.
    assert len(sent(bench)) == 2
    assert row(bench).revoked_at is None
    assert status(bench) is not Status.REVOKED
    assert [circuit.name for circuit in bench.services.circuits.open()] == ["app:stripe"]


def test_new_secrets_are_tried_at_once(bench: Bench) -> None:
    answer(bench, status=401, json={"error": "invalid_client"})
    for _ in range(4):
        refreshes(bench).run(due(bench))
    settings = bench.house.settings
    apps = dict(settings.apps) | {"stripe": replace(stripe_app("stripe"), client_secrets=(Secret("sk_new"),))}
    restarted = build_services(replace(settings, apps=apps), bench.database, bench.clock, providers())
    answer(bench)
    restarted.refreshes.run(due(bench))

    assert grant(bench).refresh_token == Secret(NEW_REFRESH)
    assert bench.services.circuits.open() == []


def test_a_provider_that_is_away_for_days_is_never_given_up_and_shows_once_the_token_has_ended(bench: Bench) -> None:
    answer(bench, status=503)
    for _ in range(3):
        refreshes(bench).run(due(bench))
        bench.later(days=2)
    assert bench.job("refresh").state == JobState.WAITING
    assert row(bench).trouble == FAILING
    assert status(bench) is Status.ERROR
    assert "renew" in bench.services.connections.find(row(bench).ref).note

    answer(bench)
    bench.later(minutes=30)
    refreshes(bench).run(due(bench))
    assert (row(bench).trouble, row(bench).health) == (None, None)


@pytest.mark.parametrize("broken", [{"expires_in": "soon"}, {"access_token": 7}, {"token_type": "mac"}])
def test_an_unusable_answer_does_not_cost_the_rotated_token(bench: Bench, broken: dict[str, Any]) -> None:
    answer(bench, json=RENEWED | broken)
    refreshes(bench).run(due(bench))
    assert grant(bench).refresh_token == Secret(NEW_REFRESH)

    answer(bench)
    refreshes(bench).run(due(bench))
    assert sent(bench) == ["SENTINEL-REFRESH", NEW_REFRESH]
    assert grant(bench).access_token == Secret(NEW_ACCESS)


class FlakyDatabase(ManualDatabase):
    """Cannot be written to for a while."""

    failures = 0

    @contextmanager
    def write(self) -> Iterator[Connection]:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable("busy")
        with super().write() as connection:
            yield connection


def test_a_database_that_is_away_for_a_moment_does_not_cost_the_rotated_token(bench: Bench) -> None:
    flaky = FlakyDatabase(bench.database.engine, bench.clock)

    def fail_from_now_on(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        flaky.failures = 4
        return 200, {}, json.dumps(RENEWED)

    job = due(bench)
    bench.answering("POST", STRIPE_TOKEN, fail_from_now_on)
    refreshes(bench, database=flaky).run(job)
    assert grant(bench).refresh_token == Secret(NEW_REFRESH)


def test_no_token_is_in_the_log(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    answer(bench)
    refreshes(bench).run(due(bench))
    answer(bench, **REFUSED)
    refreshes(bench).run(due(bench))
    told = capsys.readouterr()
    assert "SENTINEL" not in told.out + told.err
