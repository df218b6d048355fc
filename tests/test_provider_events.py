"""Webhooks in: stored once when they are genuine, acted on by the worker, and never more than the provider meant."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.errors import AppUnknown
from broker.jobs import Jobs
from broker.models import AuditRecord, ConnectedAccount, Event, Job, JobState, ProviderEvent
from broker.provider_events import KIND, ProviderEvents
from broker.providers.base import Notice, NoticeKind, WebhookInvalid, WebhookRefused
from broker.secret import Secret
from broker.status import Status
from tests.connecting import Bench, open_bench
from tests.house import app_of, stripe_app
from tests.providers.cases import CASES
from tests.providers.stripe import stripe_signs

SECRET = "whsec_never_to_be_seen"
PROBED = "https://api.stripe.com/v1/accounts/acct_1"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    apps = {key: stripe_app(key) for key in ("stripe", "stripe-test")}
    with open_bench(database_url, apps=apps | {"stripe_app": app_of("stripe_app", "stripe_app")}) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def events(bench: Bench) -> ProviderEvents:
    return bench.services.provider_events


def send(bench: Bench, app: str = "stripe", *, at: float = 0.0, secret: str = SECRET, **changes: Any) -> bool:
    """Let Stripe send an event that happened `at` seconds from now."""
    moment = bench.clock.now() + timedelta(seconds=at)
    event = {**CASES["stripe"].event, "livemode": True, "created": int(moment.timestamp()), **changes}
    body = json.dumps(event).encode()
    return events(bench).receive(app, stripe_signs(body, Secret(secret), bench.clock.now()), body)


def act(bench: Bench) -> str:
    """Let the worker act on the one event that waits and return what came of it."""
    events(bench).run(bench.lease(KIND))
    return str(bench.rows(ProviderEvent)[-1].outcome)


def connected(bench: Bench, app: str = "stripe", **asked: Any) -> str:
    bench.connect(app, **asked)
    ref = str(bench.rows(ConnectedAccount)[-1].ref)
    bench.later(minutes=10)
    return ref


def pending(bench: Bench) -> set[str]:
    return {job.kind for job in bench.rows(Job) if job.state != JobState.DONE}


# --- taking them in -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [({"secret": "whsec_other"}, WebhookRefused), ({"type": 7}, WebhookInvalid), ({"created": "x"}, WebhookInvalid)],
)
def test_what_is_not_genuine_or_makes_no_sense_is_not_stored(
    bench: Bench, changes: dict[str, Any], refusal: type[Exception]
) -> None:
    with pytest.raises(refusal):
        send(bench, **changes)
    with pytest.raises(WebhookRefused):
        events(bench).receive("stripe", {}, b"{}")
    assert bench.rows(ProviderEvent) == []
    assert bench.rows(Job) == []


def test_an_unknown_app_has_no_webhooks(bench: Bench) -> None:
    with pytest.raises(AppUnknown):
        send(bench, "nothing")


def test_an_event_is_stored_once_however_often_it_comes(bench: Bench) -> None:
    assert [send(bench) for _ in range(3)] == [True, False, False]
    stored = bench.row(ProviderEvent)
    assert (stored.app_key, stored.delivery_id, stored.name) == ("stripe", "evt_1", "account.application.deauthorized")
    assert (stored.notice, stored.processed_at, stored.received_at) == ("revoked", None, bench.clock.now())
    assert len(bench.rows(Job)) == 1
    # The same id at another app is another event.
    assert send(bench, "stripe-test")


def test_an_event_that_means_nothing_asks_for_no_work(bench: Bench) -> None:
    send(bench, type="invoice.paid")
    assert bench.row(ProviderEvent).outcome == "means nothing here"
    assert bench.rows(Job) == []


def test_the_doctor_can_say_when_the_last_one_came(bench: Bench) -> None:
    assert events(bench).last_received("stripe") is None
    send(bench)
    bench.later(hours=1)
    send(bench, id="evt_2")
    assert events(bench).last_received("stripe") == bench.clock.now()
    assert events(bench).last_received("stripe-test") is None


# --- access has ended -----------------------------------------------------------------------------------


def test_a_deauthorization_ends_the_connection_and_erases_its_grant(bench: Bench) -> None:
    ref = connected(bench)
    send(bench)

    assert act(bench) == "revoked: 1"

    row = bench.row(ConnectedAccount)
    assert (row.revoked_at, row.grant_sealed, row.disconnected_at) == (bench.clock.now(), None, None)
    view = bench.services.connections.find(ref)
    assert view.status is Status.REVOKED
    assert view.note == "Stripe says that access to this account was removed. Reconnect it to go on."
    assert pending(bench) == set()
    assert ("provider", "stripe", "connection.revoked_by_provider", ref) in bench.house.audited()
    told = bench.rows(Event)[-1]
    assert (told.type, told.data["status"], told.data["ref"]) == ("connection.needs_attention", "revoked", ref)


def test_what_was_going_on_for_a_stripe_app_is_taken_back(bench: Bench) -> None:
    answer = {**CASES["stripe_app"].token, "livemode": True}
    bench.network.post("https://api.stripe.com/v1/oauth/token", json=answer)
    connected(bench, "stripe_app")
    assert {"import", "refresh"} <= pending(bench)
    send(bench, "stripe_app")
    assert act(bench) == "revoked: 1"
    assert pending(bench) == set()
    assert bench.row(ConnectedAccount).grant_sealed is None


def test_a_late_import_of_a_revoked_connection_is_not_sent(bench: Bench) -> None:
    connected(bench)
    job = bench.lease("import")
    send(bench)
    act(bench)
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "import", job.subject_id)
    bench.deliver()
    assert bench.imports() == []
    assert pending(bench) == set()


@pytest.mark.parametrize(
    ("app", "changes"),
    [
        ("stripe", {"livemode": False}),
        ("stripe", {"account": "acct_2"}),
        ("stripe-test", {}),
    ],
)
def test_an_event_of_another_mode_account_or_app_changes_nothing(
    bench: Bench, app: str, changes: dict[str, Any]
) -> None:
    connected(bench)
    before = bench.row(ConnectedAccount)
    send(bench, app, **changes)
    assert act(bench) == "no connection of ours"
    assert bench.row(ConnectedAccount) == before
    assert pending(bench) == {"import"}


def test_test_and_live_side_by_side_are_two_connections(bench: Bench) -> None:
    connected(bench)
    bench.stripe(livemode=False)
    connected(bench, "stripe-test")
    # Connected in both modes, an account's test events go to both addresses.
    send(bench, "stripe", livemode=False)
    send(bench, "stripe-test", livemode=False)
    for _ in range(2):
        act(bench)
    assert {row.app_key: row.revoked_at is not None for row in bench.rows(ConnectedAccount)} == {
        "stripe": False,
        "stripe-test": True,
    }


def test_an_event_older_than_the_reconnect_changes_nothing(bench: Bench) -> None:
    connected(bench)
    bench.connect()
    before = bench.row(ConnectedAccount)
    send(bench, at=-600)
    assert act(bench) == "connected again since: 1"
    assert bench.row(ConnectedAccount) == before
    assert pending(bench) == {"import"}


def test_where_clocks_may_be_wrong_about_the_order_the_provider_is_asked(bench: Bench) -> None:
    connected(bench)
    bench.connect()
    send(bench, at=-20)
    assert act(bench) == "asked: 1"
    assert bench.row(ConnectedAccount).revoked_at is None
    bench.network.get(PROBED, status=403, json={"error": {"code": "account_invalid"}})
    bench.services.probes.run(bench.lease("probe"))
    assert bench.row(ConnectedAccount).revoked_at is not None


def test_in_the_second_of_a_connect_what_ended_came_after_it(bench: Bench) -> None:
    bench.later(seconds=0.9)
    bench.connect()
    send(bench)
    assert act(bench) == "revoked: 1"


def test_a_reconnect_after_the_event_counts_and_a_replay_does_not(bench: Bench) -> None:
    connected(bench)
    send(bench)
    act(bench)
    bench.later(minutes=10)
    bench.connect()
    assert bench.row(ConnectedAccount).revoked_at is None
    bench.later(minutes=1)
    created = int(bench.clock.now().timestamp()) - 660
    assert not send(bench, created=created)
    # With another id it is an event of its own, and still the old story.
    send(bench, id="evt_again", created=created)
    assert act(bench) == "connected again since: 1"
    assert bench.row(ConnectedAccount).revoked_at is None


def test_a_reconnect_in_the_middle_wins(bench: Bench) -> None:
    """The event was read, then the account is connected again, and only then is the event written down."""
    connected(bench)
    send(bench)
    stale = bench.row(ConnectedAccount)
    bench.connect()
    from broker.probes import mark_revoked

    with bench.database.write() as connection:
        assert not mark_revoked(connection, stale, jobs=bench.jobs, actor="stripe", why="late", now=bench.clock.now())
    assert bench.row(ConnectedAccount).revoked_at is None
    assert "import" in pending(bench)


def test_a_disconnected_connection_is_left_alone(bench: Bench) -> None:
    ref = connected(bench)
    from broker.audit import Actor

    bench.services.disconnections.request(ref, actor=Actor("end_user", "user-1"))
    before = bench.row(ConnectedAccount)
    send(bench)
    assert act(bench) == "no connection of ours"
    assert bench.row(ConnectedAccount) == before


def test_an_event_is_acted_on_once(bench: Bench) -> None:
    connected(bench)
    send(bench)
    act(bench)
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, KIND, bench.row(ProviderEvent).id)
    act(bench)
    assert [record.action for record in bench.rows(AuditRecord)].count("connection.revoked_by_provider") == 1


# --- something changed ----------------------------------------------------------------------------------


def test_a_change_is_not_believed_but_asked_about(bench: Bench) -> None:
    connected(bench)
    send(bench, type="account.updated")
    assert act(bench) == "asked: 1"
    bench.network.get(PROBED, json={"id": "acct_1", "business_profile": {"name": "Renamed"}})
    bench.services.probes.run(bench.lease("probe"))
    assert bench.row(ConnectedAccount).account_name == "Renamed"


def test_a_change_of_an_account_nobody_connected_asks_nobody(bench: Bench) -> None:
    connected(bench)
    send(bench, type="account.updated", account="acct_9")
    assert act(bench) == "no connection of ours"
    assert pending(bench) == {"import"}


def store(bench: Bench, notice: Notice) -> None:
    """Store a notice as another provider's webhook would have it."""
    assert events(bench).store("stripe", notice) is not None


@pytest.mark.parametrize(("value", "outcome"), [(7, "asked: 1"), (8, "no connection of ours")])
def test_where_an_event_names_no_account_its_facts_find_the_connection(bench: Bench, value: int, outcome: str) -> None:
    connected(bench)
    bench.house.run(sa.update(ConnectedAccount).values(account_facts={"person_id": 7}))
    store(bench, Notice(NoticeKind.CHANGED, "x.revoked", "d-1", facts={"person_id": value}))
    assert act(bench) == outcome


def test_a_notice_without_account_and_facts_is_about_nobody(bench: Bench) -> None:
    connected(bench)
    store(bench, Notice(NoticeKind.REVOKED, "x.revoked", "d-1"))
    assert act(bench) == "no connection of ours"


def test_an_approval_goes_to_whoever_waits_for_it(bench: Bench) -> None:
    told: list[tuple[str, Mapping[str, Any]]] = []

    def approve(connection: Connection, app_key: str, facts: Mapping[str, Any], *, jobs: Jobs, now: object) -> int:
        told.append((app_key, facts))
        return 2

    taking = ProviderEvents(
        database=bench.database, clock=bench.clock, apps=bench.apps, jobs=bench.jobs, approve=approve
    )
    notice = Notice(NoticeKind.APPROVED, "installation.created", "d-1", "400", "live", {"requester_id": "7"})
    store(bench, notice)
    taking.run(bench.lease(KIND))
    assert told == [("stripe", {"requester_id": "7"})]
    assert bench.row(ProviderEvent).outcome == "waiting: 2"
