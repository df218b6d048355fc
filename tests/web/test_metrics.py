"""/metrics: numbers from the database for whoever brings the token, and never anything about a person."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask

from broker.app import create_app
from broker.figures import COUNTING_SHARE, LONGEST_KNOWN_SECONDS
from broker.models import ImportState
from broker.secret import Secret
from tests.house import House, make_settings

TOKEN = "a-token-for-prometheus"


@pytest.fixture
def app(house: House, tmp_path: Path) -> Iterator[Flask]:
    settings = make_settings(house.settings.database_url, data_dir=tmp_path, metrics_token=Secret(TOKEN))
    built = create_app(settings, clock=house.clock)
    yield built
    built.extensions["broker"].database.engine.dispose()


def read(app: Flask, token: str = TOKEN) -> str:
    answer = app.test_client().get("/metrics", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200
    return answer.text


def test_connections_are_counted_by_app_and_status(app: Flask, house: House) -> None:
    person = house.end_user("jo", email="jo@example.com")
    house.connection(person, health="ok", checked_at=house.clock.now())
    house.connection(person, import_state=ImportState.PENDING, app_key="stripe-test")
    told = read(app)
    assert 'broker_connections{app="stripe",status="ok"} 1.0' in told
    assert 'broker_connections{app="stripe-test",status="pending"} 1.0' in told
    assert "jo@example.com" not in told


def test_unfinished_work_is_counted_with_its_delay(app: Flask, house: House) -> None:
    with house.database.write() as connection:
        house.jobs.enqueue(connection, "import", 1)
    told = read(app)
    assert 'broker_jobs{kind="import",state="waiting"} 1.0' in told
    assert 'broker_job_delay_seconds{kind="import"}' in told


def test_how_long_a_provider_was_not_asked_is_told_of_what_it_can_be_asked_about(app: Flask, house: House) -> None:
    person, now = house.end_user("jo"), house.clock.now()
    verified: dict[str, Any] = {"import_state": ImportState.IMPORTED, "verified_at": now, "connected_at": now}
    house.connection(person, account_id="acct_1", **verified, probed_at=now - timedelta(hours=3))
    house.connection(person, account_id="acct_2", **verified | {"connected_at": now - timedelta(hours=5)})
    # Not asked about yet, and not any more.
    long_ago = now - timedelta(days=9)
    house.connection(person, account_id="acct_3", **verified | {"verified_at": None, "connected_at": long_ago})
    house.connection(person, account_id="acct_4", **verified, probed_at=long_ago, disconnected_at=now)
    told = read(app)
    assert 'broker_probe_age_seconds{app="stripe"} 18000.0' in told
    assert "stripe-test" not in told


@pytest.mark.parametrize("brought", ["", "wrong", "Bearer", "ünglaublich"])
def test_whoever_does_not_bring_the_token_reads_nothing(app: Flask, brought: str) -> None:
    header = f"Bearer {brought}".encode().decode("latin-1")
    answer = app.test_client().get("/metrics", headers={"Authorization": header})
    assert answer.status_code == 401
    assert "broker_" not in answer.text


def test_without_a_token_in_the_settings_there_is_no_such_page(house: House, tmp_path: Path) -> None:
    app = create_app(make_settings(house.settings.database_url, data_dir=tmp_path), clock=house.clock)
    assert app.test_client().get("/metrics").status_code == 404


def test_numbers_are_given_out_again_for_a_few_seconds(app: Flask, house: House) -> None:
    first = read(app)
    house.connection(house.end_user("jo"))
    assert read(app) == first
    house.clock.advance(11)
    assert read(app) != first


@pytest.mark.parametrize("seconds", [0.1, 60.0])
def test_numbers_that_took_long_to_count_are_given_out_for_longer(app: Flask, house: House, seconds: float) -> None:
    def slowly(*_: object) -> None:
        house.clock.advance(seconds)

    sa.event.listen(app.extensions["broker"].database.engine, "before_cursor_execute", slowly)
    began = house.clock.monotonic()
    first = read(app)
    longer = min(COUNTING_SHARE * (house.clock.monotonic() - began), LONGEST_KNOWN_SECONDS)
    house.connection(house.end_user("jo"))
    house.clock.advance(longer - 1)
    assert read(app) == first
    house.clock.advance(2)
    assert read(app) != first
