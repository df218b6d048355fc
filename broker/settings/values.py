"""How the text of each kind of setting becomes a value, or a complaint that does not quote it."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from broker.clock import SystemClock
from broker.secret import MASK, Secret
from broker.settings.report import Report, Wrong

Parse = Callable[[str, Report], Any]
"""Turns the text of a setting into its value; raises `Wrong`."""

KEY_BYTES = 32
SHORTEST_SECRET_KEY = 32
LOWEST_CONTRAST = 4.5  # WCAG 2.2, success criterion 1.4.3
NEW_SECRET_KEY = "run `python -c 'import secrets; print(secrets.token_urlsafe(48))'` and put its output there"  # noqa: S105
NEW_ENCRYPTION_KEY = "run `broker keys generate` and put its output there"

_KID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})
_PLACEHOLDERS = ("changeme", "replaceme", "placeholder", "insecure", "example")
_EXAMPLE_SECRETS = frozenset({"secret", "secretkey", "dev", "development", "password", "test", "key", "yoursecretkey"})


@dataclass(frozen=True, repr=False)
class EncryptionKey:
    """One key of the ring: `kid` names it in every ciphertext, `key` is 32 bytes."""

    kid: str
    key: bytes

    def __repr__(self) -> str:
        """Show which key it is, never the key."""
        return f"EncryptionKey(kid={self.kid!r}, key={MASK!r})"


def generate_key(kid: str | None = None) -> str:
    """Return a fresh `kid:base64` for BROKER_ENCRYPTION_KEYS; the kid is today's date unless given.

    Raises:
        ValueError: the kid is not 1 to 32 letters, digits, - or _.
    """
    kid = kid if kid is not None else f"k{SystemClock().now():%Y%m%d}"
    if not _KID.fullmatch(kid):
        raise ValueError("the name of a key is 1 to 32 letters, digits, - or _")
    return f"{kid}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


# --- plain kinds --------------------------------------------------------------------------------------


def whole(low: int, high: int) -> Parse:
    """Return a parser for whole numbers from `low` to `high`."""

    def parse(text: str, _report: Report) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise Wrong(f"is not a whole number from {low} to {high}")
        return int(text)

    return parse


def choice(*names: str) -> Parse:
    """Return a parser for one of `names`, in any case."""

    def parse(text: str, _report: Report) -> str:
        for name in names:
            if text.lower() == name.lower():
                return name
        raise Wrong(f"is not one of {', '.join(names)}")

    return parse


def boolean(text: str, _report: Report) -> bool:
    """Parse a yes or no."""
    if text.lower() not in _TRUE | _FALSE:
        raise Wrong("is neither true nor false")
    return text.lower() in _TRUE


def switched_on(text: str) -> bool:
    """Tell whether a foreign switch such as DEBUG is on: anything that does not say no."""
    return bool(text.strip()) and text.strip().lower() not in _FALSE


def limits_enabled(text: str, report: Report) -> bool:
    """Parse BROKER_LIMITS, which production does not let anybody switch off."""
    enabled = bool(boolean(text, report))
    if not enabled and report.production:
        raise Wrong("is off, which production refuses", "remove it, or change single limits under [limits]")
    if not enabled:
        report.warn("BROKER_LIMITS is off: nothing slows down a flood of requests.")
    return enabled


def line(longest: int) -> Parse:
    """Return a parser for one line of text for people."""

    def parse(text: str, _report: Report) -> str:
        if len(text) > longest or not text.isprintable():
            raise Wrong(f"is not one line of at most {longest} characters")
        return text

    return parse


def identifier(text: str, _report: Report) -> str:
    """Parse an identifier that a provider or Sequin issued."""
    return _compact(text)


def claim(text: str, _report: Report) -> str:
    """Parse the name of a claim of an ID token."""
    return _compact(text)


def claim_values(text: str, _report: Report) -> tuple[str, ...]:
    """Parse one value of a claim. It may hold commas and spaces: a list says where the next begins."""
    if len(text) > 300 or not text.isprintable():
        raise Wrong("is not one line of at most 300 characters")
    return (text,)


def scopes(text: str, report: Report) -> tuple[str, ...]:
    """Parse scopes separated by commas or spaces."""
    return tuple(dict.fromkeys(scope(part, report) for part in re.split(r"[,\s]+", text) if part))


def scope(text: str, _report: Report) -> str:
    """Parse one scope (RFC 6749 section 3.3)."""
    if not re.fullmatch(r"[\x21\x23-\x5b\x5d-\x7e]+", text):
        raise Wrong("holds a character that no scope has")
    return text


def token(text: str, _report: Report) -> Secret:
    """Parse a secret that somebody else issued and that travels in headers and forms."""
    return Secret(_compact(text))


def _compact(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise Wrong("holds a space, a line break or a letter outside ASCII", "copy it again, without what surrounds it")
    return text


def expanded(text: str) -> Path:
    """Return a path whose ~ is replaced.

    Raises:
        Wrong: nobody knows that home directory.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise Wrong("begins with a home directory that does not exist", "write the whole path") from None


def directory(text: str, _report: Report) -> Path:
    """Parse a directory, which need not exist yet; relative ones start at the working directory."""
    if "\0" in text or "?" in text:  # a ? would end the path inside sqlite's address
        raise Wrong("holds a character that a directory cannot have here")
    return expanded(text).absolute()


def path(text: str, _report: Report) -> Path:
    """Parse the path of a file."""
    if not text.isprintable():
        raise Wrong("is not the path of a file")
    return expanded(text)


def email(text: str, _report: Report) -> str:
    """Parse an e-mail address, as far as a mailto: link needs it."""
    if not re.fullmatch(r"[A-Za-z0-9._%+'-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+", text):
        raise Wrong("is not an e-mail address")
    return text


def color(text: str, _report: Report) -> str:
    """Parse a colour that white text can be read on; returned as #rrggbb."""
    if not re.fullmatch(r"#(?:[0-9A-Fa-f]{3}){1,2}", text):
        raise Wrong("is not a colour")
    digits = text[1:].lower() if len(text) == 7 else "".join(digit * 2 for digit in text[1:].lower())
    ratio = contrast_with_white(digits)
    if ratio < LOWEST_CONTRAST:
        shown = int(ratio * 100) / 100  # cut, not rounded: 4.499 must not read 4.50
        raise Wrong(f"gives white text a contrast of {shown:.2f}:1 where people need {LOWEST_CONTRAST}:1", "darken it")
    return f"#{digits}"


def contrast_with_white(digits: str) -> float:
    """Return the contrast ratio (WCAG 2.2) of white text on the colour `rrggbb`."""
    channels = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 1.05 / (luminance + 0.05)


# --- secrets of our own -------------------------------------------------------------------------------


def secret_key(text: str, report: Report) -> Secret:
    """Parse the key that signs cookies; development takes a weak one with a warning."""
    complaint = ""
    if _is_example(text):
        complaint = "is an example, not a secret"
    elif len(text) < SHORTEST_SECRET_KEY:
        complaint = f"is shorter than {SHORTEST_SECRET_KEY} characters"
    if complaint and report.production:
        raise Wrong(complaint, NEW_SECRET_KEY)
    if complaint:
        report.warn(f"BROKER_SECRET_KEY {complaint}: production refuses it.")
    return Secret(text)


def _is_example(text: str) -> bool:
    letters = re.sub(r"[^a-z0-9]", "", text.lower())
    repeats = len(text) > 1 and (text + text).find(text, 1) < len(text)
    return (
        repeats or letters in _EXAMPLE_SECRETS or any(word in letters for word in _PLACEHOLDERS) or len(set(text)) < 6
    )


def key_ring(text: str, report: Report) -> tuple[EncryptionKey, ...]:
    """Parse `kid:base64,…`. Complaints name the entry by its number: what stands there may be a bare key."""
    entries = [entry.strip() for entry in text.split(",")]
    while len(entries) > 1 and not entries[-1]:
        entries.pop()
    keys = [_key(number, entry, report) for number, entry in enumerate(entries, 1)]
    _distinct([key.kid for key in keys], "name", "give the newer one another name, as in name:base64")
    _distinct([key.key for key in keys], "key", "remove one of them")
    return tuple(keys)


def one_key(text: str) -> EncryptionKey:
    """Parse a single `kid:base64`, as `generate_key` makes it; no example is taken. Raises Wrong."""
    return _key(1, text, Report(production=True))


def _key(number: int, entry: str, report: Report) -> EncryptionKey:
    kid, colon, encoded = entry.partition(":")
    if not colon:
        raise Wrong(f"has no name in entry {number}, as in name:base64", NEW_ENCRYPTION_KEY)
    if not _KID.fullmatch(kid):
        raise Wrong(f"has a name in entry {number} that is not 1 to 32 letters, digits, - or _", NEW_ENCRYPTION_KEY)
    try:
        standard = encoded.strip().rstrip("=").replace("-", "+").replace("_", "/")
        key = base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Wrong(f"has a key in entry {number} that is not base64", NEW_ENCRYPTION_KEY) from None
    if len(key) != KEY_BYTES:
        raise Wrong(f"has a key in entry {number} that is not {KEY_BYTES} bytes long", NEW_ENCRYPTION_KEY)
    if _looks_typed(key):
        if report.production:
            raise Wrong(f"has an example key in entry {number}", NEW_ENCRYPTION_KEY)
        report.warn(f"BROKER_ENCRYPTION_KEYS has an example key in entry {number}: production refuses it.")
    return EncryptionKey(kid, key)


def _looks_typed(key: bytes) -> bool:
    """Tell an example from 32 random bytes: printable throughout, few different bytes, or even steps between them."""
    steps = Counter((after - before) % 256 for before, after in pairwise(key))
    return all(0x20 <= byte < 0x7F for byte in key) or len(set(key)) < 12 or max(steps.values()) > KEY_BYTES // 2


def _distinct(items: list[Any], what: str, fix: str) -> None:
    for number, item in enumerate(items):
        first = items.index(item)
        if first < number:
            raise Wrong(f"has the same {what} in entries {first + 1} and {number + 1}", fix)


# --- the database -------------------------------------------------------------------------------------

_SQLITE = re.compile(r"sqlite(?:\+pysqlite)?:///(?P<path>[^?]+)(?P<query>\?.*)?", re.IGNORECASE)
_POSTGRESQL = re.compile(r"(?:postgres|postgresql|postgresql\+psycopg)://(?P<rest>.+)", re.IGNORECASE)


def database_url(text: str, _report: Report) -> str:
    """Parse the database's address and write it as SQLAlchemy wants it; complaints never quote its password."""
    if sqlite := _SQLITE.fullmatch(text):
        if sqlite["path"].startswith((":memory:", "file:")):
            raise Wrong("does not name a file", "write for example sqlite:////var/lib/broker/broker.db")
        return f"sqlite:///{Path(sqlite['path']).absolute()}{sqlite['query'] or ''}"
    if postgresql := _POSTGRESQL.fullmatch(text):
        try:
            _ = urlsplit(f"postgresql://{postgresql['rest']}").port
        except ValueError:  # its message quotes the password when that holds a slash
            raise Wrong(
                "cannot be read", "percent-encode special characters in its password, such as %2F for /"
            ) from None
        return f"postgresql+psycopg://{postgresql['rest']}"
    raise Wrong("is neither sqlite nor PostgreSQL", "write sqlite:////path or postgresql://user:password@host/name")
