"""How long tokens live, and what a rotated refresh token does that is used again: one place for every stand-in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from broker.clock import Clock
from broker.sandbox.bounded import Bounded
from broker.sandbox.faults import Unscripted

SHORTEST, LONGEST = 0.1, 366 * 24 * 3600.0


@dataclass(frozen=True)
class TokenRules:
    """`lifetime` is how many seconds an access token lives, None for as long as at the provider.

    With `revoke_family` a rotated refresh token that comes again ends every token that came of the same consent.
    """

    lifetime: float | None = None
    revoke_family: bool = False

    def life(self, usual: timedelta) -> timedelta:
        """Return how long an access token issued now lives."""
        return usual if self.lifetime is None else timedelta(seconds=self.lifetime)


@dataclass
class Family:
    """The refresh tokens that replaced one another; only `current` is good. The first one has no family yet."""

    provider: str
    account: str
    current: str
    refreshes: int = 0
    reuses: int = 0
    # Whether a reuse has ended it.
    burned: bool = False


@dataclass(frozen=True)
class Reuse:
    """A rotated refresh token that came again."""

    at: datetime
    family: Family
    token: str
    burned: bool


@dataclass
class Rotations:
    """Remembers rotated refresh tokens, so that using one again is noticed. Its caller holds the world's lock."""

    clock: Clock
    rules: TokenRules = field(default_factory=TokenRules)
    reuses: list[Reuse] = field(default_factory=list)
    _families: Bounded[str, Family] = field(default_factory=Bounded)

    def rotated(self, provider: str, account: str, old: str, new: str) -> None:
        """Note that a refresh token was replaced by another."""
        family = self._families.get(old) or Family(provider, account, old)
        family.current = new
        family.refreshes += 1
        self._families[old] = self._families[new] = family

    def spent_again(self, token: str) -> str | None:
        """Note a refused refresh token; return the family's current one if it is to be ended for this."""
        family = self._families.get(token)
        if family is None or family.current == token:
            return None
        family.reuses += 1
        burns = self.rules.revoke_family and not family.burned
        family.burned = family.burned or burns
        self.reuses.append(Reuse(self.clock.now(), family, token, burns))
        return family.current if burns else None

    def families(self) -> list[Family]:
        """Return every family, oldest first."""
        return list({id(family): family for family in self._families.values()}.values())


def parse_rules(current: TokenRules, asked: Mapping[str, object]) -> TokenRules:
    """Read a control request; what it leaves out stays. Raises Unscripted."""
    unknown = sorted(set(asked) - {"lifetime", "revoke_family"})
    if unknown:
        raise Unscripted(f"Unknown member {unknown[0]!r}; token rules have lifetime and revoke_family.")
    lifetime, revoke = asked.get("lifetime", current.lifetime), asked.get("revoke_family", current.revoke_family)
    if lifetime is not None and not _is_seconds(lifetime):
        raise Unscripted(f"'lifetime' is {lifetime!r} but must be null or seconds, at least {SHORTEST}.")
    if not isinstance(revoke, bool):
        raise Unscripted("'revoke_family' must be true or false.")
    return TokenRules(float(str(lifetime)) if lifetime is not None else None, revoke)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and SHORTEST <= value <= LONGEST
