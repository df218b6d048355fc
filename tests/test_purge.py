"""What is forgotten, when, and what stays however old it is."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from broker import audit
from broker.audit import Actor
from broker.models import (
    AuditRecord,
    BrowserSession,
    ConnectedAccount,
    Event,
    Flow,
    FlowEvent,
    Hop,
    Job,
    Link,
    LinkUse,
    ProviderEvent,
    WebhookAttempt,
    WebhookDelivery,
    WebhookEndpoint,
)
from broker.purge import BATCH, BUDGET, PURGE_EVERY_SECONDS
from tests.connecting import CREDENTIAL, SEQUIN, STRIPE_ACCOUNT, STRIPE_DEAUTHORIZE, Bench, open_bench

DAYS, AUDIT_DAYS = 30, 400


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        opened.network.upsert("GET", f"{SEQUIN}/v1/credentials/{CREDENTIAL}", json={"id": CREDENTIAL})
        yield opened


def purge(bench: Bench, budget: int = BUDGET) -> dict[str, int]:
    """Purge and return what was forgotten, without what there was none of."""
    return {name: count for name, count in bench.services.purge.purge(budget=budget).items() if count}


def counts(bench: Bench) -> dict[str, int]:
    return {model.__tablename__: len(bench.rows(model)) for model in (Flow, FlowEvent, Hop, Link, LinkUse)}


def newest(bench: Bench) -> None:
    """Add one more of everything: the newest row always stays."""
    bench.stripe("acct_newest")
    bench.connect(end_user="newest")
    bench.deliver()


def test_an_attempt_is_forgotten_with_all_that_hung_on_it_and_its_connection_stays(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    bench.later(days=DAYS)
    newest(bench)
    assert purge(bench) == {}
    # A link counts from when it could last be used.
    bench.later(minutes=31)
    before = counts(bench)
    assert purge(bench) == {"flows": 1, "links": 1, "jobs": 1}
    assert {name: before[name] - count for name, count in counts(bench).items()} == {
        "flows": 1, "flow_events": 4, "hops": 1, "links": 1, "link_uses": 1,
    }  # fmt: skip
    first, _ = bench.rows(ConnectedAccount)
    found = bench.services.connections.find(first.ref)
    assert [step.state for step in found.steps][:3] == ["done"] * 3
    assert bench.services.timeline.of_connection(first.ref) == []


def test_work_that_was_forgotten_can_be_asked_for_again(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    bench.later(days=DAYS, seconds=1)
    newest(bench)
    assert purge(bench)["jobs"] >= 1
    first, _ = bench.rows(ConnectedAccount)
    bench.stripe("acct_1")
    bench.services.disconnections.request(first.ref, actor=Actor("operator", "jo"))
    bench.network.upsert("DELETE", f"{SEQUIN}/v1/credentials/{CREDENTIAL}", json={})
    while bench.worker.run_once():
        pass
    assert bench.rows(ConnectedAccount)[0].revocation == "done"


def test_what_is_under_way_stays_however_old_it_is(bench: Bench) -> None:
    bench.leave()
    bench.network.upsert("POST", STRIPE_DEAUTHORIZE, status=503)
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=403, json={})
    bench.connect(end_user="ends-without-a-connection")
    bench.later(days=365)
    bench.stripe("acct_newest")
    bench.connect(end_user="newest")
    assert bench.rows(Flow)[1].grant_sealed is not None
    assert not {"flows", "links"} & set(purge(bench))
    assert len(bench.rows(Flow)) == 3
    waiting = {job.kind for job in bench.rows(Job) if job.state == "waiting"}
    assert "discard" in waiting


def test_a_link_somebody_still_looks_through_stays(bench: Bench) -> None:
    link = bench.link()
    bench.link("newest")
    key = bench.rows(Link)[0].id
    bench.later(days=DAYS + 1)
    bench.services.sessions.open_end_user(None, bench.rows(Link)[0].end_user_id, key)
    assert purge(bench) == {}
    bench.later(minutes=31)
    assert purge(bench) == {"sessions": 1, "links": 1}
    assert link
    assert bench.rows(BrowserSession) == []


def test_the_newest_of_each_stays_so_that_no_key_is_given_out_again(bench: Bench) -> None:
    bench.connect()
    bench.deliver()
    while bench.worker.run_once():
        pass
    bench.house.run(sa.update(Job).values(state="done", due_at=None))
    bench.later(days=AUDIT_DAYS + 1)
    keys = {model: max(row.id for row in bench.rows(model)) for model in (Flow, Job, AuditRecord)}
    purge(bench)
    assert {model: [row.id for row in bench.rows(model)] for model in keys} == {
        model: [key] for model, key in keys.items()
    }


def a_webhook(bench: Bench, number: int, **changes: Any) -> None:
    values = {
        "app_key": "stripe", "delivery_id": f"evt_{number}", "name": "account.updated", "notice": "changed",
        "facts": {}, "received_at": bench.clock.now(), "processed_at": bench.clock.now(),
    }  # fmt: skip
    bench.house.insert(ProviderEvent, **(values | changes))


def test_audit_records_and_webhooks_stay_for_as_long_as_the_trail_is_kept(bench: Bench) -> None:
    def record(action: str) -> None:
        with bench.database.write() as connection:
            audit.record(
                connection, at=bench.clock.now(), actor_kind="cli", actor="cli", action=action, target="somebody"
            )

    record("old")
    a_webhook(bench, 1)
    a_webhook(bench, 2, processed_at=None)
    bench.later(days=AUDIT_DAYS)
    record("new")
    record("newest")
    a_webhook(bench, 3)
    assert purge(bench) == {}
    bench.later(seconds=1)
    assert purge(bench) == {"audit": 1, "webhooks": 1}
    assert [row.action for row in bench.rows(AuditRecord)] == ["new", "newest"]
    assert [row.delivery_id for row in bench.rows(ProviderEvent)] == ["evt_2", "evt_3"]


def test_an_event_goes_once_nobody_is_still_to_be_told(bench: Bench) -> None:
    at = bench.clock.now()
    endpoint = bench.house.insert(
        WebhookEndpoint, public_id="whe_1", url="https://host.example/", description="", created_by="cli",
        created_at=at, updated_at=at,
    )  # fmt: skip
    for number, state in enumerate(["delivered", "parked", "pending", None]):
        event = bench.house.insert(
            Event, public_id=f"evt_{number}", type="connection.imported", at=at, end_user="user-1", data={},
            dispatched_at=at if state else None,
        )  # fmt: skip
        if state:
            sending = bench.house.insert(
                WebhookDelivery, endpoint_id=endpoint, event_id=event, state=state, queued_at=at, attempts=1
            )
            bench.house.insert(WebhookAttempt, delivery_id=sending, at=at, duration_ms=3)
    bench.later(days=DAYS)
    assert purge(bench) == {}
    bench.later(seconds=1)
    bench.house.insert(
        Event, public_id="evt_9", type="connection.imported", at=at, end_user="user-1", data={}, dispatched_at=at
    )
    assert purge(bench) == {"events": 2}
    assert [row.public_id for row in bench.rows(Event)] == ["evt_2", "evt_3", "evt_9"]
    assert (len(bench.rows(WebhookDelivery)), len(bench.rows(WebhookAttempt))) == (1, 1)


def test_one_purge_forgets_a_bounded_number_and_the_next_goes_on(bench: Bench) -> None:
    for number in range(7):
        a_webhook(bench, number)
    bench.later(days=AUDIT_DAYS + 1)
    a_webhook(bench, 99)
    assert purge(bench, budget=5) == {"webhooks": 5}
    assert purge(bench, budget=5) == {"webhooks": 2}
    assert purge(bench, budget=5) == {}


def test_the_worker_purges_every_hour(bench: Bench) -> None:
    bench.services.purge.schedule()
    bench.services.purge.schedule()
    (job,) = bench.jobs.lease(["purge"])
    bench.services.purge.run(job)
    waiting = bench.job("purge")
    assert waiting.state == "waiting"
    assert waiting.due_at - bench.clock.now() == timedelta(seconds=PURGE_EVERY_SECONDS)


def test_a_purge_whose_lease_is_lost_forgets_no_more(bench: Bench) -> None:
    a_webhook(bench, 1)
    bench.later(days=AUDIT_DAYS + 1)
    a_webhook(bench, 2)
    bench.services.purge.schedule()
    (job,) = bench.jobs.lease(["purge"])
    bench.later(seconds=31)
    assert bench.jobs.lease(["purge"]) != []
    bench.services.purge.run(job)
    assert len(bench.rows(ProviderEvent)) == 2


def test_a_batch_is_smaller_than_what_would_keep_anybody_waiting() -> None:
    assert BATCH <= 500
