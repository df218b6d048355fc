"""Strict parsing of what providers send back: every parameter at most once, small, and properly encoded.

RFC 6749 section 4.1.2 (answer), 4.1.2.1 (error), RFC 9207 (iss).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from broker.errors import CallbackInvalid
from broker.providers.base import clean
from broker.secret import Secret

MOST_BYTES = 8_192
MOST_FIELDS = 20
LONGEST = {"state": 512, "code": 4_096, "error": 200, "error_description": 2_000, "iss": 500}
LONGEST_OTHER = 2_000
VISIBLE_ONLY = ("state", "code")
"""RFC 6749 appendix A: these consist of printable ASCII."""

_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True)
class CallbackAnswer:
    """An authorization answer: a code or an error, never both. The error text is data from outside."""

    state: Secret
    code: Secret | None
    error: str | None
    error_description: str
    issuer: str | None


@dataclass(frozen=True)
class SetupAnswer:
    """What a provider's installation page sends back. The installation id is a claim, not a proof."""

    state: Secret | None
    unverified_installation_id: str | None
    action: str


def parse_callback(query: bytes) -> CallbackAnswer:
    """Return the authorization answer in a raw query string. Raises CallbackInvalid."""
    found = _parameters(query)
    state, code, error = found.get("state"), found.get("code"), found.get("error")
    if not state:
        raise CallbackInvalid("no state")
    if code and error:
        raise CallbackInvalid("code and error together")
    if not code and not error:
        raise CallbackInvalid("neither code nor error")
    return CallbackAnswer(
        state=Secret(state),
        code=Secret(code) if code else None,
        error=clean(error, limit=64) if error else None,
        error_description=clean(found.get("error_description"), limit=300),
        issuer=found.get("iss"),
    )


def parse_setup(query: bytes) -> SetupAnswer:
    """Return what came back from an installation page. Raises CallbackInvalid."""
    found = _parameters(query)
    action = found.get("setup_action", "")
    if action not in ("install", "update", "request"):
        raise CallbackInvalid("unknown setup_action")
    number = found.get("installation_id")
    if number is not None and not (number.isascii() and number.isdigit() and len(number) <= 20):
        raise CallbackInvalid("installation_id is not a number")
    state = found.get("state")
    return SetupAnswer(Secret(state) if state else None, number, action)


def _parameters(query: bytes) -> dict[str, str]:
    if len(query) > MOST_BYTES:
        raise CallbackInvalid("query too long")
    if _BROKEN_ESCAPE.search(query):
        raise CallbackInvalid("a broken percent escape")
    try:
        pairs = parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MOST_FIELDS,
        )
    except ValueError:
        # The text of this error quotes the query, which may hold the code.
        raise CallbackInvalid("not a proper query string") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if not name:
            raise CallbackInvalid("a parameter has no name")
        if name in found:
            raise CallbackInvalid("a parameter is given twice")
        if name in VISIBLE_ONLY and not (value.isascii() and value.isprintable()):
            raise CallbackInvalid("a parameter holds characters that it cannot have")
        if len(value) > LONGEST.get(name, LONGEST_OTHER) or "\x00" in value:
            raise CallbackInvalid("a parameter is too long or not text")
        found[name] = value
    return found
