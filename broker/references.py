"""The short references people quote and machines rely on."""

from __future__ import annotations

import secrets

# Crockford's alphabet: no I, L, O or U, so that a reference survives being read out.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_ref() -> str:
    """Return a reference such as `7F3K-92QD-M4TX`, 60 random bits."""
    letters = _letters(12)
    return "-".join(letters[i : i + 4] for i in (0, 4, 8))


def new_id(prefix: str) -> str:
    """Return a public id such as `lnk_7f3k92qdm4tx0abc`, 80 random bits."""
    return f"{prefix}_{_letters(16).lower()}"


def _letters(count: int) -> str:
    # The system is asked once: choosing one by one would ask it for each letter.
    bits = secrets.randbits(5 * count)
    return "".join(ALPHABET[bits >> shift & 31] for shift in range(0, 5 * count, 5))
