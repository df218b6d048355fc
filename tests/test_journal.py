"""The durable steps of a flow: who may take which, what a crash leaves behind, and what is erased when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from broker.errors import (
    AppUnknown,
    BrokerError,
    ConsentDenied,
    FlowEnded,
    FlowUnknown,
    LinkExpired,
    LinkRevoked,
    LinkUnknown,
    LinkUsed,
    OtherBrowser,
    StateUnknown,
    TooManyFlows,
    Unreadable,
)
from broker.journal import FINISH_AFTER, MOST_OPEN_FLOWS, REDEEMING_AT_MOST, Browser, Reload, Step
from broker.models import Flow, FlowState, Hold, Hop, HopKind, Job, JobState, Link
from broker.secret import Secret, digest, random_token
from tests.connecting import ACCESS, Bench, open_bench, state_in

OTHER = Browser(Secret("another-browser"))


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


def consume(
    bench: Bench, state: Secret, *, app: str = "stripe", kind: HopKind = HopKind.AUTHORIZE, browser: Browser | None
) -> Step | Reload:
    return bench.journal.consume(bench.apps.get(app), kind, state, browser)


def step(bench: Bench, app: str = "stripe", state: Secret | None = None) -> Step:
    """Come back once and return the step that this gave."""
    taken = consume(bench, state or bench.leave(app), app=app, browser=bench.browser)
    assert isinstance(taken, Step)
    return taken


def held(bench: Bench, why: Hold, state: Secret | None = None) -> Step:
    """Bring a GitHub flow with a grant to where it waits for the person."""
    taken = step(bench, "github")
    bench.journal.keep(taken, {"access_token": ACCESS})
    choices = [{"id": "1", "name": "a", "type": "User"}] if why is Hold.CHOICE else None
    bench.journal.hold(taken, why, choices=choices, state=state)
    return taken


# --- leaving --------------------------------------------------------------------------------------------


def test_leaving_writes_a_flow_and_a_hop_that_expire_together(bench: Bench) -> None:
    bench.leave()
    flow, hop = bench.row(Flow), bench.row(Hop)
    assert (flow.state, flow.hold, flow.failure, flow.ended_at, flow.grant_sealed) == ("left", None, None, None, None)
    assert (hop.kind, hop.flow_id, hop.consumed_at) == ("authorize", flow.id, None)
    assert flow.expires_at == hop.expires_at == bench.clock.now() + timedelta(minutes=60)


def test_only_digests_of_state_and_browser_are_stored_and_the_verifier_is_sealed(bench: Bench) -> None:
    state = bench.leave("github")
    hop, flow = bench.row(Hop), bench.row(Flow)
    assert hop.state_hash == digest(state.reveal())
    assert flow.browser_hash == bench.browser.hash
    stored = repr(bench.everything())
    assert state.reveal() not in stored
    assert bench.browser.secret.reveal() not in stored
    verifier = bench.journal.verifier(Step(flow.id, flow.ref, hop.verifier_sealed), state)
    assert verifier is not None
    assert len(verifier) >= 43
    assert verifier.reveal().encode() not in hop.verifier_sealed


def test_a_provider_without_pkce_has_no_verifier_to_keep(bench: Bench) -> None:
    bench.leave("stripe")
    assert bench.row(Hop).verifier_sealed is None
    assert bench.journal.verifier(Step(1, "x", None), Secret("s")) is None


def test_the_first_start_binds_the_link_to_its_browser(bench: Bench) -> None:
    link = bench.link()
    bench.leave(link=link)
    row = bench.row(Link)
    assert (row.browser_hash, row.started_at) == (bench.browser.hash, bench.clock.now())
    with pytest.raises(OtherBrowser):
        bench.leave(link=link, browser=OTHER)
    assert len(bench.rows(Flow)) == 1


def test_a_link_is_free_again_once_no_flow_is_under_way(bench: Bench) -> None:
    link = bench.link(expires_in=86_400)
    bench.leave(link=link)
    bench.later(minutes=61)
    bench.leave(link=link, browser=OTHER)
    assert bench.row(Link).browser_hash == OTHER.hash


def test_when_it_was_first_started_stays(bench: Bench) -> None:
    link, first = bench.link(), bench.clock.now()
    bench.leave(link=link)
    bench.later(minutes=5)
    bench.leave(link=link)
    assert bench.row(Link).started_at == first


def test_a_link_takes_only_so_many_unfinished_tries(bench: Bench) -> None:
    link = bench.link()
    for _ in range(MOST_OPEN_FLOWS):
        bench.leave(link=link)
    with pytest.raises(TooManyFlows):
        bench.leave(link=link)
    assert len(bench.rows(Flow)) == MOST_OPEN_FLOWS


def test_a_link_that_cannot_be_used_starts_nothing(bench: Bench) -> None:
    link = bench.link(apps=("stripe",))
    reasons: dict[str, type[BrokerError]] = {}
    for name, token, app in (("unknown", "no-such-token", "stripe"), ("another app", link, "github")):
        with pytest.raises(BrokerError) as refused:
            bench.leave(app, link=token)
        reasons[name] = refused.type
    bench.later(minutes=31)
    with pytest.raises(LinkExpired):
        bench.leave(link=link)
    revoked = bench.link()
    bench.house.run(sa.update(Link).values(revoked_at=bench.clock.now()))
    with pytest.raises(LinkRevoked):
        bench.leave(link=revoked)
    assert reasons == {"unknown": LinkUnknown, "another app": AppUnknown}
    assert bench.rows(Flow) == bench.rows(Hop) == []


def test_a_link_spent_for_one_app_still_opens_the_others(bench: Bench) -> None:
    bench.stripe()
    link = bench.link()
    bench.come_back(bench.leave(link=link))
    with pytest.raises(LinkUsed):
        bench.leave(link=link)
    assert bench.leave("github", link=link)


def test_a_spent_link_stays_with_its_browser(bench: Bench) -> None:
    bench.stripe()
    link = bench.link()
    bench.come_back(bench.leave(link=link))
    with pytest.raises(OtherBrowser):
        bench.leave("github", link=link, browser=OTHER)


# --- coming back ----------------------------------------------------------------------------------------


def test_coming_back_consumes_the_hop_and_takes_the_flow_further(bench: Bench) -> None:
    taken = step(bench)
    flow, hop = bench.row(Flow), bench.row(Hop)
    assert (taken.flow_id, taken.flow_ref) == (flow.id, flow.ref)
    assert (flow.state, hop.consumed_at) == ("redeeming", bench.clock.now())


def test_of_many_identical_visits_exactly_one_goes_on(bench: Bench) -> None:
    state = bench.leave()
    start = threading.Barrier(8)
    taken: list[Step | Reload] = []
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            start.wait(10)
            taken.append(consume(bench, state, browser=bench.browser))
        except BaseException as failure:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=visit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert sorted(type(each).__name__ for each in taken) == ["Reload"] * 7 + ["Step"]
    assert {each.flow_ref for each in taken} == {bench.row(Flow).ref}


def test_a_reload_is_shown_the_flow_and_changes_nothing(bench: Bench) -> None:
    state = bench.leave()
    step(bench, state=state)
    before = bench.everything()
    assert consume(bench, state, browser=bench.browser) == Reload(bench.row(Flow).ref)
    assert bench.everything() == before


@pytest.mark.parametrize("browser", [None, OTHER])
def test_another_browser_changes_nothing_and_the_rightful_one_can_still_finish(
    bench: Bench, browser: Browser | None
) -> None:
    state = bench.leave()
    before = bench.everything()
    with pytest.raises(OtherBrowser):
        consume(bench, state, browser=browser)
    assert bench.everything() == before
    assert isinstance(consume(bench, state, browser=bench.browser), Step)


def test_another_browser_does_not_see_a_flow_that_was_taken_already(bench: Bench) -> None:
    state = bench.leave()
    step(bench, state=state)
    with pytest.raises(OtherBrowser):
        consume(bench, state, browser=OTHER)


def test_a_state_counts_only_for_its_own_app_and_kind_of_hop(bench: Bench) -> None:
    state = bench.leave("stripe")
    before = bench.everything()
    with pytest.raises(StateUnknown):
        consume(bench, state, app="stripe-test", browser=bench.browser)
    with pytest.raises(StateUnknown):
        consume(bench, state, kind=HopKind.INSTALL, browser=bench.browser)
    with pytest.raises(StateUnknown):
        consume(bench, Secret(random_token()), browser=bench.browser)
    assert bench.everything() == before
    assert isinstance(consume(bench, state, browser=bench.browser), Step)


def test_whoever_comes_back_too_late_finds_the_flow_expired(bench: Bench) -> None:
    state = bench.leave("github")
    bench.later(minutes=60)
    assert consume(bench, state, app="github", browser=bench.browser) == Reload(bench.row(Flow).ref)
    flow, hop = bench.row(Flow), bench.row(Hop)
    assert (flow.state, flow.failure, flow.ended_at) == ("expired", "flow_expired", bench.clock.now())
    assert (hop.consumed_at, hop.verifier_sealed) == (None, None)


def test_just_in_time_is_in_time(bench: Bench) -> None:
    state = bench.leave()
    bench.later(minutes=60, seconds=-0.001)
    assert isinstance(consume(bench, state, browser=bench.browser), Step)


def test_a_verifier_opens_with_its_own_state_alone(bench: Bench) -> None:
    state = bench.leave("github")
    taken = step(bench, "github", state)
    with pytest.raises(Unreadable):
        bench.journal.verifier(taken, Secret("another state"))
    assert bench.journal.verifier(taken, state) is not None


# --- the grant ------------------------------------------------------------------------------------------


def test_what_the_provider_gave_is_sealed_and_somebody_will_finish_it(bench: Bench) -> None:
    taken = step(bench, "github")
    answer: dict[str, object] = {"access_token": ACCESS, "expires_in": 3600, "nested": {"a": [1, None, "ü"]}}
    received = bench.journal.keep(taken, answer)
    flow = bench.row(Flow)
    assert ACCESS.encode() not in flow.grant_sealed
    assert (received.answer, received.at) == (answer, bench.clock.now())
    assert bench.journal.kept(taken) == received
    assert bench.row(Hop).verifier_sealed is None
    job = bench.job("finish")
    assert (job.subject_id, job.due_at) == (taken.flow_id, bench.clock.now() + FINISH_AFTER)


def test_what_the_provider_gave_is_not_shown_by_accident(bench: Bench) -> None:
    taken = step(bench)
    assert ACCESS not in repr(bench.journal.keep(taken, {"access_token": ACCESS}))


def test_a_grant_moved_to_another_flow_does_not_open(bench: Bench) -> None:
    first, second = step(bench), step(bench)
    bench.journal.keep(first, {"access_token": ACCESS})
    bench.house.run(sa.update(Flow).values(grant_sealed=bench.flow(first.flow_ref).grant_sealed))
    assert bench.journal.kept(first).answer == {"access_token": ACCESS}
    with pytest.raises(Unreadable):
        bench.journal.kept(second)


def test_a_grant_that_is_gone_is_told_apart_from_one_that_does_not_open(bench: Bench) -> None:
    with pytest.raises(FlowEnded):
        bench.journal.kept(step(bench))


def test_a_grant_that_arrives_after_the_flow_was_ended_is_kept_only_to_end_it(bench: Bench) -> None:
    taken = step(bench)
    bench.later(seconds=REDEEMING_AT_MOST.total_seconds() + 1)
    assert bench.journal.sweep() == 1
    bench.journal.keep(taken, {"access_token": ACCESS})
    assert bench.row(Flow).state == "interrupted"
    assert ACCESS.encode() not in bench.row(Flow).grant_sealed
    assert [job.kind for job in bench.jobs.unfinished()] == ["discard"]
    bench.stripe()
    bench.let_go()
    assert bench.row(Flow).grant_sealed is None
    assert bench.jobs.unfinished() == []


# --- waiting for the person -----------------------------------------------------------------------------


def test_a_held_flow_has_its_full_time_again_and_no_worker_touches_it(bench: Bench) -> None:
    taken = step(bench, "github")
    bench.journal.keep(taken, {"access_token": ACCESS})
    bench.later(minutes=20)
    bench.journal.hold(taken, Hold.CHOICE, choices=[{"id": "1", "name": "a", "type": "User"}])
    flow = bench.row(Flow)
    assert (flow.state, flow.hold, flow.choices) == ("held", "choice", [{"id": "1", "name": "a", "type": "User"}])
    assert flow.expires_at == bench.clock.now() + timedelta(minutes=60)
    assert flow.grant_sealed is not None
    assert bench.job("finish").state == JobState.DONE


def test_a_flow_that_waits_for_an_installation_has_a_hop_of_its_own(bench: Bench) -> None:
    state = Secret(random_token())
    taken = held(bench, Hold.INSTALLATION, state)
    (_, hop) = bench.rows(Hop)
    assert (hop.kind, hop.state_hash, hop.verifier_sealed) == ("install", digest(state.reveal()), None)
    again = consume(bench, state, app="github", kind=HopKind.INSTALL, browser=bench.browser)
    assert again == Step(taken.flow_id, taken.flow_ref)
    flow = bench.row(Flow)
    assert (flow.state, flow.hold) == ("redeeming", None)


def test_an_installation_hop_is_refused_to_another_browser_and_app(bench: Bench) -> None:
    state = Secret(random_token())
    held(bench, Hold.INSTALLATION, state)
    before = bench.everything()
    with pytest.raises(OtherBrowser):
        consume(bench, state, app="github", kind=HopKind.INSTALL, browser=OTHER)
    with pytest.raises(StateUnknown):
        consume(bench, state, app="stripe", kind=HopKind.INSTALL, browser=bench.browser)
    with pytest.raises(StateUnknown):
        consume(bench, state, app="github", kind=HopKind.AUTHORIZE, browser=bench.browser)
    assert bench.everything() == before


def test_a_crash_right_after_an_installation_came_back_leaves_work_for_the_worker(bench: Bench) -> None:
    state = Secret(random_token())
    taken = held(bench, Hold.INSTALLATION, state)
    consume(bench, state, app="github", kind=HopKind.INSTALL, browser=bench.browser)
    bench.later(seconds=FINISH_AFTER.total_seconds())
    assert bench.lease("finish").subject_id == taken.flow_id


def test_a_choice_is_taken_up_once_and_somebody_will_finish_it(bench: Bench) -> None:
    taken = held(bench, Hold.CHOICE)
    flow = bench.row(Flow)
    assert bench.journal.resume(flow, Hold.CHOICE, account_id="1") == Step(taken.flow_id, taken.flow_ref)
    with pytest.raises(FlowEnded):
        bench.journal.resume(flow, Hold.CHOICE, account_id="2")
    flow = bench.row(Flow)
    assert (flow.state, flow.hold, flow.chosen_account_id) == ("redeeming", None, "1")
    bench.later(seconds=FINISH_AFTER.total_seconds())
    assert bench.lease("finish").subject_id == taken.flow_id


def test_a_flow_that_waits_for_something_else_takes_no_choice(bench: Bench) -> None:
    held(bench, Hold.INSTALLATION)
    with pytest.raises(FlowEnded):
        bench.journal.resume(bench.row(Flow), Hold.CHOICE, account_id="1")
    assert bench.row(Flow).chosen_account_id is None


def test_a_choice_comes_too_late_after_an_hour(bench: Bench) -> None:
    held(bench, Hold.CHOICE)
    bench.later(minutes=60)
    with pytest.raises(FlowEnded):
        bench.journal.resume(bench.row(Flow), Hold.CHOICE, account_id="1")


# --- ending ---------------------------------------------------------------------------------------------


def test_a_flow_that_ends_keeps_the_reason_and_nothing_secret(bench: Bench) -> None:
    taken = step(bench, "github")
    bench.journal.keep(taken, {"access_token": ACCESS})
    bench.journal.end(taken, ConsentDenied("x" * 2_000))
    bench.github()
    bench.let_go()
    flow = bench.row(Flow)
    assert (flow.state, flow.failure, flow.failure_detail) == ("failed", "consent_denied", "x" * 500)
    assert (flow.grant_sealed, flow.choices, flow.hold, flow.ended_at) == (None, None, None, bench.clock.now())
    assert bench.row(Hop).verifier_sealed is None
    assert bench.jobs.unfinished() == []
    assert ("end_user", flow.ref, "flow.failed", flow.ref) in bench.house.audited()


def test_an_ended_flow_never_changes_again(bench: Bench) -> None:
    taken = held(bench, Hold.CHOICE)
    bench.journal.end(taken, ConsentDenied())
    before = bench.everything()
    flow = bench.row(Flow)
    bench.journal.end(taken, ConsentDenied(), state=FlowState.EXPIRED)
    bench.journal.hold(taken, Hold.INSTALLATION, state=Secret(random_token()))
    with pytest.raises(FlowEnded):
        bench.journal.resume(flow, Hold.CHOICE, account_id="1")
    bench.later(days=30)
    assert bench.journal.sweep() == 0
    assert bench.everything() == before


def test_the_sweep_ends_what_nobody_will_finish_and_nothing_else(bench: Bench) -> None:
    left = bench.leave(link=bench.link("left", expires_in=86_400))
    waiting = held(bench, Hold.CHOICE)
    cut_off = step(bench)
    bench.later(seconds=REDEEMING_AT_MOST.total_seconds())
    fresh = step(bench)
    kept = step(bench)
    bench.journal.keep(kept, {"access_token": ACCESS})
    assert bench.journal.sweep() == 0
    bench.later(seconds=1)
    assert bench.journal.sweep() == 1
    assert bench.flow(cut_off.flow_ref).state == "interrupted"
    assert bench.flow(cut_off.flow_ref).failure == "flow_interrupted"
    assert {bench.flow(each.flow_ref).state for each in (fresh, kept)} == {"redeeming"}
    bench.later(minutes=58)
    young = bench.leave()
    bench.later(minutes=1)
    assert bench.journal.sweep() >= 2
    by_state = {hop.state_hash: hop.flow_id for hop in bench.rows(Hop)}
    states = {flow.id: flow.state for flow in bench.rows(Flow)}
    assert states[by_state[digest(left.reveal())]] == "expired"
    assert states[by_state[digest(young.reveal())]] == "left"
    assert bench.flow(waiting.flow_ref).state == "expired"
    assert [job.subject_id for job in bench.rows(Job) if job.kind == "discard"] == [waiting.flow_id]


@pytest.mark.parametrize("how", ["came back from the installation page", "kept a grant whose job was parked"])
def test_no_flow_is_stuck_for_good(bench: Bench, how: str) -> None:
    if how.startswith("came"):
        state = Secret(random_token())
        taken = held(bench, Hold.INSTALLATION, state)
        consume(bench, state, app="github", kind=HopKind.INSTALL, browser=bench.browser)
    else:
        taken = step(bench)
        bench.journal.keep(taken, {"access_token": ACCESS})
    with bench.database.write() as connection:
        bench.jobs.cancel(connection, "finish", taken.flow_id)
    bench.later(minutes=61)
    bench.journal.sweep()
    flow = bench.flow(taken.flow_ref)
    assert flow.ended_at is not None
    assert [job.kind for job in bench.jobs.unfinished()] == ["discard"]


def test_the_sweep_takes_a_bounded_number_at_a_time(bench: Bench) -> None:
    for number in range(5):
        bench.leave(link=bench.link(f"user-{number}"))
    bench.later(minutes=61)
    assert [bench.journal.sweep(most=2) for _ in range(4)] == [2, 2, 1, 0]


# --- reading --------------------------------------------------------------------------------------------


def test_a_flow_is_shown_to_its_own_browser_alone(bench: Bench) -> None:
    bench.leave()
    ref = bench.row(Flow).ref
    assert bench.journal.own(ref, bench.browser).ref == ref
    for browser in (None, OTHER):
        with pytest.raises(FlowUnknown) as stranger:
            bench.journal.own(ref, browser)
        with pytest.raises(FlowUnknown) as unknown:
            bench.journal.own("NOPE-NOPE-NOPE", browser)
        assert str(stranger.value) == str(unknown.value)


@pytest.mark.parametrize("ref", ["", "a\x00b", "\ud800", "x" * 5_000])
def test_what_cannot_be_a_reference_is_unknown(bench: Bench, ref: str) -> None:
    with pytest.raises(FlowUnknown):
        bench.journal.own(ref, bench.browser)


def test_only_a_flow_with_a_grant_can_be_finished(bench: Bench) -> None:
    bare, kept, waiting = step(bench), step(bench), held(bench, Hold.CHOICE)
    bench.journal.keep(kept, {"access_token": ACCESS})
    found = {each.flow_ref for each in (bare, kept, waiting) if bench.journal.unfinished(each.flow_id) is not None}
    assert found == {kept.flow_ref}
    assert bench.journal.unfinished(10**12) is None


def test_a_flow_started_again_belongs_to_the_same_link(bench: Bench) -> None:
    bench.leave()
    first = bench.row(Flow)
    address = bench.flows.begin_again(first.ref, "github", bench.browser)
    assert state_in(address)
    assert {flow.link_id for flow in bench.rows(Flow)} == {first.link_id}
    with pytest.raises(FlowUnknown):
        bench.flows.begin_again(first.ref, "github", OTHER)
