"""One line per event, for machines (JSON) or people (text), with the request's reference and without secrets.

Our own events are named and carry facts as keys; the standard library's loggers go through the same door.
Nothing is trusted to keep a secret out by itself: keys with telling names are dropped, and so are query
strings and anything that has the form of a known credential, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from typing import Literal, TextIO

import structlog
from structlog.types import EventDict, Processor

_SECRET_WORDS = frozenset(
    {"authorization", "cookie", "cookies", "password", "secret", "secrets", "token", "tokens", "verifier"}
)
_SECRET_KEYS = frozenset({"code", "state", "private_key", "client_secrets"})

# An address keeps its path but not its query; a link's address not its last part either.
_QUERY = re.compile(r"([\w/.~%-]/?)\?[\w.~%+-]+=[^\s\"'<>)]*")
_LINK = re.compile(r"(/connect/)[\w-]{16,}")
_CREDENTIAL = re.compile(
    r"\b(?:brk|sk_live|sk_test|rk_live|rk_test|whsec|gh[oprsu]|github_pat|ac|rt)_[A-Za-z0-9_]{8,}"
    r"|\beyJ[\w-]+\.[\w-]+\.[\w-]*"
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)

QUIET = ("alembic", "authlib", "requests", "sqlalchemy", "urllib3", "werkzeug")
"""Libraries whose details quote addresses, bodies or parameters: only their warnings are of use."""


def configure(level: str = "INFO", form: Literal["json", "text"] = "json", stream: TextIO | None = None) -> None:
    """Send every event from `level` on to `stream` (standard output by default), in `form`."""
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                # Before redaction: a traceback is text like any other.
                structlog.processors.StackInfoRenderer(),
                structlog.processors.format_exc_info,
                redact,
                *_rendering(form, stream or sys.stdout),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Drop keys that name a secret, at any depth, and clean every text."""
    return {key: _clean(value) for key, value in event.items() if not _names_a_secret(key)}


def _rendering(form: str, stream: TextIO) -> list[Processor]:
    if form == "json":
        return [structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]
    # Not the rich traceback: it prints local variables.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain, timestamp_key="time")]


def _names_a_secret(key: object) -> bool:
    name = str(key).lower().replace("-", "_")
    return name in _SECRET_KEYS or not _SECRET_WORDS.isdisjoint(name.split("_"))


def _clean(value: object) -> object:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items() if not _names_a_secret(key)}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub(str(value))


def scrub(text: str) -> str:
    """Return `text` without query strings and without what has the form of a credential."""
    text = _QUERY.sub(r"\1?…", text)
    text = _LINK.sub(r"\1…", text)
    text = _BEARER.sub(r"\1 …", text)
    return _CREDENTIAL.sub("…", text)
