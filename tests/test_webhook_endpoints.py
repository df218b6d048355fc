"""Webhook endpoints: made, changed, forgotten; what may be told, and what was sent."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from broker.audit import Actor
from broker.connection_search import CursorUnknown
from broker.events import EventFilters, EventType
from broker.models import AuditRecord, SendState, WebhookSecret
from broker.webhook_endpoints import (
    LONGEST_OVERLAP,
    MOST_ENDPOINTS,
    DeliveryUnknown,
    EndpointChanges,
    EndpointInvalid,
    EndpointRequest,
    EndpointUnknown,
    TooManyEndpoints,
    WebhookEndpoints,
)
from tests.connecting import Bench, open_bench

HOST = Actor("api_key", "key_of_the_host")
URL = "https://hooks.example/in"
PUBLIC, PRIVATE = "93.184.216.34", "10.0.0.7"


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Host names and the addresses they lead to; an unknown one leads to a public address, an address to itself."""
    known: dict[str, list[str]] = {}

    def resolve(host: str, port: int, *_more: object) -> list[tuple[Any, ...]]:
        if known.get(host) == []:
            raise OSError("unknown name")
        literal = [host] if host[0].isdigit() or ":" in host else [PUBLIC]
        return [(2, 1, 6, "", (address, port)) for address in known.get(host, literal)]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    return known


@pytest.fixture
def bench(database_url: str, names: dict[str, list[str]]) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


@pytest.fixture
def endpoints(bench: Bench) -> WebhookEndpoints:
    return bench.services.webhook_endpoints


def invalid(endpoints: WebhookEndpoints, url: str) -> str:
    with pytest.raises(EndpointInvalid) as refused:
        endpoints.create(EndpointRequest(url), actor=HOST)
    (reason,) = refused.value.fields["url"]
    return reason


def happen(bench: Bench, count: int = 1) -> list[str]:
    """Let so many accounts be connected; return the ids of what that was, in its order."""
    for number in range(count):
        bench.stripe(f"acct_{number}")
        bench.connect(end_user=f"user-{number}")
        bench.later(seconds=1)
    bench.services.notifications.dispatch()
    return [event.id for event in reversed(bench.services.events.page(EventFilters(), limit=100).items)]


def test_an_endpoint_is_made_listed_and_forgotten(bench: Bench, endpoints: WebhookEndpoints) -> None:
    request = EndpointRequest(f"{URL}?a=1", "Billing", (EventType.IMPORTED, EventType.IMPORTED))
    view, secret = endpoints.create(request, actor=HOST)
    assert view.id.startswith("whe_")
    assert (view.url, view.description, view.types) == (f"{URL}?a=1", "Billing", ("connection.imported",))
    assert endpoints.list() == (view,)
    assert endpoints.find(view.id) == view
    # As Standard Webhooks has it: 24 to 64 random bytes in base64.
    assert len(base64.b64decode(secret.reveal().removeprefix("whsec_"))) == 32
    endpoints.delete(view.id, actor=HOST)
    assert endpoints.list() == ()
    for gone in (endpoints.find, lambda key: endpoints.delete(key, actor=HOST)):
        with pytest.raises(EndpointUnknown):
            gone(view.id)
    assert [(row.actor, row.action, row.target) for row in bench.rows(AuditRecord)] == [
        ("key_of_the_host", "webhook_endpoint.created", view.id),
        ("key_of_the_host", "webhook_endpoint.deleted", view.id),
    ]


@pytest.mark.parametrize("unknown", ["whe_nothing", "", "a\x00", "\ud800"])
def test_unknown_ids_are_all_answered_alike(endpoints: WebhookEndpoints, unknown: str) -> None:
    view, _ = endpoints.create(EndpointRequest(URL), actor=HOST)
    with pytest.raises(EndpointUnknown):
        endpoints.find(unknown)
    with pytest.raises(EndpointUnknown):
        endpoints.deliveries(unknown, limit=5)
    with pytest.raises(DeliveryUnknown):
        endpoints.delivery(view.id, unknown)
    with pytest.raises(CursorUnknown):
        endpoints.deliveries(view.id, limit=5, cursor=unknown)


def test_there_are_not_endlessly_many(endpoints: WebhookEndpoints) -> None:
    for number in range(MOST_ENDPOINTS):
        endpoints.create(EndpointRequest(f"{URL}/{number}"), actor=HOST)
    with pytest.raises(TooManyEndpoints):
        endpoints.create(EndpointRequest(URL), actor=HOST)


@pytest.mark.parametrize(
    "url",
    [
        "", "hooks.example", "ftp://hooks.example/", "javascript:alert(1)", "https://", "https://a b/",
        "https://user:pass@hooks.example/", "https://hooks.example/#x", "https://hooks.example:0/",
        "https://hooks.example\\@127.0.0.1/", "http://hooks.example/", "https://h\u00f6oks.example/",
        "https://0x7f.1/", "https://2130706433/", "https://hooks.example/" + "x" * 2000,
    ],
)  # fmt: skip
def test_what_is_not_plainly_an_https_address_is_refused(endpoints: WebhookEndpoints, url: str) -> None:
    assert invalid(endpoints, url)
    assert endpoints.list() == ()


@pytest.mark.parametrize(
    "url", ["https://10.0.0.7/", "https://169.254.169.254/latest", "https://[fd00::7]/", "https://[::ffff:10.0.0.7]/"]
)
def test_private_addresses_are_refused_when_saved(endpoints: WebhookEndpoints, url: str) -> None:
    assert "not on the public internet" in invalid(endpoints, url)


def test_names_that_lead_to_private_addresses_are_refused_when_saved(
    endpoints: WebhookEndpoints, names: dict[str, list[str]]
) -> None:
    names["inside.example"], names["both.example"] = [PRIVATE], [PUBLIC, PRIVATE]
    for name in names:
        assert "not on the public internet" in invalid(endpoints, f"https://{name}/")
    view, _ = endpoints.create(EndpointRequest(URL), actor=HOST)
    with pytest.raises(EndpointInvalid):
        endpoints.change(view.id, EndpointChanges(url="https://inside.example/"), actor=HOST)
    assert endpoints.find(view.id).url == URL


def test_a_name_that_does_not_resolve_yet_may_be_saved(
    endpoints: WebhookEndpoints, names: dict[str, list[str]]
) -> None:
    names["later.example"] = []
    view, _ = endpoints.create(EndpointRequest("https://later.example"), actor=HOST)
    assert view.url == "https://later.example/"


def test_production_takes_neither_loopback_nor_plain_http(database_url: str, names: dict[str, list[str]]) -> None:
    with open_bench(database_url, environment="production") as bench:
        for url in ("http://127.0.0.1:9/", "https://127.0.0.1/", "http://hooks.example/"):
            assert invalid(bench.services.webhook_endpoints, url)


def test_an_endpoint_is_changed_field_by_field(bench: Bench, endpoints: WebhookEndpoints) -> None:
    view, _ = endpoints.create(EndpointRequest(URL, "One", (EventType.IMPORTED,)), actor=HOST)
    bench.later(minutes=1)
    assert endpoints.change(view.id, EndpointChanges(description="Two"), actor=HOST).description == "Two"
    assert endpoints.change(view.id, EndpointChanges(url=f"{URL}/new"), actor=HOST).url == f"{URL}/new"
    assert endpoints.change(view.id, EndpointChanges(types=(EventType.FLOW_FAILED,)), actor=HOST).types == (
        "flow.failed",
    )
    assert endpoints.change(view.id, EndpointChanges(types=()), actor=HOST).types is None
    off = endpoints.change(view.id, EndpointChanges(enabled=False), actor=HOST)
    assert (off.disabled_at, off.disabled_reason) == (bench.clock.now(), "switched_off")
    on = endpoints.change(view.id, EndpointChanges(enabled=True), actor=HOST)
    assert (on.disabled_at, on.disabled_reason, on.description) == (None, None, "Two")
    with pytest.raises(EndpointInvalid):
        endpoints.change(view.id, EndpointChanges(description="two\nlines"), actor=HOST)


def test_at_no_time_are_there_more_than_two_secrets(bench: Bench, endpoints: WebhookEndpoints) -> None:
    view, first = endpoints.create(EndpointRequest(URL), actor=HOST)
    secrets = {first.reveal()}
    for _ in range(3):
        rotated, secret = endpoints.rotate(view.id, overlap=timedelta(hours=1), actor=HOST)
        assert rotated.previous_secret_until == bench.clock.now() + timedelta(hours=1)
        secrets.add(secret.reveal())
    assert len(secrets) == 4
    assert [row.number for row in bench.rows(WebhookSecret)] == [3, 4]
    with pytest.raises(EndpointInvalid):
        endpoints.rotate(view.id, overlap=LONGEST_OVERLAP + timedelta(seconds=1), actor=HOST)


def test_deliveries_are_listed_page_by_page_newest_first(bench: Bench, endpoints: WebhookEndpoints) -> None:
    view, _ = endpoints.create(EndpointRequest(URL), actor=HOST)
    events = happen(bench, 5)
    first = endpoints.deliveries(view.id, limit=2)
    rest = endpoints.deliveries(view.id, limit=9, cursor=first.next_cursor)
    assert [each.event for each in (*first.items, *rest.items)] == events[::-1]
    assert rest.next_cursor is None
    assert {each.state for each in rest.items} == {SendState.PENDING}
    assert endpoints.deliveries(view.id, state=SendState.PARKED, limit=9).items == ()
    shown, attempts = endpoints.delivery(view.id, events[0])
    assert (shown.event, shown.type, attempts) == (events[0], "connection.connected", ())


def test_what_was_delivered_can_be_sent_again_under_its_own_id(bench: Bench, endpoints: WebhookEndpoints) -> None:
    view, _ = endpoints.create(EndpointRequest(URL), actor=HOST)
    bench.network.add("POST", URL)
    (event,) = happen(bench)
    bench.worker.notify_once()
    assert endpoints.delivery(view.id, event)[0].state is SendState.DELIVERED
    again = endpoints.resend(view.id, event, actor=HOST)
    assert (again.state, again.attempts) == (SendState.PENDING, 1)
    bench.worker.notify_once()
    sent = [call.headers["webhook-id"] for call in bench.calls(URL)]
    assert sent == [event, event]
    assert endpoints.delivery(view.id, event)[0].attempts == 2
    other, _ = endpoints.create(EndpointRequest(f"{URL}/other"), actor=HOST)
    with pytest.raises(DeliveryUnknown):
        endpoints.resend(other.id, event, actor=HOST)


def test_a_changed_address_is_tried_at_once(bench: Bench, endpoints: WebhookEndpoints) -> None:
    view, _ = endpoints.create(EndpointRequest(URL), actor=HOST)
    bench.network.add("POST", URL, status=301, headers={"Location": f"{URL}/new"})
    bench.network.add("POST", f"{URL}/new")
    happen(bench)
    bench.worker.notify_once()
    failing = endpoints.find(view.id)
    assert (failing.error, failing.waiting) == ("redirect_refused", 1)
    assert failing.next_attempt_at is not None
    endpoints.change(view.id, EndpointChanges(url=f"{URL}/new"), actor=HOST)
    bench.worker.notify_once()
    assert endpoints.find(view.id).waiting == 0
    assert len(bench.calls(f"{URL}/new")) == 1
