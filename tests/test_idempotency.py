"""Repeatable calls: one of many equal ones is worked on, its answer is kept for a day, and it is kept sealed."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.idempotency import KEPT_FOR, Claim, IdempotentCalls, InProgress, Kept, KeyInvalid, KeyReused
from broker.models import IdempotentCall
from broker.vault import Vault
from tests.house import House, open_house

ANSWER = Kept(201, '{"url": "canary"}', {"Location": "/here"})


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def calls(house: House) -> IdempotentCalls:
    return IdempotentCalls(house.database, house.clock, Vault(house.settings.encryption_keys))


def claimed(calls: IdempotentCalls, request: bytes = b"a", caller: str = "key_1") -> Claim:
    claim = calls.claim(caller, "once", request=request)
    assert isinstance(claim, Claim)
    return claim


def test_the_same_call_gets_the_same_answer(calls: IdempotentCalls) -> None:
    calls.keep(claimed(calls), ANSWER)

    assert calls.claim("key_1", "once", request=b"a") == ANSWER


def test_another_request_under_the_same_key_is_refused(calls: IdempotentCalls) -> None:
    first = claimed(calls)
    with pytest.raises(KeyReused):
        calls.claim("key_1", "once", request=b"b")
    calls.keep(first, ANSWER)
    with pytest.raises(KeyReused):
        calls.claim("key_1", "once", request=b"b")


def test_keys_of_two_callers_never_meet(calls: IdempotentCalls) -> None:
    calls.keep(claimed(calls), ANSWER)

    claimed(calls, caller="key_2")


def test_of_many_equal_calls_at_once_one_is_worked_on(calls: IdempotentCalls) -> None:
    worked_on: list[Claim] = []
    told: list[type[Exception]] = []
    start = threading.Barrier(8)

    def call() -> None:
        start.wait()
        try:
            claim = calls.claim("key_1", "once", request=b"a")
        except InProgress as refusal:
            told.append(type(refusal))
        else:
            assert isinstance(claim, Claim)
            worked_on.append(claim)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(worked_on), len(told)) == (1, 7)


def test_the_key_of_a_refused_call_is_free_again(calls: IdempotentCalls) -> None:
    calls.release(claimed(calls))

    claimed(calls, request=b"corrected")


def test_a_call_whose_process_died_may_be_made_again_and_the_dead_one_answers_no_more(
    house: House, calls: IdempotentCalls
) -> None:
    dead = claimed(calls)
    house.clock.advance(59)
    with pytest.raises(InProgress):
        calls.claim("key_1", "once", request=b"a")
    house.clock.advance(1)
    second = claimed(calls)

    calls.keep(dead, Kept(201, "late", {}))
    calls.release(dead)
    calls.keep(second, ANSWER)

    assert calls.claim("key_1", "once", request=b"a") == ANSWER


def test_a_key_stands_for_a_day_and_is_then_forgotten(house: House, calls: IdempotentCalls) -> None:
    calls.keep(claimed(calls), ANSWER)
    house.clock.advance(KEPT_FOR.total_seconds() - 1)
    assert calls.purge() == 0
    house.clock.advance(1)

    assert calls.purge() == 1
    assert house.value(sa.select(sa.func.count()).select_from(IdempotentCall)) == 0
    claimed(calls, request=b"something else")


def test_the_answer_is_sealed_and_the_key_is_not_kept(house: House, calls: IdempotentCalls) -> None:
    calls.keep(claimed(calls), ANSWER)

    with house.database.read() as connection:
        row = connection.execute(sa.select(*IdempotentCall.__table__.columns)).one()
    assert "canary" not in repr(tuple(row))
    assert "once" not in repr(tuple(row))


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "\x00", "é", "\ud800"])
def test_a_key_that_cannot_be_one_is_refused(calls: IdempotentCalls, key: str) -> None:
    with pytest.raises(KeyInvalid):
        calls.claim("key_1", key, request=b"a")
