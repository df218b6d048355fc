"""The four steps of a connection: each says honestly where it stands, and since when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from broker.audit import Actor
from broker.models import ConnectedAccount
from tests.connecting import CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, Bench, open_bench

HELD = f"{SEQUIN}/v1/credentials/{CREDENTIAL}"
NAMES = ["connected", "sealed", "imported", "verified"]


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url, keep_grants=True) as opened:
        opened.stripe()
        opened.sequin()
        shown(opened)
        yield opened


def shown(bench: Bench, **changes: Any) -> None:
    """Let Sequin show the credential as it was imported, with changes."""
    as_imported = {"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP, "properties": {"kind": "stripe_oauth2"}}
    bench.network.upsert("GET", HELD, json=as_imported | changes)


def check(bench: Bench) -> None:
    bench.services.verifications.check(bench.row(ConnectedAccount).id)


def steps(bench: Bench) -> dict[str, tuple[str, timedelta | None]]:
    """Return where each step stands, and how long ago it came there."""
    found = bench.services.connections.find(bench.row(ConnectedAccount).ref).steps
    assert [step.name for step in found] == NAMES
    return {step.name: (step.state, None if step.at is None else bench.clock.now() - step.at) for step in found}


NOW = ("done", timedelta(0))
WAITING = ("waiting", None)


def minutes(number: int) -> timedelta:
    return timedelta(minutes=number)


def test_each_step_is_told_once_it_was_taken_and_not_before(bench: Bench) -> None:
    bench.connect()
    assert steps(bench) == {"connected": NOW, "sealed": NOW, "imported": WAITING, "verified": WAITING}
    bench.later(minutes=1)
    bench.deliver()
    assert steps(bench)["imported"] == NOW
    assert steps(bench)["verified"] == WAITING
    bench.later(minutes=1)
    check(bench)
    assert steps(bench) == {
        "connected": ("done", minutes(2)), "sealed": ("done", minutes(2)), "imported": ("done", minutes(1)),
        "verified": NOW,
    }  # fmt: skip
    credential = bench.services.connections.find(bench.row(ConnectedAccount).ref).steps[2].detail
    assert credential == CREDENTIAL


def test_an_import_that_fails_for_a_moment_has_not_failed(bench: Bench) -> None:
    bench.sequin(status=503)
    bench.connect()
    bench.deliver()
    assert steps(bench)["imported"] == WAITING


def test_an_import_that_was_refused_has_failed_since_then(bench: Bench) -> None:
    bench.sequin(status=422, json={"validation_errors": {"name": ["is not good"]}})
    bench.connect()
    bench.deliver()
    bench.later(minutes=5)
    assert steps(bench)["imported"] == ("failed", minutes(5))
    assert steps(bench)["verified"] == WAITING


def test_drift_fails_the_last_step_since_the_first_check_that_found_any(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    check(bench)
    bench.later(minutes=1)
    shown(bench, oauth_app_id="another")
    check(bench)
    bench.later(minutes=7)
    bench.network.upsert("GET", HELD, status=404, json={})
    check(bench)
    assert steps(bench)["verified"] == ("failed", minutes(7))
    assert steps(bench)["imported"] == ("done", minutes(8))
    # What mends it starts the last two steps afresh.
    bench.services.connections.retry(bench.row(ConnectedAccount).ref, actor=Actor("operator", "jo"))
    assert (steps(bench)["imported"], steps(bench)["verified"]) == (WAITING, WAITING)
    shown(bench)
    bench.deliver()
    check(bench)
    assert (steps(bench)["imported"], steps(bench)["verified"]) == (NOW, NOW)
    assert bench.row(ConnectedAccount).drifted_at is None


def test_drift_that_was_mended_elsewhere_is_over_with_the_next_check(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    shown(bench, oauth_app_id="another")
    check(bench)
    bench.later(minutes=1)
    shown(bench)
    check(bench)
    assert steps(bench)["verified"] == NOW


def test_a_check_from_before_the_last_import_proves_nothing_about_it(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    check(bench)
    bench.later(minutes=30)
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "import", bench.row(ConnectedAccount).id)
    bench.deliver()
    assert (steps(bench)["imported"], steps(bench)["verified"]) == (NOW, WAITING)


def test_reconnecting_starts_afresh(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    check(bench)
    bench.later(minutes=9)
    bench.connect()
    assert steps(bench) == {"connected": NOW, "sealed": NOW, "imported": WAITING, "verified": WAITING}


def test_what_has_ended_has_no_way_left(bench: Bench) -> None:
    bench.connect()
    ref = bench.row(ConnectedAccount).ref
    bench.services.disconnections.request(ref, actor=Actor("operator", "jo"))
    assert bench.services.connections.find(ref).steps == ()
