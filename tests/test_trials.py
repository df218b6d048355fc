"""Trying an OAuth app out: the whole way, told part by part, and nothing is left of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from broker.audit import Actor
from broker.errors import AppUnknown
from broker.models import Claim, ConnectedAccount, EndUser, Event, Flow, Job, LinkUse
from broker.overview import Period
from broker.trials import END_USER, Outcome, Part, Trials, TrialUnknown, TrialView
from tests.connecting import (
    ACCESS,
    GITHUB_END_TOKEN,
    REFRESH,
    SEQUIN,
    STRIPE_ACCOUNT,
    STRIPE_DEAUTHORIZE,
    STRIPE_TOKEN,
    Bench,
    open_bench,
    person_installation,
    state_in,
)

SAM = Actor("operator", "sam@example.com")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


@pytest.fixture
def trials(bench: Bench) -> Trials:
    return bench.services.trials


def go(bench: Bench, app: str = "stripe", **answer: Any) -> str:
    """Go to the provider and back, and return the trial's reference."""
    state = state_in(bench.services.trials.begin(app, bench.browser, actor=SAM))
    return bench.come_back(state, app, **answer).flow_ref


def outcomes(trial: TrialView) -> dict[Part, Outcome]:
    return {each.part: each.outcome for each in trial.parts}


def facts(trial: TrialView, part: Part) -> tuple[str, ...]:
    return next(each.facts for each in trial.parts if each.part is part)


def test_every_part_that_worked_is_told_and_nothing_is_connected(bench: Bench, trials: Trials) -> None:
    bench.stripe("acct_1")
    trial = trials.find(go(bench))

    assert trial.worked
    assert trial.error == ""
    assert outcomes(trial) == dict.fromkeys(Part, Outcome.DONE) | {Part.CLEAN_UP: Outcome.WAITING}
    assert facts(trial, Part.ACCOUNT) == ("acct_1@example.com, acct_1, live",)
    (importable,) = facts(trial, Part.IMPORT)
    assert importable.startswith("stripe_oauth2 with ")
    assert ACCESS not in repr(trial)
    assert REFRESH not in repr(trial)
    assert bench.rows(ConnectedAccount) == bench.rows(Claim) == bench.rows(LinkUse) == []
    assert {job.kind for job in bench.rows(Job)} == {"finish", "discard"}
    assert not bench.calls(f"{SEQUIN}/v1/credentials")


def test_what_was_received_is_ended_and_erased(bench: Bench, trials: Trials) -> None:
    bench.stripe()
    ref = go(bench)
    bench.let_go()

    assert len(bench.calls(STRIPE_DEAUTHORIZE)) == 1
    assert bench.flow(ref).grant_sealed is None
    trial = trials.find(ref)
    assert outcomes(trial)[Part.CLEAN_UP] is Outcome.DONE
    assert facts(trial, Part.CLEAN_UP) == ("ended",)


def test_access_that_a_connection_shares_is_never_ended(bench: Bench, trials: Trials) -> None:
    bench.stripe("acct_1")
    bench.connect()
    before = bench.row(ConnectedAccount)
    ref = go(bench)
    bench.let_go()

    assert not bench.calls(STRIPE_DEAUTHORIZE)
    assert bench.flow(ref).grant_sealed is None
    assert facts(trials.find(ref), Part.CLEAN_UP) == ("in_use",)
    assert bench.row(ConnectedAccount) == before


def test_only_the_token_of_the_test_is_ended_where_tokens_can_be(bench: Bench, trials: Trials) -> None:
    bench.github(person_installation())
    bench.connect("github")
    before = bench.row(ConnectedAccount)
    trial = trials.find(go(bench, "github"))
    bench.let_go()

    assert trial.worked
    assert len(bench.calls(GITHUB_END_TOKEN)) == 1
    assert bench.row(ConnectedAccount) == before


def test_an_app_that_is_installed_nowhere_yet_is_no_failure(bench: Bench, trials: Trials) -> None:
    bench.github()
    trial = trials.find(go(bench, "github"))
    assert trial.worked
    assert "not installed" in facts(trial, Part.ACCOUNT)[0]
    assert outcomes(trial)[Part.IMPORT] is Outcome.SKIPPED


@pytest.mark.parametrize(
    ("answer", "failed"), [({"code": None, "error": "access_denied"}, Part.EXCHANGE), ({}, Part.EXCHANGE)]
)
def test_where_it_stopped_is_told_with_what_mends_it(
    bench: Bench, trials: Trials, answer: dict[str, Any], failed: Part
) -> None:
    bench.network.upsert("POST", STRIPE_TOKEN, status=401, json={"error": "invalid_client"})
    trial = trials.find(go(bench, **answer))

    assert not trial.worked
    assert trial.is_over
    assert trial.error in {"consent_denied", "provider_misconfigured"}
    assert trial.cure
    told = outcomes(trial)
    assert (told[Part.RETURN], told[failed], told[Part.ACCOUNT]) == (Outcome.DONE, Outcome.FAILED, Outcome.SKIPPED)
    assert told[Part.CLEAN_UP] is Outcome.SKIPPED


def test_what_the_worker_finishes_stays_a_test(bench: Bench, trials: Trials) -> None:
    bench.stripe()
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=503)
    ref = go(bench)
    assert not trials.find(ref).is_over
    bench.stripe()
    bench.later(seconds=60)
    bench.flows.finish(bench.lease("finish").subject_id)
    assert trials.find(ref).worked
    assert bench.rows(ConnectedAccount) == []


@pytest.mark.parametrize("way", ["look again", "back from there", "asked an owner"])
def test_a_test_that_goes_by_the_installation_page_stays_one(bench: Bench, trials: Trials, way: str) -> None:
    bench.github(person_installation(9))
    first = go(bench, "github")
    # No page of a test offers this; a form posted by hand gets there all the same.
    state = state_in(bench.flows.begin_again(first, "github", bench.browser, elsewhere=True))
    onward = bench.come_back(state, "github")
    if way == "look again":
        bench.flows.look_again(onward.flow_ref, bench.browser)
    else:
        bench.from_installation(onward.address, *((9,) if way == "back from there" else (None, "request")))

    assert trials.find(onward.flow_ref).worked
    assert bench.rows(ConnectedAccount) == bench.rows(Claim) == bench.rows(Event) == []


def test_hosts_are_told_nothing_and_no_figure_counts_it(bench: Bench, trials: Trials) -> None:
    bench.stripe()
    go(bench)
    go(bench, code=None, error="access_denied")

    assert bench.rows(Event) == []
    found = bench.services.overviews.find(Period.DAY)
    assert found is not None
    assert (found.attempts, found.funnel.created, found.reasons) == (0, 0, ())
    actions = [(kind, actor, action) for kind, actor, action, _ in bench.house.audited()]
    assert actions.count(("operator", "sam@example.com", "app.tested")) == 2
    assert {action for _, _, action in actions} >= {"trial.failed"}
    assert {person.external_id for person in bench.rows(EndUser)} == {END_USER}


def test_while_nobody_came_back_it_waits(bench: Bench, trials: Trials) -> None:
    trials.begin("stripe", bench.browser, actor=SAM)
    told = outcomes(trials.find(bench.row(Flow).ref))
    assert (told[Part.LEAVE], told[Part.RETURN], told[Part.CLEAN_UP]) == (
        Outcome.DONE, Outcome.WAITING, Outcome.WAITING
    )  # fmt: skip


def test_other_flows_are_no_tests(bench: Bench, trials: Trials) -> None:
    bench.stripe()
    for ref in (bench.connect().flow_ref, "NOPE", "\x00"):
        with pytest.raises(TrialUnknown):
            trials.find(ref)
    with pytest.raises(AppUnknown):
        trials.begin("nope", bench.browser, actor=SAM)
