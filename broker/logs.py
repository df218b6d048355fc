"""One line per event, for machines (JSON) or people (text), with the request's reference and without secrets.

Our own events are named and carry facts as keys; the standard library's loggers go through the same door.
Nothing is trusted to keep a secret out by itself: keys with telling names are dropped, and so are query
strings and anything that has the form of a known credential, tracebacks included.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache, partial
from typing import Any, Literal, TextIO

import structlog
from structlog.types import EventDict, Processor

from broker.telemetry import tracing

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
# What each of these needs something of; most texts have none of it.
_SUSPECT = re.compile(r"[?_]|/connect/|eyJ|bearer|basic", re.IGNORECASE)

QUIET = ("alembic", "authlib", "requests", "sqlalchemy", "urllib3", "werkzeug")
"""Libraries whose details quote addresses, bodies or parameters: only their warnings are of use."""


def configure(level: str = "INFO", form: Literal["json", "text"] = "json", stream: TextIO | None = None) -> None:
    """Send every event from `level` on to `stream` (standard output by default), in `form`."""
    stream = stream or sys.stdout
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _name_trace,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
    ]
    rendering: list[Processor] = [
        # Before redaction: a traceback is text like any other.
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        redact,
        *_rendering(form, stream),
    ]
    # Ours are written at once: through the standard library's records a line costs twice as much.
    structlog.configure(
        processors=[partial(_line, [*shared, _add_name, *rendering])],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=cache(partial(_Writer, stream)),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in QUIET:
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    logging.captureWarnings(True)


def _line(steps: Sequence[Processor], logger: _Writer, method: str, event: EventDict) -> Any:
    """Return the line that says what happened. What cannot be told costs its facts, and never what was being done."""
    name = event.get("event")
    try:
        said: Any = event
        for step in steps:
            said = step(logger, method, said)
        return said
    except Exception as failure:  # noqa: BLE001 - whatever it is, it is not worth a request
        return f"{logger.name}: {name if isinstance(name, str) else '?'}: could not be told ({type(failure).__name__})"


class _Writer(structlog.WriteLogger):
    """Writes the lines of one logger."""

    def __init__(self, stream: TextIO, name: str = "") -> None:
        super().__init__(stream)
        self.name = name

    def msg(self, message: str) -> None:
        """Write a line. A full disk or a reader that has gone costs that line, and nothing else."""
        with suppress(OSError, ValueError):
            try:
                super().msg(message)
            except UnicodeEncodeError as failure:
                # Half a character from outside, or a terminal that knows few of them: the rest of the line is written.
                super().msg(message.encode(failure.encoding, "backslashreplace").decode(failure.encoding))

    debug = info = warning = error = critical = msg


def _add_name(logger: _Writer, _method: str, event: EventDict) -> EventDict:
    event["logger"] = logger.name
    return event


def _name_trace(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Say which trace a line belongs to, where traces are recorded."""
    if (trace_id := tracing.trace_id) is not None:
        event["trace_id"] = trace_id
    return event


def redact(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Drop keys that name a secret, at any depth, and clean every text."""
    return {key: _clean(value) for key, value in event.items() if not _names_a_secret(str(key))}


def _rendering(form: str, stream: TextIO) -> list[Processor]:
    if form == "json":
        return [structlog.processors.JSONRenderer(ensure_ascii=False, default=str)]
    # Not the rich traceback: it prints local variables.
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain, timestamp_key="time")]


@lru_cache(maxsize=1_000)
def _names_a_secret(key: str) -> bool:
    name = key.lower().replace("-", "_")
    return name in _SECRET_KEYS or not _SECRET_WORDS.isdisjoint(name.split("_"))


def _clean(value: object) -> object:
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: _clean(item) for key, item in value.items() if not _names_a_secret(str(key))}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return scrub(str(value))


def scrub(text: str) -> str:
    """Return `text` without query strings and without what has the form of a credential."""
    if _SUSPECT.search(text) is None:
        return text
    text = _QUERY.sub(r"\1?…", text)
    text = _LINK.sub(r"\1…", text)
    text = _BEARER.sub(r"\1 …", text)
    return _CREDENTIAL.sub("…", text)
