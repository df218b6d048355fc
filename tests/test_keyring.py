"""Canaries: whether the keys in the settings are the ones this database was sealed with."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.keyring import KeyRing
from broker.models import KeyCanary, WebhookEndpoint, WebhookSecret
from broker.notifications import secret_binding
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.house import House, open_house

OLD, NEW = EncryptionKey("k1", bytes(range(32))), EncryptionKey("k2", bytes(range(32, 64)))


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


def ring(house: House, *keys: EncryptionKey) -> KeyRing:
    return KeyRing(house.database, Vault(keys), house.clock)


def canaries(house: House) -> set[str]:
    with house.database.read() as connection:
        return set(connection.execute(sa.select(KeyCanary.kid)).scalars())


def test_a_key_gets_a_canary_when_it_comes_to_seal(house: House) -> None:
    assert ring(house, OLD, NEW).check() == []
    assert canaries(house) == {"k1"}
    assert ring(house, NEW, OLD).check() == []
    assert canaries(house) == {"k1", "k2"}


def test_processes_are_given_a_new_key_one_after_the_other_and_all_stay_ready(house: House) -> None:
    not_yet = ring(house, OLD)
    assert ring(house, OLD, NEW).check() == []
    assert not_yet.check() == []


def test_a_key_that_was_retired_is_taken_from_processes_one_after_the_other(house: House) -> None:
    ring(house, OLD).check()
    still_with_it = ring(house, NEW, OLD)
    still_with_it.check()
    still_with_it.retire("k1")
    # It is asked all the time, by whoever watches it.
    assert still_with_it.check() == []
    assert ring(house, NEW).check() == []


def test_a_canary_is_planted_once(house: House) -> None:
    ring(house, OLD).check()
    first = house.value(sa.select(KeyCanary.sealed))
    ring(house, OLD).check()
    assert house.value(sa.select(KeyCanary.sealed)) == first


def test_another_key_under_the_same_name_is_a_problem(house: House) -> None:
    ring(house, OLD).check()
    problems = ring(house, EncryptionKey("k1", bytes(32))).check()
    assert len(problems) == 1
    assert "k1" in problems[0]
    # Looking must not make it look right.
    assert ring(house, EncryptionKey("k1", bytes(32))).check() == problems


def test_a_key_that_went_missing_is_a_problem_until_it_is_retired(house: House) -> None:
    ring(house, OLD).check()
    problems = ring(house, NEW).check()
    assert len(problems) == 1
    assert "k1" in problems[0]
    assert "missing" in problems[0]
    ring(house, NEW).retire("k1")
    assert ring(house, NEW).check() == []


@pytest.mark.parametrize("damage", [b"", b"\x00", b"\x01\x02k1", b"\x01\x02k1" + bytes(80)])
def test_a_damaged_canary_is_a_problem_and_not_a_crash(house: House, damage: bytes) -> None:
    ring(house, OLD).check()
    house.run(sa.update(KeyCanary).values(sealed=damage))
    assert len(ring(house, OLD).check()) == 1


def test_a_canary_moved_to_another_name_does_not_open(house: House) -> None:
    ring(house, OLD).check()
    ring(house, NEW, OLD).check()
    moved = house.value(sa.select(KeyCanary.sealed).where(KeyCanary.kid == "k1"))
    house.run(sa.update(KeyCanary).where(KeyCanary.kid == "k2").values(sealed=moved))
    problems = ring(house, OLD, NEW).check()
    assert len(problems) == 1
    assert "k2" in problems[0]


def test_no_sentence_shows_a_key(house: House) -> None:
    ring(house, OLD).check()
    told = " ".join(ring(house, EncryptionKey("k1", bytes(32)), NEW).check())
    assert OLD.key.hex() not in told
    assert NEW.key.hex() not in told


def test_a_key_that_sealed_a_webhook_secret_is_in_use(house: House) -> None:
    old, new = Vault([OLD]), Vault([NEW, OLD])
    endpoint = house.insert(
        WebhookEndpoint, public_id="whe_1", url="https://hooks.example/", description="", created_by="key_1",
        created_at=house.clock.now(), updated_at=house.clock.now(),
    )  # fmt: skip
    both = KeyRing(house.database, new, house.clock)
    assert both.sample().unused == ("k1",)
    sealed = old.seal(b"whsec_", secret_binding("whe_1", 1))
    house.insert(WebhookSecret, endpoint_id=endpoint, number=1, sealed=sealed, created_at=house.clock.now())
    assert both.sample().unused == ()
    house.run(sa.update(WebhookEndpoint).values(public_id="whe_2"))
    assert both.sample().unreadable == ("whe_2",)
