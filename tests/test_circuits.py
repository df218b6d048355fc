"""Circuits: what opens one, what gets through, what closes it, and what all of that costs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from broker.circuits import KNOWN_SECONDS, OPENS_AFTER, PROBE_SECONDS, SEQUIN, Circuits, app_circuit
from broker.errors import (
    BrokerError,
    ClientRefused,
    DeadlineExceeded,
    GrantRefused,
    ProviderDown,
    ProviderMisconfigured,
    RedirectRefused,
    SequinRefused,
    SequinUnauthorized,
    SequinUnavailable,
    UnusableAnswer,
)
from broker.jobs import Jobs
from broker.models import Circuit, ConnectedAccount, Flow
from tests.connecting import CREDENTIAL, STRIPE_ACCOUNT, STRIPE_TOKEN, Bench, open_bench
from tests.connecting import SEQUIN as SEQUIN_URL

IMPORT = f"{SEQUIN_URL}/v1/credentials"
STRIPE = app_circuit("stripe")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        opened.network.upsert("GET", f"{IMPORT}/{CREDENTIAL}", json={"id": CREDENTIAL})
        yield opened


def circuits(bench: Bench) -> Circuits:
    return bench.services.circuits


def another_process(bench: Bench) -> Circuits:
    """Circuits on the same rows, without this process's memory."""
    return Circuits(bench.database, bench.clock, Jobs(bench.database, bench.clock))


def call(watched: Circuits, failure: BrokerError | None = None, name: str = SEQUIN, times: int = 1) -> None:
    """Make calls that go like this."""
    for _ in range(times):
        try:
            with watched.watching(name):
                if failure is not None:
                    raise failure
        except BrokerError:
            pass


@contextmanager
def statements(bench: Bench) -> Iterator[list[str]]:
    """Collect what is sent to the database meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    sa.event.listen(bench.database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        sa.event.remove(bench.database.engine, "before_cursor_execute", note)


def connect(bench: Bench, count: int) -> None:
    """Connect accounts one second apart."""
    for number in range(count):
        bench.stripe(f"acct_{number}")
        bench.connect(end_user=f"user-{number}")
        bench.later(seconds=1)


def states(bench: Bench) -> list[str]:
    return [row.import_state for row in bench.rows(ConnectedAccount)]


# --- opening and closing ----------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [SequinUnavailable("503"), DeadlineExceeded("slow"), RedirectRefused("elsewhere")])
def test_failures_in_a_row_open_it_and_one_success_forgets_them(bench: Bench, failure: BrokerError) -> None:
    watched = circuits(bench)
    call(watched, failure, times=OPENS_AFTER - 1)
    assert watched.look(SEQUIN) is None
    call(watched)
    call(watched, failure, times=OPENS_AFTER - 1)
    assert watched.look(SEQUIN) is None

    call(watched, failure)

    opened = watched.look(SEQUIN)
    assert opened is not None
    assert (opened.since, opened.error) == (bench.clock.now(), failure.code)
    assert 0 < (opened.next_try_at - bench.clock.now()).total_seconds() <= 15
    call(watched)
    assert watched.open() == []
    assert bench.rows(Circuit) == []


@pytest.mark.parametrize(
    ("failure", "name"), [(SequinUnauthorized("401"), SEQUIN), (ClientRefused("invalid_client"), STRIPE)]
)
def test_not_being_accepted_opens_it_at_once(bench: Bench, failure: BrokerError, name: str) -> None:
    call(circuits(bench), failure, name)
    opened = circuits(bench).look(name)
    assert opened is not None
    assert opened.is_refusal


@pytest.mark.parametrize("failure", [SequinRefused("422"), GrantRefused("invalid_grant")])
def test_a_refusal_of_what_was_asked_is_an_answer(bench: Bench, failure: BrokerError) -> None:
    watched = circuits(bench)
    call(watched, SequinUnavailable("503"), times=OPENS_AFTER)
    call(watched, failure)
    assert watched.look(SEQUIN) is None


def test_an_answer_nobody_can_read_says_nothing(bench: Bench) -> None:
    watched = circuits(bench)
    call(watched, UnusableAnswer("no id"), times=OPENS_AFTER + 1)
    assert watched.open() == []


def test_one_opening_is_one_alert(bench: Bench) -> None:
    with capture_logs() as logs:
        call(circuits(bench), SequinUnauthorized("401"), times=3)
        call(another_process(bench), SequinUnauthorized("401"), times=3)
    alerts = [event for event in logs if event["log_level"] == "error"]
    assert [(event["event"], event["error"]) for event in alerts] == [("circuit.opened", "sequin_unauthorized")]
    assert "SEQUIN_API_TOKEN" in alerts[0]["cure"]


def test_what_one_process_learns_all_others_know_within_a_second(bench: Bench) -> None:
    ours, theirs = circuits(bench), another_process(bench)
    assert theirs.look(SEQUIN) is None
    call(ours, SequinUnauthorized("401"))
    bench.clock.advance(KNOWN_SECONDS)
    found = theirs.look(SEQUIN)
    assert found is not None
    call(theirs)
    bench.clock.advance(KNOWN_SECONDS)
    assert ours.look(SEQUIN) is None


def test_failures_of_several_processes_count_together(bench: Bench) -> None:
    for _ in range(OPENS_AFTER):
        call(another_process(bench), SequinUnavailable("503"))
    assert circuits(bench).look(SEQUIN) is not None


def test_asking_to_be_left_alone_for_longer_is_obeyed(bench: Bench) -> None:
    call(circuits(bench), SequinUnavailable("429", 300.0), times=OPENS_AFTER)
    bench.later(seconds=299)
    assert not circuits(bench).claim(SEQUIN)
    bench.later(seconds=1)
    assert circuits(bench).claim(SEQUIN)


def test_a_database_that_is_away_never_fails_the_call(bench: Bench) -> None:
    watched = circuits(bench)
    watched.look(SEQUIN)
    bench.house.run(sa.text("ALTER TABLE circuits RENAME TO circuits_away"))
    with pytest.raises(SequinUnavailable), watched.watching(SEQUIN):
        raise SequinUnavailable("503")


# --- the price ----------------------------------------------------------------------------------------


def test_while_all_is_well_it_costs_one_read_a_second_and_no_write(bench: Bench) -> None:
    watched = circuits(bench)
    with statements(bench) as seen:
        for _ in range(50):
            assert watched.look(SEQUIN) is None
            call(watched)
    assert len([one for one in seen if one.startswith("SELECT")]) == 1
    assert not [one for one in seen if one.startswith(("INSERT", "UPDATE", "DELETE"))]


# --- the probe ----------------------------------------------------------------------------------------


def test_of_many_that_ask_at_once_one_probes(bench: Bench) -> None:
    call(circuits(bench), SequinUnauthorized("401"))
    assert not circuits(bench).claim(SEQUIN)
    bench.later(seconds=PROBE_SECONDS)
    processes = [another_process(bench) for _ in range(6)]
    start, claimed = threading.Barrier(6), list[bool]()

    def ask(process: Circuits) -> None:
        start.wait(10)
        claimed.append(process.claim(SEQUIN))

    threads = [threading.Thread(target=ask, args=(process,)) for process in processes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(claimed) == [False] * 5 + [True]


def test_nothing_hammers_a_sequin_that_does_not_accept_us_and_all_goes_out_afterwards_in_order(bench: Bench) -> None:
    connect(bench, 10)
    bench.sequin(status=401, json={"summary": "unknown token"})

    with capture_logs() as logs:
        for _ in range(60):
            bench.worker.run_once()
            bench.later(seconds=1)

    sent = len(bench.imports())
    assert 4 <= sent <= 1 + 60 / PROBE_SECONDS
    assert [event["event"] for event in logs if event["log_level"] == "error"] == ["circuit.opened"]
    assert "imported" not in states(bench)

    bench.sequin()
    for _ in range(16):
        bench.worker.run_once()
        bench.later(seconds=1)

    assert set(states(bench)) == {"imported"}
    assert circuits(bench).open() == []


def test_while_sequin_is_away_one_delivery_looks_and_the_others_keep_their_place(bench: Bench) -> None:
    connect(bench, 12)
    bench.sequin(status=503)
    for _ in range(120):
        bench.worker.run_once()
        bench.later(seconds=1)
    assert len(bench.imports()) <= OPENS_AFTER + 1 + 120 / PROBE_SECONDS
    tried = {body["properties"]["stripe_user_id"] for body in bench.imports()}

    bench.sequin()
    for _ in range(16):
        bench.worker.run_once()
        bench.later(seconds=1)

    assert set(states(bench)) == {"imported"}
    drained = [body["properties"]["stripe_user_id"] for body in bench.imports()][-12:]
    untouched = [account for account in drained if account not in tried]
    assert untouched == sorted(untouched, key=lambda account: int(account.rpartition("_")[2]))


def test_a_single_delivery_that_waits_long_is_taken_early_to_look(bench: Bench) -> None:
    connect(bench, 1)
    bench.sequin(status=503)
    for _ in range(600):
        bench.worker.run_once()
        bench.later(seconds=1)
    bench.sequin()
    for _ in range(15):
        bench.worker.run_once()
        bench.later(seconds=1)
    assert states(bench) == ["imported"]


def test_without_any_work_a_knock_finds_out(bench: Bench) -> None:
    call(circuits(bench), SequinUnauthorized("401"))
    for _ in range(15):
        bench.worker.run_once()
        bench.later(seconds=1)
    assert circuits(bench).open() == []
    assert len(bench.calls(f"{SEQUIN_URL}/v1/oauth-apps")) == 1


def test_work_that_does_not_need_sequin_goes_on(bench: Bench) -> None:
    bench.network.upsert("GET", STRIPE_ACCOUNT, status=503)
    bench.connect()
    call(circuits(bench), SequinUnauthorized("401"))
    bench.stripe()
    bench.later(seconds=2)
    bench.worker.run_once()
    assert states(bench) == ["pending"]


def test_a_list_that_is_shown_does_not_mean_that_imports_are_taken(bench: Bench) -> None:
    call(circuits(bench), SequinUnauthorized("401"))
    bench.services.sequin.oauth_apps()
    assert circuits(bench).look(SEQUIN) is not None


# --- an OAuth app ---------------------------------------------------------------------------------------


def test_a_registration_that_is_not_accepted_stops_people_before_they_leave(bench: Bench) -> None:
    bench.network.upsert("POST", STRIPE_TOKEN, status=401, json={"error": "invalid_client"})
    bench.connect(end_user="first")
    flows = len(bench.rows(Flow))

    with pytest.raises(ProviderMisconfigured) as told:
        bench.leave(link=bench.link("second"))

    assert told.value.provider == "Stripe"
    assert len(bench.rows(Flow)) == flows
    # The other app's registration is another one.
    bench.leave("stripe-test", link=bench.link("third"))
    bench.stripe()
    bench.later(seconds=PROBE_SECONDS)
    state = bench.leave(link=bench.link("fourth"))
    with pytest.raises(ProviderMisconfigured):
        bench.leave(link=bench.link("fifth"))
    bench.come_back(state)
    bench.leave(link=bench.link("sixth"))


def test_a_provider_that_is_away_stops_people_before_they_leave(bench: Bench) -> None:
    left = [bench.leave(link=bench.link(f"user-{number}")) for number in range(OPENS_AFTER)]
    bench.network.upsert("POST", STRIPE_TOKEN, status=503)
    for state in left:
        bench.come_back(state)
    with pytest.raises(ProviderDown):
        bench.leave(link=bench.link("late"))


def test_a_link_that_does_not_work_spends_no_try(bench: Bench) -> None:
    call(circuits(bench), ClientRefused("invalid_client"), STRIPE)
    bench.later(seconds=PROBE_SECONDS)
    with pytest.raises(BrokerError) as refused:
        bench.leave(link="no-such-link")
    assert refused.value.code == "link_unknown"
    bench.leave(link=bench.link())


def test_an_error_in_the_browsers_address_opens_nothing(bench: Bench) -> None:
    for _ in range(OPENS_AFTER):
        bench.come_back(bench.leave(), code=None, error="invalid_client")
    assert circuits(bench).open() == []


def test_no_connection_is_touched_by_any_of_it(bench: Bench) -> None:
    connect(bench, 2)
    before = bench.rows(ConnectedAccount)
    call(circuits(bench), ClientRefused("invalid_client"), STRIPE)
    assert bench.rows(ConnectedAccount) == before
