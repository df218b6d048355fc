"""Grants that end unattached: ended at the provider where nobody needs them, erased in any case."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest
import requests
import sqlalchemy as sa

from broker import discards
from broker.attach import AccountEnding, Attachment, attach, outwait
from broker.audit import Actor
from broker.discards import KEPT_AT_MOST
from broker.errors import FlowExpired, FlowFailure
from broker.journal import Step
from broker.models import ConnectedAccount, Flow, FlowEvent, FlowState, HopKind, Job, JobState
from broker.oauth import parse_grant
from broker.providers.base import Account
from tests.connecting import (
    ACCESS,
    GITHUB_API,
    GITHUB_END_TOKEN,
    GITHUB_TOKEN,
    SEQUIN,
    SEQUIN_GITHUB_APP,
    STRIPE_ACCOUNT,
    STRIPE_DEAUTHORIZE,
    Bench,
    github_oauth_app,
    installation,
    open_bench,
    person_installation,
)

PERSON = Actor("end_user", "user-1")
STRIPE = {"access_token": ACCESS, "token_type": "bearer", "stripe_user_id": "acct_1", "livemode": True}


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.sequin()
        opened.stripe()
        yield opened


def received(bench: Bench, app: str = "stripe", end_user: str = "user-1", **answer: Any) -> Step:
    """Bring a flow to where its grant was committed."""
    state = bench.leave(app, link=bench.link(end_user))
    taken = bench.journal.consume(bench.apps.get(app), HopKind.AUTHORIZE, state, bench.browser)
    assert isinstance(taken, Step)
    bench.journal.keep(taken, STRIPE | answer)
    return taken


def ended(bench: Bench, app: str = "stripe", end_user: str = "user-1", **answer: Any) -> Step:
    """Let a flow end right after its grant was committed."""
    taken = received(bench, app, end_user, **answer)
    bench.journal.end(taken, FlowExpired(), state=FlowState.EXPIRED)
    return taken


def arriving(bench: Bench, taken: Step, account: str = "acct_1", mode: str = "live") -> Attachment:
    """Return what a flow that has its grant is about to attach."""
    kept = bench.journal.kept(taken)
    grant = parse_grant(kept.answer, received_at=kept.at, requires_access_token=False)
    found = Account(account, "Acme", "standard", mode)  # type: ignore[arg-type]
    # The proof began a moment ago, as it always has.
    proven_from = bench.clock.now() - timedelta(seconds=1)
    return Attachment(taken.flow_id, taken.flow_ref, bench.apps.get("stripe"), found, grant, proven_from)


def save(bench: Bench, what: Attachment) -> str | None:
    with bench.database.write() as connection:
        return attach(connection, what, vault=bench.vault, jobs=bench.jobs, now=bench.clock.now())


def deauthorized(bench: Bench) -> list[str]:
    """Return the accounts that Stripe was told to let go of."""
    bodies = [call.body for call in bench.calls(STRIPE_DEAUTHORIZE)]
    return [parse_qs(body.decode() if isinstance(body, bytes) else str(body))["stripe_user_id"][0] for body in bodies]


def became(bench: Bench, taken: Step) -> str | None:
    """Return what became of a flow's access, None while that is open."""
    found = [each.detail for each in bench.rows(FlowEvent) if (each.flow_id, each.name) == (taken.flow_id, "discarded")]
    return found[0] if found else None


def held(bench: Bench, taken: Step) -> bool:
    """Tell whether a flow's grant is still kept."""
    return bench.flow(taken.flow_ref).grant_sealed is not None


# --- what is ended ------------------------------------------------------------------------------------


def test_until_it_is_ended_the_grant_stays_sealed_and_then_it_is_erased(bench: Bench) -> None:
    taken = ended(bench)
    assert held(bench, taken)
    assert ACCESS.encode() not in bench.flow(taken.flow_ref).grant_sealed
    bench.let_go()
    assert (held(bench, taken), became(bench, taken), deauthorized(bench)) == (False, "ended", ["acct_1"])
    assert ("worker", "discard", "flow.discarded", taken.flow_ref) in bench.house.audited()
    assert bench.jobs.unfinished() == []


def test_a_flow_without_a_grant_leaves_nothing_to_do(bench: Bench) -> None:
    state = bench.leave()
    bench.come_back(state, code=None, error="access_denied")
    assert bench.jobs.unfinished() == []
    assert bench.row(Flow).state == "failed"


@pytest.mark.parametrize("end", ["expired", "account taken", "link spent", "disconnected"])
def test_access_that_a_living_connection_uses_is_never_ended(bench: Bench, end: str) -> None:
    if end == "link spent":
        link = bench.link()
        first, second = bench.leave(link=link), bench.leave(link=link)
        bench.come_back(first)
        bench.come_back(second)
    else:
        bench.connect(end_user="owner")
        taken = received(bench, end_user="owner" if end == "disconnected" else "somebody-else")
        if end == "account taken":
            bench.flows.finish(taken.flow_id)
        else:
            bench.journal.end(taken, FlowExpired(), state=FlowState.EXPIRED)
    bench.let_go()
    assert deauthorized(bench) == []
    assert [flow.grant_sealed for flow in bench.rows(Flow)] == [None, None]
    assert [each.detail for each in bench.rows(FlowEvent) if each.name == "discarded"] == ["in_use"]


def test_a_connection_of_another_account_mode_or_app_does_not_keep_it(bench: Bench) -> None:
    person = bench.house.end_user("somebody-else")
    bench.house.connection(person, account_id="acct_2")
    bench.house.connection(person, account_id="acct_1", mode="test")
    bench.house.connection(person, account_id="acct_1", app_key="stripe-test")
    bench.house.connection(bench.house.end_user("gone"), account_id="acct_1", disconnected_at=bench.clock.now())
    ended(bench)
    bench.let_go()
    assert deauthorized(bench) == ["acct_1"]


def test_a_link_that_another_tab_has_spent_on_another_account_ends_only_the_second(bench: Bench) -> None:
    link = bench.link()
    first, second = bench.leave(link=link), bench.leave(link=link)
    bench.come_back(first)
    bench.stripe("acct_2")
    bench.come_back(second)
    bench.let_go()
    assert deauthorized(bench) == ["acct_2"]
    assert bench.row(ConnectedAccount).disconnected_at is None


def test_a_token_is_ended_by_itself_whoever_it_belongs_to(bench: Bench) -> None:
    bench.github(installation(1, 400, "acme"), person_installation())
    bench.connect("github")
    assert bench.row(Flow).hold == "choice"
    bench.later(hours=25)
    bench.journal.sweep()
    asked = len(bench.network.calls)
    bench.let_go()
    (request,) = bench.calls(GITHUB_END_TOKEN)
    assert ACCESS in str(request.body)
    assert len(bench.network.calls) == asked + 1
    assert bench.row(Flow).grant_sealed is None


def test_an_installation_is_never_removed_for_a_flow_that_made_no_connection(bench: Bench) -> None:
    bench.github(installation(1, 400, "acme"))
    bench.connect("github")
    assert (bench.row(Flow).state, bench.row(Flow).failure) == ("failed", "account_not_permitted")
    bench.let_go()
    assert [call.request.method for call in bench.network.calls].count("DELETE") == 1
    assert len(bench.calls(GITHUB_END_TOKEN)) == 1


@pytest.mark.parametrize(
    ("shown", "became_of_it"),
    [
        ({"status": 401, "json": {}}, "ended"),
        ({"json": {"id": "acct_of_somebody_else"}}, "unproven"),
        ({"body": "<html>"}, "unproven"),
    ],
)
def test_nothing_is_ended_by_account_on_a_guess(bench: Bench, shown: dict[str, Any], became_of_it: str) -> None:
    bench.network.upsert("GET", STRIPE_ACCOUNT, **shown)
    taken = ended(bench)
    bench.let_go()
    assert (deauthorized(bench), held(bench, taken), became(bench, taken)) == ([], False, became_of_it)


@pytest.mark.parametrize("answer", [{"access_token": 7}, {"stripe_user_id": "cus_1"}, {"token_type": "mac"}])
def test_an_answer_that_was_never_a_grant_is_only_erased(bench: Bench, answer: dict[str, Any]) -> None:
    taken = ended(bench, **answer)
    bench.let_go()
    assert (deauthorized(bench), held(bench, taken), became(bench, taken)) == ([], False, "unproven")


def test_a_provider_that_refuses_for_good_is_asked_once(bench: Bench) -> None:
    told = {"error": "invalid_client", "error_description": "no_deauth_on_controlled_account: …"}
    bench.network.upsert("POST", STRIPE_DEAUTHORIZE, status=401, json=told)
    taken = ended(bench)
    bench.let_go()
    assert (held(bench, taken), became(bench, taken)) == (False, "refused")


def test_a_provider_without_a_way_gets_it_erased_at_once(bench: Bench) -> None:
    app = bench.apps.get("stripe")
    without = replace(app, provider=replace(app.provider, revoke=None))
    with patch.object(type(bench.apps), "get", lambda *_: without):
        taken = ended(bench)
    assert not held(bench, taken)
    assert bench.jobs.unfinished() == []


# --- until it is done, and not for ever ---------------------------------------------------------------


def test_what_may_pass_is_tried_again(bench: Bench) -> None:
    bench.network.upsert("POST", STRIPE_DEAUTHORIZE, status=503)
    taken = ended(bench)
    bench.let_go()
    assert (held(bench, taken), bench.job("discard").state, bench.job("discard").failures) == (True, "waiting", 1)
    bench.stripe()
    bench.later(minutes=1)
    bench.let_go()
    assert (held(bench, taken), became(bench, taken)) == (False, "ended")


@pytest.mark.parametrize("trouble", ["down", "refused", "not configured", "unreadable", "unforeseen"])
def test_it_is_erased_after_three_days_whatever_happens(bench: Bench, trouble: str) -> None:
    taken = ended(bench)
    if trouble == "down":
        bench.network.upsert("POST", STRIPE_DEAUTHORIZE, status=503)
    elif trouble == "refused":
        bench.network.upsert("POST", STRIPE_DEAUTHORIZE, status=401, json={"error": "invalid_client"})
    elif trouble == "not configured":
        bench.house.run(sa.update(Flow).values(app_key="gone"))
    elif trouble == "unreadable":
        bench.house.run(sa.update(Flow).values(grant_sealed=b"\x01\x02k1 no sealed value"))
    else:
        bench.answering("POST", STRIPE_DEAUTHORIZE, lambda _: 1 / 0)  # type: ignore[arg-type,return-value]
    bench.worker.run_once()
    assert held(bench, taken)
    assert bench.job("discard").state == JobState.WAITING
    bench.clock.advance(KEPT_AT_MOST.total_seconds())
    bench.worker.run_once()
    assert (held(bench, taken), became(bench, taken)) == (False, "given_up")
    assert bench.job("discard").state == JobState.DONE


def test_of_two_workers_at_the_same_grant_the_late_one_records_nothing(bench: Bench) -> None:
    taken = ended(bench)
    (first,) = bench.jobs.lease(["discard"])
    bench.later(seconds=31)
    bench.let_go()
    assert became(bench, taken) == "ended"
    bench.services.discards.run(first)
    assert len(deauthorized(bench)) == 1
    assert [each.name for each in bench.rows(FlowEvent)].count("discarded") == 1


# --- while a connection to the same account is being made ---------------------------------------------


def at_the_moment(bench: Bench, url: str, method: str, happens: Callable[[], object], answer: dict[str, Any]) -> None:
    """Let something happen between a request and its answer."""

    def body(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        happens()
        return 200, {}, json.dumps(answer)

    bench.answering(method, url, body)


def test_a_connection_is_not_saved_while_access_to_its_account_is_being_ended(bench: Bench) -> None:
    ended(bench)
    what = arriving(bench, received(bench, end_user="user-2"))
    seen: list[str] = []

    def meanwhile() -> None:
        with pytest.raises(AccountEnding):
            save(bench, what)
        seen.append("waits")

    at_the_moment(bench, STRIPE_DEAUTHORIZE, "POST", meanwhile, {"stripe_user_id": "acct_1"})
    bench.let_go()
    assert (seen, deauthorized(bench)) == (["waits"], ["acct_1"])
    # Nor with a proof that is older than the end: what was proven may be dead by now.
    with pytest.raises(AccountEnding):
        save(bench, what)
    bench.later(seconds=1)
    assert save(bench, replace(what, proven_from=bench.clock.now())) is not None


def test_another_account_is_not_kept_waiting_by_it(bench: Bench) -> None:
    ended(bench)
    what = arriving(bench, received(bench, end_user="user-2"), account="acct_2")
    saved: list[str | None] = []
    answer = {"stripe_user_id": "acct_1"}
    at_the_moment(bench, STRIPE_DEAUTHORIZE, "POST", lambda: saved.append(save(bench, what)), answer)
    bench.let_go()
    assert len(saved) == 1
    assert deauthorized(bench) == ["acct_1"]


def test_a_connection_saved_while_the_account_was_being_looked_up_keeps_its_access(bench: Bench) -> None:
    ended(bench)
    what = arriving(bench, received(bench, end_user="user-2"))
    at_the_moment(bench, STRIPE_ACCOUNT, "GET", lambda: save(bench, what), {"id": "acct_1"})
    bench.let_go()
    assert deauthorized(bench) == []
    assert bench.row(ConnectedAccount).disconnected_at is None


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_connection_whose_transaction_is_open_at_the_decisive_moment_is_waited_for(bench: Bench, moment: str) -> None:
    """The one race that no look at the rows can see: claim and connection are written, and not yet committed."""
    if bench.database.is_sqlite:
        pytest.skip("SQLite has one writer at a time")
    ended(bench)
    what = arriving(bench, received(bench, end_user="user-2"))
    attached, may_commit = threading.Event(), threading.Event()
    outcome: list[object] = []

    def connect() -> None:
        try:
            with bench.database.write() as connection:
                outcome.append(attach(connection, what, vault=bench.vault, jobs=bench.jobs, now=bench.clock.now()))
                attached.set()
                may_commit.wait(20)
        except (AccountEnding, FlowFailure) as failure:
            outcome.append(failure)
            attached.set()

    thread = threading.Thread(target=connect)
    real = outwait

    def waiting(*args: Any) -> None:
        if moment == "after":
            # It begins once the account is marked, so that it has to see the mark.
            thread.start()
            attached.wait(20)
        threading.Timer(0.2, may_commit.set).start()
        real(*args)

    if moment == "before":
        thread.start()
        attached.wait(20)
    with patch.object(discards, "outwait", waiting):
        bench.let_go()
    thread.join(20)
    if moment == "before":
        assert isinstance(outcome[0], str)
        assert deauthorized(bench) == []
    else:
        assert isinstance(outcome[0], AccountEnding)
        assert deauthorized(bench) == ["acct_1"]


def test_many_flows_and_connections_of_one_account_at_once_never_end_a_living_one(bench: Bench) -> None:
    for turn in range(4):
        stray = ended(bench, end_user=f"stray-{turn}", stripe_user_id=f"acct_{turn}")
        bench.network.upsert("GET", STRIPE_ACCOUNT, json={"id": f"acct_{turn}"})
        bench.network.upsert("POST", STRIPE_DEAUTHORIZE, json={"stripe_user_id": f"acct_{turn}"})
        what = arriving(bench, received(bench, end_user=f"user-{turn}"), account=f"acct_{turn}")
        start = threading.Barrier(2)
        outcome: list[Any] = []

        def connect(start: threading.Barrier = start, what: Attachment = what, outcome: list[Any] = outcome) -> None:
            start.wait(20)
            try:
                outcome.append(save(bench, what))
            except AccountEnding as failure:
                outcome.append(failure)

        thread = threading.Thread(target=connect)
        thread.start()
        start.wait(20)
        bench.let_go()
        thread.join(20)
        told = f"acct_{turn}" in deauthorized(bench)
        assert isinstance(outcome[0], str) != told, (turn, outcome, told)
        assert became(bench, stray) == ("ended" if told else "in_use")


def test_a_disconnect_and_a_flow_of_the_same_account_end_it_together(bench: Bench) -> None:
    bench.connect()
    taken = received(bench)
    bench.services.disconnections.request(bench.row(ConnectedAccount).ref, actor=PERSON)
    bench.later(seconds=1)
    bench.journal.end(taken, FlowExpired(), state=FlowState.EXPIRED)
    for job in bench.jobs.lease(["revoke"]):
        bench.services.disconnections.run_revoke(job)
    bench.let_go()
    assert set(deauthorized(bench)) == {"acct_1"}
    assert bench.row(ConnectedAccount).revocation == "done"
    assert not held(bench, taken)


# --- while the provider does not answer ---------------------------------------------------------------


def test_while_the_apps_circuit_is_open_nothing_is_sent_and_it_says_so(bench: Bench) -> None:
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=503)
    for number in range(6):
        ended(bench, end_user=f"user-{number}")
    bench.let_go()
    assert len(bench.calls(STRIPE_ACCOUNT)) == 5
    waiting = [job for job in bench.rows(Job) if job.error == "circuit_open"]
    assert len(waiting) == 1
    assert "has not answered stripe since 20 Nov, 10:00 UTC" in waiting[0].error_detail
    bench.stripe()
    bench.later(seconds=90)
    bench.let_go()
    assert [flow.grant_sealed for flow in bench.rows(Flow)] == [None] * 6
    assert bench.services.circuits.open() == []


def test_three_days_are_what_is_promised() -> None:
    assert timedelta(days=3) == KEPT_AT_MOST


# --- what a reconnect replaces ------------------------------------------------------------------------


OAUTH_APP_TOKEN = f"{GITHUB_API}/applications/Ov23.acme/token"


@pytest.fixture
def personal(database_url: str) -> Iterator[Bench]:
    """Somebody connected GitHub with a token of their own, then connected it again."""
    with open_bench(database_url, apps={"github_oauth": github_oauth_app()}) as opened:
        opened.sequin()
        known = {"id": SEQUIN_GITHUB_APP, "provider": "github", "client_id": "Ov23.acme"}
        opened.network.upsert("GET", f"{SEQUIN}/v1/oauth-apps", json={"data": [known]})
        opened.network.upsert("GET", f"{GITHUB_API}/user", json={"id": 7, "login": "jo"})
        opened.network.upsert("DELETE", OAUTH_APP_TOKEN, status=204)
        consent(opened, "gho_first")
        opened.deliver()
        yield opened


def consent(bench: Bench, token: str) -> None:
    answer = {"access_token": token, "token_type": "bearer", "scope": "read:user,read:org"}
    bench.network.upsert("POST", GITHUB_TOKEN, json=answer)
    bench.connect("github_oauth")


def look(bench: Bench) -> None:
    """Let the job look that ends what was replaced."""
    bench.later(minutes=3)
    bench.let_go()


def ended_tokens(bench: Bench) -> list[str]:
    return [json.loads(call.body or "")["access_token"] for call in bench.calls(OAUTH_APP_TOKEN)]


def test_a_replaced_token_is_ended_once_the_new_one_is_in_sequin_and_not_before(personal: Bench) -> None:
    consent(personal, "gho_second")
    bench = personal
    last = bench.rows(Flow)[-1]
    assert b"gho_first" not in last.grant_sealed
    look(bench)
    look(bench)
    assert ended_tokens(bench) == []

    bench.deliver()
    look(bench)
    assert ended_tokens(bench) == ["gho_first"]
    assert bench.flow(last.ref).grant_sealed is None
    assert ("worker", "discard", "flow.discarded", last.ref) in bench.house.audited()
    # The grant, which the person's other tokens hang on, stays, and so does the connection.
    assert all(call.request.method != "DELETE" or call.request.url == OAUTH_APP_TOKEN for call in bench.network.calls)
    assert bench.row(ConnectedAccount).revoked_at is None
    look(bench)
    assert ended_tokens(bench) == ["gho_first"]


def test_however_often_somebody_reconnects_only_the_last_token_is_left(personal: Bench) -> None:
    for number in range(3):
        consent(personal, f"gho_{number}")
    personal.deliver()
    look(personal)
    assert sorted(ended_tokens(personal)) == ["gho_0", "gho_1", "gho_first"]
    assert personal.imports()[-1]["properties"]["access_token"] == "gho_2"


def test_the_same_token_once_more_is_not_ended(personal: Bench) -> None:
    consent(personal, "gho_first")
    personal.deliver()
    look(personal)
    assert ended_tokens(personal) == []


def test_what_was_disconnected_and_connected_again_leaves_no_token_behind(personal: Bench) -> None:
    personal.services.disconnections.request(personal.row(ConnectedAccount).ref, actor=PERSON)
    consent(personal, "gho_second")
    personal.later(minutes=2)
    personal.deliver()
    look(personal)
    assert ended_tokens(personal) == ["gho_first"]


def test_a_replaced_token_is_ended_after_a_disconnect_whatever_became_of_the_import(personal: Bench) -> None:
    consent(personal, "gho_second")
    personal.services.disconnections.request(personal.row(ConnectedAccount).ref, actor=PERSON)
    look(personal)
    assert ended_tokens(personal) == ["gho_first"]


def test_a_replaced_token_that_sequin_never_let_go_of_is_forgotten_after_three_days(personal: Bench) -> None:
    consent(personal, "gho_second")
    personal.clock.advance(KEPT_AT_MOST.total_seconds())
    personal.let_go()
    assert ended_tokens(personal) == []
    assert personal.rows(Flow)[-1].grant_sealed is None


def test_other_providers_keep_what_a_reconnect_replaces(bench: Bench) -> None:
    bench.connect()
    bench.stripe(token="another")
    bench.connect()
    assert [flow.grant_sealed for flow in bench.rows(Flow)] == [None, None]
    assert "discard" not in {job.kind for job in bench.rows(Job)}
