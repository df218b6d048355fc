"""Text that both databases can keep."""

from __future__ import annotations


def storable(text: str) -> bool:
    """Tell whether `text` can be stored and compared: PostgreSQL takes no NUL, and nothing encodes a lone surrogate."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)
