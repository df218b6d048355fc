"""Refresh tokens that are rotated, and one that is used again: what a client must never do."""

from __future__ import annotations

from typing import Any

import pytest

from broker.clock import ManualClock
from tests.sandbox.visitor import Visitor, json_of


def state(visitor: Visitor) -> dict[str, list[dict[str, Any]]]:
    return dict(visitor.client.get("/control/state").get_json())


def refreshed(visitor: Visitor, provider: str, token: str) -> dict[str, Any]:
    if provider == "github":
        return json_of(visitor.github_token(grant_type="refresh_token", refresh_token=token))
    return json_of(visitor.stripe_apps_token(grant_type="refresh_token", refresh_token=token))


def granted(visitor: Visitor, provider: str) -> dict[str, Any]:
    return visitor.github_user() if provider == "github" else visitor.stripe_installed()


def works(visitor: Visitor, provider: str, token: str) -> bool:
    path = "/github/api/user" if provider == "github" else "/stripe/v1/account"
    return visitor.client.get(path, headers={"Authorization": f"Bearer {token}"}).status_code == 200


pytestmark = pytest.mark.parametrize("provider", ["stripe", "github"])


def test_a_rotated_token_is_refused_and_written_down(visitor: Visitor, provider: str) -> None:
    first = granted(visitor, provider)
    second = refreshed(visitor, provider, first["refresh_token"])
    assert second["refresh_token"] != first["refresh_token"]

    again = refreshed(visitor, provider, first["refresh_token"])

    assert again["error"] in ("invalid_grant", "bad_refresh_token")
    [reuse] = state(visitor)["reuses"]
    assert (reuse["provider"], reuse["refresh_token"], reuse["burned"]) == (provider, first["refresh_token"], False)
    [family] = state(visitor)["families"]
    assert (family["refreshes"], family["reuses"], family["burned"]) == (1, 1, False)
    assert works(visitor, provider, second["access_token"])


def test_a_reuse_ends_the_family_where_told(visitor: Visitor, provider: str) -> None:
    visitor.control("tokens", revoke_family=True)
    first = granted(visitor, provider)
    second = refreshed(visitor, provider, first["refresh_token"])
    third = refreshed(visitor, provider, second["refresh_token"])
    other = (
        visitor.stripe_installed("acct_1GlobexPottery000") if provider == "stripe" else visitor.github_user("solo-sam")
    )

    refreshed(visitor, provider, first["refresh_token"])

    assert not works(visitor, provider, third["access_token"])
    assert refreshed(visitor, provider, third["refresh_token"])["error"] in ("invalid_grant", "bad_refresh_token")
    assert works(visitor, provider, other["access_token"])
    assert [family["burned"] for family in state(visitor)["families"]] == [True]
    assert [reuse["burned"] for reuse in state(visitor)["reuses"]] == [True]


def test_an_unknown_token_is_no_reuse(visitor: Visitor, provider: str) -> None:
    refreshed(visitor, provider, "never-issued")
    assert state(visitor)["reuses"] == []


def test_tokens_live_as_long_as_told(visitor: Visitor, clock: ManualClock, provider: str) -> None:
    assert visitor.control("tokens", lifetime=2).get_json() == {"lifetime": 2.0, "revoke_family": False}
    first = granted(visitor, provider)
    clock.advance(1)
    assert works(visitor, provider, first["access_token"])
    clock.advance(1)
    assert not works(visitor, provider, first["access_token"])
    visitor.control("tokens", lifetime=None)
    second = refreshed(visitor, provider, first["refresh_token"])
    clock.advance(3000)
    assert works(visitor, provider, second["access_token"])


@pytest.mark.parametrize(
    "body", [{"lifetime": 0}, {"lifetime": "2"}, {"lifetime": True}, {"revoke_family": 1}, {"seconds": 2}]
)
def test_nonsense_is_refused_with_a_sentence(visitor: Visitor, provider: str, body: dict[str, object]) -> None:
    answer = visitor.control("tokens", **body)
    assert answer.status_code == 400
    assert str(json_of(answer)["error"]).endswith(".")


def test_a_reset_brings_back_the_providers_own_rules(visitor: Visitor, provider: str) -> None:
    visitor.control("tokens", lifetime=2, revoke_family=True)
    visitor.control("reset")
    assert visitor.control("tokens").get_json() == {"lifetime": None, "revoke_family": False}
