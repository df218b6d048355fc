"""Verification: what Sequin holds is read back, drift becomes a state with a cure, and the grant is erased."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from broker.models import ConnectedAccount, JobState
from broker.status import Status
from tests.connecting import ACCESS, CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, Bench, open_bench

READ_BACK = f"{SEQUIN}/v1/credentials/{CREDENTIAL}"
OLD = "5d0c8f52-0000-4000-8000-00000000000f"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe("acct_1")
        opened.sequin()
        opened.connect()
        opened.deliver()
        yield opened


def shown(**changes: Any) -> dict[str, Any]:
    """Return the imported credential as Sequin shows it, with changes."""
    properties = {"kind": "stripe_oauth2", "secret": "***********", "test": False, "stripe_user_id": "acct_1"}
    credential = {
        "id": CREDENTIAL, "provider": "stripe", "kind": "stripe_oauth2", "oauth_app_id": SEQUIN_STRIPE_APP,
        "properties": properties, "metadata": {}, "health": {"status": "ok", "notes": []},
    }  # fmt: skip
    return credential | changes


def verify(bench: Bench, **answer: Any) -> Any:
    """Let Sequin answer like this, run the check that is due, and return the connection's row."""
    bench.network.upsert("GET", READ_BACK, **(answer or {"json": shown()}))
    bench.services.verifications.run(bench.lease("verify"))
    return bench.row(ConnectedAccount)


def status(bench: Bench) -> Status:
    return bench.services.connections.find(bench.row(ConnectedAccount).ref).status


def test_an_import_is_not_called_fine_before_it_was_read_back(bench: Bench) -> None:
    assert status(bench) is Status.UNKNOWN
    row = verify(bench)
    assert (row.health, row.verified_at, row.checked_at) == ("ok", bench.clock.now(), bench.clock.now())
    assert status(bench) is Status.OK


def test_it_is_checked_again_before_a_day_has_passed(bench: Bench) -> None:
    verify(bench)
    job = bench.job("verify")
    assert job.state == JobState.WAITING
    assert 15 * 3600 <= (job.due_at - bench.clock.now()).total_seconds() <= 20 * 3600


def test_what_was_connected_long_ago_is_not_late_before_the_provider_was_to_be_asked(bench: Bench) -> None:
    # Brought from another broker, or waiting for Sequin.
    with bench.services.database.write() as connection:
        connection.execute(sa.update(ConnectedAccount).values(connected_at=bench.clock.now() - timedelta(days=9)))
    verify(bench)
    bench.later(seconds=3600)
    assert bench.services.figures.numbers().probe_age == {"stripe": 3600.0}


def test_a_status_older_than_a_day_is_no_longer_called_fine(bench: Bench) -> None:
    verify(bench)
    bench.later(hours=24, seconds=1)
    assert status(bench) is Status.UNKNOWN


def test_the_grant_is_erased_once_it_was_seen_in_sequin_and_not_before(bench: Bench) -> None:
    assert bench.row(ConnectedAccount).grant_sealed is not None
    assert verify(bench).grant_sealed is None


def test_a_deployment_can_keep_its_grants(database_url: str) -> None:
    with open_bench(database_url, keep_grants=True) as bench:
        bench.stripe("acct_1")
        bench.sequin()
        bench.connect()
        bench.deliver()
        assert verify(bench).grant_sealed is not None


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ({"status": 404, "json": {"summary": "not found"}}, "credential_missing"),
        ({"json": shown(oauth_app_id="another")}, "credential_moved"),
        ({"json": shown(kind="stripe_key", properties={"kind": "stripe_key"})}, "credential_changed"),
        ({"json": shown(properties={"kind": "stripe_oauth2", "stripe_user_id": "acct_2"})}, "credential_changed"),
        ({"json": shown(health={"status": "error", "notes": ["401"]})}, "credential_unhealthy"),
    ],
    ids=["missing", "moved", "other-kind", "other-account", "unhealthy"],
)
def test_drift_is_a_state_with_a_sentence_and_a_cure(bench: Bench, answer: dict[str, Any], code: str) -> None:
    row = verify(bench, **answer)
    assert (row.drift, row.health, row.verified_at) == (code, "error", None)
    assert row.grant_sealed is not None
    assert status(bench) is Status.ERROR
    note = bench.services.connections.find(row.ref).operator_note
    assert note.count(".") >= 2
    assert ACCESS not in note


def test_drift_that_was_mended_in_sequin_heals_at_the_next_check(bench: Bench) -> None:
    verify(bench, json=shown(oauth_app_id="another"))
    bench.later(hours=21)
    row = verify(bench)
    assert (row.drift, row.health, row.health_note) == (None, "ok", None)


def test_members_that_sequin_leaves_out_are_not_held_against_it(bench: Bench) -> None:
    assert verify(bench, json={"id": CREDENTIAL, "oauth_app_id": SEQUIN_STRIPE_APP}).health == "ok"


@pytest.mark.parametrize("status_code", [429, 500, 503])
def test_a_sequin_that_is_away_says_nothing_about_the_connection(bench: Bench, status_code: int) -> None:
    row = verify(bench, status=status_code, json={})
    assert (row.health, row.drift, row.checked_at) == (None, None, None)
    assert bench.job("verify").failures == 1


def test_an_import_that_made_another_credential_deletes_the_old_one_once_the_new_one_is_proven(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(sa.update(ConnectedAccount).values(superseded_credential_id=OLD))
    bench.network.upsert("DELETE", f"{SEQUIN}/v1/credentials/{OLD}", json={"id": OLD, "deleted": True})
    assert verify(bench).superseded_credential_id is None
    assert len(bench.calls(f"{SEQUIN}/v1/credentials/{OLD}")) == 1


def test_a_finding_about_the_token_before_does_not_touch_the_new_one(bench: Bench) -> None:
    job = bench.lease("verify")
    bench.network.upsert("GET", READ_BACK, json=shown())

    def reconnect(_: object) -> tuple[int, dict[str, str], str]:
        bench.connect()
        return 404, {}, "{}"

    bench.answering("GET", READ_BACK, reconnect)
    bench.services.verifications.run(job)
    row = bench.row(ConnectedAccount)
    assert (row.token_version, row.drift, row.health, row.import_state) == (2, None, None, "pending")


def test_a_missing_credential_is_sent_with_its_metadata_again(bench: Bench) -> None:
    assert verify(bench, status=404, json={}).metadata_digest is None


def test_one_connection_can_be_checked_on_the_spot(bench: Bench) -> None:
    row = bench.row(ConnectedAccount)
    bench.network.upsert("GET", READ_BACK, status=404, json={})
    found = bench.services.verifications.check(row.id)
    assert found is not None
    assert found.code == bench.row(ConnectedAccount).drift == "credential_missing"


def test_nothing_is_asked_about_what_was_never_imported(database_url: str) -> None:
    with open_bench(database_url) as bench:
        bench.stripe("acct_1")
        bench.connect()
        assert bench.services.verifications.check(bench.row(ConnectedAccount).id) is None
