"""A value that prints as dots until somebody asks for it by name."""

from __future__ import annotations

import hashlib
import hmac
import secrets

MASK = "•••"


class Secret:
    """A secret string that no log line, traceback, template or JSON encoder can show by accident.

    Call `reveal()` at the one place that needs the value. Equality is constant-time.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(("Secret", self._value))

    def __repr__(self) -> str:
        return f"Secret({MASK!r})"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK

    def __reduce__(self) -> tuple[object, ...]:
        # Pickles travel through caches and queues in the clear: refuse to make one.
        raise TypeError("a Secret cannot be pickled")


def random_token(bits: int = 256) -> str:
    """Return an unguessable URL-safe token with `bits` random bits."""
    return secrets.token_urlsafe(bits // 8)


def digest(value: str) -> str:
    """Return the SHA-256 of a high-entropy token as hex: what the database keeps instead of it."""
    return hashlib.sha256(value.encode()).hexdigest()
