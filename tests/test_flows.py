"""The connect flow: one exchange per code, a grant that no crash loses, and an account that is proven before use."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import sqlalchemy as sa

from broker.callback import SetupAnswer
from broker.db import DatabaseUnavailable
from broker.errors import (
    AppUnknown,
    CallbackInvalid,
    FlowEnded,
    FlowUnknown,
    IssuerMismatch,
    LinkUnknown,
    LinkUsed,
    OtherBrowser,
    Refused,
    StateUnknown,
    TooManyFlows,
)
from broker.journal import FINISH_AFTER, MOST_HOPS, Browser, Step
from broker.models import Claim, ConnectedAccount, Flow, Hold, HopKind, Job, JobState, LinkUse
from broker.secret import Secret, random_token
from tests.connecting import (
    ACCESS,
    CODE,
    GITHUB_API,
    GITHUB_TOKEN,
    PERSON,
    STRIPE_ACCOUNT,
    STRIPE_DEAUTHORIZE,
    STRIPE_TOKEN,
    Bench,
    an_answer,
    installation,
    open_bench,
    person_installation,
    state_in,
)

OTHER = Browser(Secret("another-browser"))
ORG = installation(40, 400, "acme")
ORG_TOO = installation(41, 401, "globex")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


def only(bench: Bench) -> Any:
    """Return the only flow."""
    return bench.row(Flow)


def finish(bench: Bench) -> None:
    """Let the worker take over once the callback had its time."""
    bench.later(seconds=FINISH_AFTER.total_seconds())
    bench.flows.finish(bench.lease("finish").subject_id)


def assert_nothing_connected(bench: Bench) -> None:
    assert bench.rows(ConnectedAccount) == bench.rows(Claim) == bench.rows(LinkUse) == []
    assert {job.kind for job in bench.rows(Job)} <= {"finish", "discard"}


# --- leaving --------------------------------------------------------------------------------------------


def test_the_address_is_built_from_configuration_alone(bench: Bench) -> None:
    url = urlsplit(bench.flows.begin(bench.link(), "stripe", bench.browser))
    query = parse_qs(url.query)
    assert url.hostname == "connect.stripe.com"
    assert query["redirect_uri"] == ["http://localhost:8000/oauth/stripe/callback"]
    assert query["client_id"] == ["ca_stripe"]


def test_every_start_has_a_state_of_its_own_that_says_nothing(bench: Bench) -> None:
    link = bench.link("a-very-recognisable-user")
    states = {bench.leave(link=link).reveal() for _ in range(4)}
    assert len(states) == 4
    assert all(len(state) >= 43 for state in states)
    assert "recognisable" not in " ".join(states)


def test_starting_makes_no_request(bench: Bench) -> None:
    bench.leave("stripe")
    bench.leave("github")
    assert len(bench.network.calls) == 0


def test_a_start_that_is_refused_leaves_no_row(bench: Bench) -> None:
    with pytest.raises(LinkUnknown):
        bench.flows.begin("nope", "stripe", bench.browser)
    with pytest.raises(AppUnknown):
        bench.flows.begin(bench.link(), "nope", bench.browser)
    assert bench.rows(Flow) == []


# --- the straight way -----------------------------------------------------------------------------------


def test_a_code_becomes_a_connection_with_its_delivery(bench: Bench) -> None:
    bench.stripe("acct_9")
    onward = bench.connect(metadata={"plan": "pro"})
    flow, connection = only(bench), bench.row(ConnectedAccount)
    assert (onward.flow_ref, onward.address) == (flow.ref, None)
    assert (flow.state, flow.failure, flow.grant_sealed, flow.connection_id) == ("done", None, None, connection.id)
    assert (connection.account_id, connection.mode, connection.account_name) == (
        "acct_9", "live", "acct_9@example.com",
    )  # fmt: skip
    assert (connection.scopes, connection.host_metadata) == (["read_write"], {"plan": "pro"})
    job = bench.job("import")
    assert (job.subject_id, job.state) == (connection.id, JobState.WAITING)
    assert bench.job("finish").state == JobState.DONE
    assert bench.jobs.wakeup.is_set()


def test_the_person_never_waits_for_sequin(bench: Bench) -> None:
    bench.stripe()
    bench.connect()
    assert [urlsplit(str(call.request.url)).hostname for call in bench.network.calls] == [
        "connect.stripe.com", "api.stripe.com",
    ]  # fmt: skip


def test_the_verifier_that_left_as_a_challenge_goes_with_the_code(bench: Bench) -> None:
    bench.github(person_installation())
    bench.connect("github")
    (request,) = bench.calls(GITHUB_TOKEN)
    form = parse_qs(str(request.body))
    assert form["code"] == [CODE]
    assert form["redirect_uri"] == ["http://localhost:8000/oauth/github/callback"]
    assert len(form["code_verifier"][0]) >= 43


def test_the_grant_is_committed_before_the_account_is_read(bench: Bench) -> None:
    seen: list[Any] = []

    def look(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        seen.append((only(bench).state, only(bench).grant_sealed is not None, bench.job("finish").state))
        return 200, {}, json.dumps({"id": "acct_1"})

    bench.stripe()
    bench.answering("GET", STRIPE_ACCOUNT, look)
    bench.connect()
    assert seen == [("redeeming", True, "waiting")]


def test_the_hop_is_consumed_before_the_code_is_sent(bench: Bench) -> None:
    seen: list[str] = []

    def look(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        seen.append(only(bench).state)
        return 400, {}, json.dumps({"error": "invalid_grant"})

    bench.stripe()
    bench.answering("POST", STRIPE_TOKEN, look)
    bench.connect()
    assert seen == ["redeeming"]


def test_many_identical_callbacks_send_one_code_and_make_one_connection(bench: Bench) -> None:
    bench.stripe()
    state = bench.leave()
    start = threading.Barrier(6)
    refs: list[str] = []
    failures: list[BaseException] = []

    def visit() -> None:
        try:
            start.wait(10)
            refs.append(bench.come_back(state).flow_ref)
        except BaseException as failure:  # noqa: BLE001 - told below, in the test's own thread
            failures.append(failure)

    threads = [threading.Thread(target=visit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert refs == [only(bench).ref] * 6
    assert len(bench.calls(STRIPE_TOKEN)) == 1
    assert bench.row(ConnectedAccount).token_version == 1
    assert bench.job("import").generation == 0


def test_a_reload_after_the_end_is_shown_the_flow(bench: Bench) -> None:
    bench.stripe()
    state = bench.leave()
    first = bench.come_back(state)
    before = bench.everything()
    assert bench.come_back(state) == first
    assert bench.come_back(state, code=None, error="access_denied") == first
    assert bench.everything() == before
    assert len(bench.calls(STRIPE_TOKEN)) == 1


# --- whose answer is it? --------------------------------------------------------------------------------


def refused(bench: Bench, kind: type[Refused], call: Callable[[], object]) -> None:
    """Assert that a call is refused with a 4xx, sends nothing and changes nothing."""
    before, sent = bench.everything(), len(bench.network.calls)
    with pytest.raises(kind) as caught:
        call()
    assert 400 <= caught.value.status < 500
    assert bench.everything() == before
    assert len(bench.network.calls) == sent


def test_what_is_not_bound_to_this_browser_and_flow_is_refused_and_the_rightful_one_still_finishes(
    bench: Bench,
) -> None:
    bench.stripe()
    state = bench.leave()
    for browser in (None, OTHER):
        for answer in (an_answer(state), an_answer(state, code=None, error="access_denied")):
            refused(bench, OtherBrowser, lambda a=answer, b=browser: bench.flows.complete("stripe", a, b))  # type: ignore[misc]
    refused(bench, StateUnknown, lambda: bench.come_back(state, "stripe-test"))
    refused(bench, StateUnknown, lambda: bench.come_back(state, "github"))
    refused(bench, StateUnknown, lambda: bench.come_back(Secret(random_token())))
    refused(bench, AppUnknown, lambda: bench.come_back(state, "nope"))
    bench.come_back(state)
    assert only(bench).state == "done"


@pytest.mark.parametrize(
    "issuer", ["https://github.com", "https://github.com/login/oauth/", "HTTPS://github.com/login/oauth", ""]
)
@pytest.mark.parametrize("error", [None, "access_denied"])
def test_an_answer_of_another_issuer_is_refused(bench: Bench, issuer: str, error: str | None) -> None:
    state = bench.leave("github")
    code = None if error else Secret(CODE)
    refused(bench, IssuerMismatch, lambda: bench.come_back(state, "github", issuer=issuer, code=code, error=error))


@pytest.mark.parametrize("issuer", ["https://github.com/login/oauth", None])
def test_the_registered_issuer_or_none_is_accepted(bench: Bench, issuer: str | None) -> None:
    bench.github(person_installation())
    bench.come_back(bench.leave("github"), "github", issuer=issuer)
    assert only(bench).state == "done"


def test_whoever_comes_back_too_late_spends_no_code(bench: Bench) -> None:
    bench.stripe()
    state = bench.leave()
    bench.later(minutes=61)
    bench.come_back(state)
    assert (only(bench).state, only(bench).failure) == ("expired", "flow_expired")
    assert bench.calls(STRIPE_TOKEN) == []


# --- the provider says no -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        ("access_denied", "consent_denied"),
        ("redirect_uri_mismatch", "provider_misconfigured"),
        ("application_suspended", "provider_misconfigured"),
        ("unauthorized_client", "provider_misconfigured"),
        ("server_error", "provider_failed"),
        ("<script>", "provider_failed"),
        ("", "provider_failed"),
    ],
)
def test_an_error_callback_ends_the_flow_with_our_own_sentence(bench: Bench, error: str, failure: str) -> None:
    onward = bench.come_back(bench.leave("github"), "github", code=None, error=error)
    flow = only(bench)
    assert (onward.flow_ref, onward.address) == (flow.ref, None)
    assert (flow.state, flow.failure) == ("failed", failure)
    assert len(bench.network.calls) == 0
    assert_nothing_connected(bench)


EXCHANGES: list[Any] = [
    ({"status": 400, "json": {"error": "invalid_grant"}}, "failed", "code_refused"),
    ({"status": 200, "json": {"error": "bad_verification_code"}}, "failed", "code_refused"),
    ({"status": 401, "json": {"error": "invalid_client"}}, "failed", "provider_misconfigured"),
    ({"status": 400, "json": {"error": "unauthorized_client"}}, "failed", "provider_misconfigured"),
    ({"status": 400, "json": {"error": "invalid_request"}}, "failed", "provider_failed"),
    ({"status": 500, "json": {}}, "interrupted", "exchange_ambiguous"),
    ({"status": 429, "json": {}}, "interrupted", "exchange_ambiguous"),
    ({"status": 200, "body": "<html>"}, "interrupted", "exchange_ambiguous"),
    ({"status": 200, "json": []}, "interrupted", "exchange_ambiguous"),
    ({"status": 307, "headers": {"Location": "https://evil.example/"}}, "interrupted", "exchange_ambiguous"),
    ({"body": requests.ReadTimeout("slow")}, "interrupted", "exchange_ambiguous"),
    ({"body": requests.exceptions.ChunkedEncodingError("cut")}, "interrupted", "exchange_ambiguous"),
    ({"body": requests.ConnectionError("nobody listens")}, "failed", "provider_down"),
]


@pytest.mark.parametrize(("answer", "state", "failure"), EXCHANGES)
def test_an_exchange_that_failed_ends_the_flow_and_is_never_repeated(
    bench: Bench, answer: dict[str, Any], state: str, failure: str
) -> None:
    bench.network.post(STRIPE_TOKEN, **answer)
    left = bench.leave()
    onward = bench.come_back(left)
    flow = only(bench)
    assert (onward.flow_ref, flow.state, flow.failure) == (flow.ref, state, failure)
    assert flow.ended_at is not None
    assert "SENTINEL" not in str(flow.failure_detail)
    bench.come_back(left)
    bench.later(days=4)
    bench.worker.run_once()
    bench.journal.sweep()
    assert len(bench.calls(STRIPE_TOKEN)) == 1
    assert only(bench).state == state
    assert_nothing_connected(bench)


@pytest.mark.parametrize(
    "wrong",
    [
        {"access_token": 7},
        {"access_token": ""},
        {"token_type": "mac"},
        {"expires_in": "soon"},
        {"stripe_user_id": None},
        {"stripe_user_id": "cus_1"},
    ],
)
def test_a_token_answer_that_cannot_be_used_ends_the_flow_and_is_erased(bench: Bench, wrong: dict[str, Any]) -> None:
    bench.stripe(**wrong)
    bench.connect()
    bench.let_go()
    flow = only(bench)
    assert (flow.state, flow.failure, flow.grant_sealed) == ("failed", "grant_unusable", None)
    assert bench.calls(STRIPE_DEAUTHORIZE) == []
    assert_nothing_connected(bench)


def test_a_flow_ends_as_interrupted_when_its_verifier_does_not_open_and_no_code_is_sent(bench: Bench) -> None:
    bench.github()
    state = bench.leave("github")
    bench.house.run(sa.text("UPDATE hops SET verifier_sealed = NULL"))
    other = bench.leave("github")
    with bench.database.write() as connection:
        sealed = connection.execute(sa.text("SELECT verifier_sealed FROM hops ORDER BY id DESC LIMIT 1")).scalar_one()
        connection.execute(sa.text("UPDATE hops SET verifier_sealed = :sealed"), {"sealed": sealed})
    bench.come_back(state, "github")
    assert bench.calls(GITHUB_TOKEN) == []
    flow = min(bench.rows(Flow), key=lambda each: each.id)
    assert (flow.state, flow.failure) == ("interrupted", "flow_interrupted")
    bench.come_back(other, "github")
    assert len(bench.calls(GITHUB_TOKEN)) == 1


# --- which account is it? -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "7"}},
        {"body": requests.ConnectionError("reset")},
        {"body": requests.ReadTimeout("slow")},
        {"status": 403, "headers": {"Retry-After": "7"}, "json": {}},
        {"status": 403, "headers": {"X-RateLimit-Remaining": "0"}, "json": {}},
    ],
)
def test_trouble_that_may_pass_leaves_the_flow_to_the_worker_who_completes_it(
    bench: Bench, trouble: dict[str, Any]
) -> None:
    bench.stripe()
    bench.network.upsert("GET", STRIPE_ACCOUNT, **trouble)
    onward = bench.connect()
    assert (only(bench).state, onward.flow_ref) == ("redeeming", only(bench).ref)
    assert only(bench).grant_sealed is not None
    bench.stripe()
    finish(bench)
    assert only(bench).state == "done"
    assert bench.row(ConnectedAccount).account_id == "acct_1"
    assert len(bench.calls(STRIPE_TOKEN)) == 1


def test_the_worker_asks_no_sooner_than_the_provider_wants(bench: Bench) -> None:
    bench.stripe()
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=429, headers={"Retry-After": "40"})
    bench.connect()
    (finishing,) = bench.jobs.unfinished()
    assert finishing.due_at is not None
    assert finishing.due_at >= only(bench).updated_at + timedelta(seconds=40)


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        ({"status": 401}, "grant_unusable"),
        ({"status": 403, "json": {}}, "provider_misconfigured"),
        ({"status": 404, "json": {}}, "provider_misconfigured"),
        ({"body": "<html>"}, "grant_unusable"),
        ({"json": []}, "grant_unusable"),
        ({"json": {"id": "acct_of_somebody_else"}}, "grant_unusable"),
        ({"status": 302, "headers": {"Location": "https://evil.example/"}}, "provider_misconfigured"),
    ],
)
def test_an_account_that_cannot_be_read_ends_the_flow_on_its_own_page(
    bench: Bench, answer: dict[str, Any], failure: str
) -> None:
    bench.stripe()
    bench.network.upsert("GET", STRIPE_ACCOUNT, **answer)
    onward = bench.connect()
    flow = only(bench)
    assert (onward.flow_ref, flow.state, flow.failure) == (flow.ref, "failed", failure)
    assert [job.kind for job in bench.jobs.unfinished()] == ["discard"]
    bench.let_go()
    assert bench.calls(STRIPE_DEAUTHORIZE) == []
    assert_nothing_connected(bench)


def test_no_database_is_the_one_thing_that_is_not_told_on_the_flows_page(bench: Bench) -> None:
    bench.stripe()
    state = bench.leave()
    bench.house.run(sa.text("ALTER TABLE connections RENAME TO connections_away"))
    with pytest.raises((DatabaseUnavailable, sa.exc.ProgrammingError)):
        bench.come_back(state)
    bench.house.run(sa.text("ALTER TABLE connections_away RENAME TO connections"))
    finish(bench)
    assert only(bench).state == "done"


# --- finishing what a crash cut off ---------------------------------------------------------------------


def cut_off(bench: Bench, app: str = "stripe", answer: dict[str, object] | None = None) -> Step:
    """Go as far as the grant's commit, as a process would that was killed right after it."""
    state = bench.leave(app)
    taken = bench.journal.consume(bench.apps.get(app), HopKind.AUTHORIZE, state, bench.browser)
    assert isinstance(taken, Step)
    grant: dict[str, object] = {"access_token": ACCESS, "stripe_user_id": "acct_1", "livemode": True}
    bench.journal.keep(taken, answer or grant)
    return taken


def test_a_crash_between_grant_and_connection_yields_exactly_one_connection(bench: Bench) -> None:
    bench.stripe()
    cut_off(bench)
    assert bench.worker.run_once() == 0
    bench.later(seconds=FINISH_AFTER.total_seconds())
    bench.sequin()
    assert bench.worker.run_once() == 1
    assert only(bench).state == "done"
    assert bench.row(ConnectedAccount).token_version == 1
    bench.worker.run_once()
    assert len(bench.rows(ConnectedAccount)) == 1
    assert bench.job("finish").state == JobState.DONE


def test_finishing_twice_is_finishing_once(bench: Bench) -> None:
    bench.stripe()
    taken = cut_off(bench)
    bench.flows.finish(taken.flow_id)
    before = bench.everything()
    bench.flows.finish(taken.flow_id)
    bench.flows.finish(10**12)
    assert bench.everything() == before
    assert bench.row(ConnectedAccount).token_version == 1


def test_a_grant_that_does_not_open_ends_the_flow_as_interrupted(bench: Bench) -> None:
    bench.stripe()
    taken = cut_off(bench)
    bench.house.run(sa.update(Flow).values(grant_sealed=b"\x01\x02k1 no sealed value"))
    bench.flows.finish(taken.flow_id)
    flow = only(bench)
    assert (flow.state, flow.failure) == ("interrupted", "flow_interrupted")
    assert_nothing_connected(bench)


def test_nothing_is_finished_after_its_time(bench: Bench) -> None:
    bench.stripe()
    taken = cut_off(bench)
    bench.later(minutes=60)
    bench.flows.finish(taken.flow_id)
    bench.let_go()
    assert (only(bench).state, only(bench).grant_sealed) == ("expired", None)
    assert_nothing_connected(bench)


def test_a_flow_without_a_grant_is_not_finished_but_swept(bench: Bench) -> None:
    state = bench.leave()
    taken = bench.journal.consume(bench.apps.get("stripe"), HopKind.AUTHORIZE, state, bench.browser)
    assert isinstance(taken, Step)
    bench.flows.finish(taken.flow_id)
    assert only(bench).state == "redeeming"
    bench.later(minutes=2)
    bench.journal.sweep()
    assert (only(bench).state, only(bench).failure) == ("interrupted", "flow_interrupted")
    assert bench.come_back(state).flow_ref == taken.flow_ref
    assert bench.calls(STRIPE_TOKEN) == []


def test_a_crash_after_the_choice_is_finished_with_that_choice(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    bench.journal.resume(only(bench), Hold.CHOICE, account_id="401")
    finish(bench)
    assert bench.row(ConnectedAccount).account_id == "401"


def test_a_crash_after_the_installation_page_is_finished_with_that_installation(bench: Bench) -> None:
    bench.github()
    onward = bench.connect("github")
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    assert onward.address is not None
    taken = bench.journal.consume(bench.apps.get("github"), HopKind.INSTALL, state_in(onward.address), bench.browser)
    assert isinstance(taken, Step)
    bench.journal.note_selector(taken, "41")
    finish(bench)
    assert bench.row(ConnectedAccount).account_id == "401"


# --- installations --------------------------------------------------------------------------------------


def test_one_installation_is_connected_straight_on(bench: Bench) -> None:
    bench.github(person_installation())
    onward = bench.connect("github")
    connection = bench.row(ConnectedAccount)
    assert onward.address is None
    assert (connection.account_id, connection.account_type, connection.kind) == (str(PERSON), "User", "github_app")


def test_without_an_installation_the_person_is_led_to_the_installation_page_with_a_state_of_its_own(
    bench: Bench,
) -> None:
    bench.github()
    first = bench.leave("github")
    onward = bench.come_back(first, "github")
    assert onward.address is not None
    assert onward.address.startswith("https://github.com/apps/acme-broker/installations/new?state=")
    assert state_in(onward.address) != first
    flow = only(bench)
    assert (flow.state, flow.hold) == ("held", "installation")
    assert flow.grant_sealed is not None
    assert_nothing_connected(bench)


def test_coming_back_from_the_installation_page_connects_that_installation(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    back = bench.from_installation(address, 41)
    assert back is not None
    assert back.flow_ref == only(bench).ref
    assert only(bench).state == "done"
    assert bench.row(ConnectedAccount).account_id == "401"
    assert len(bench.calls(GITHUB_TOKEN)) == 1


def test_an_installation_id_that_was_made_up_attaches_nothing(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(ORG, admin_of=(400,))
    bench.from_installation(address, 999)
    flow = only(bench)
    assert (flow.state, flow.hold) == ("held", "choice")
    assert_nothing_connected(bench)


def test_an_installation_of_somebody_else_attaches_nothing(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(ORG)
    bench.from_installation(address, 40)
    assert (only(bench).state, only(bench).failure) == ("failed", "account_not_permitted")
    assert_nothing_connected(bench)


def test_a_made_up_number_while_nothing_is_installed_leads_to_the_installation_page_again(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    again = bench.from_installation(address, 999)
    assert again is not None
    assert again.address is not None
    assert again.address != address
    assert only(bench).hold == "installation"


def test_a_visit_to_the_setup_address_without_our_state_attaches_nothing(bench: Bench) -> None:
    bench.github(ORG, admin_of=(400,))
    bench.connect("github")
    before = bench.everything()
    answer = SetupAnswer(None, "40", "install")
    assert bench.flows.installed("github", answer, bench.browser) is None
    assert bench.flows.installed("github", answer, None) is None
    assert bench.everything() == before


def test_the_setup_address_is_as_strict_as_the_callback(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    assert address is not None
    answer = SetupAnswer(state_in(address), "40", "install")
    for browser in (None, OTHER):
        refused(bench, OtherBrowser, lambda b=browser: bench.flows.installed("github", answer, b))  # type: ignore[misc]
    refused(bench, CallbackInvalid, lambda: bench.flows.installed("stripe", answer, bench.browser))
    refused(bench, AppUnknown, lambda: bench.flows.installed("nope", answer, bench.browser))
    stranger = SetupAnswer(Secret(random_token()), "40", "install")
    refused(bench, StateUnknown, lambda: bench.flows.installed("github", stranger, bench.browser))


def test_the_authorize_state_does_not_open_the_setup_address_nor_the_other_way_round(bench: Bench) -> None:
    bench.github()
    first = bench.leave("github")
    early = SetupAnswer(first, "40", "install")
    refused(bench, StateUnknown, lambda: bench.flows.installed("github", early, bench.browser))
    address = bench.come_back(first, "github").address
    assert address is not None
    refused(bench, StateUnknown, lambda: bench.come_back(state_in(address), "github"))


def test_a_second_return_from_the_installation_page_is_a_reload(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(ORG, admin_of=(400,))
    bench.from_installation(address, 40)
    before = bench.everything()
    again = bench.from_installation(address, 40)
    assert again is not None
    assert again.flow_ref == only(bench).ref
    assert bench.everything() == before


def test_what_was_installed_without_being_sent_back_is_found_from_here(bench: Bench) -> None:
    bench.github()
    bench.connect("github")
    ref = only(bench).ref
    bench.flows.look_again(ref, bench.browser)
    assert (only(bench).state, only(bench).hold) == ("held", "installation")
    with pytest.raises(FlowUnknown):
        bench.flows.look_again(ref, OTHER)
    bench.github(ORG, admin_of=(400,))
    bench.flows.look_again(ref, bench.browser)
    assert only(bench).state == "done"
    with pytest.raises(FlowEnded):
        bench.flows.look_again(ref, bench.browser)


def test_whoever_reaches_accounts_already_can_still_go_and_choose_another(bench: Bench) -> None:
    bench.github(ORG, person_installation(), admin_of=(400,))
    bench.connect("github")
    assert only(bench).hold == "choice"
    address = bench.flows.install_again(only(bench).ref, bench.browser)
    bench.github(ORG, ORG_TOO, person_installation(), admin_of=(400, 401))
    bench.from_installation(address, 41)
    assert bench.row(ConnectedAccount).account_id == "401"


def test_a_member_is_led_to_the_installation_page_to_ask_an_owner_of_another_account(bench: Bench) -> None:
    bench.github(ORG)
    bench.connect("github")
    refused_flow = only(bench)
    assert refused_flow.failure == "account_not_permitted"
    state = state_in(bench.flows.begin_again(refused_flow.ref, "github", bench.browser, elsewhere=True))
    onward = bench.come_back(state, "github")
    assert onward.address is not None
    assert "/installations/new" in onward.address


def test_the_installation_page_can_be_asked_for_again_by_its_own_browser_while_the_flow_waits(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    ref = only(bench).ref
    with pytest.raises(FlowUnknown):
        bench.flows.install_again(ref, OTHER)
    again = bench.flows.install_again(ref, bench.browser)
    assert again != address
    bench.github(person_installation())
    bench.from_installation(again, 9)
    assert only(bench).state == "done"
    with pytest.raises(FlowEnded):
        bench.flows.install_again(ref, bench.browser)


def test_trouble_after_the_installation_page_leaves_the_flow_to_the_worker(bench: Bench) -> None:
    bench.github()
    address = bench.connect("github").address
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.network.upsert("GET", f"{GITHUB_API}/user", status=502)
    bench.from_installation(address, 41)
    assert only(bench).state == "redeeming"
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    finish(bench)
    assert bench.row(ConnectedAccount).account_id == "401"


# --- a choice -------------------------------------------------------------------------------------------


def test_several_accounts_are_offered(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, person_installation(), admin_of=(400,))
    onward = bench.connect("github")
    flow = only(bench)
    assert (onward.address, flow.state, flow.hold) == (None, "held", "choice")
    assert flow.choices == [
        {"id": "400", "name": "acme", "type": "Organization"},
        {"id": "401", "name": "globex", "type": "Organization"},
        {"id": str(PERSON), "name": f"user-{PERSON}", "type": "User"},
    ]
    assert_nothing_connected(bench)


def test_the_account_chosen_is_read_afresh_proven_and_connected(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    read = len(bench.calls(f"{GITHUB_API}/user/installations"))
    bench.flows.choose(only(bench).ref, "401", bench.browser)
    assert bench.row(ConnectedAccount).account_id == "401"
    assert len(bench.calls(f"{GITHUB_API}/user/installations")) == read + 1
    assert len(bench.calls(f"{GITHUB_API}/user/memberships/orgs/globex")) == 1
    assert (only(bench).state, only(bench).choices) == ("done", None)


def test_an_account_that_may_not_be_connected_is_not_connected_by_choosing_it(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400,))
    bench.connect("github")
    bench.flows.choose(only(bench).ref, "401", bench.browser)
    assert (only(bench).state, only(bench).failure) == ("failed", "account_not_permitted")
    assert_nothing_connected(bench)


@pytest.mark.parametrize("account", ["999", "", "a\x00b", "x" * 5_000, "\ud800"])
def test_an_account_that_was_not_offered_is_never_connected(bench: Bench, account: str) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    try:
        bench.flows.choose(only(bench).ref, account, bench.browser)
    except Refused as refusal:
        told = refusal.status
    else:
        told = 400
    assert 400 <= told < 500
    assert (only(bench).state, only(bench).hold) == ("held", "choice")
    assert_nothing_connected(bench)
    bench.flows.choose(only(bench).ref, "400", bench.browser)
    assert only(bench).state == "done"


def test_an_account_that_has_gone_meanwhile_is_not_connected(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    bench.github(ORG, admin_of=(400,))
    bench.flows.choose(only(bench).ref, "401", bench.browser)
    assert (only(bench).state, only(bench).hold) == ("held", "choice")
    assert only(bench).choices == [{"id": "400", "name": "acme", "type": "Organization"}]
    assert_nothing_connected(bench)


def test_only_the_flows_own_browser_chooses(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    before = bench.everything()
    for browser in (None, OTHER):
        with pytest.raises(FlowUnknown):
            bench.flows.choose(only(bench).ref, "400", browser)
    assert bench.everything() == before


def test_a_choice_counts_once(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    bench.flows.choose(only(bench).ref, "400", bench.browser)
    with pytest.raises(FlowEnded):
        bench.flows.choose(only(bench).ref, "401", bench.browser)
    assert bench.row(ConnectedAccount).account_id == "400"


def test_the_same_choice_again_changes_nothing_and_is_no_failure(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO, admin_of=(400, 401))
    bench.connect("github")
    bench.flows.choose(only(bench).ref, "400", bench.browser)
    before = bench.everything()
    bench.flows.choose(only(bench).ref, "400", bench.browser)
    assert bench.everything() == before


def test_a_grant_that_does_not_open_any_more_ends_the_choice_as_interrupted(bench: Bench) -> None:
    bench.github(ORG, ORG_TOO)
    bench.connect("github")
    bench.house.run(sa.update(Flow).values(grant_sealed=b"\x01\x02k1 no sealed value"))
    bench.flows.choose(only(bench).ref, "400", bench.browser)
    assert (only(bench).state, only(bench).failure) == ("interrupted", "flow_interrupted")


# --- whose account is it? -------------------------------------------------------------------------------


def test_an_account_of_another_end_user_is_refused_and_nothing_of_theirs_changes(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect(end_user="owner")
    theirs = (bench.rows(ConnectedAccount), bench.rows(Claim), bench.rows(LinkUse), bench.job("import"))
    onward = bench.connect(end_user="somebody-else")
    bench.let_go()
    flow = bench.flow(onward.flow_ref)
    assert (flow.state, flow.failure, flow.grant_sealed, flow.connection_id) == ("failed", "account_taken", None, None)
    assert (bench.rows(ConnectedAccount), bench.rows(Claim), bench.rows(LinkUse), bench.job("import")) == theirs
    assert "owner" not in str(flow.failure_detail)
    assert bench.calls(STRIPE_DEAUTHORIZE) == []


def test_reconnecting_updates_in_place_and_imports_again(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.sequin()
    bench.connect()
    bench.deliver()
    first = bench.row(ConnectedAccount)
    bench.later(minutes=5)
    bench.stripe("acct_1", token="SENTINEL-NEW")
    bench.connect()
    again = bench.row(ConnectedAccount)
    assert (again.id, again.ref, again.created_at) == (first.id, first.ref, first.created_at)
    assert again.token_version == first.token_version + 1
    assert (again.import_state, again.imported_at, again.verified_at) == ("pending", None, None)
    assert again.connected_at == bench.clock.now()
    bench.deliver()
    assert [sent["properties"]["secret"] for sent in bench.imports()] == [ACCESS, "SENTINEL-NEW"]


def test_coming_back_with_another_account_adds_it_and_leaves_the_first_alone(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect()
    first = bench.row(ConnectedAccount)
    bench.stripe("acct_2")
    bench.connect()
    assert bench.rows(ConnectedAccount)[0] == first
    assert [row.account_id for row in bench.rows(ConnectedAccount)] == ["acct_1", "acct_2"]


def test_test_and_live_mode_of_one_account_are_two_connections(bench: Bench) -> None:
    bench.stripe("acct_1")
    bench.connect()
    bench.stripe("acct_1", livemode=False)
    bench.connect()
    assert {row.mode for row in bench.rows(ConnectedAccount)} == {"live", "test"}
    assert len(bench.rows(Claim)) == 2


def test_two_flows_of_one_link_spend_it_once(bench: Bench) -> None:
    link = bench.link()
    first, second = bench.leave(link=link), bench.leave(link=link)
    bench.stripe("acct_1")
    bench.come_back(first)
    bench.stripe("acct_2")
    late = bench.come_back(second)
    bench.let_go()
    assert bench.row(ConnectedAccount).account_id == "acct_1"
    flow = bench.flow(late.flow_ref)
    assert (flow.state, flow.failure, flow.grant_sealed) == ("failed", "link_spent", None)
    assert [claim.account_id for claim in bench.rows(Claim)] == ["acct_1"]


# --- what a second pair of eyes found ---------------------------------------------------------------------


def test_a_manage_link_starts_no_flow_so_that_nobody_can_take_it_over(bench: Bench) -> None:
    link = bench.link("alice", manage=True)
    alice = bench.house.links.enter(link, bench.browser.hash)
    with pytest.raises(LinkUnknown):
        bench.leave(link=link, browser=OTHER)
    with pytest.raises(LinkUsed):
        bench.house.links.enter(link, OTHER.hash)
    assert bench.house.links.enter(link, bench.browser.hash) == alice
    assert bench.rows(Flow) == []


def test_an_issuer_is_refused_from_a_provider_that_has_registered_none(bench: Bench) -> None:
    bench.stripe()
    state = bench.leave("stripe")
    before = bench.everything()
    with pytest.raises(IssuerMismatch):
        bench.come_back(state, issuer="https://evil.example")
    assert bench.everything() == before
    assert bench.come_back(state).flow_ref == only(bench).ref


def test_the_installation_page_cannot_be_asked_for_without_end(bench: Bench) -> None:
    bench.github()
    bench.connect("github")
    ref = only(bench).ref
    for _ in range(MOST_HOPS - 2):
        bench.flows.install_again(ref, bench.browser)
    before = bench.everything()
    with pytest.raises(TooManyFlows):
        bench.flows.install_again(ref, bench.browser)
    assert bench.everything() == before


def test_a_flow_that_keeps_waiting_is_over_after_a_day(bench: Bench) -> None:
    bench.github()
    bench.connect("github")
    ref = only(bench).ref
    started = bench.clock.now()
    for _ in range(5):
        bench.later(minutes=59)
        bench.flows.install_again(ref, bench.browser)
    assert only(bench).expires_at == bench.clock.now() + timedelta(hours=1)
    with bench.database.write() as connection:
        connection.execute(sa.update(Flow).values(created_at=started - timedelta(hours=23)))
    bench.flows.install_again(ref, bench.browser)
    assert only(bench).expires_at == started + timedelta(hours=1)
