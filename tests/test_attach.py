"""The one transaction that makes a connection: all of it or nothing, once, and only for its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa

from broker.attach import Attachment, attach, grant_binding
from broker.errors import AccountTaken, LinkSpent, Unreadable
from broker.journal import Browser, Step
from broker.models import AuditRecord, Claim, ConnectedAccount, Flow, HopKind, LinkUse
from broker.oauth import Grant
from broker.providers.base import Account
from broker.secret import Secret
from tests.connecting import ACCESS, Bench, open_bench


@pytest.fixture
def bench(database_url: str) -> Iterator[Bench]:
    with open_bench(database_url) as opened:
        yield opened


def grant(token: str = ACCESS) -> Grant:
    return Grant(Secret(token), None, "bearer", ("read_write",), None, None, {"stripe_user_id": "acct_1"})


def arrived(
    bench: Bench,
    end_user: str = "user-1",
    account: str = "acct_1",
    *,
    link: str | None = None,
    browser: Browser | None = None,
    **facts: Any,
) -> Attachment:
    """Bring a flow to where its account is known."""
    state = bench.leave(link=link or bench.link(end_user), browser=browser)
    app = bench.apps.get("stripe")
    taken = bench.journal.consume(app, HopKind.AUTHORIZE, state, browser or bench.browser)
    assert isinstance(taken, Step)
    found = Account(**({"id": account, "name": "Acme", "type": "standard", "mode": "live"} | facts))
    return Attachment(taken.flow_id, taken.flow_ref, app, found, grant(), bench.clock.now())


def save(bench: Bench, what: Attachment) -> str | None:
    with bench.database.write() as connection:
        return attach(connection, what, vault=bench.vault, jobs=bench.jobs, now=bench.clock.now())


def together(*calls: Callable[[], object]) -> list[object]:
    """Run calls in threads of their own, all at once; an error is its call's result."""
    start = threading.Barrier(len(calls))
    results: list[object] = []

    def run(call: Callable[[], object]) -> None:
        start.wait(10)
        try:
            results.append(call())
        except BaseException as failure:  # noqa: BLE001 - the test judges it
            results.append(failure)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_claim_connection_link_audit_and_delivery_are_written_together(bench: Bench) -> None:
    what = arrived(bench, type=None, facts={"nested": {"a": [1]}})
    ref = save(bench, what)
    connection, flow = bench.row(ConnectedAccount), bench.row(Flow)
    assert (connection.ref, connection.token_version, connection.import_state) == (ref, 1, "pending")
    assert (connection.account_facts, connection.account_type) == ({"nested": {"a": [1]}}, None)
    assert (flow.state, flow.connection_id, flow.ended_at) == ("done", connection.id, bench.clock.now())
    assert tuple(bench.row(Claim)) == ("stripe", "acct_1", "live", connection.end_user_id)
    assert (bench.row(LinkUse).app_key, bench.row(LinkUse).connection_id) == ("stripe", connection.id)
    assert bench.job("import").subject_id == connection.id
    assert bench.rows(AuditRecord)[-1].action == "connection.connected"
    assert bench.rows(AuditRecord)[-1].target == ref


def test_the_grant_is_sealed_for_this_connection_and_token_version_alone(bench: Bench) -> None:
    ref = save(bench, arrived(bench))
    assert ref is not None
    sealed = bench.row(ConnectedAccount).grant_sealed
    assert ACCESS.encode() not in sealed
    assert Grant.from_json(bench.vault.open(sealed, grant_binding(ref, 1))) == grant()
    for binding in (grant_binding(ref, 2), grant_binding("0000-0000-0000", 1)):
        with pytest.raises(Unreadable):
            bench.vault.open(sealed, binding)


@pytest.mark.parametrize("table", ["claims", "link_uses", "jobs", "audit", "connections"])
def test_a_failure_at_any_step_leaves_nothing_behind(bench: Bench, table: str) -> None:
    what = arrived(bench)
    before = bench.everything()
    with pytest.raises(sa.exc.SQLAlchemyError), bench.database.engine.begin() as connection:
        attach(Tripwire(connection, table), what, vault=bench.vault, jobs=bench.jobs, now=bench.clock.now())  # type: ignore[arg-type]
    assert bench.everything() == before
    assert save(bench, what) is not None


class Tripwire:
    """A connection that breaks right after writing to one table."""

    def __init__(self, connection: Any, table: str) -> None:
        self._connection = connection
        self._table = table
        self.dialect = connection.dialect

    def execute(self, statement: Any, *args: Any) -> Any:
        result = self._connection.execute(statement, *args)
        if getattr(statement, "table", None) is not None and statement.table.name == self._table:
            raise sa.exc.OperationalError("cut off", {}, Exception("cut off"))
        return result


def test_a_flow_is_attached_once(bench: Bench) -> None:
    what = arrived(bench)
    assert save(bench, what) is not None
    before = bench.everything()
    assert save(bench, what) is None
    assert bench.everything() == before


def test_of_two_workers_that_finish_one_flow_one_attaches(bench: Bench) -> None:
    what = arrived(bench)
    results = together(*[lambda: save(bench, what)] * 4)
    assert [type(each) for each in results if each is not None] == [str]
    assert bench.row(ConnectedAccount).token_version == 1
    assert bench.job("import").generation == 0


def test_an_account_of_another_end_user_is_taken_and_nothing_changes(bench: Bench) -> None:
    save(bench, arrived(bench, "owner"))
    thief = arrived(bench, "somebody-else")
    before = bench.everything()
    with pytest.raises(AccountTaken):
        save(bench, thief)
    assert bench.everything() == before


def test_of_two_end_users_who_bring_one_account_at_once_one_gets_it(bench: Bench) -> None:
    flows = [arrived(bench, f"user-{n}", browser=Browser(Secret(f"browser-{n}"))) for n in range(4)]
    results = together(*[lambda what=what: save(bench, what) for what in flows])
    assert sorted(type(each).__name__ for each in results) == ["AccountTaken"] * 3 + ["str"]
    assert len(bench.rows(ConnectedAccount)) == len(bench.rows(Claim)) == len(bench.rows(LinkUse)) == 1


def test_one_account_brought_twice_at_once_by_one_end_user_is_one_connection(bench: Bench) -> None:
    flows = [arrived(bench) for _ in range(4)]
    results = together(*[lambda what=what: save(bench, what) for what in flows])
    assert {type(each) for each in results} == {str}
    assert len(set(results)) == 1
    assert bench.row(ConnectedAccount).token_version == 4


def test_one_link_used_by_two_flows_at_once_is_spent_once(bench: Bench) -> None:
    link = bench.link()
    flows = [arrived(bench, account=f"acct_{n}", link=link) for n in range(3)]
    results = together(*[lambda what=what: save(bench, what) for what in flows])
    assert sorted(type(each).__name__ for each in results) == ["LinkSpent", "LinkSpent", "str"]
    assert len(bench.rows(ConnectedAccount)) == len(bench.rows(Claim)) == 1


def test_a_spent_link_saves_nothing_more(bench: Bench) -> None:
    link = bench.link()
    first, second = arrived(bench, link=link), arrived(bench, account="acct_2", link=link)
    save(bench, first)
    before = bench.everything()
    with pytest.raises(LinkSpent):
        save(bench, second)
    assert bench.everything() == before


def test_reconnecting_replaces_the_grant_and_what_was_known_of_the_old_one(bench: Bench) -> None:
    ref = save(bench, arrived(bench))
    now = bench.clock.now()
    bench.house.run(
        sa.update(ConnectedAccount).values(
            import_state="parked", import_error="sequin_refused", import_error_detail="x", health="error",
            health_note="x", checked_at=now, imported_at=now, verified_at=now, revoked_at=now, disconnected_at=now,
            credential_id="cred-1", metadata_digest="0" * 64,
        )
    )  # fmt: skip
    bench.later(minutes=1)
    what = arrived(bench, name="Acme renamed")
    again = save(bench, replace(what, grant=grant("SENTINEL-NEW")))
    row = bench.row(ConnectedAccount)
    assert (again, row.ref, row.token_version, row.account_name) == (ref, ref, 2, "Acme renamed")
    forgotten = (
        row.import_error, row.import_error_detail, row.health, row.health_note, row.checked_at, row.imported_at,
        row.verified_at, row.revoked_at, row.disconnected_at,
    )  # fmt: skip
    assert set(forgotten) == {None}
    assert (row.import_state, row.credential_id, row.connected_at) == ("pending", "cred-1", bench.clock.now())
    opened = Grant.from_json(bench.vault.open(row.grant_sealed, grant_binding(row.ref, 2)))
    assert opened.access_token == Secret("SENTINEL-NEW")
    assert len(bench.rows(Claim)) == 1


def test_the_same_account_through_another_app_is_another_connection(bench: Bench) -> None:
    save(bench, arrived(bench))
    what = arrived(bench)
    with bench.database.write() as connection:
        other = replace(what, app=bench.apps.get("stripe-test"))
        assert attach(connection, other, vault=bench.vault, jobs=bench.jobs, now=bench.clock.now())
    assert {row.app_key for row in bench.rows(ConnectedAccount)} == {"stripe", "stripe-test"}
