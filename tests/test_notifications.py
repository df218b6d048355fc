"""Webhooks out: every event arrives at every endpoint, in order, signed, whatever the endpoint does meanwhile."""

from __future__ import annotations

import ipaddress
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
import sqlalchemy as sa
import standardwebhooks.webhooks
from standardwebhooks import Webhook, WebhookVerificationError

from broker.audit import Actor
from broker.events import EventFilters, EventType, _add
from broker.http import Http
from broker.jobs import GIVE_UP_AFTER, LEASE_SECONDS, LONGEST_RETRY_SECONDS
from broker.models import Event, Job, JobState, SendState, WebhookDelivery, WebhookEndpoint, WebhookSecret
from broker.notifications import MOST_IN_A_TURN, NOTIFY, Notifications, may_be_told
from broker.secret import Secret
from broker.settings import Webhooks
from broker.webhook_endpoints import EndpointChanges, EndpointDisabled, EndpointRequest, EndpointUnknown
from tests.connecting import Bench, open_bench
from tests.house import make_settings

HOST = Actor("api_key", "key_of_the_host")
HOOK = "http://127.0.0.1:9/hook"


@pytest.fixture
def bench(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    # Addresses stand for themselves, and no resolver is asked.
    monkeypatch.setattr("socket.getaddrinfo", lambda host, port, *_more: [(2, 1, 6, "", (host, port))])
    with open_bench(database_url) as opened:
        # The longest waits: fewer tries in the days that these tests let pass.
        monkeypatch.setattr(opened.jobs, "_jitter", lambda: 1.0)
        yield opened


@dataclass
class Receiver:
    """A host's endpoint: takes what is sent to it, or behaves as told."""

    bench: Bench
    url: str = HOOK
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    breaks: Exception | None = None
    types: tuple[EventType, ...] | None = None
    tried: list[requests.PreparedRequest] = field(default_factory=list)
    taken: list[requests.PreparedRequest] = field(default_factory=list)

    def __post_init__(self) -> None:
        request = EndpointRequest(self.url, types=self.types)
        self.view, self.secret = self.bench.services.webhook_endpoints.create(request, actor=HOST)
        self.bench.network.add_callback("POST", self.url, callback=self._answer)

    @property
    def id(self) -> str:
        return self.view.id

    def _answer(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        self.tried.append(request)
        if self.breaks is not None:
            raise self.breaks
        if 200 <= self.status < 300:
            self.taken.append(request)
        return self.status, self.headers, "noted"

    @property
    def events(self) -> list[str]:
        """The ids of what it has taken, in that order."""
        return [request.headers["webhook-id"] for request in self.taken]

    def now(self) -> Any:
        """Return how the endpoint is doing."""
        return self.bench.services.webhook_endpoints.find(self.id)


def happen(bench: Bench, count: int = 1, what: EventType = EventType.IMPORTED) -> list[str]:
    """Let so many things happen and return their ids."""
    with bench.database.write() as connection:
        for number in range(count):
            data = {"ref": "AAAA-BBBB-CCCC", "number": number}
            _add(connection, what, bench.clock.now(), "user-1", data, connection_ref="AAAA-BBBB-CCCC")
    return all_ids(bench)[-count:]


def all_ids(bench: Bench) -> list[str]:
    return [row.public_id for row in bench.rows(Event)]


def work(bench: Bench) -> int:
    """Send everything that is due now; returns how many turns that took."""
    turns = 0
    while bench.worker.notify_once():
        turns += 1
        assert turns < 1000
    return turns


def work_for(bench: Bench, **duration: float) -> None:
    """Let a worker send whatever becomes due within so much time."""
    ends = bench.clock.now() + timedelta(**duration)
    while True:
        work(bench)
        waiting = sa.select(sa.func.min(Job.due_at)).where(Job.kind == NOTIFY, Job.state == JobState.WAITING)
        due = bench.house.value(waiting)
        if due is None or due > ends:
            bench.clock.advance((ends - bench.clock.now()).total_seconds())
            return
        bench.clock.advance(max(0.0, (due - bench.clock.now()).total_seconds()) + 0.001)


def verified(bench: Bench, receiver: Receiver, secret: Secret | None = None) -> list[Any]:
    """Check everything taken with the public library, by the clock of the test, and return the bodies."""
    hook = Webhook((secret or receiver.secret).reveal())
    found = []
    for request in receiver.taken:
        sent = datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)
        assert sent <= bench.clock.now()

        class Then(datetime):
            at = sent

            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return cls.at

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(standardwebhooks.webhooks, "datetime", Then)
            found.append(hook.verify(request.body or b"", dict(request.headers)))
    return found


# --- format -----------------------------------------------------------------------------------------------


def test_what_is_sent_verifies_with_the_public_library(bench: Bench) -> None:
    receiver = Receiver(bench)
    (event,) = happen(bench)
    assert work(bench) == 1
    (body,) = verified(bench, receiver)
    assert body == {
        "id": event,
        "type": "connection.imported",
        "timestamp": "2026-11-20T10:00:00Z",
        "data": {"ref": "AAAA-BBBB-CCCC", "number": 0},
    }
    (request,) = receiver.taken
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["webhook-id"] == event
    assert "Authorization" not in request.headers


def test_another_secret_or_another_body_does_not_verify(bench: Bench) -> None:
    receiver = Receiver(bench)
    happen(bench)
    work(bench)
    other = Secret("whsec_" + "A" * 44)
    with pytest.raises(WebhookVerificationError):
        verified(bench, receiver, other)
    receiver.taken[0].body = b'{"forged": true}'
    with pytest.raises(WebhookVerificationError):
        verified(bench, receiver)


def test_a_try_again_carries_the_same_id_and_body_and_a_time_of_its_own(bench: Bench) -> None:
    receiver = Receiver(bench, status=500)
    happen(bench)
    work(bench)
    receiver.status = 204
    work_for(bench, minutes=1)
    first, second = receiver.tried
    assert first.body == second.body
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert int(first.headers["webhook-timestamp"]) < int(second.headers["webhook-timestamp"])
    verified(bench, receiver)


def test_both_secrets_sign_while_they_are_exchanged(bench: Bench) -> None:
    receiver = Receiver(bench)
    _, new = bench.services.webhook_endpoints.rotate(receiver.id, overlap=timedelta(hours=1), actor=HOST)
    happen(bench)
    work(bench)
    assert verified(bench, receiver) == verified(bench, receiver, new)
    bench.later(hours=1)
    receiver.taken.clear()
    happen(bench)
    work(bench)
    verified(bench, receiver, new)
    with pytest.raises(WebhookVerificationError):
        verified(bench, receiver)


def test_a_secret_is_sealed_at_rest_and_opens_in_its_own_row_alone(bench: Bench) -> None:
    first, second = Receiver(bench), Receiver(bench, url=f"{HOOK}/2")
    rows = bench.rows(WebhookSecret)
    for receiver in (first, second):
        assert all(receiver.secret.reveal().encode() not in row.sealed for row in rows)
        assert all(receiver.secret.reveal()[6:].encode() not in row.sealed for row in rows)
    bench.house.run(sa.update(WebhookSecret).where(WebhookSecret.id == rows[0].id).values(sealed=rows[1].sealed))
    happen(bench)
    work(bench)
    # The moved one signs nothing; the other endpoint does not notice.
    assert (len(first.taken), len(second.taken)) == (0, 1)
    assert first.now().error == "grant_unreadable"


# --- order ------------------------------------------------------------------------------------------------


def test_events_arrive_in_the_order_in_which_they_happened(bench: Bench) -> None:
    receiver = Receiver(bench)
    events = happen(bench, MOST_IN_A_TURN + 3)
    assert work(bench) == 2
    assert receiver.events == events
    assert bench.job(NOTIFY).state == JobState.DONE


def test_an_endpoint_is_told_what_happens_from_its_making_on(bench: Bench) -> None:
    happen(bench, 2)
    receiver = Receiver(bench)
    later = happen(bench)
    work(bench)
    assert receiver.events == later


def test_an_endpoint_is_told_only_what_it_asked_for(bench: Bench) -> None:
    all_of_it = Receiver(bench)
    failures = Receiver(bench, url=f"{HOOK}/failures", types=(EventType.FLOW_FAILED,))
    happen(bench)
    (wanted,) = happen(bench, what=EventType.FLOW_FAILED)
    work(bench)
    assert len(all_of_it.events) == 2
    assert failures.events == [wanted]


def test_without_endpoints_nothing_is_queued(bench: Bench) -> None:
    happen(bench)
    assert work(bench) == 0
    assert bench.rows(WebhookDelivery) == []
    assert all(row.dispatched_at for row in bench.rows(Event))


def test_what_fails_holds_up_what_follows_at_its_own_endpoint_and_nowhere_else(bench: Bench) -> None:
    broken = Receiver(bench, status=500)
    sound = Receiver(bench, url=f"{HOOK}/sound")
    first, second = happen(bench, 2)
    work(bench)
    assert sound.events == [first, second]
    assert [request.headers["webhook-id"] for request in broken.tried] == [first]


def test_new_events_do_not_hurry_an_endpoint_that_fails(bench: Bench) -> None:
    receiver = Receiver(bench, status=500)
    for _ in range(20):
        happen(bench)
        work(bench)
    assert len(receiver.tried) == 1


# --- trouble ----------------------------------------------------------------------------------------------

TROUBLE: dict[str, dict[str, Any]] = {
    "down": {"breaks": requests.ConnectionError("refused")},
    "slow": {"breaks": requests.ReadTimeout("slow")},
    "resetting": {"breaks": ConnectionResetError("reset")},
    "redirecting": {"status": 307, "headers": {"Location": "https://elsewhere.example/"}},
    "failing": {"status": 503},
    "refusing": {"status": 400},
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_everything_arrives_in_order_once_an_endpoint_is_back_after_hours(bench: Bench, trouble: str) -> None:
    receiver = Receiver(bench)
    happen(bench)
    work(bench)
    for name, value in TROUBLE[trouble].items():
        setattr(receiver, name, value)
    for _ in range(6):
        happen(bench, 2)
        work_for(bench, hours=2)
    assert len(receiver.taken) == 1
    view = receiver.now()
    assert view.failing_since is not None
    assert view.waiting == 12
    assert view.error
    receiver.status, receiver.breaks, receiver.headers = 200, None, {}
    work_for(bench, seconds=LONGEST_RETRY_SECONDS)
    assert receiver.events == all_ids(bench)
    assert [body["id"] for body in verified(bench, receiver)] == all_ids(bench)
    # Twelve hours at one try in a quarter of an hour at most, and some more in the beginning.
    assert len(receiver.tried) < 2 * 12 * 4 + 40
    assert receiver.now().failing_since is None


def test_an_endpoint_that_is_gone_is_disabled_and_gets_everything_once_it_is_enabled(bench: Bench) -> None:
    receiver = Receiver(bench, status=410)
    happen(bench)
    work(bench)
    view = receiver.now()
    assert (view.disabled_reason, view.disabled_at) == ("gone", bench.clock.now())
    for _ in range(5):
        happen(bench)
        work_for(bench, hours=20)
    assert len(receiver.tried) == 1
    assert receiver.now().waiting == 6
    receiver.status = 200
    bench.services.webhook_endpoints.change(receiver.id, EndpointChanges(enabled=True), actor=HOST)
    work(bench)
    assert receiver.events == all_ids(bench)
    assert receiver.now().disabled_at is None


def test_retries_come_quickly_first_and_then_ever_more_slowly(bench: Bench) -> None:
    receiver = Receiver(bench, status=500)
    happen(bench)
    waits = []
    for _ in range(12):
        work(bench)
        wait = receiver.now().next_attempt_at - bench.clock.now()
        waits.append(wait.total_seconds())
        bench.clock.advance(wait.total_seconds())
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 900.0, 900.0, 900.0]


def test_an_endpoint_may_say_when_to_come_again(bench: Bench) -> None:
    receiver = Receiver(bench, status=429, headers={"Retry-After": "120"})
    happen(bench)
    work(bench)
    assert receiver.now().next_attempt_at == bench.clock.now() + timedelta(seconds=120)


@pytest.fixture
def hourly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tries be an hour apart at most, so that three days hold fewer of them."""
    monkeypatch.setattr("broker.jobs.LONGEST_RETRY_SECONDS", 3600.0)


@pytest.mark.usefixtures("hourly")
def test_what_could_not_be_sent_for_three_days_is_parked_and_the_younger_goes_on(bench: Bench) -> None:
    receiver = Receiver(bench, status=500)
    old = happen(bench, 2)
    work_for(bench, days=2)
    young = happen(bench, 2)
    work_for(bench, days=1, hours=1)
    states = {row.state for row in bench.rows(WebhookDelivery)[:2]}
    assert states == {SendState.PARKED}
    assert (receiver.now().parked, receiver.now().waiting) == (2, 2)
    receiver.status = 200
    work_for(bench, hours=1)
    assert receiver.events == young
    assert bench.services.webhook_endpoints.resend_parked(receiver.id, actor=HOST) == 2
    work(bench)
    assert receiver.events == young + old
    assert receiver.now().parked == 0


@pytest.mark.usefixtures("hourly")
def test_an_outage_shorter_than_three_days_parks_nothing(bench: Bench) -> None:
    receiver = Receiver(bench, status=500)
    happen(bench, 3)
    work_for(bench, seconds=(GIVE_UP_AFTER - timedelta(minutes=1)).total_seconds())
    assert receiver.now().parked == 0


def test_a_try_shows_its_status_and_how_long_it_took(bench: Bench) -> None:
    receiver = Receiver(bench, breaks=requests.ConnectionError("refused"))
    (event,) = happen(bench)
    work(bench)
    receiver.breaks, receiver.status = None, 418
    work_for(bench, seconds=3)
    receiver.status = 200
    work_for(bench, seconds=30)
    view, attempts = bench.services.webhook_endpoints.delivery(receiver.id, event)
    assert view.state is SendState.DELIVERED
    assert view.attempts == len(attempts) == len(receiver.tried)
    assert [(each.status, each.error) for each in (attempts[0], attempts[-1])] == [(200, None), (None, "unreachable")]
    assert (418, "http_418") in {(each.status, each.error) for each in attempts}
    assert all(each.duration_ms >= 0 for each in attempts)


# --- workers ----------------------------------------------------------------------------------------------


def test_a_worker_that_dies_while_sending_loses_nothing(bench: Bench) -> None:
    receiver = Receiver(bench)
    events = happen(bench, 3)
    bench.services.notifications.dispatch()
    bench.jobs.lease([NOTIFY])
    # Died here. Nobody else takes it up while its lease runs; then everybody may.
    assert work(bench) == 0
    bench.later(seconds=LEASE_SECONDS)
    assert work(bench) == 1
    assert receiver.events == events


def test_a_worker_that_lost_its_lease_records_nothing(bench: Bench) -> None:
    receiver = Receiver(bench)
    (event,) = happen(bench)
    bench.services.notifications.dispatch()
    (stalled,) = bench.jobs.lease([NOTIFY])
    bench.later(seconds=LEASE_SECONDS)
    (taken_over,) = bench.jobs.lease([NOTIFY])
    bench.services.notifications.run(stalled)
    assert receiver.now().waiting == 1
    bench.services.notifications.run(taken_over)
    assert receiver.now().waiting == 0
    # The same id twice: that is how the endpoint knows.
    assert receiver.events == [event, event]


def test_an_event_queued_while_the_last_one_was_sent_is_not_forgotten(bench: Bench) -> None:
    receiver = Receiver(bench)
    happen(bench)
    bench.services.notifications.dispatch()
    (job,) = bench.jobs.lease([NOTIFY])
    send = bench.services.notifications._send  # noqa: SLF001

    def and_then(*args: Any) -> Any:
        sent = send(*args)
        happen(bench)
        bench.services.notifications.dispatch()
        return sent

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.services.notifications, "_send", and_then)
        patch.setattr("broker.notifications.MOST_IN_A_TURN", 1)
        bench.services.notifications.run(job)
    work(bench)
    assert receiver.events == all_ids(bench)


def test_a_slow_endpoint_gives_way_after_its_turn(bench: Bench) -> None:
    ticks = iter(range(0, 10_000, 6))
    slow = Notifications(
        database=bench.database, clock=bench.clock, vault=bench.vault, jobs=bench.jobs,
        http=Http(allow_plain_loopback=True, user_agent="t"), monotonic=lambda: float(next(ticks)),
    )  # fmt: skip
    receiver, other = Receiver(bench), Receiver(bench, url=f"{HOOK}/other")
    happen(bench, 9)
    slow.dispatch()
    for _ in range(2):
        (job,) = bench.jobs.lease([NOTIFY])
        bench.later(milliseconds=1)
        slow.run(job)
    # Each had a turn that time ended, and neither had two.
    assert 0 < len(receiver.taken) == len(other.taken) < 9


def test_imports_do_not_share_threads_with_webhooks(bench: Bench) -> None:
    Receiver(bench, status=500)
    bench.stripe()
    bench.sequin()
    bench.connect()
    bench.services.notifications.dispatch()
    assert bench.worker.run_once() == 1
    assert bench.job(NOTIFY).state == JobState.WAITING
    assert bench.job(NOTIFY).fence == 0


def test_deleting_an_endpoint_stops_what_is_under_way(bench: Bench) -> None:
    receiver = Receiver(bench)
    happen(bench, 3)
    bench.services.notifications.dispatch()
    (job,) = bench.jobs.lease([NOTIFY])
    bench.services.webhook_endpoints.delete(receiver.id, actor=HOST)
    bench.services.notifications.run(job)
    assert receiver.taken == []
    assert bench.rows(WebhookDelivery) == bench.rows(WebhookEndpoint) == bench.rows(WebhookSecret) == []
    assert len(bench.rows(Event)) == 3


# --- where ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "development", "production"),
    [
        ("1.1.1.1", True, True),
        ("127.0.0.1", True, False),
        ("::1", True, False),
        ("::ffff:127.0.0.1", True, False),
        ("10.20.1.1", True, True),
        ("::ffff:10.20.1.1", True, True),
        ("fd00::7", True, True),
        ("10.21.0.1", False, False),
        ("169.254.169.254", False, False),
        ("::ffff:169.254.169.254", False, False),
        ("fe80::1", False, False),
        ("64:ff9b::a00:1", False, False),
        ("2002:a00:1::", False, False),
        ("100.64.0.1", False, False),
        ("0.0.0.0", False, False),
    ],
)
def test_only_public_and_allowed_addresses_are_told(address: str, development: bool, production: bool) -> None:
    networks = (ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd00::7/128"))
    for environment, allowed in (("development", development), ("production", production)):
        judge = may_be_told(make_settings(environment=environment, webhooks=Webhooks(networks)))
        assert judge(ipaddress.ip_address(address)) is allowed


@pytest.mark.network
def test_a_name_that_comes_to_lead_to_a_private_address_is_not_called(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    leads_to = ["93.184.216.34"]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_args: [(2, 1, 6, "", (leads_to[0], 443))])
    endpoints = bench.services.webhook_endpoints
    view, _ = endpoints.create(EndpointRequest("https://rebinding.example/hook"), actor=HOST)
    happen(bench)
    leads_to[0] = "169.254.169.254"
    bench.network.add_passthru("https://rebinding.example")
    bench.network.stop(allow_assert=False)
    try:
        work(bench)
    finally:
        bench.network.start()
    assert endpoints.find(view.id).error == "address_refused"


def test_what_is_sent_is_kept_apart_from_what_is_logged(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    receiver = Receiver(bench, url=f"{HOOK}/SENTINEL-PATH", status=500)
    happen(bench)
    work(bench)
    logged = capsys.readouterr().out
    assert receiver.secret.reveal() not in logged
    assert "SENTINEL-PATH" not in logged
    assert json.loads(receiver.tried[0].body or b"")["type"] == "connection.imported"


def test_writers_and_dispatchers_at_the_same_time_lose_and_double_nothing(bench: Bench) -> None:
    receiver = Receiver(bench)
    writers, each = 4, 15

    def write(writer: int) -> None:
        for number in range(each):
            with bench.database.write() as connection:
                data = {"writer": writer, "number": number}
                _add(connection, EventType.IMPORTED, bench.clock.now(), "user-1", data, connection_ref=f"{writer}")

    def dispatch() -> None:
        while len(bench.rows(WebhookDelivery)) < writers * each:
            bench.services.notifications.dispatch()

    with ThreadPoolExecutor(writers + 2) as pool:
        for done in [
            *[pool.submit(write, writer) for writer in range(writers)],
            *[pool.submit(dispatch) for _ in range(2)],
        ]:
            done.result(60)
    work(bench)
    bodies = verified(bench, receiver)
    assert sorted(body["id"] for body in bodies) == sorted(all_ids(bench))
    for writer in range(writers):
        told = [body["data"]["number"] for body in bodies if body["data"]["writer"] == writer]
        assert told == list(range(each))


def test_an_endpoint_can_be_deleted_while_everybody_is_at_work(bench: Bench) -> None:
    doomed, kept = Receiver(bench, url=f"{HOOK}/doomed"), Receiver(bench)
    deleted = threading.Event()

    def dispatch_and_send() -> None:
        while not deleted.is_set():
            happen(bench)
            bench.worker.notify_once()

    def delete() -> None:
        try:
            bench.services.webhook_endpoints.delete(doomed.id, actor=HOST)
        finally:
            deleted.set()

    with ThreadPoolExecutor(4) as pool:
        for under_way in [*[pool.submit(dispatch_and_send) for _ in range(3)], pool.submit(delete)]:
            under_way.result(60)
    work(bench)
    assert sorted(set(kept.events)) == sorted(all_ids(bench))
    assert {row.public_id for row in bench.rows(WebhookEndpoint)} == {kept.id}


def test_a_test_event_is_sent_to_its_endpoint_alone_and_says_what_it_is(bench: Bench) -> None:
    asked = Receiver(bench, types=(EventType.FLOW_FAILED,))
    other = Receiver(bench, "http://127.0.0.1:9/other")

    queued = bench.services.webhook_endpoints.test(asked.id, actor=HOST)
    while bench.worker.notify_once():
        pass

    (body,) = verified(bench, asked)
    assert body == {
        "id": queued.event,
        "type": "webhook.test",
        "timestamp": "2026-11-20T10:00:00Z",
        "data": {"test": True, "webhook_endpoint": asked.id},
    }
    assert other.tried == []
    (delivery,) = bench.services.webhook_endpoints.deliveries(asked.id, limit=10).items
    assert (delivery.type, delivery.state, delivery.subject) == ("webhook.test", SendState.DELIVERED, None)
    assert bench.services.events.page(EventFilters(), limit=10).items == ()


def test_a_test_that_waits_is_tried_at_once_instead_of_another(bench: Bench) -> None:
    receiver = Receiver(bench, status=503)
    first = bench.services.webhook_endpoints.test(receiver.id, actor=HOST)
    bench.worker.notify_once()
    receiver.status = 200

    assert bench.services.webhook_endpoints.test(receiver.id, actor=HOST).event == first.event
    bench.worker.notify_once()
    assert receiver.events == [first.event]
    assert bench.services.webhook_endpoints.test(receiver.id, actor=HOST).event != first.event


def test_a_test_goes_out_behind_what_happened_before(bench: Bench) -> None:
    receiver = Receiver(bench)
    bench.stripe()
    bench.connect()
    bench.services.notifications.dispatch()
    bench.services.webhook_endpoints.test(receiver.id, actor=HOST)
    while bench.worker.notify_once():
        pass
    assert [json.loads(request.body or "")["type"] for request in receiver.taken] == [
        "connection.connected",
        "webhook.test",
    ]


def test_nothing_is_tested_that_is_switched_off_or_gone(bench: Bench) -> None:
    receiver = Receiver(bench)
    endpoints = bench.services.webhook_endpoints
    endpoints.change(receiver.id, EndpointChanges(enabled=False), actor=HOST)
    with pytest.raises(EndpointDisabled):
        endpoints.test(receiver.id, actor=HOST)
    assert endpoints.deliveries(receiver.id, limit=10).items == ()
    with pytest.raises(EndpointUnknown):
        endpoints.test("whe_nothing", actor=HOST)
