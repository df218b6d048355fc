"""The doctor: all is well on a healthy deployment, and each fault shows as exactly its own check."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from email.utils import format_datetime
from typing import Any

import pytest
import sqlalchemy as sa

from broker.doctor import Check, Doctor, Report, Seen, State
from broker.errors import ClientRefused, SequinUnauthorized
from broker.models import AuditRecord, ConnectedAccount, JobState
from broker.providers.base import Notice, NoticeKind
from broker.providers.github import PROVIDER as GITHUB
from broker.secret import Secret
from broker.settings import EncryptionKey
from tests.connecting import (
    APP_ID,
    GITHUB_API,
    SEQUIN,
    SEQUIN_GITHUB_APP,
    SEQUIN_STRIPE_APP,
    STRIPE_ACCOUNT,
    Bench,
    github_app,
    open_bench,
)
from tests.house import stripe_app

APPS = f"{SEQUIN}/v1/oauth-apps"
STRIPE = replace(stripe_app("stripe"), client_secrets=(Secret("sk_live_never_to_be_seen"),))
KNOWN = [
    {"id": SEQUIN_STRIPE_APP, "provider": "stripe", "client_id": "ca_stripe", "name": "Acme Stripe"},
    {"id": SEQUIN_GITHUB_APP, "provider": "github", "client_id": "Iv1.acme", "name": "Acme GitHub"},
]
REGISTRATION = {
    "id": APP_ID, "slug": "acme-broker", "client_id": "Iv1.acme", "permissions": {"members": "read"},
}  # fmt: skip


def well(bench: Bench) -> Bench:
    """Let everybody answer as they should."""
    date = {"Date": format_datetime(bench.clock.now(), usegmt=True)}
    bench.network.upsert("GET", APPS, json={"data": KNOWN}, headers=date)
    bench.network.upsert("GET", STRIPE_ACCOUNT, json={"id": "acct_platform"})
    bench.network.upsert("GET", f"{GITHUB_API}/app", json=REGISTRATION)
    return bench


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url, apps={"stripe": STRIPE, "github": github_app()}) as opened:
        yield well(opened)


def examine(bench: Bench, seen: Seen | None = None) -> Report:
    report = bench.services.doctor.examine(seen)
    for check in report.checks:
        assert "never_to_be_seen" not in repr(check)
        assert "BEGIN" not in repr(check)
        assert check.sentence.endswith((".", "!", "?"))
    return report


def wrong(report: Report) -> set[tuple[str, str | None, State]]:
    return {(check.name, check.app, check.state) for check in report.checks if check.state in (State.FAIL, State.WARN)}


def named(report: Report, name: str) -> Check:
    (found,) = (check for check in report.checks if check.name == name)
    return found


def test_a_healthy_deployment_passes_every_check(bench: Bench) -> None:
    report = examine(bench)
    assert wrong(report) == set()
    assert not report.has_failures
    assert {check.name for check in report.checks} == {
        "settings", "public_url", "database", "migrations", "keys", "queue", "parked", "audit", "circuits", "client",
        "mode", "scopes", "credentials", "private_key", "registration", "sequin_token", "oauth_app", "clock",
        "webhook",
    }  # fmt: skip
    assert {(one.app, one.what, one.address) for one in report.addresses} == {
        ("stripe", "callback", "http://localhost:8000/oauth/stripe/callback"),
        ("stripe", "webhook", "http://localhost:8000/hooks/stripe"),
        ("github", "callback", "http://localhost:8000/oauth/github/callback"),
        ("github", "setup", "http://localhost:8000/oauth/github/setup"),
        ("github", "webhook", "http://localhost:8000/hooks/github"),
    }
    assert [match.state for match in report.matches] == ["matched", "matched"]
    assert "truncate_secrets" not in "".join(str(call.request.url) for call in bench.network.calls)


FAULTS: list[tuple[str, dict[str, Any], set[tuple[str, str | None]]]] = [
    (APPS, {"status": 401}, {("sequin_token", None)}),
    (APPS, {"status": 503}, {("sequin_token", None)}),
    (APPS, {"json": {"data": KNOWN[1:]}}, {("oauth_app", "stripe")}),
    (APPS, {"json": {"data": [*KNOWN, KNOWN[0] | {"id": "another"}]}}, {("oauth_app", "stripe")}),
    (STRIPE_ACCOUNT, {"status": 401}, {("credentials", "stripe")}),
    (STRIPE_ACCOUNT, {"body": ConnectionError("gone")}, {("provider", "stripe")}),
    (f"{GITHUB_API}/app", {"status": 401}, {("registration", "github")}),
    (f"{GITHUB_API}/app", {"json": REGISTRATION | {"slug": "another"}}, {("registration", "github")}),
    (f"{GITHUB_API}/app", {"status": 503}, {("provider", "github")}),
]


@pytest.mark.parametrize(("url", "answer", "failing"), FAULTS)
def test_each_fault_of_another_side_fails_exactly_its_check(
    bench: Bench, url: str, answer: dict[str, Any], failing: set[tuple[str, str | None]]
) -> None:
    bench.network.upsert("GET", url, **answer)
    report = examine(bench)
    assert wrong(report) == {(name, app, State.FAIL) for name, app in failing}
    assert report.checks[0].state is State.FAIL, "failures come first"
    assert all(check.fix for check in report.checks if check.state is State.FAIL)


def test_while_sequin_does_not_answer_what_depends_on_it_is_skipped(bench: Bench) -> None:
    bench.network.upsert("GET", APPS, status=503)
    report = examine(bench)
    skipped = {(check.name, check.app) for check in report.checks if check.state is State.SKIP}
    assert {("oauth_app", "stripe"), ("oauth_app", "github")} <= skipped


def test_asking_is_no_outage(bench: Bench) -> None:
    bench.network.upsert("GET", APPS, status=401)
    examine(bench)
    assert bench.services.circuits.open() == []


@pytest.mark.parametrize(
    ("app", "failing"),
    [
        (replace(STRIPE, client_secrets=(Secret("pk_test_never_to_be_seen"),)), ("mode", "stripe", State.FAIL)),
        (replace(STRIPE, scopes=("read_everything",)), ("scopes", "stripe", State.FAIL)),
        (replace(github_app(), key="stripe", scopes=("repo",)), ("scopes", "stripe", State.WARN)),
        (github_app(private_key=Secret("no key")), ("private_key", "github", State.FAIL)),
        (replace(STRIPE, sequin_oauth_app_id="elsewhere"), ("oauth_app", "stripe", State.FAIL)),
    ],
)
def test_each_wrong_setting_of_an_oauth_app_is_found(
    database_url: str, app: Any, failing: tuple[str, str, State]
) -> None:
    with open_bench(database_url, apps={app.key: app}) as bench:
        assert wrong(examine(well(bench))) == {failing}


def test_a_live_key_in_an_app_called_test_is_worth_a_look(database_url: str) -> None:
    app = replace(stripe_app("stripe-test"), client_secrets=(Secret("sk_live_never_to_be_seen"),))
    with open_bench(database_url, apps={"stripe-test": app}) as bench:
        well(bench)
        bench.network.upsert("GET", APPS, json={"data": [KNOWN[0] | {"client_id": "ca_stripe-test"}]})
        assert wrong(examine(bench)) == {("mode", "stripe-test", State.WARN)}


def test_a_kind_sequin_does_not_document_is_said(bench: Bench) -> None:
    app = bench.apps.get("github")
    object.__setattr__(bench.services.apps.get("github"), "provider", replace(GITHUB, kind_documented=False))
    try:
        assert ("kind", "github", State.WARN) in wrong(examine(bench))
    finally:
        object.__setattr__(bench.services.apps.get("github"), "provider", app.provider)


@pytest.mark.parametrize(
    ("answer", "state", "says"),
    [
        ({"status": 200}, State.PASS, "takes traces"),
        ({"status": 401}, State.WARN, "answers HTTP 401: traces are lost"),
    ],
)
def test_a_collector_that_does_not_take_traces_is_worth_a_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], state: State, says: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test:4318")
    bench.network.post("http://collector.test:4318/v1/traces", **answer)
    report = examine(bench)
    assert (named(report, "traces").state, report.has_failures) == (state, False)
    assert says in named(report, "traces").sentence


def test_traces_that_are_asked_for_and_not_installed_are_said(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector.test:4318")
    monkeypatch.setitem(sys.modules, "broker.telemetry.sdk", None)
    report = examine(bench)
    assert wrong(report) == {("traces", None, State.WARN)}
    assert "requirements-otel.txt" in named(report, "traces").fix


def test_a_clock_that_is_wrong_is_found(bench: Bench) -> None:
    other = format_datetime(bench.clock.now() + timedelta(seconds=90), usegmt=True)
    bench.network.upsert("GET", APPS, json={"data": KNOWN}, headers={"Date": other})
    report = examine(bench)
    assert wrong(report) == {("clock", None, State.FAIL)}
    assert "90 seconds" in named(report, "clock").sentence


def test_tables_of_another_version_fail_one_check_and_break_no_other(bench: Bench) -> None:
    bench.house.run(sa.text("UPDATE alembic_version SET version_num = 'another'"))
    assert wrong(examine(bench)) == {("migrations", None, State.FAIL)}


def test_no_tables_at_all_break_nothing_else(empty_database_url: str) -> None:
    with open_bench(empty_database_url, apps={"stripe": STRIPE}) as bench:
        report = examine(well(bench))
        assert {name for name, _, _ in wrong(report)} == {"migrations"}
        assert named(report, "database").state is State.PASS
        assert named(report, "queue").state is State.SKIP


def test_work_that_nobody_does_is_found(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    assert wrong(examine(well(bench))) == set()
    bench.later(seconds=61)
    report = examine(well(bench))
    assert wrong(report) == {("queue", None, State.FAIL)}
    assert "61 seconds" in named(report, "queue").sentence


def test_parked_jobs_are_counted(bench: Bench) -> None:
    bench.stripe()
    bench.sequin(status=422, json={})
    bench.connect()
    bench.deliver()
    assert bench.job("import").state == JobState.PARKED
    assert wrong(examine(well(bench))) == {("parked", None, State.WARN)}


def test_open_circuits_are_told_and_what_waits_for_them_is_no_second_fault(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    bench.services.circuits.failed("sequin", SequinUnauthorized("401"), at_once=True)
    bench.services.circuits.failed("app:stripe", ClientRefused("invalid_client"), at_once=True)
    bench.later(seconds=120)
    report = examine(well(bench))
    assert wrong(report) == {("circuits", None, State.WARN), ("circuits", "stripe", State.FAIL)}
    assert any("does not accept our API token since 20 Nov 10:00 UTC" in check.sentence for check in report.checks)


def test_sealed_rows_that_do_not_open_are_named(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    ref = bench.row(ConnectedAccount).ref
    assert "1 sealed grant." in named(examine(well(bench)), "keys").sentence
    bench.house.run(sa.update(ConnectedAccount).values(grant_sealed=b"\x01\x02k1" + bytes(80)))
    report = examine(well(bench))
    assert wrong(report) == {("keys", None, State.FAIL)}
    assert ref in named(report, "keys").sentence


def test_a_missing_key_and_an_unused_one_are_told_apart(bench: Bench) -> None:
    ring = (EncryptionKey("k2", bytes(32)), EncryptionKey("k1", bytes(range(32))))
    with open_bench(bench.house.settings.database_url, apps={"stripe": STRIPE}, encryption_keys=ring) as later:
        report = examine(well(later))
        assert wrong(report) == {("keys", None, State.WARN)}
        assert "k1" in named(report, "keys").sentence
    with open_bench(bench.house.settings.database_url, apps={"stripe": STRIPE}, encryption_keys=ring[1:]) as older:
        report = examine(well(older))
        assert wrong(report) == {("keys", None, State.FAIL)}
        assert "k2 sealed values in this database and is missing" in named(report, "keys").sentence


@pytest.mark.parametrize(
    ("seen", "state", "says"),
    [
        (Seen("http://localhost:8000", is_forwarded=False), State.PASS, "the same as this page’s address"),
        (Seen("http://10.0.0.5:8000", is_forwarded=False), State.WARN, "You opened http://10.0.0.5:8000"),
        (Seen("http://localhost:8000", is_forwarded=True), State.WARN, "proxy"),
    ],
)
def test_the_address_in_the_browser_is_compared(bench: Bench, seen: Seen, state: State, says: str) -> None:
    check = named(examine(bench, seen), "public_url")
    assert check.state is state
    assert says in check.sentence


def test_a_check_that_hangs_or_breaks_costs_no_other(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.doctor.CHECK_SECONDS", 1.5)
    released = threading.Event()

    def hangs(_: Doctor) -> list[Check]:
        released.wait(60)
        return []

    monkeypatch.setattr(Doctor, "_about_queue", hangs)

    def breaks(_: Doctor) -> None:
        raise ZeroDivisionError("sk_live_never_to_be_seen")

    monkeypatch.setattr(Doctor, "_about_parked", breaks)
    report = examine(bench)
    released.set()
    assert wrong(report) == {("queue", None, State.FAIL), ("parked", None, State.FAIL)}


# --- the audit trail ------------------------------------------------------------------------------------


def test_an_audit_trail_that_was_tampered_with_fails_with_the_record_named(bench: Bench) -> None:
    bench.stripe()
    bench.sequin()
    bench.connect()
    bench.services.audit_chain.seal()
    assert named(examine(well(bench)), "audit").state is State.PASS
    bench.house.run(sa.delete(AuditRecord).where(AuditRecord.id == 1))
    check = named(examine(bench), "audit")
    assert check.state is State.FAIL
    assert "Record 1 (number 1) was deleted." in check.sentence


def test_records_that_nobody_seals_are_told_after_five_minutes(bench: Bench) -> None:
    bench.stripe()
    bench.sequin()
    bench.connect()
    assert named(examine(well(bench)), "audit").state is State.PASS
    bench.later(minutes=6)
    assert named(examine(bench), "audit").state is State.WARN


# --- webhooks and grants --------------------------------------------------------------------------------


def test_a_missing_webhook_secret_is_told_with_the_address_to_register(database_url: str) -> None:
    with open_bench(database_url, apps={"stripe": replace(STRIPE, webhook_secrets=())}) as bench:
        (found,) = (check for check in examine(well(bench)).checks if check.name == "webhook")
    assert found.state is State.WARN
    assert "http://localhost:8000/hooks/stripe" in found.fix


def test_when_the_last_event_came_is_told(bench: Bench) -> None:
    def told() -> str:
        (found,) = (one for one in examine(bench).checks if one.name == "webhook" and one.app == "stripe")
        return found.sentence

    assert told() == "The webhook secret is set; no event has arrived yet."
    bench.services.provider_events.store("stripe", Notice(NoticeKind.NOTHING, "ping", "evt_1"))
    assert told() == "The webhook secret is set; the last event arrived on 20 Nov at 10:00 UTC."


def test_grants_that_cannot_be_imported_are_told_with_the_way_out(bench: Bench) -> None:
    bench.network.get("https://api.stripe.com/v1/accounts/acct_1", json={"id": "acct_1"})
    bench.stripe(access_token=None, refresh_token=None)
    bench.sequin()
    bench.connect()
    bench.deliver()
    report = examine(bench)
    (found,) = (check for check in report.checks if check.name == "grants")
    assert (found.state, found.app) == (State.FAIL, "stripe")
    assert found.sentence.startswith("1 connection cannot be imported.")
    assert "use the provider stripe_app" in found.sentence
    assert found.fix.endswith("the person has to connect again.")
