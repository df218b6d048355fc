"""Deliveries: what Sequin is sent, how each answer is judged, and whose outcome counts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.jobs import GIVE_UP_AFTER, LEASE_SECONDS
from broker.models import AuditRecord, ConnectedAccount, JobState
from tests.connecting import (
    ACCESS,
    CREDENTIAL,
    PERSON,
    REFRESH,
    SEQUIN,
    SEQUIN_GITHUB_APP,
    SEQUIN_STRIPE_APP,
    Bench,
    open_bench,
    person_installation,
)
from tests.house import stripe_app

IMPORT = f"{SEQUIN}/v1/credentials"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def connected(bench: Bench, **asked: Any) -> str:
    """Connect a Stripe account and return the connection's reference."""
    bench.connect(**asked)
    return str(bench.rows(ConnectedAccount)[-1].ref)


def row(bench: Bench) -> Any:
    return bench.row(ConnectedAccount)


def during_import(bench: Bench, happens: Any, status: int = 200) -> None:
    """Let something happen between the sending of the next import and its answer; only once."""
    first = [happens]

    def answer(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if first:
            first.pop()()
        return status, {}, json.dumps({"id": CREDENTIAL})

    bench.answering("POST", IMPORT, answer)


# --- what is sent ---------------------------------------------------------------------------------------


def test_a_stripe_connection_is_sent_whole(bench: Bench) -> None:
    ref = connected(bench, end_user="user-7", metadata={"plan": "pro"})
    bench.deliver()
    assert bench.imports() == [
        {
            "properties": {
                "kind": "stripe_oauth2", "secret": ACCESS, "test": False, "name": "acct_1@example.com",
                "stripe_user_id": "acct_1",
            },
            "oauth_app_id": SEQUIN_STRIPE_APP,
            "name": "acct_1@example.com",
            "metadata": {"plan": "pro", "broker_connection_id": ref, "end_user_id": "user-7"},
        }
    ]  # fmt: skip


def test_a_github_connection_is_sent_without_any_secret(bench: Bench) -> None:
    bench.github(person_installation())
    bench.connect("github")
    bench.deliver()
    (sent,) = bench.imports()
    assert sent["properties"] == {
        "kind": "github_app", "account_type": "User", "account_login": f"user-{PERSON}", "installation_id": 9,
    }  # fmt: skip
    assert sent["oauth_app_id"] == SEQUIN_GITHUB_APP
    assert "SENTINEL" not in json.dumps(sent)


def test_a_success_is_recorded_with_everything_later_steps_need(bench: Bench) -> None:
    ref = connected(bench)
    bench.later(seconds=3)
    bench.deliver()
    found = row(bench)
    assert (found.import_state, found.credential_id, found.sequin_oauth_app_id, found.imported_at) == (
        "imported", CREDENTIAL, SEQUIN_STRIPE_APP, bench.clock.now(),
    )  # fmt: skip
    assert (found.import_error, found.import_error_detail, found.verified_at) == (None, None, None)
    assert found.grant_sealed is not None, "material is erased after verification, never before"
    assert bench.job("import").state == JobState.DONE
    last = bench.rows(AuditRecord)[-1]
    assert (last.actor, last.action, last.target) == ("import", "connection.imported", ref)


def test_nothing_is_called_imported_before_sequin_said_so(bench: Bench) -> None:
    connected(bench)
    seen: list[str] = []
    during_import(bench, lambda: seen.append(row(bench).import_state))
    bench.deliver()
    assert seen == ["pending"]


def test_metadata_is_sent_first_and_then_only_when_it_changed(bench: Bench) -> None:
    connected(bench, metadata={"plan": "pro"})
    bench.deliver()
    connected(bench, metadata={"plan": "pro"})
    bench.deliver()
    connected(bench, metadata={"plan": "team"})
    bench.deliver()
    assert ["metadata" in sent for sent in bench.imports()] == [True, False, True]
    assert bench.imports()[2]["metadata"]["plan"] == "team"


def test_metadata_that_did_not_arrive_is_sent_again(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=503)
    bench.deliver()
    bench.sequin()
    bench.later(seconds=2)
    bench.deliver()
    assert ["metadata" in sent for sent in bench.imports()] == [True, True]


def test_a_pinned_oauth_app_is_used_without_looking(database_url: str) -> None:
    pinned = replace(stripe_app("stripe"), sequin_oauth_app_id="pinned-app")
    with open_bench(database_url, apps={"stripe": pinned}) as bench:
        bench.stripe()
        bench.sequin()
        bench.connect()
        bench.deliver()
        assert bench.imports()[0]["oauth_app_id"] == "pinned-app"
        assert bench.calls(f"{SEQUIN}/v1/oauth-apps") == []
        assert row(bench).sequin_oauth_app_id == "pinned-app"


def test_an_import_carries_the_api_token_in_its_header_alone(bench: Bench) -> None:
    connected(bench)
    bench.deliver()
    (request,) = bench.calls(IMPORT)
    assert request.headers["Authorization"] == "Bearer sequin_never_to_be_seen"
    assert "never_to_be_seen" not in f"{request.url}{request.body!r}"


# --- how an answer is judged ----------------------------------------------------------------------------


def assert_held(bench: Bench, error: str) -> None:
    """Assert that the delivery waits for a setting, is looked at again soon, and goes out once it is mended."""
    found, job = row(bench), bench.job("import")
    assert (found.import_state, found.import_error) == ("held", error)
    assert (job.state, job.error) == (JobState.WAITING, error)
    assert 0 < (job.due_at - bench.clock.now()).total_seconds() <= 15


def test_no_matching_oauth_app_holds_the_import_until_there_is_one(bench: Bench) -> None:
    bench.network.upsert("GET", f"{SEQUIN}/v1/oauth-apps", json={"data": []})
    connected(bench)
    bench.deliver()
    assert_held(bench, "oauth_app_unmatched")
    assert bench.imports() == []
    bench.sequin()
    bench.later(seconds=15)
    bench.deliver()
    assert (row(bench).import_state, row(bench).import_error) == ("imported", None)


def test_a_token_sequin_does_not_accept_holds_every_import_and_parks_none(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=401, json={"summary": "bad token"})
    for _ in range(3):
        bench.deliver()
        assert_held(bench, "sequin_unauthorized")
        bench.later(days=2)
    bench.sequin()
    bench.deliver()
    assert row(bench).import_state == "imported"


def test_a_redirecting_sequin_address_is_a_setting_to_mend(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=307, headers={"Location": "https://evil.example/"})
    bench.deliver()
    assert_held(bench, "redirect_refused")
    assert len(bench.imports()) == 1


def test_a_refused_content_is_parked_with_the_field_in_words(bench: Bench) -> None:
    connected(bench)
    errors = {"properties": {"secret": ["is not a valid key"]}}
    bench.sequin(status=422, json={"summary": "Validation failed", "validation_errors": errors})
    bench.deliver()
    found = row(bench)
    assert (found.import_state, found.import_error) == ("parked", "sequin_refused")
    assert "properties.secret: is not a valid key" in found.import_error_detail
    assert bench.job("import").state == JobState.PARKED
    bench.later(days=30)
    assert bench.jobs.lease(["import"]) == []


def test_a_refusal_lets_the_oauth_app_be_looked_up_afresh(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=422, json={})
    bench.deliver()
    bench.sequin()
    bench.jobs.rearm()
    bench.deliver()
    assert row(bench).import_state == "imported"
    assert len(bench.calls(f"{SEQUIN}/v1/oauth-apps")) == 2


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500},
        {"status": 503},
        {"status": 429},
        {"body": requests.ReadTimeout("slow")},
        {"body": requests.ConnectionError("refused")},
        {"body": requests.exceptions.ChunkedEncodingError("cut")},
        {"body": "<html>maintenance</html>"},
        {"json": {"no": "id"}},
    ],
)
def test_what_may_pass_is_tried_again_within_two_seconds(bench: Bench, trouble: dict[str, Any]) -> None:
    connected(bench)
    bench.sequin(**trouble)
    bench.deliver()
    found, job = row(bench), bench.job("import")
    assert (found.import_state, found.imported_at, found.credential_id) == ("pending", None, None)
    assert found.import_error == job.error is not None
    assert (job.state, job.failures) == (JobState.WAITING, 1)
    assert 0 < (job.due_at - bench.clock.now()).total_seconds() <= 2
    bench.sequin()
    bench.later(seconds=2)
    bench.deliver()
    assert (row(bench).import_state, row(bench).import_error) == ("imported", None)


def test_sequins_retry_after_is_honoured(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=429, headers={"Retry-After": "40"})
    bench.deliver()
    assert (bench.job("import").due_at - bench.clock.now()).total_seconds() == 40


def test_sequins_retry_after_may_be_a_date(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=503, headers={"Retry-After": "Fri, 20 Nov 2026 10:01:30 GMT"})
    bench.deliver()
    assert (bench.job("import").due_at - bench.clock.now()).total_seconds() == pytest.approx(90)


def test_after_three_days_of_trouble_job_and_connection_are_parked_together(bench: Bench) -> None:
    connected(bench)
    bench.sequin(status=503)
    bench.deliver()
    bench.later(seconds=GIVE_UP_AFTER.total_seconds() - 1)
    bench.deliver()
    assert (row(bench).import_state, bench.job("import").state) == ("pending", JobState.WAITING)
    bench.later(minutes=15)
    bench.deliver()
    assert (row(bench).import_state, bench.job("import").state) == ("parked", JobState.PARKED)
    assert row(bench).import_error == "sequin_unavailable"


def test_a_grant_that_does_not_open_is_parked_and_nothing_is_sent(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(grant_sealed=b"\x01\x02k1 no sealed value"))
    bench.deliver()
    assert (row(bench).import_state, row(bench).import_error) == ("parked", "grant_unreadable")
    assert bench.imports() == []


def test_a_grant_without_what_the_import_needs_is_parked_and_says_what_to_do(bench: Bench) -> None:
    bench.stripe(access_token=None, refresh_token=None)
    bench.network.upsert("GET", "https://api.stripe.com/v1/accounts/acct_1", json={"id": "acct_1"})
    connected(bench)
    bench.deliver()
    found = row(bench)
    assert (found.import_state, found.import_error) == ("parked", "grant_incomplete")
    assert "stripe_app" in found.import_error_detail
    assert bench.imports() == []


def test_an_erased_grant_that_the_import_needs_is_parked(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(grant_sealed=None))
    bench.deliver()
    assert row(bench).import_state == "parked"
    assert bench.imports() == []


def test_an_app_no_longer_configured_holds_its_imports(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(app_key="gone"))
    bench.deliver()
    assert_held(bench, "app_unknown")


def test_a_database_that_was_busy_for_a_moment_is_not_a_setting_to_mend(bench: Bench) -> None:
    connected(bench)
    job = bench.lease("import")
    # While the delivery makes sure of its lease, the jobs table is away; when it records the outcome, it is back.
    away, looks = bench.jobs.covers, []

    def covers(_connection: Connection, leased: Any) -> bool:
        looks.append(leased)
        bench.house.run(sa.text("ALTER TABLE jobs RENAME TO jobs_away"))
        try:
            with bench.database.read() as connection:
                return away(connection, leased)
        finally:
            bench.house.run(sa.text("ALTER TABLE jobs_away RENAME TO jobs"))

    bench.jobs.covers = covers  # type: ignore[method-assign, assignment]
    bench.deliveries.run(job)
    assert looks
    assert (row(bench).import_state, row(bench).import_error) == ("pending", "database_unavailable")
    assert bench.imports() == []


@pytest.mark.parametrize(
    "answer",
    [
        {"status": 422, "json": {"summary": f"bad {ACCESS}", "validation_errors": {ACCESS: [f"{ACCESS} is bad"]}}},
        {"status": 500, "json": {"summary": ACCESS}},
        {"status": 400, "json": {"errors": {"detail": f"secret={ACCESS} sequin_never_to_be_seen"}}},
        {"status": 503, "body": ACCESS},
        {"body": requests.ConnectionError(ACCESS)},
    ],
)
def test_no_secret_reaches_an_error_column_a_log_line_or_the_audit_trail(
    bench: Bench, answer: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    connected(bench)
    bench.sequin(**answer)
    bench.deliver()
    kept = bench.everything()
    assert row(bench).import_error_detail
    printed = "".join(capsys.readouterr())
    for text in (repr(kept), printed):
        assert ACCESS not in text
        assert REFRESH not in text
        assert "never_to_be_seen" not in text


# --- whose outcome counts -------------------------------------------------------------------------------


def test_nothing_is_sent_on_a_lease_that_was_lost(bench: Bench) -> None:
    connected(bench)
    lost = bench.lease("import")
    bench.later(seconds=LEASE_SECONDS)
    kept = bench.lease("import")
    bench.deliveries.run(lost)
    assert bench.imports() == []
    assert row(bench).import_state == "pending"
    bench.deliveries.run(kept)
    assert len(bench.imports()) == 1
    assert row(bench).import_state == "imported"


def test_a_lease_lost_after_sending_arms_one_more_import_of_the_current_token(bench: Bench) -> None:
    connected(bench)
    slow = bench.lease("import")

    def meanwhile() -> None:
        bench.later(seconds=LEASE_SECONDS)
        bench.deliver()

    during_import(bench, meanwhile)
    bench.deliveries.run(slow)
    assert len(bench.imports()) == 2
    bench.deliver()
    assert len(bench.imports()) == 3
    assert bench.jobs.lease(["import"]) == []
    assert row(bench).import_state == "imported"


def test_a_lease_lost_while_the_answer_was_a_refusal_changes_nothing(bench: Bench) -> None:
    connected(bench)
    slow = bench.lease("import")

    def meanwhile() -> None:
        bench.later(seconds=LEASE_SECONDS)
        bench.lease("import")

    during_import(bench, meanwhile, status=422)
    bench.deliveries.run(slow)
    assert (row(bench).import_state, row(bench).import_error) == ("pending", None)


@pytest.mark.parametrize("status", [200, 401, 422, 503])
def test_the_outcome_of_an_old_token_says_nothing_about_the_new_one(bench: Bench, status: int) -> None:
    connected(bench)
    job = bench.lease("import")

    def reconnect() -> None:
        bench.stripe(token="SENTINEL-NEW")
        bench.connect()

    during_import(bench, reconnect, status)
    bench.deliveries.run(job)
    found = row(bench)
    assert (found.token_version, found.import_state, found.imported_at, found.import_error) == (
        2, "pending", None, None,
    )  # fmt: skip
    bench.sequin()
    bench.deliver()
    assert [sent["properties"]["secret"] for sent in bench.imports()] == [ACCESS, "SENTINEL-NEW"]
    assert row(bench).import_state == "imported"
    assert bench.jobs.lease(["import"]) == []


def test_the_token_is_read_when_it_is_sent(bench: Bench) -> None:
    connected(bench)
    job = bench.lease("import")
    bench.stripe(token="SENTINEL-NEW")
    bench.connect()
    bench.deliveries.run(job)
    assert bench.imports()[0]["properties"]["secret"] == "SENTINEL-NEW"


def test_a_disconnected_connection_is_never_imported(bench: Bench) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(disconnected_at=bench.clock.now()))
    bench.deliver()
    assert bench.imports() == []
    assert bench.job("import").state == JobState.DONE
    assert (row(bench).import_state, row(bench).imported_at) == ("pending", None)


def test_a_disconnect_before_the_sending_wins(bench: Bench) -> None:
    connected(bench)
    job = bench.lease("import")
    end = sa.update(ConnectedAccount).values(disconnected_at=bench.clock.now())

    def look(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        bench.house.run(end)
        known = [{"id": SEQUIN_STRIPE_APP, "provider": "stripe", "client_id": "ca_stripe"}]
        return 200, {}, json.dumps({"data": known})

    bench.answering("GET", f"{SEQUIN}/v1/oauth-apps", look)
    bench.deliveries.run(job)
    assert bench.imports() == []


def test_a_disconnect_during_the_sending_stays_and_what_sequin_holds_is_known(bench: Bench) -> None:
    connected(bench)
    during_import(bench, lambda: bench.house.run(sa.update(ConnectedAccount).values(disconnected_at=bench.clock.now())))
    bench.deliver()
    found = row(bench)
    assert found.disconnected_at is not None
    assert found.credential_id == CREDENTIAL, "without it the credential could never be deleted"


def test_a_job_without_its_connection_is_done(bench: Bench) -> None:
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "import", 10**9)
    bench.deliver()
    assert bench.job("import").state == JobState.DONE


def test_another_credential_id_takes_the_place_of_the_first(bench: Bench) -> None:
    connected(bench)
    bench.deliver()
    connected(bench)
    bench.sequin(json={"id": "cred-2"})
    bench.deliver()
    assert row(bench).credential_id == "cred-2"
