"""The benchmarks' framework, and what they call a failure. The benchmarks themselves run with `make bench`."""

from __future__ import annotations

import base64
import os
from typing import Any

import sqlalchemy as sa

from benchmarks.framework import Report, cpu_seconds, discover, table
from benchmarks.key_rotation import problems
from broker.attach import grant_binding
from broker.models import ConnectedAccount
from broker.oauth import Grant
from broker.secret import Secret
from broker.settings import EncryptionKey
from broker.vault import Vault
from tests.house import House, open_house

OLD, NEW = EncryptionKey("old", bytes(range(32))), EncryptionKey("new", bytes(range(32, 64)))


def test_a_benchmark_is_found_because_its_module_is_there() -> None:
    found = discover()

    assert "import-backlog" in found
    assert all(benchmark.size > 0 and benchmark.title and benchmark.unit for benchmark in found.values())


def test_a_table_has_words_to_the_left_and_figures_to_the_right() -> None:
    report = Report(("by", "each", "×"), [("a script", 2.345, 1.0), ("us", 12.0, None)], ("× is a ratio.",))

    assert table(report).splitlines() == [
        "by        each    ×",
        "--------  ----  ---",
        "a script   2.3  1.0",
        "us        12.0    –",
        "",
        "× is a ratio.",
    ]


def test_cpu_time_is_read_where_the_system_tells_it() -> None:
    used = cpu_seconds(os.getpid())

    assert used is None or used > 0
    assert cpu_seconds(2**22 + 1) is None


def rotated(house: House, *, key: EncryptionKey = NEW, refresh_token: str = "rt_1", **values: object) -> str:
    """Add a connection that was refreshed once, and return its reference."""
    ref = house.connection(house.end_user("jo"), account_id="acct_1", token_version=2, **values)
    grant = Grant(
        access_token=Secret("sk_1"), refresh_token=Secret(refresh_token), token_type="bearer", scopes=(),
        expires_at=None, refresh_expires_at=None, extra={},
    )  # fmt: skip
    sealed = Vault([key]).seal(grant.to_json(), grant_binding(ref, 2))
    house.run(sa.update(ConnectedAccount).values(grant_sealed=sealed))
    return ref


def found(house: House, family: dict[str, Any]) -> list[str]:
    ring = f"new:{base64.b64encode(NEW.key).decode()}"
    with house.database.read() as connection:
        return problems(connection, [{"account": "acct_1", "reuses": 0, "refresh_token": "rt_1"} | family], ring)


def test_a_rotation_that_went_well_has_no_problem(database_url: str) -> None:
    with open_house(database_url) as house:
        rotated(house)

        assert found(house, {}) == []


def test_what_a_rotation_left_under_the_old_key_is_named(database_url: str) -> None:
    with open_house(database_url) as house:
        ref = rotated(house, key=OLD)

        assert found(house, {})[0] == f"the new key does not open connections.grant of {ref}"


def test_an_older_token_that_was_put_back_is_named(database_url: str) -> None:
    with open_house(database_url) as house:
        ref = rotated(house, refresh_token="rt_0")

        assert found(house, {"reuses": 1}) == [
            "a refresh token of acct_1 was spent twice",
            f"{ref} has another refresh token than the provider",
        ]


def test_a_refresh_that_nothing_is_left_of_is_named(database_url: str) -> None:
    with open_house(database_url) as house:
        assert found(house, {}) == ["the refreshed token of acct_1 was lost"]
