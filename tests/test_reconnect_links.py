"""Reconnect links: the one account that was connected before, and never another one unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.models import ConnectedAccount
from tests.connecting import Bench, installation, open_bench, person_installation

ORG, OTHER_ORG = installation(40, 400, "acme"), installation(41, 401, "globex")


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def connected(bench: Bench) -> str:
    """Connect an account and return the connection's reference."""
    bench.connect()
    return str(bench.row(ConnectedAccount).ref)


def test_the_same_account_is_renewed_in_place(bench: Bench) -> None:
    ref = connected(bench)

    flow = bench.flow(bench.connect(reconnects=ref).flow_ref)

    assert flow.state == "done"
    (connection,) = bench.rows(ConnectedAccount)
    assert (connection.ref, connection.token_version) == (ref, 2)


def test_another_account_changes_nothing(bench: Bench) -> None:
    ref = connected(bench)
    before = bench.rows(ConnectedAccount)
    bench.stripe("acct_other")

    flow = bench.flow(bench.connect(reconnects=ref).flow_ref)

    assert (flow.state, flow.failure) == ("failed", "other_account")
    assert bench.rows(ConnectedAccount) == before


def test_the_same_account_in_another_mode_is_another_account(bench: Bench) -> None:
    ref = connected(bench)
    bench.stripe(livemode=False)

    assert bench.flow(bench.connect(reconnects=ref).flow_ref).failure == "other_account"


def test_of_several_accounts_the_one_that_was_connected_is_taken(bench: Bench) -> None:
    bench.github(ORG, admin_of=(400, 401))
    bench.connect("github")
    ref = str(bench.row(ConnectedAccount).ref)
    bench.github(OTHER_ORG, ORG, person_installation(), admin_of=(400, 401))

    flow = bench.flow(bench.connect("github", reconnects=ref).flow_ref)

    assert flow.state == "done"
    assert bench.row(ConnectedAccount).token_version == 2
