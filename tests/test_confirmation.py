"""Confirmed links: nothing is exchanged before the host has said who came back, and the wrong person ends it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import requests

from broker.audit import Actor
from broker.db import table
from broker.errors import ConfirmationMismatch, ConfirmationTooLate, FlowEnded, FlowUnknown
from broker.models import AuditRecord, Flow, FlowState, Hold
from tests.connecting import CODE, STRIPE_TOKEN, Bench, open_bench, person_installation

HOST = Actor("api_key", "key_host")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def came_back(bench: Bench, app: str = "stripe") -> str:
    """Return the flow of somebody who has just come back through a link that asks for confirmation."""
    return bench.connect(app, confirm=True).flow_ref


def actions(bench: Bench) -> list[tuple[str, str]]:
    return [(row.actor, row.action) for row in bench.rows(AuditRecord)]


def test_the_code_waits_sealed_and_nothing_is_exchanged(bench: Bench) -> None:
    flow = bench.flow(came_back(bench))

    assert (flow.state, flow.hold, flow.connection_id) == (FlowState.HELD, Hold.CONFIRMATION, None)
    assert not bench.calls(STRIPE_TOKEN)
    assert CODE.encode() not in flow.code_sealed


def test_the_right_person_s_account_is_connected(bench: Bench) -> None:
    ref = came_back(bench)

    view = bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    assert (view.state, view.end_user_id) == (FlowState.DONE, "user-1")
    assert bench.services.connections.find(str(view.connection)).end_user.id == "user-1"
    assert bench.flow(ref).code_sealed is None
    assert (HOST.name, "flow.confirmed") in actions(bench)


def test_confirming_again_changes_nothing(bench: Bench) -> None:
    ref = came_back(bench)
    first = bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    assert bench.services.confirmations.confirm(ref, "user-1", actor=HOST) == first
    assert len(bench.calls(STRIPE_TOKEN)) == 1


def test_somebody_else_ends_the_flow_for_good_and_leaves_a_record(bench: Bench) -> None:
    ref = came_back(bench)

    with pytest.raises(ConfirmationMismatch):
        bench.services.confirmations.confirm(ref, "somebody-else", actor=HOST)
    with pytest.raises(FlowEnded):
        bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    flow = bench.flow(ref)
    assert (flow.state, flow.failure, flow.code_sealed) == (FlowState.FAILED, "not_confirmed", None)
    assert not bench.calls(STRIPE_TOKEN)
    assert (HOST.name, "flow.refused") in actions(bench)


def test_a_confirmation_before_anybody_came_back_is_refused(bench: Bench) -> None:
    bench.leave(link=bench.link(confirm=True))
    (flow,) = bench.rows(Flow)

    with pytest.raises(FlowEnded):
        bench.services.confirmations.confirm(flow.ref, "user-1", actor=HOST)
    assert bench.flow(flow.ref).state == FlowState.LEFT


def test_a_code_that_is_no_longer_good_is_not_tried(bench: Bench) -> None:
    ref = came_back(bench)
    bench.later(minutes=5)

    with pytest.raises(ConfirmationTooLate):
        bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    flow = bench.flow(ref)
    assert (flow.state, flow.failure, flow.code_sealed) == (FlowState.EXPIRED, "confirmation_missing", None)
    assert not bench.calls(STRIPE_TOKEN)


def test_the_sweep_ends_what_was_never_confirmed(bench: Bench) -> None:
    ref = came_back(bench)
    bench.later(minutes=4)
    assert bench.journal.sweep() == 0
    bench.later(minutes=1)

    assert bench.journal.sweep() == 1
    assert bench.flow(ref).failure == "confirmation_missing"
    with pytest.raises(ConfirmationTooLate):
        bench.services.confirmations.confirm(ref, "user-1", actor=HOST)


def test_a_flow_that_asks_for_none_reads_like_one_that_does_not_exist(bench: Bench) -> None:
    ref = bench.connect().flow_ref

    for wrong in (ref, "0000-0000-0000", "\x00"):
        with pytest.raises(FlowUnknown):
            bench.services.confirmations.confirm(wrong, "user-1", actor=HOST)


def test_many_confirmations_at_once_exchange_once(bench: Bench) -> None:
    ref = came_back(bench)
    outcomes: list[object] = []

    def confirm() -> None:
        outcomes.append(bench.services.confirmations.confirm(ref, "user-1", actor=HOST).end_user_id)

    threads = [threading.Thread(target=confirm) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert outcomes == ["user-1"] * 6
    assert len(bench.calls(STRIPE_TOKEN)) == 1


def test_pkce_holds_across_the_wait(bench: Bench) -> None:
    bench.github(person_installation())
    ref = came_back(bench, "github")

    view = bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    assert view.state == FlowState.DONE
    (sent,) = [call for call in bench.network.calls if "access_token" in str(call.request.url)]
    assert "code_verifier" in str(sent.request.body)


def test_an_exchange_that_fails_afterwards_stands_on_the_flow(bench: Bench) -> None:
    ref = came_back(bench)
    bench.network.upsert("POST", STRIPE_TOKEN, body=requests.ReadTimeout("late"))

    view = bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    assert (view.state, view.failure) == (FlowState.INTERRUPTED, "exchange_ambiguous")


def test_a_code_whose_key_is_gone_ends_the_flow(bench: Bench) -> None:
    ref = came_back(bench)
    other = bench.flow(came_back(bench)).code_sealed
    flows = table(Flow)
    with bench.database.write() as connection:
        connection.execute(flows.update().where(flows.c.ref == ref).values(code_sealed=other))

    view = bench.services.confirmations.confirm(ref, "user-1", actor=HOST)

    assert (view.state, view.failure) == (FlowState.INTERRUPTED, "flow_interrupted")
