"""An import that arrives after its lease was lost: what it replaced in Sequin is put right, whosever it is by then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from broker.jobs import LEASE_SECONDS, LeasedJob
from broker.models import Claim, ConnectedAccount, JobState
from broker.status import Status
from tests.connecting import ACCESS, CREDENTIAL, SEQUIN, SEQUIN_STRIPE_APP, Bench, open_bench

IMPORT = f"{SEQUIN}/v1/credentials"
NEW = "SENTINEL-NEW"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        shown = {
            "id": CREDENTIAL, "kind": "stripe_oauth2", "oauth_app_id": SEQUIN_STRIPE_APP,
            "properties": {"kind": "stripe_oauth2", "test": False, "stripe_user_id": "acct_1"},
        }  # fmt: skip
        opened.network.upsert("GET", f"{IMPORT}/{CREDENTIAL}", json=shown)
        opened.connect()
        yield opened


def row(bench: Bench, number: int = 0) -> Any:
    return bench.rows(ConnectedAccount)[number]


def arrives_late(bench: Bench, meanwhile: Callable[[], None], answer: int | None = 200) -> None:
    """Send an import; before Sequin answers, its lease runs out and `meanwhile` happens. None: an unreadable answer."""
    late: LeasedJob = bench.lease("import")
    first = [meanwhile]

    def take(_request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        if first:
            happens = first.pop()
            bench.later(seconds=LEASE_SECONDS)
            happens()
            if answer is None:
                return 200, {}, "<p>Bad gateway"
            return answer, {}, json.dumps({"id": CREDENTIAL})
        return 200, {}, json.dumps({"id": CREDENTIAL})

    bench.answering("POST", IMPORT, take)
    bench.deliveries.run(late)


def verify(bench: Bench) -> None:
    for job in bench.jobs.lease(["verify"], most=9):
        bench.services.verifications.run(job)


def secrets(bench: Bench) -> list[str]:
    return [str(sent["properties"]["secret"]) for sent in bench.imports()]


@pytest.mark.parametrize("answer", [200, 503, None])
def test_the_current_token_goes_once_more_whether_or_not_the_late_answer_came(bench: Bench, answer: int | None) -> None:
    def reconnect() -> None:
        bench.stripe(token=NEW)
        bench.connect()
        bench.deliver()

    arrives_late(bench, reconnect, answer)
    bench.deliver()

    assert secrets(bench) == [NEW, ACCESS, NEW], "in the order of the answers"
    assert row(bench).import_state == "imported"
    assert bench.jobs.lease(["import"]) == []


def test_nothing_is_erased_before_the_current_token_has_gone_once_more(bench: Bench) -> None:
    def reconnect() -> None:
        bench.stripe(token=NEW)
        bench.connect()
        bench.deliver()

    arrives_late(bench, reconnect)
    verify(bench)
    assert (row(bench).import_state, row(bench).grant_sealed is not None) == ("pending", True)

    bench.deliver()
    verify(bench)
    assert (secrets(bench)[-1], row(bench).grant_sealed) == (NEW, None)


def test_the_same_token_twice_is_no_reason_to_ask_for_a_reconnect(bench: Bench) -> None:
    def another_worker() -> None:
        bench.deliver()
        verify(bench)

    arrives_late(bench, another_worker)

    assert (row(bench).grant_sealed, row(bench).import_state) == (None, "imported")
    assert bench.jobs.lease(["import"]) == []


def test_a_replaced_token_that_was_erased_is_told_and_no_check_takes_it_back(bench: Bench) -> None:
    def reconnect() -> None:
        bench.stripe(token=NEW)
        bench.connect()
        bench.deliver()
        verify(bench)

    arrives_late(bench, reconnect)
    bench.later(days=1)
    verify(bench)

    found = bench.services.connections.find(row(bench).ref)
    assert (found.status, found.can_retry) == (Status.ERROR, False)
    assert "reconnect" in found.operator_note
    assert "Reconnect" in found.note

    bench.stripe(token="SENTINEL-NEWEST")
    bench.connect()
    bench.deliver()
    verify(bench)
    assert bench.services.connections.find(row(bench).ref).status is Status.OK


@pytest.mark.parametrize("answer", [200, None])
def test_a_token_that_lands_on_somebody_elses_credential_is_replaced_by_theirs(
    bench: Bench, answer: int | None
) -> None:
    def another_person_has_the_account_now() -> None:
        give_up_the_account(bench)
        bench.stripe(token=NEW)
        bench.connect(end_user="user-2")
        bench.deliver()

    arrives_late(bench, another_person_has_the_account_now, answer)
    bench.deliver()

    assert secrets(bench) == [NEW, ACCESS, NEW], "in the order of the answers"
    # The late one has put its own metadata there too.
    assert bench.imports()[-1]["metadata"]["broker_connection_id"] == row(bench, 1).ref
    assert row(bench, 1).import_state == "imported"


def test_somebody_else_whose_token_was_erased_is_asked_to_reconnect(bench: Bench) -> None:
    def another_person_has_the_account_now() -> None:
        give_up_the_account(bench)
        bench.stripe(token=NEW)
        bench.connect(end_user="user-2")
        bench.deliver()
        verify(bench)

    arrives_late(bench, another_person_has_the_account_now)

    found = bench.services.connections.find(row(bench, 1).ref)
    assert (found.status, found.hand_off.drift) == (Status.ERROR, "credential_overwritten")


def test_what_lands_after_a_disconnect_is_looked_for_when_its_answer_was_lost(bench: Bench) -> None:
    arrives_late(bench, lambda: give_up_the_account(bench), None)

    assert (row(bench).removal, row(bench).import_state) == ("pending", "pending")
    assert bench.job("remove").state == JobState.WAITING


def test_who_was_paused_between_the_last_look_and_the_sending_sends_nothing(bench: Bench) -> None:
    covers = bench.jobs.covers

    def paused(*args: Any) -> bool:
        held = covers(*args)
        # The whole process stands still, and with it everything that could notice.
        bench.clock.advance(LEASE_SECONDS)
        return held

    bench.jobs.covers = paused  # type: ignore[method-assign, assignment]
    sent: list[float] = []
    send = bench.services.sequin.import_credential

    def note(**what: Any) -> Any:
        sent.append(what["deadline"])
        return send(**what)

    bench.services.sequin.import_credential = note  # type: ignore[method-assign]
    bench.deliveries.run(bench.lease("import"))
    assert [deadline <= 0 for deadline in sent] == [True]


def give_up_the_account(bench: Bench) -> None:
    """Disconnect, and let all of it be over: somebody else may connect the account."""
    now = bench.clock.now() - timedelta(seconds=1)
    with bench.database.write() as connection:
        bench.jobs.cancel(connection, "import", row(bench).id)
        bench.jobs.cancel(connection, "verify", row(bench).id)
        ended = {"disconnected_at": now, "removal": "done", "revocation": "done", "grant_sealed": None}
        connection.execute(sa.update(ConnectedAccount).values(**ended))
        connection.execute(sa.delete(Claim))
