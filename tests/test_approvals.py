"""Waiting for an owner: what the person asked for becomes a connection once, and only when it was really approved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from broker import approvals
from broker.audit import Actor
from broker.connection_search import ConnectionFilters
from broker.connections import ConnectionEnded
from broker.jobs import Done, Hold, Later, Outcome
from broker.models import Claim, ConnectedAccount, Flow, Job, LinkUse
from broker.status import Status
from tests.connecting import ACCESS, GITHUB_API, PERSON, Bench, installation, open_bench

ORG = installation(40, 400, "acme")
OF_ORG = f"{GITHUB_API}/orgs/acme/installation"
OF_APP = f"{GITHUB_API}/app/installations/40"
ASKED = {"id": 400, "login": "acme", "installation_id": 40, "installed": True}
OPERATOR = Actor("operator", "op@example.com")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.sequin()
        opened.open_requests((PERSON, 400, "acme"))
        yield opened


def look(bench: Bench) -> Outcome:
    return bench.services.approvals.run(bench.lease("approval"))


def approve(bench: Bench, **changes: Any) -> None:
    """Let an owner approve: the request is no longer open, and the App is installed."""
    bench.open_requests()
    for url in (OF_ORG, OF_APP):
        bench.network.upsert("GET", url, json=ORG | changes)


def hear(bench: Bench, requester: int = PERSON, **changes: Any) -> int:
    """Let the signed webhook arrive."""
    facts = {"requester_id": str(requester), "asked": ASKED | changes}
    with bench.database.write() as connection:
        return approvals.approved(connection, "github", facts, jobs=bench.jobs, now=bench.clock.now())


def row(bench: Bench) -> Any:
    return bench.row(ConnectedAccount)


def status(bench: Bench) -> Status:
    return bench.services.connections.find(row(bench).ref).status


# --- asking ---------------------------------------------------------------------------------------------


def test_asking_an_owner_leaves_a_connection_without_an_account(bench: Bench) -> None:
    waits = bench.ask_owner()
    assert (waits.account_id, waits.requester_id, waits.kind) == (None, str(PERSON), "github_app")
    assert (waits.grant_sealed, bench.rows(Claim)) == (None, [])
    flow = bench.row(Flow)
    assert (flow.state, flow.connection_id) == ("done", waits.id)
    assert bench.row(LinkUse).connection_id == waits.id
    assert sorted(job.kind for job in bench.jobs.unfinished()) == ["approval", "discard"]


def test_the_persons_token_is_ended_because_nothing_needs_it(bench: Bench) -> None:
    bench.ask_owner()
    url = f"{GITHUB_API}/applications/Iv1.acme/token"
    bench.network.delete(url, status=204)
    bench.services.discards.run(bench.lease("discard"))
    (ended,) = bench.calls(url)
    assert ACCESS in str(ended.body)
    assert bench.row(Flow).grant_sealed is None


def test_it_is_seen_wherever_connections_are(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    connections = bench.services.connections
    shown = connections.find(ref)
    assert (shown.status, shown.account, shown.can_retry, shown.manage_url) == (
        Status.AWAITING_APPROVAL, None, False, None,
    )  # fmt: skip
    assert [each.ref for each in connections.of_person(shown.end_user.key, link_id=None)] == [ref]
    wanted = ConnectionFilters(status=Status.AWAITING_APPROVAL)
    assert [each.ref for each in connections.page(wanted, limit=10).items] == [ref]
    assert connections.page(ConnectionFilters(status=Status.PENDING), limit=10).items == ()


def test_a_look_tells_whose_owner_was_asked(bench: Bench) -> None:
    bench.ask_owner()
    assert isinstance(look(bench), Later)
    assert bench.services.connections.find(row(bench).ref).asked == "acme"


def test_asking_again_starts_the_time_afresh_and_makes_no_second_one(bench: Bench) -> None:
    first = bench.ask_owner()
    bench.later(days=20)
    again = bench.ask_owner()
    assert again.ref == first.ref
    assert again.connected_at == bench.clock.now()


def test_two_people_of_the_host_wait_each_for_themselves(bench: Bench) -> None:
    assert bench.ask_owner("user-1").ref != bench.ask_owner("user-2").ref


def test_trouble_while_asking_is_left_to_the_worker(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.network.upsert("GET", f"{GITHUB_API}/user", status=502)
    bench.from_installation(address, None, "request")
    assert (bench.row(Flow).state, bench.rows(ConnectedAccount)) == ("redeeming", [])
    bench.github()
    bench.later(seconds=60)
    bench.flows.finish(bench.lease("finish").subject_id)
    assert row(bench).requester_id == str(PERSON)


# --- approval -------------------------------------------------------------------------------------------


def test_the_webhook_that_names_who_asked_makes_it_a_connection(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    look(bench)
    approve(bench)
    assert hear(bench) == 1
    assert look(bench) == Done()
    connected = row(bench)
    assert (connected.ref, connected.account_id, connected.account_name) == (ref, "400", "acme")
    assert bench.row(Claim).account_id == "400"
    bench.deliver()
    (sent,) = bench.imports()
    assert sent["properties"]["installation_id"] == 40


def test_a_webhook_alone_is_enough_where_github_has_no_list_of_requests(bench: Bench) -> None:
    bench.open_requests(told=False)
    bench.ask_owner()
    assert isinstance(look(bench), Later)
    bench.network.upsert("GET", OF_APP, json=ORG)
    hear(bench)
    look(bench)
    assert row(bench).account_id == "400"


def test_a_webhook_about_somebody_elses_request_changes_nothing(bench: Bench) -> None:
    bench.ask_owner()
    before = bench.everything()
    assert hear(bench, requester=PERSON + 1) == 0
    assert bench.everything() == before


def test_a_missed_webhook_is_made_up_for_by_asking(bench: Bench) -> None:
    bench.ask_owner()
    look(bench)
    approve(bench)
    bench.later(hours=1)
    look(bench)
    assert row(bench).account_id == "400"
    assert status(bench) is Status.PENDING


def test_the_person_can_have_it_looked_at_now(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    look(bench)
    approve(bench)
    assert bench.jobs.lease(["approval"]) == []
    bench.services.connections.check(ref)
    look(bench)
    assert row(bench).account_id == "400"


def test_asking_for_the_import_again_looks_for_the_approval(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    look(bench)
    bench.services.connections.retry(ref, actor=OPERATOR)
    assert isinstance(look(bench), Later)
    assert bench.jobs.lease(["import"]) == []


def test_an_installation_that_nobody_here_asked_for_is_not_taken(bench: Bench) -> None:
    """The owner declined, and installed the App for a reason of their own later."""
    bench.ask_owner()
    look(bench)
    bench.open_requests()
    bench.network.upsert("GET", OF_ORG, status=404, json={})
    bench.later(hours=1)
    look(bench)
    approve(bench)
    bench.later(hours=1)
    look(bench)
    assert row(bench).account_id is None


@pytest.mark.parametrize(
    "changes", [{"app_id": 1}, {"account": {"id": 999, "login": "acme", "type": "Organization"}}, {"account": None}]
)
def test_what_is_installed_must_be_what_was_asked_for(bench: Bench, changes: dict[str, Any]) -> None:
    bench.ask_owner()
    look(bench)
    approve(bench, **changes)
    hear(bench)
    look(bench)
    assert row(bench).account_id is None


def test_a_suspended_installation_waits_until_it_is_not(bench: Bench) -> None:
    bench.ask_owner()
    look(bench)
    approve(bench, suspended_at="2026-11-01T00:00:00Z")
    hear(bench)
    assert isinstance(look(bench), Later)
    approve(bench)
    bench.later(hours=7)
    look(bench)
    assert row(bench).account_id == "400"


def test_trouble_with_the_provider_never_ends_the_waiting(bench: Bench) -> None:
    bench.ask_owner()
    bench.network.upsert("GET", f"{GITHUB_API}/app/installation-requests", status=503)
    assert isinstance(look(bench), Hold)
    bench.open_requests((PERSON, 400, "acme"))
    for _ in range(3):
        bench.later(days=2)
        bench.services.connections.check(row(bench).ref)
        look(bench)
    assert status(bench) is Status.AWAITING_APPROVAL


# --- who else has the account ---------------------------------------------------------------------------


def test_an_account_of_another_end_user_ends_the_waiting_and_changes_nothing_there(bench: Bench) -> None:
    bench.github(ORG, admin_of=(400,))
    bench.connect("github", end_user="rival")
    theirs = row(bench)
    bench.ask_owner()
    approve(bench)
    hear(bench)
    look(bench)
    waited = bench.rows(ConnectedAccount)[-1]
    assert (waited.account_id, waited.disconnected_at) == (None, bench.clock.now())
    assert bench.rows(ConnectedAccount)[0] == theirs


def test_an_account_the_person_has_connected_meanwhile_takes_the_place_of_what_waited(bench: Bench) -> None:
    waited = bench.ask_owner()
    bench.github(ORG, admin_of=(400,))
    bench.connect("github")
    approve(bench)
    hear(bench)
    look(bench)
    ended, live = bench.rows(ConnectedAccount)
    assert (ended.id, ended.account_id, ended.disconnected_at) == (waited.id, None, bench.clock.now())
    assert (live.account_id, live.disconnected_at) == ("400", None)
    assert {flow.connection_id for flow in bench.rows(Flow)} == {live.id}


def test_an_account_the_person_had_disconnected_comes_back_to_life(bench: Bench) -> None:
    bench.github(ORG, admin_of=(400,))
    bench.connect("github")
    bench.deliver()
    bench.services.disconnections.request(row(bench).ref, actor=OPERATOR)
    bench.later(minutes=5)
    bench.services.disconnections.run_revoke(bench.lease("revoke"))
    bench.later(minutes=5)
    bench.ask_owner()
    approve(bench)
    hear(bench)
    look(bench)
    old, waited = bench.rows(ConnectedAccount)
    assert (old.account_id, old.disconnected_at, old.removal) == ("400", None, None)
    assert waited.disconnected_at is not None
    bench.deliver()
    assert len(bench.imports()) == 2


# --- the end of waiting ---------------------------------------------------------------------------------


def test_after_thirty_days_the_waiting_is_over(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    bench.later(days=30)
    assert look(bench) == Done()
    shown = bench.services.connections.find(ref)
    assert shown.status is Status.DISCONNECTED
    assert "in time" in shown.note
    assert ("worker", "approval", "connection.not_approved", ref) in bench.house.audited()
    assert [job.kind for job in bench.jobs.unfinished()] == ["discard"]


def test_taking_it_back_ends_it_at_once_and_leaves_nothing_to_do(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    effect = bench.services.disconnections.effect(ref)
    assert (effect.ends_access, effect.stays) == (False, "your request to the owners")
    bench.services.disconnections.request(ref, actor=OPERATOR)
    shown = bench.services.connections.find(ref)
    assert shown.status is Status.DISCONNECTED
    assert shown.ending is not None
    assert not shown.ending.is_pending
    assert [job.kind for job in bench.jobs.unfinished()] == ["discard"]
    approve(bench)
    assert hear(bench) == 0
    with pytest.raises(ConnectionEnded):
        bench.services.connections.check(ref)


def test_taking_it_back_wins_over_an_approval_under_way(bench: Bench) -> None:
    ref = bench.ask_owner().ref
    look(bench)
    approve(bench)
    hear(bench)
    job = bench.lease("approval")
    bench.services.disconnections.request(ref, actor=OPERATOR)
    bench.services.approvals.run(job)
    assert (row(bench).account_id, bench.rows(Claim)) == (None, [])


def test_looks_become_rarer_and_there_are_a_bounded_number_of_them(bench: Bench) -> None:
    bench.ask_owner()
    looks = 0
    while status(bench) is Status.AWAITING_APPROVAL:
        outcome = look(bench)
        looks += 1
        if isinstance(outcome, Later):
            assert 200 < outcome.seconds <= 6 * 3600
            bench.later(seconds=outcome.seconds)
    assert 100 < looks < 200
    assert [job.state for job in bench.rows(Job) if job.kind == "approval"] == ["done"]
