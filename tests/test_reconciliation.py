"""The sweep: credentials in Sequin that carry our metadata and that nobody here owns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from broker.audit import COMMAND_LINE
from broker.errors import SequinUnavailable
from broker.models import CleanUp, ConnectedAccount, Orphan
from broker.reconciliation import OrphanUnknown
from tests.connecting import CREDENTIAL, SEQUIN, Bench, open_bench

ALIEN = "5d0c8f52-0000-4000-8000-00000000000a"


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe("acct_1")
        opened.sequin()
        opened.connect()
        opened.deliver()
        yield opened


def holds(bench: Bench, *credentials: dict[str, Any], **answer: Any) -> None:
    """Let Sequin list these credentials."""
    bench.network.upsert("GET", f"{SEQUIN}/v1/credentials", **(answer or {"json": {"data": list(credentials)}}))


def credential(number: str, claims: object) -> dict[str, Any]:
    return {"id": number, "kind": "stripe_oauth2", "properties": {}, "metadata": {"broker_connection_id": claims}}


def ref(bench: Bench) -> str:
    return str(bench.row(ConnectedAccount).ref)


def sweep(bench: Bench) -> list[str]:
    return [orphan.credential_id for orphan in bench.services.reconciliation.sweep()]


def test_what_belongs_to_a_connection_or_to_somebody_else_is_no_orphan(bench: Bench) -> None:
    holds(bench, credential(CREDENTIAL, ref(bench)), {"id": ALIEN, "metadata": {"custom": 1}}, credential(ALIEN, 7))
    assert sweep(bench) == []


def test_a_credential_that_claims_an_unknown_connection_is_found(bench: Bench) -> None:
    holds(bench, credential(CREDENTIAL, ref(bench)), credential(ALIEN, "GONE-GONE-GONE"))
    assert sweep(bench) == [ALIEN]
    (orphan,) = bench.services.reconciliation.orphans()
    assert orphan.claimed_ref == "GONE-GONE-GONE"


def test_a_second_credential_for_one_connection_is_found(bench: Bench) -> None:
    holds(bench, credential(CREDENTIAL, ref(bench)), credential(ALIEN, ref(bench)))
    assert sweep(bench) == [ALIEN]


def test_one_that_is_being_replaced_is_not_an_orphan_yet(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(sa.update(ConnectedAccount).values(superseded_credential_id=ALIEN))
    holds(bench, credential(CREDENTIAL, ref(bench)), credential(ALIEN, ref(bench)))
    assert sweep(bench) == []


def test_an_import_whose_answer_was_lost_is_left_to_the_next_import(bench: Bench) -> None:
    with bench.database.write() as connection:
        connection.execute(sa.update(ConnectedAccount).values(import_state="pending", credential_id=None))
    holds(bench, credential(ALIEN, ref(bench)))
    assert sweep(bench) == []


@pytest.mark.parametrize(("removal", "found"), [(CleanUp.PENDING, []), (CleanUp.DONE, [CREDENTIAL])])
def test_what_a_disconnect_left_behind_is_found_once_the_disconnect_is_over(
    bench: Bench, removal: CleanUp, found: list[str]
) -> None:
    with bench.database.write() as connection:
        values = {"disconnected_at": bench.clock.now(), "removal": removal}
        connection.execute(sa.update(ConnectedAccount).values(**values))
    holds(bench, credential(CREDENTIAL, ref(bench)))
    assert sweep(bench) == found


def test_an_orphan_that_is_gone_is_forgotten_by_the_next_sweep(bench: Bench) -> None:
    holds(bench, credential(ALIEN, "GONE-GONE-GONE"))
    sweep(bench)
    bench.later(hours=6)
    holds(bench)
    assert sweep(bench) == []


def test_a_list_that_breaks_off_proves_nothing_gone(bench: Bench) -> None:
    holds(bench, credential(ALIEN, "GONE-GONE-GONE"))
    sweep(bench)
    bench.later(hours=6)
    holds(bench, status=200, body='{"data": [')
    with pytest.raises(SequinUnavailable):
        sweep(bench)
    assert len(bench.rows(Orphan)) == 1


def test_an_orphan_is_forgotten_by_one_action_which_is_audited(bench: Bench) -> None:
    holds(bench, credential(ALIEN, "GONE-GONE-GONE"))
    sweep(bench)
    bench.network.upsert("DELETE", f"{SEQUIN}/v1/credentials/{ALIEN}", json={"deleted": True})
    bench.services.reconciliation.forget(ALIEN, actor=COMMAND_LINE)
    assert bench.rows(Orphan) == []
    assert ("cli", "cli", "orphan.forgotten", ALIEN) in bench.house.audited()


def test_what_no_sweep_found_cannot_be_deleted_this_way(bench: Bench) -> None:
    with pytest.raises(OrphanUnknown):
        bench.services.reconciliation.forget(CREDENTIAL, actor=COMMAND_LINE)
    assert bench.calls(f"{SEQUIN}/v1/credentials/{CREDENTIAL}") == []


def test_the_sweep_is_a_job_that_comes_again(bench: Bench) -> None:
    holds(bench, credential(ALIEN, "GONE-GONE-GONE"))
    bench.services.reconciliation.schedule()
    bench.services.reconciliation.schedule()
    bench.services.reconciliation.run(bench.lease("reconcile"))
    assert len(bench.rows(Orphan)) == 1
    assert (bench.job("reconcile").due_at - bench.clock.now()).total_seconds() == 6 * 3600


def test_a_credential_that_somebody_elses_connection_holds_is_no_orphan_whatever_it_claims(bench: Bench) -> None:
    holds(bench, credential(CREDENTIAL, "GONE-GONE-GONE"))
    assert sweep(bench) == []
