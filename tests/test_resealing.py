"""Key rotation: everything is sealed again with the first key while all goes on, and nothing newer is overwritten."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.attach import grant_binding
from broker.audit import COMMAND_LINE
from broker.db import Base
from broker.idempotency import answer_binding
from broker.journal import code_binding, flow_binding, hop_binding
from broker.keyring import KeyRing, WrongKey
from broker.models import (
    ConnectedAccount,
    Flow,
    FlowState,
    Hop,
    HopKind,
    IdempotentCall,
    KeyCanary,
    Link,
    PendingSignIn,
    WebhookEndpoint,
    WebhookSecret,
)
from broker.notifications import secret_binding
from broker.resealing import SEALED, KeyInUse, Resealing
from broker.settings import EncryptionKey
from broker.sign_ins import pending_binding
from broker.vault import Binding, Vault, key_id
from tests.house import House, open_house

OLD, NEW = EncryptionKey("old", bytes(range(32))), EncryptionKey("new", bytes(range(32, 64)))
LOST = EncryptionKey("lost", bytes(range(64, 96)))
BEFORE, AFTER = Vault([OLD]), Vault([NEW, OLD])


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


def resealing(house: House, vault: Vault = AFTER) -> Resealing:
    return Resealing(house.database, vault, house.clock, KeyRing(house.database, vault, house.clock))


def connection(house: House, *, vault: Vault = BEFORE, version: int = 1) -> str:
    """Add a connection whose grant is sealed."""
    ref = house.connection(house.end_user(f"user-{next(house.numbers)}"), token_version=version)
    keep(house, ref, vault.seal(f"grant of {ref}".encode(), grant_binding(ref, version)))
    return ref


def keep(house: House, ref: str, sealed: bytes) -> None:
    house.run(sa.update(ConnectedAccount).where(ConnectedAccount.ref == ref).values(grant_sealed=sealed))


def kept(house: House, ref: str) -> bytes:
    return bytes(house.value(sa.select(ConnectedAccount.grant_sealed).where(ConnectedAccount.ref == ref)))


def opened(house: House, ref: str, *, version: int = 1, vault: Vault = AFTER) -> str:
    return vault.open(kept(house, ref), grant_binding(ref, version)).decode()


def test_every_sealed_column_is_among_those_sealed_again() -> None:
    binary = {
        f"{table.name}.{column.name}"
        for table in Base.metadata.tables.values()
        for column in table.columns
        if isinstance(column.type, sa.LargeBinary)
    }
    assert {sealed.name for sealed in SEALED} == binary - {f"{KeyCanary.__tablename__}.sealed"}


def test_what_an_older_key_sealed_opens_with_the_first_key_alone_afterwards(house: House) -> None:
    refs = [connection(house, version=number) for number in range(1, 6)]
    done = resealing(house).rotate(actor=COMMAND_LINE)
    assert done.counts["connections.grant_sealed"] == 5
    for version, ref in enumerate(refs, 1):
        assert opened(house, ref, version=version, vault=Vault([NEW])) == f"grant of {ref}"


def test_every_kind_of_sealed_value_is_sealed_again(house: House) -> None:
    connection(house)
    fill_the_others(house)
    done = resealing(house).rotate(actor=COMMAND_LINE)
    assert done.counts == dict.fromkeys((sealed.name for sealed in SEALED), 1)
    for column, binding in (
        (Flow.code_sealed, code_binding("f")),
        (Flow.grant_sealed, flow_binding("f")),
        (Hop.verifier_sealed, hop_binding("state")),
        (WebhookSecret.sealed, secret_binding("whe_1", 1)),
        (IdempotentCall.answer_sealed, answer_binding("call")),
        (PendingSignIn.sealed, pending_binding("left")),
    ):
        assert Vault([NEW]).open(house.value(sa.select(column)), binding) == b"hidden"


def fill_the_others(house: House) -> None:
    """Add one sealed value to each of the other columns."""
    now = house.clock.now()
    link = house.insert(
        Link, public_id="l", token_hash="h", end_user_id=house.end_user("jo"), host_metadata={}, created_by="cli",
        created_at=now, expires_at=now,
    )  # fmt: skip
    flow = house.flow(
        link, "b", ref="f", state=FlowState.REDEEMING, code_sealed=hidden(code_binding("f")),
        grant_sealed=hidden(flow_binding("f")),
    )  # fmt: skip
    house.insert(
        Hop, flow_id=flow, kind=HopKind.AUTHORIZE, state_hash="state", created_at=now, expires_at=now,
        verifier_sealed=hidden(hop_binding("state")),
    )  # fmt: skip
    endpoint = house.insert(
        WebhookEndpoint, public_id="whe_1", url="https://host.example/hook", description="", created_by="cli",
        created_at=now, updated_at=now,
    )  # fmt: skip
    house.insert(
        WebhookSecret, endpoint_id=endpoint, number=1, created_at=now, sealed=hidden(secret_binding("whe_1", 1)),
    )  # fmt: skip
    house.run(
        sa.insert(IdempotentCall).values(
            key_hash="call", request_hash="r", claim="c", claimed_at=now, expires_at=now,
            answer_sealed=hidden(answer_binding("call")),
        )
    )  # fmt: skip
    house.run(
        sa.insert(PendingSignIn).values(
            state_hash="left", door="people", browser_hash="b", expires_at=now, sealed=hidden(pending_binding("left"))
        )
    )


def hidden(binding: Binding) -> bytes:
    return BEFORE.seal(b"hidden", binding)


def test_running_it_again_finds_nothing_left_to_do(house: House) -> None:
    ref = connection(house)
    resealing(house).rotate(actor=COMMAND_LINE)
    before = kept(house, ref)
    assert sum(resealing(house).rotate(actor=COMMAND_LINE).counts.values()) == 0
    assert kept(house, ref) == before


def test_a_run_that_was_cut_off_is_taken_up_by_the_next(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.resealing.AT_ONCE", 2)
    refs = [connection(house) for _ in range(5)]

    def cut_off(_name: str, count: int) -> None:
        if count >= 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resealing(house).rotate(actor=COMMAND_LINE, progress=cut_off)
    assert sum(key_id(kept(house, ref)) == "new" for ref in refs) == 2
    assert resealing(house).rotate(actor=COMMAND_LINE).counts["connections.grant_sealed"] == 3


class Busy(Vault):
    """While it seals, somebody else puts a newer grant into the row."""

    def __init__(self, house: House, ref: str) -> None:
        super().__init__([NEW, OLD])
        self.meanwhile = (house, ref)

    def seal(self, plaintext: bytes, binding: Binding, *, kid: str | None = None) -> bytes:
        house, ref = self.meanwhile
        if plaintext == f"grant of {ref}".encode():
            house.run(sa.update(ConnectedAccount).where(ConnectedAccount.ref == ref).values(token_version=2))
            keep(house, ref, super().seal(b"refreshed", grant_binding(ref, 2)))
        return super().seal(plaintext, binding, kid=kid)


def test_a_refresh_at_the_same_moment_is_never_overwritten(house: House) -> None:
    before, ref, after = (connection(house) for _ in range(3))
    done = resealing(house, Busy(house, ref)).rotate(actor=COMMAND_LINE)
    assert done.counts["connections.grant_sealed"] == 2
    assert opened(house, ref, version=2) == "refreshed"
    assert [opened(house, one, vault=Vault([NEW])) for one in (before, after)] == [
        f"grant of {before}",
        f"grant of {after}",
    ]


def test_nothing_is_sealed_with_another_key_of_the_name_that_processes_know(house: House) -> None:
    ref = connection(house)
    KeyRing(house.database, AFTER, house.clock).check()
    before = kept(house, ref)
    with pytest.raises(WrongKey, match="new"):
        resealing(house, Vault([EncryptionKey("new", LOST.key), OLD])).rotate(actor=COMMAND_LINE)
    assert kept(house, ref) == before


def test_no_process_starts_with_another_key_of_the_name_that_everything_was_sealed_with(house: House) -> None:
    connection(house)
    resealing(house).rotate(actor=COMMAND_LINE)
    other = Vault([EncryptionKey("new", LOST.key), OLD])
    assert len(KeyRing(house.database, other, house.clock).check()) == 1


def test_what_no_key_opens_is_named_left_alone_and_healed_by_putting_the_key_back(house: House) -> None:
    lost, well = connection(house, vault=Vault([LOST])), connection(house)
    before = kept(house, lost)
    done = resealing(house).rotate(actor=COMMAND_LINE)
    assert (done.unreadable_count, done.counts["connections.grant_sealed"]) == (1, 1)
    assert lost in done.unreadable[0]
    assert kept(house, lost) == before
    assert opened(house, well, vault=Vault([NEW])) == f"grant of {well}"

    with_lost = Vault([NEW, LOST])
    assert resealing(house, with_lost).rotate(actor=COMMAND_LINE).unreadable_count == 0
    assert opened(house, lost, vault=Vault([NEW])) == f"grant of {lost}"


def test_a_key_is_retired_only_when_nothing_is_sealed_with_it(house: House) -> None:
    connection(house)
    KeyRing(house.database, BEFORE, house.clock).check()
    KeyRing(house.database, AFTER, house.clock).check()
    with pytest.raises(KeyInUse, match="1 in connections"):
        resealing(house).retire("old", actor=COMMAND_LINE)
    with pytest.raises(KeyInUse, match="first"):
        resealing(house).retire("new", actor=COMMAND_LINE)

    resealing(house).rotate(actor=COMMAND_LINE)
    resealing(house).retire("old", actor=COMMAND_LINE)

    assert KeyRing(house.database, Vault([NEW]), house.clock).check() == []


def test_a_key_that_is_lost_for_good_is_given_up_and_still_heals_if_it_turns_up(house: House) -> None:
    ref = connection(house)
    KeyRing(house.database, BEFORE, house.clock).check()
    without = KeyRing(house.database, Vault([NEW]), house.clock)
    assert len(without.check()) == 1, "nothing starts while a key is missed"

    assert resealing(house, Vault([NEW])).retire("old", actor=COMMAND_LINE, lost=True) == 1
    assert without.check() == []
    assert without.sample().unreadable == (ref,)

    assert KeyRing(house.database, AFTER, house.clock).check() == []
    assert opened(house, ref) == f"grant of {ref}"


def test_a_key_that_is_there_is_not_given_up_as_lost(house: House) -> None:
    connection(house)
    with pytest.raises(KeyInUse, match="not lost"):
        resealing(house).retire("old", actor=COMMAND_LINE, lost=True)


def test_a_key_whose_name_begins_like_another_is_not_taken_for_it(house: House) -> None:
    connection(house, vault=Vault([EncryptionKey("old2", bytes(range(96, 128)))]))
    assert sum(resealing(house).sealed_with("old").values()) == 0
    assert sum(resealing(house).sealed_with("old2").values()) == 1


def test_changes_of_keys_are_audited(house: House) -> None:
    connection(house)
    resealing(house).rotate(actor=COMMAND_LINE)
    resealing(house).retire("old", actor=COMMAND_LINE)
    assert [(action, target) for _, _, action, target in house.audited()] == [
        ("keys.rotated", "new"),
        ("keys.retired", "old"),
    ]
