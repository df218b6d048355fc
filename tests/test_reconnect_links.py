"""Reconnect links: the one account that was connected before, and never another one unasked."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.audit import Actor
from broker.connections import ConnectionEnded
from broker.models import ConnectedAccount
from tests.connecting import Bench, installation, open_bench, person_installation, state_in

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


def test_another_account_changes_nothing_and_the_person_is_asked(bench: Bench) -> None:
    ref = connected(bench)
    before = bench.rows(ConnectedAccount)
    bench.stripe("acct_other")

    flow = bench.flow(bench.connect(reconnects=ref).flow_ref)

    assert (flow.state, flow.hold) == ("held", "other_account")
    assert bench.rows(ConnectedAccount) == before


def test_another_account_that_is_meant_is_connected_beside_the_old_one(bench: Bench) -> None:
    ref = connected(bench)
    (before,) = bench.rows(ConnectedAccount)
    bench.stripe("acct_other")
    asked = bench.connect(reconnects=ref).flow_ref

    bench.flows.choose(asked, "acct_other", bench.browser)

    old, new = bench.rows(ConnectedAccount)
    assert old == before
    assert new.account_id == "acct_other"
    assert bench.flow(asked).state == "done"


def test_whoever_tries_again_instead_renews_the_right_account(bench: Bench) -> None:
    ref = connected(bench)
    bench.stripe("acct_other")
    asked = bench.connect(reconnects=ref).flow_ref
    bench.stripe()

    address = bench.flows.begin_again(asked, "stripe", bench.browser)
    bench.come_back(state_in(address))

    (only,) = bench.rows(ConnectedAccount)
    assert (only.ref, only.token_version) == (ref, 2)


def test_the_same_account_in_another_mode_is_another_account(bench: Bench) -> None:
    ref = connected(bench)
    bench.stripe(livemode=False)

    assert bench.flow(bench.connect(reconnects=ref).flow_ref).hold == "other_account"


def test_a_person_connects_again_from_their_own_page(bench: Bench) -> None:
    ref = connected(bench)

    address = bench.services.reconnects.begin(bench.services.connections.find(ref), bench.browser)
    bench.come_back(state_in(address))

    (only,) = bench.rows(ConnectedAccount)
    assert (only.ref, only.token_version) == (ref, 2)
    assert ("end_user", "person", "link.created") in [row[:3] for row in bench.house.audited()]


def test_what_was_disconnected_is_not_connected_again_from_there(bench: Bench) -> None:
    ref = connected(bench)
    bench.services.disconnections.request(ref, actor=Actor("cli", "test"))
    with pytest.raises(ConnectionEnded):
        bench.services.reconnects.begin(bench.services.connections.find(ref), bench.browser)


def test_of_several_accounts_the_one_that_was_connected_is_taken(bench: Bench) -> None:
    bench.github(ORG, admin_of=(400, 401))
    bench.connect("github")
    ref = str(bench.row(ConnectedAccount).ref)
    bench.github(OTHER_ORG, ORG, person_installation(), admin_of=(400, 401))

    flow = bench.flow(bench.connect("github", reconnects=ref).flow_ref)

    assert flow.state == "done"
    assert bench.row(ConnectedAccount).token_version == 2
