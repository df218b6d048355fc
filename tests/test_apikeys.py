"""API keys: shown once, hashed, scoped, revocable at once."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from broker.apikeys import ApiKeyInvalid, ApiKeys, ApiKeyUnknown, Scope, ScopeMissing, Unauthenticated
from broker.models import ApiKey
from broker.secret import digest
from tests.house import START, House, open_house


@pytest.fixture
def house(database_url: str) -> Iterator[House]:
    with open_house(database_url) as opened:
        yield opened


@pytest.fixture
def keys(house: House) -> ApiKeys:
    return ApiKeys(house.database, house.clock)


def test_a_key_is_recognisable_and_kept_as_a_digest(house: House, keys: ApiKeys) -> None:
    public_id, key = keys.create("prod-1")
    assert re.fullmatch(r"brk_[A-Za-z0-9_-]{43}", key.reveal())
    assert key.reveal() not in repr(key)
    with house.database.read() as connection:
        row = connection.execute(sa.select(ApiKey)).one()
    assert row.key_hash == digest(key.reveal())
    assert key.reveal() not in str(row)
    assert house.audited() == [("cli", "cli", "api_key.created", public_id)]


def test_a_key_has_every_scope_unless_told_otherwise(keys: ApiKeys) -> None:
    _, full = keys.create("full")
    _, narrow = keys.create("narrow", [Scope.APPS_READ, "apps:read"])
    assert keys.authenticate(f"Bearer {full.reveal()}").scopes == {scope.value for scope in Scope}
    caller = keys.authenticate(f"Bearer {narrow.reveal()}")
    assert caller.scopes == {"apps:read"}
    caller.require(Scope.APPS_READ)
    with pytest.raises(ScopeMissing):
        caller.require(Scope.LINKS_WRITE)


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("", None), ("  ", None), ("x" * 101, None), ("a\x00", None), ("\ud800", None), ("a\nb", None), ("ok", []),
     ("ok", ["everything"])],
)  # fmt: skip
def test_an_unusable_key_is_refused(name: str, scopes: list[str] | None) -> None:
    with open_house("sqlite://") as house, pytest.raises(ApiKeyInvalid):
        ApiKeys(house.database, house.clock).create(name, scopes)


def test_only_the_exact_key_is_let_in(keys: ApiKeys) -> None:
    public_id, key = keys.create("prod")
    good = key.reveal()
    assert keys.authenticate(f"bearer  {good} ").id == public_id
    altered = good[:-1] + ("a" if good[-1] != "a" else "b")
    refused = [
        None, "", good, "Bearer", "Bearer ", f"Basic {good}", f"Bearer {altered}", f"Bearer {good}x",
        f"Bearer {good}, Bearer {good}", f"Bearer {good[:-1]}", "Bearer brk_", "Bearer \ud800", f"Bearer\x00{good}",
        f"Bearer {good} x", f"Bearer {digest(good)}", f"Bearer {good.upper()}", "Bearer " + "x" * 100_000,
    ]  # fmt: skip
    for header in refused:
        with pytest.raises(Unauthenticated):
            keys.authenticate(header)


def test_a_revoked_key_fails_its_next_call(house: House, keys: ApiKeys) -> None:
    public_id, key = keys.create("prod")
    keys.authenticate(f"Bearer {key.reveal()}")
    keys.revoke(public_id)
    keys.revoke(public_id)
    with pytest.raises(Unauthenticated):
        keys.authenticate(f"Bearer {key.reveal()}")
    assert [entry[2] for entry in house.audited()] == ["api_key.created", "api_key.revoked"]


@pytest.mark.parametrize("public_id", ["key_none", "", "a\x00", "\ud800"])
def test_an_unknown_key_cannot_be_revoked(keys: ApiKeys, public_id: str) -> None:
    with pytest.raises(ApiKeyUnknown):
        keys.revoke(public_id)


def test_last_use_is_written_at_most_once_a_minute(house: House, keys: ApiKeys) -> None:
    _, key = keys.create("prod")
    assert keys.list()[0].last_used_at is None
    seen = []
    for seconds in (0, 59, 1):
        house.clock.advance(seconds)
        keys.authenticate(f"Bearer {key.reveal()}")
        seen.append(keys.list()[0].last_used_at)
    assert seen == [START, START, house.clock.now()]


def test_lists_show_keys_without_the_key(keys: ApiKeys) -> None:
    _, key = keys.create("first")
    keys.create("second", ["links:read"])
    assert [view.name for view in keys.list()] == ["first", "second"]
    assert keys.list()[1].scopes == ("links:read",)
    assert key.reveal() not in repr(keys.list())
