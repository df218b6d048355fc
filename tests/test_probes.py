"""Probes: providers are asked seldom and within their limits, and what they say becomes a state with a cure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa
from structlog.testing import capture_logs

from broker.circuits import app_circuit
from broker.clock import ManualClock
from broker.errors import AccountSuspended, GrantRefused, RegistrationDoubted, Unreachable
from broker.models import ConnectedAccount, Job, JobState
from broker.oauth import Grant
from broker.probes import Pace
from broker.providers import discover
from broker.providers.base import (
    Account,
    AccountGone,
    Condition,
    ProviderRefused,
    ProviderUnavailable,
    TokenRejected,
)
from broker.status import TROUBLES, Status
from tests.connecting import Bench, open_bench

HOUR = 3600


@dataclass
class Stand:
    """A provider that says what it is told to say, and counts how often it is asked."""

    says: Condition | Exception = field(default_factory=Condition)
    asked: list[Grant | None] = field(default_factory=list)
    # What it says of one account instead.
    of: dict[str, Condition | Exception] = field(default_factory=dict)

    def probe(self, _app: Any, account: Account, grant: Grant | None, _call: Any, _now: Any) -> Condition:
        self.asked.append(grant)
        says = self.of.get(account.id, self.says)
        if isinstance(says, Exception):
            raise says
        return says


def open_with(url: str, stand: Stand, **changes: Any) -> Any:
    told: dict[str, Any] = {"probe": stand.probe, "probe_needs_grant": False} | changes
    stripe = replace(discover()["stripe"], **told)
    return open_bench(url, providers={**discover(), "stripe": stripe})


@pytest.fixture
def stand() -> Stand:
    return Stand()


@pytest.fixture
def bench(database_url: str, stand: Stand) -> Iterator[Bench]:
    with open_with(database_url, stand) as opened:
        connect(opened)
        yield opened


def connect(bench: Bench, **changes: Any) -> None:
    """Connect, import, and ask for a probe now."""
    bench.stripe("acct_1", **changes)
    bench.sequin()
    bench.connect()
    bench.deliver()
    ask(bench)


def ask(bench: Bench) -> None:
    with bench.database.write() as connection:
        bench.jobs.enqueue(connection, "probe", row(bench).id)


def probe(bench: Bench) -> Any:
    bench.services.probes.run(bench.lease("probe"))
    return row(bench)


def row(bench: Bench) -> Any:
    return bench.row(ConnectedAccount)


def status(bench: Bench) -> Status:
    return bench.services.connections.find(row(bench).ref).status


def test_an_account_that_is_well_is_fine_and_asked_about_again_before_a_day_has_passed(bench: Bench) -> None:
    found = probe(bench)
    assert (found.health, found.checked_at, found.probed_at) == ("ok", bench.clock.now(), bench.clock.now())
    assert status(bench) is Status.OK
    assert 15 * HOUR <= (bench.job("probe").due_at - bench.clock.now()).total_seconds() <= 20 * HOUR


def test_the_first_check_in_sequin_arranges_for_probes(database_url: str, stand: Stand) -> None:
    with open_with(database_url, stand) as bench:
        bench.stripe("acct_1")
        bench.sequin()
        bench.connect()
        assert "probe" not in {each.kind for each in bench.rows(Job)}
        bench.deliver()
        credential = {"id": row(bench).credential_id, "oauth_app_id": row(bench).sequin_oauth_app_id}
        url = f"http://localhost:8100/sequin/v1/credentials/{row(bench).credential_id}"
        bench.network.upsert("GET", url, json=credential | {"properties": {}, "metadata": {}})
        bench.services.verifications.run(bench.lease("verify"))
        assert bench.job("probe").due_at > bench.clock.now()


@pytest.mark.parametrize("gone", [AccountGone("404"), TokenRejected("401")], ids=["gone", "token-rejected"])
def test_access_that_has_ended_means_reconnect(bench: Bench, stand: Stand, gone: Exception) -> None:
    stand.says = gone
    assert probe(bench).revoked_at == bench.clock.now()
    assert status(bench) is Status.REVOKED
    assert bench.job("probe").state == JobState.DONE
    assert ("provider", "probe", "connection.revoked_by_provider", row(bench).ref) in bench.house.audited()


def test_a_suspended_account_is_an_error_with_its_own_sentence_until_it_is_lifted(bench: Bench, stand: Stand) -> None:
    stand.says = AccountSuspended("suspended_at is set")
    since = probe(bench).failing_since
    assert status(bench) is Status.ERROR
    assert "suspended" in bench.services.connections.find(row(bench).ref).note

    bench.later(hours=20)
    assert probe(bench).failing_since == since

    stand.says = Condition()
    bench.later(hours=20)
    found = probe(bench)
    assert (found.trouble, found.failing_since) == (None, None)
    assert status(bench) is Status.OK


def test_what_the_provider_says_is_wrong_outlives_a_check_in_sequin(bench: Bench, stand: Stand) -> None:
    stand.says = AccountSuspended("suspended_at is set")
    probe(bench)
    url = f"http://localhost:8100/sequin/v1/credentials/{row(bench).credential_id}"
    shown = {"id": row(bench).credential_id, "oauth_app_id": row(bench).sequin_oauth_app_id}
    bench.network.upsert("GET", url, json=shown | {"properties": {}, "metadata": {}})
    bench.services.verifications.run(bench.lease("verify"))
    assert row(bench).verified_at is not None
    assert status(bench) is Status.ERROR


def test_permissions_taken_back_are_told_until_they_are_there_again(bench: Bench, stand: Stand) -> None:
    stand.says = Condition(scopes=())
    probe(bench)
    assert (row(bench).trouble, row(bench).scopes) == ("permissions_reduced", ["read_write"])
    stand.says = Condition(scopes=("read_write", "more"))
    bench.later(hours=20)
    assert probe(bench).trouble is None


def test_a_renamed_account_is_shown_and_imported_under_its_new_name(bench: Bench, stand: Stand) -> None:
    stand.says = Condition(account=Account("acct_1", "Acme Two", "standard", "live"))
    assert probe(bench).account_name == "Acme Two"
    bench.deliver()
    assert [each["name"] for each in bench.imports()] == ["acct_1@example.com", "Acme Two"]


def test_another_account_never_renames_this_one(bench: Bench, stand: Stand) -> None:
    stand.says = Condition(account=Account("acct_2", "Somebody else", "standard", "live"))
    assert probe(bench).account_name == "acct_1@example.com"


@pytest.mark.parametrize(
    "failure",
    [ProviderUnavailable("503"), Unreachable("no route"), ProviderRefused("403, the app may not")],
    ids=["unavailable", "unreachable", "our-own-configuration"],
)
def test_a_probe_that_cannot_be_made_says_nothing_about_the_account(
    bench: Bench, stand: Stand, failure: Exception
) -> None:
    probe(bench)
    before = row(bench)
    stand.says = failure
    for _ in range(3):
        bench.later(days=2)
        bench.services.probes.run(bench.lease("probe"))
    assert row(bench) == before
    assert bench.job("probe").state == JobState.WAITING


def test_while_the_provider_is_away_nobody_asks_but_one_in_a_while(bench: Bench, stand: Stand) -> None:
    stand.says = Unreachable("no route")
    for _ in range(8):
        ask(bench)
        bench.services.probes.run(bench.lease("probe"))
        bench.later(seconds=1)
    assert len(stand.asked) == 5
    assert bench.services.circuits.open()


def test_probes_of_one_app_keep_the_pace_its_limits_allow(database_url: str, stand: Stand) -> None:
    with open_with(database_url, stand, probes_per_second=0.5) as bench:
        connect(bench)
        probe(bench)
        ask(bench)
        probe(bench)
        assert len(stand.asked) == 1
        bench.later(seconds=4)
        probe(bench)
        assert len(stand.asked) == 2


@pytest.mark.parametrize(("waiting", "per_second", "late"), [(3, 0.5, 0.0), (40, 0.5, 0.4), (40, 5.0, 0.4)])
def test_however_many_wait_for_their_turn_all_get_it(waiting: int, per_second: float, late: float) -> None:
    clock = ManualClock()
    pace = Pace(clock)
    line, asked = [(0.0, number) for number in range(waiting)], 0
    while line and asked <= 2 * waiting:
        due, number = heapq.heappop(line)
        clock.advance(max(0.0, due + late * (number % 2) - clock.monotonic()))
        asked += 1
        wait = pace.wait("github", per_second)
        if wait:
            heapq.heappush(line, (clock.monotonic() + wait, number))
    assert not line
    assert clock.monotonic() <= waiting / per_second + late


def test_a_grant_that_was_erased_leaves_the_check_to_sequin(database_url: str, stand: Stand) -> None:
    with open_with(database_url, stand, probe_needs_grant=True) as bench:
        connect(bench)
        with bench.database.write() as connection:
            connection.execute(sa.update(ConnectedAccount).values(grant_sealed=None))
        probe(bench)
        assert stand.asked == []


def test_a_rejected_token_that_can_be_refreshed_is_refreshed_first(database_url: str, stand: Stand) -> None:
    with open_with(database_url, stand, probe_needs_grant=True, refreshes=lambda _app: True) as bench:
        connect(bench, expires_in=HOUR)
        stand.says = TokenRejected("401")
        assert probe(bench).revoked_at is None
        assert bench.job("refresh").due_at == bench.clock.now()


def test_a_token_that_has_ended_is_not_asked_with(database_url: str, stand: Stand) -> None:
    with open_with(database_url, stand, probe_needs_grant=True, refreshes=lambda _app: True) as bench:
        connect(bench, expires_in=HOUR)
        bench.later(hours=2)
        probe(bench)
        assert stand.asked == []


@pytest.mark.parametrize("change", ["disconnected_at", "revoked_at", "interrupted_at"])
def test_nobody_asks_about_what_has_ended(bench: Bench, stand: Stand, change: str) -> None:
    bench.house.run(sa.update(ConnectedAccount).values(**{change: bench.clock.now()}))
    probe(bench)
    assert stand.asked == []
    assert bench.job("probe").state == JobState.DONE


def test_a_disconnect_during_the_probe_wins(database_url: str) -> None:
    def disconnected_meanwhile(*_given: Any) -> Condition:
        opened.house.run(sa.update(ConnectedAccount).values(disconnected_at=opened.clock.now()))
        raise AccountGone("404")

    with open_with(database_url, Stand(), probe=disconnected_meanwhile) as opened:
        connect(opened)
        assert probe(opened).revoked_at is None


# --- somebody else's registration -------------------------------------------------------------------------


@pytest.fixture
def crowd(database_url: str, stand: Stand) -> Iterator[Bench]:
    """Four people connected an account each: each has just enough others to be compared with."""
    with open_with(database_url, stand, probes_per_second=1000.0) as bench:
        bench.sequin()
        for number in range(4):
            bench.stripe(f"acct_{number}")
            bench.connect(end_user=f"user-{number}")
            bench.deliver()
        yield bench


def probe_all(bench: Bench) -> None:
    """Let every account be asked about that has not ended, one after the other."""
    for found in bench.rows(ConnectedAccount):
        bench.later(hours=1)
        with bench.database.write() as connection:
            bench.jobs.enqueue(connection, "probe", found.id)
        for job in bench.jobs.lease(["probe"], most=10):
            bench.services.probes.run(job)


def ended(bench: Bench) -> list[str]:
    return [found.account_id for found in bench.rows(ConnectedAccount) if found.revoked_at is not None]


def in_doubt(bench: Bench) -> bool:
    circuit = bench.services.circuits.look(app_circuit("stripe"))
    return circuit is not None and circuit.error == RegistrationDoubted.code and circuit.is_refusal


def test_with_another_platforms_key_nobody_is_flipped_and_operators_are_told_once(crowd: Bench, stand: Stand) -> None:
    stand.says = AccountGone("403 account_invalid")
    with capture_logs() as logs:
        probe_all(crowd)
        probe_all(crowd)
    assert ended(crowd) == []
    alerts = [event for event in logs if event["log_level"] == "error"]
    assert [(event["event"], event["error"]) for event in alerts] == [("circuit.opened", "registration_doubted")]
    assert "right platform" in alerts[0]["cure"]
    assert in_doubt(crowd)

    # The right key again: the next account that is well ends the doubt, and nothing has to be put right.
    stand.says = Condition()
    probe_all(crowd)
    assert not in_doubt(crowd)
    assert ended(crowd) == []


def test_one_account_that_is_still_there_shows_that_the_others_did_go(crowd: Bench, stand: Stand) -> None:
    stand.says = AccountGone("403 account_invalid")
    stand.of["acct_3"] = AccountSuspended("known all the same")
    probe_all(crowd)
    assert ended(crowd) == ["acct_0", "acct_1", "acct_2"]
    assert not in_doubt(crowd)


def test_too_few_accounts_to_compare_with_are_believed(crowd: Bench, stand: Stand) -> None:
    crowd.house.run(
        sa.update(ConnectedAccount)
        .where(ConnectedAccount.account_id == "acct_0")
        .values(disconnected_at=crowd.clock.now())
    )
    stand.says = AccountGone("403 account_invalid")
    probe_all(crowd)
    assert ended(crowd) == ["acct_1", "acct_2", "acct_3"]


def test_where_others_cannot_be_asked_nothing_is_known(crowd: Bench, stand: Stand) -> None:
    stand.says = Unreachable("no route")
    stand.of["acct_0"] = AccountGone("403 account_invalid")
    with crowd.database.write() as connection:
        crowd.jobs.enqueue(connection, "probe", crowd.rows(ConnectedAccount)[0].id)
    crowd.services.probes.run(crowd.lease("probe"))
    assert ended(crowd) == []
    assert not in_doubt(crowd)


def test_an_answer_that_strangers_get_too_does_not_end_the_doubt(crowd: Bench, stand: Stand) -> None:
    stand.says = AccountGone("403 account_invalid")
    probe_all(crowd)
    circuits = crowd.services.circuits
    with pytest.raises(GrantRefused), circuits.watching(app_circuit("stripe")):
        raise GrantRefused("invalid_grant", "This code was issued to another platform")
    assert in_doubt(crowd)
    with circuits.watching(app_circuit("stripe")):
        pass
    assert not in_doubt(crowd)


def test_every_trouble_has_a_sentence_for_the_person_and_one_for_operators() -> None:
    for told in TROUBLES.values():
        assert told.person.endswith(".")
        assert told.operator.endswith(".")
