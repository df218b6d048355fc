"""A dictionary that forgets its oldest entries, so that a long soak run does not eat the machine."""

from __future__ import annotations

from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class Bounded(dict[Key, Value]):
    """A dict that keeps at most `LIMIT` entries: setting a new one drops the one set first."""

    LIMIT = 200_000

    def __setitem__(self, key: Key, value: Value) -> None:
        """Set one, and drop the oldest if that is one too many."""
        super().__setitem__(key, value)
        if len(self) > self.LIMIT:
            del self[next(iter(self))]
