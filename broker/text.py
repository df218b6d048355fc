"""Text that both databases can keep, and text that pages translate."""

from __future__ import annotations

import re


def storable(text: str) -> bool:
    """Tell whether `text` can be stored and compared: PostgreSQL takes no NUL, and nothing encodes a lone surrogate."""
    return "\x00" not in text and not any("\ud800" <= character <= "\udfff" for character in text)


# What a browser or a terminal does not show as one plain line: control characters, other spaces than the usual one,
# and characters that are invisible or turn the direction of what follows. Written so that Python and JavaScript
# (JSON Schema) read it alike.
_HIDDEN = (
    r"\x00-\x1f\x7f-\xa0\xad\u061c\u1680\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ue000-\uf8ff\ufeff"
    r"\ufff0-\ufffb\ufffe\uffff"
)
ONE_LINE = rf"^[^{_HIDDEN}]+$"
"""A pattern: one line of plain text."""
MAYBE_ONE_LINE = rf"^[^{_HIDDEN}]*$"
"""A pattern: one line of plain text, or nothing."""
VISIBLE_LINE = rf"^[^{_HIDDEN}]*[^ {_HIDDEN}][^{_HIDDEN}]*$"
"""A pattern: one line of plain text, not only spaces."""
ONE_LINE_WITH_AT = rf"^[^{_HIDDEN}]*@[^{_HIDDEN}]*$"
"""A pattern: one line of plain text with an @."""

_ONE_LINE = re.compile(ONE_LINE)


def one_line(text: str) -> bool:
    """Tell whether `text` is one line of plain text that both databases can keep; the empty text is not."""
    return storable(text) and _ONE_LINE.fullmatch(text) is not None


def translatable(text: str) -> str:
    """Return a sentence as it is, marked for the catalogues: pages translate it where they show it."""
    return text
