"""The chain over the audit trail: whatever is changed afterwards is found and named, and nobody waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker import audit, audit_chain
from broker.audit_chain import AuditChain, Inspection
from broker.models import AuditRecord, AuditSeal, ChainEnds
from broker.secret import Secret
from tests.house import House, open_house


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def chain(house: House) -> AuditChain:
    return AuditChain(house.database, house.clock, house.settings.secret_key)


def add(connection: Connection, house: House, target: str) -> None:
    audit.record(
        connection, at=house.clock.now(), actor_kind="operator", actor="sam@example.com", action="connection.retry",
        target=target, detail={"count": 1, "why": "größer"},
    )  # fmt: skip


def write(house: House, count: int, first: int = 1) -> None:
    for number in range(first, first + count):
        with house.database.write() as connection:
            add(connection, house, f"target {number}")


def sealed(house: House, chain: AuditChain, count: int = 6) -> None:
    write(house, count)
    assert chain.seal() == count


def named(found: Inspection) -> list[tuple[str, int | None, int | None]]:
    return [(one.kind, one.number, one.record_id) for one in found.findings]


def seal_row(house: House, number: int) -> dict[str, Any]:
    with house.database.read() as connection:
        query = sa.select(AuditSeal.__table__).where(AuditSeal.number == number)
        return dict(connection.execute(query).mappings().one())


# --- sealing ------------------------------------------------------------------------------------------


def test_what_was_written_is_sealed_in_order_and_found_intact(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    found = chain.inspect()
    assert (found.is_intact, found.looked_at, found.head, found.anchor, found.unsealed) == (True, 6, 6, 0, 0)
    assert chain.seal() == 0


def test_an_empty_trail_is_intact(chain: AuditChain) -> None:
    assert chain.seal() == 0
    assert chain.inspect().is_intact


def test_what_is_not_sealed_yet_is_told_with_since_when(house: House, chain: AuditChain) -> None:
    sealed(house, chain, 2)
    house.clock.advance(timedelta(minutes=3).total_seconds())
    write(house, 2, first=3)
    found = chain.inspect()
    assert found.is_intact
    assert (found.unsealed, found.waiting_since) == (2, house.clock.now())


def test_a_sealer_killed_between_batches_leaves_a_chain_that_the_next_goes_on_with(
    house: House, chain: AuditChain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit_chain, "BATCH", 2)
    write(house, 7)
    original, calls = AuditChain._seal, []  # noqa: SLF001

    def dies_in_the_third(self: AuditChain, connection: Connection, settled: int) -> int:
        calls.append(settled)
        count = original(self, connection, settled)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return count

    monkeypatch.setattr(AuditChain, "_seal", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        chain.seal()
    found = chain.inspect()
    assert (found.is_intact, found.head, found.unsealed) == (True, 4, 3)
    another = AuditChain(house.database, house.clock, house.settings.secret_key)
    assert another.seal() == 3
    assert (another.inspect().is_intact, another.inspect().head) == (True, 7)


def test_writers_and_sealers_at_the_same_time_make_one_chain_without_a_gap(house: House) -> None:
    begin = threading.Barrier(5)
    failures: list[BaseException] = []

    def together(work: Callable[[], None]) -> None:
        begin.wait()
        try:
            work()
        except BaseException as failure:  # noqa: BLE001
            failures.append(failure)

    def seals() -> None:
        own = AuditChain(house.database, house.clock, house.settings.secret_key)
        for _ in range(15):
            own.seal()

    works: list[Callable[[], None]] = [lambda: write(house, 15)] * 3 + [seals] * 2
    threads = [threading.Thread(target=together, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    last = AuditChain(house.database, house.clock, house.settings.secret_key)
    last.seal()
    found = last.inspect()
    assert (found.findings, found.head, found.unsealed) == ((), 45, 0)


def test_a_record_that_commits_late_is_waited_for_and_nobody_waits_for_the_sealer(
    house: House, chain: AuditChain
) -> None:
    if house.database.is_sqlite:
        pytest.skip("one writer: records commit in the order of their ids")
    with house.database.engine.connect() as late:
        transaction = late.begin()
        add(late, house, "late")
        write(house, 2)
        assert chain.seal() == 0
        assert chain.seal() == 0
        transaction.commit()
    # Somebody else is always writing; who was writing at the first look has ended.
    with house.database.engine.connect() as other:
        transaction = other.begin()
        add(other, house, "other")
        assert chain.seal() == 3
        transaction.rollback()
    assert chain.inspect().is_intact
    assert seal_row(house, 1)["record_id"] < seal_row(house, 2)["record_id"]


# --- tampering ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"actor": "mallory@example.com"}, {"action": "connection.check"}, {"target": "other"}, {"detail": {}},
        {"actor_kind": "cli"},
    ],
)  # fmt: skip
def test_an_altered_record_is_found_and_named(house: House, chain: AuditChain, change: dict[str, Any]) -> None:
    sealed(house, chain)
    record = seal_row(house, 3)["record_id"]
    house.run(sa.update(AuditRecord).where(AuditRecord.id == record).values(change))
    assert named(chain.inspect()) == [("altered", 3, record)]


def test_an_altered_time_is_found_to_the_microsecond(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.run(
        sa.update(AuditRecord).where(AuditRecord.id == 2).values(at=house.clock.now() + timedelta(microseconds=1))
    )
    assert named(chain.inspect()) == [("altered", 2, 2)]


def test_a_deleted_record_is_found_and_named(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.run(sa.delete(AuditRecord).where(AuditRecord.id.in_((1, 4, 6))))
    assert named(chain.inspect()) == [("deleted", 1, 1), ("deleted", 4, 4), ("deleted", 6, 6)]


@pytest.mark.parametrize(("gone", "told"), [([1], 1), ([3, 4], 3), ([5, 6], 5)])
def test_records_deleted_with_their_seals_are_found(
    house: House, chain: AuditChain, gone: list[int], told: int
) -> None:
    sealed(house, chain)
    house.run(sa.delete(AuditRecord).where(AuditRecord.id.in_(gone)))
    house.run(sa.delete(AuditSeal).where(AuditSeal.number.in_(gone)))
    assert named(chain.inspect()) == [("deleted", told, None)]


def test_an_inserted_record_is_found_and_named(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    # A place was free: a record with this id never came to be.
    house.run(sa.update(AuditRecord).where(AuditRecord.id == 6).values(id=9))
    house.run(sa.delete(AuditSeal))
    house.run(sa.delete(ChainEnds))
    assert chain.seal() == 6
    house.insert(
        AuditRecord, id=7, at=house.clock.now(), actor_kind="cli", actor="cli", action="a", target="b", detail={}
    )
    assert named(chain.inspect()) == [("inserted", None, 7)]
    chain.seal()
    assert named(chain.inspect()) == [("inserted", None, 7)]


def test_a_record_inserted_with_a_made_up_seal_is_found(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    write(house, 1, first=7)
    house.run(sa.insert(AuditSeal).values(seal_row(house, 6) | {"number": 7, "record_id": 7}))
    assert named(chain.inspect()) == [("inserted", 7, 7)]


def test_records_that_changed_places_are_found(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    for before, after in ((2, 99), (5, 2), (99, 5)):
        house.run(sa.update(AuditRecord).where(AuditRecord.id == before).values(id=after))
    assert named(chain.inspect()) == [("reordered", 2, 2), ("reordered", 5, 5)]


def test_seals_that_changed_places_are_found(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    for before, after in ((2, 99), (5, 2), (99, 5)):
        house.run(sa.update(AuditSeal).where(AuditSeal.number == before).values(number=after))
    found = chain.inspect()
    assert {one.number for one in found.findings} >= {2, 5}


def test_who_computes_every_digest_anew_still_lacks_the_key(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.run(sa.update(AuditRecord).where(AuditRecord.id == 2).values(actor="mallory@example.com"))
    house.run(sa.delete(AuditSeal))
    house.run(sa.delete(ChainEnds))
    forger = AuditChain(house.database, house.clock, Secret("a key that somebody made up, long enough 0123456789"))
    forger.seal()
    assert forger.inspect().is_intact
    house.run(sa.update(AuditSeal).values(key_id=chain.key_id))
    house.run(sa.update(ChainEnds).values(key_id=chain.key_id))
    found = chain.inspect()
    assert found.count >= 6
    assert chain.seal() == 0


@pytest.mark.parametrize("column", ["head_number", "anchor_number", "head_record_id", "anchor_record_id"])
def test_altered_ends_are_found_and_not_gone_on_from(house: House, chain: AuditChain, column: str) -> None:
    sealed(house, chain)
    house.run(sa.update(ChainEnds).values({column: 5}))
    assert "altered" in {one.kind for one in chain.inspect().findings}
    write(house, 1, first=7)
    assert chain.seal() == 0


def test_ends_that_are_gone_are_found(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.run(sa.delete(ChainEnds))
    assert not chain.inspect().is_intact
    write(house, 1, first=7)
    assert chain.seal() == 0


def test_a_chain_replaced_as_a_whole_does_not_have_the_mark_that_was_noted(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    mark = chain.inspect().mark
    write(house, 1, first=7)
    chain.seal()
    assert chain.inspect(expected=mark).is_intact
    house.run(sa.delete(AuditRecord).where(AuditRecord.id == 3))
    house.run(sa.delete(AuditSeal))
    house.run(sa.delete(ChainEnds))
    chain.seal()
    assert chain.inspect().is_intact
    assert named(chain.inspect(expected=mark)) == [("deleted", 6, None)]


def test_a_look_at_the_newest_links_leaves_the_older_ones_alone(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.run(sa.update(AuditRecord).where(AuditRecord.id == 2).values(actor="mallory@example.com"))
    assert chain.inspect(newest=3).is_intact
    assert chain.inspect(newest=3).looked_at == 3
    assert not chain.inspect(newest=5).is_intact


# --- another key --------------------------------------------------------------------------------------


def test_after_a_change_of_key_the_chain_goes_on_and_still_proves_what_was_before(
    house: House, chain: AuditChain
) -> None:
    sealed(house, chain, 3)
    renewed = AuditChain(house.database, house.clock, Secret("the key after a change, also long enough 0123456789"))
    assert [one.kind for one in renewed.inspect().findings] == ["unknown"]
    assert renewed.seal() == 0
    found = renewed.inspect()
    assert found.is_intact
    assert [(key.key_id, key.first, key.last) for key in found.other_keys] == [(chain.key_id, 1, 3)]
    write(house, 2, first=4)
    assert renewed.seal() == 2
    assert renewed.inspect().is_intact
    house.run(sa.update(AuditRecord).where(AuditRecord.id == 2).values(actor="mallory@example.com"))
    assert named(renewed.inspect()) == [("altered", 2, 2)]


# --- purging ------------------------------------------------------------------------------------------


def forget(house: House, chain: AuditChain, most: int = 100) -> int:
    with house.database.write() as connection:
        return chain.forget(connection, before=house.clock.now() - timedelta(days=400), most=most)


def test_a_purge_moves_the_beginning_and_what_stays_is_still_proven(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    mark = chain.inspect().mark
    house.clock.advance(timedelta(days=401).total_seconds())
    write(house, 3, first=7)
    chain.seal()
    assert forget(house, chain, most=2) == 2
    assert forget(house, chain) == 4
    found = chain.inspect()
    assert (found.is_intact, found.anchor, found.looked_at, found.head) == (True, 6, 3, 9)
    assert chain.inspect(expected=mark).is_intact
    house.run(sa.delete(AuditRecord).where(AuditRecord.id == 7))
    house.run(sa.delete(AuditSeal).where(AuditSeal.number == 7))
    assert named(chain.inspect()) == [("deleted", 7, None)]


def test_a_purge_leaves_what_is_not_sealed_and_the_newest(house: House, chain: AuditChain) -> None:
    sealed(house, chain, 2)
    write(house, 2, first=3)
    house.clock.advance(timedelta(days=401).total_seconds())
    assert forget(house, chain) == 2
    assert [entry[3] for entry in house.audited()] == ["target 3", "target 4"]
    chain.seal()
    assert forget(house, chain) == 1
    assert forget(house, chain) == 0
    assert chain.inspect().is_intact


def test_a_purge_does_not_move_a_beginning_that_somebody_altered(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.clock.advance(timedelta(days=401).total_seconds())
    house.run(sa.update(ChainEnds).values(anchor_number=3))
    assert forget(house, chain) == 0
    assert len(house.audited()) == 6


def test_a_record_put_in_before_the_beginning_is_found(house: House, chain: AuditChain) -> None:
    sealed(house, chain)
    house.clock.advance(timedelta(days=401).total_seconds())
    write(house, 1, first=7)
    chain.seal()
    forget(house, chain)
    house.insert(
        AuditRecord, id=2, at=house.clock.now(), actor_kind="cli", actor="cli", action="a", target="b", detail={}
    )
    assert named(chain.inspect()) == [("inserted", None, 2)]
