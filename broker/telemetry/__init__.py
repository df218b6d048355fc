"""The one door to OpenTelemetry: a span for each request, job and outbound call, where an operator asks for them.

OTEL_EXPORTER_OTLP_ENDPOINT, the name that every OpenTelemetry SDK reads, switches it on. Otherwise nothing is imported,
and a span is one object that does nothing. A span holds what the methods here take and nothing else: routes instead
of paths, hosts instead of addresses, kinds and codes; no query, header, body, message or anybody's id.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from types import TracebackType

    from broker.telemetry.sdk import Recorder

SWITCHES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
STOP_SECONDS = 2.0
"""What a stop gives a collector to take what is left."""
NOT_INSTALLED = "OpenTelemetry is switched on but not installed: no traces are recorded."
HOW_TO_INSTALL = f"Install what requirements-otel.txt pins (the extra `otel`), or unset {SWITCHES[0]}."
METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""Any other word in a method's place is a stranger's own, and is not repeated."""

log = structlog.get_logger(__name__)


def is_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the environment asks for traces, installed or not."""
    exporters = environ.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    return (
        any(environ.get(name, "").strip() for name in SWITCHES)
        and environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"
        and "otlp" in [name.strip() for name in exporters.split(",")]
    )


def ask_collector(seconds: float) -> str | None:
    """Send the collector an empty batch; return what is wrong with its answer, None when it takes traces.

    Raises:
        ImportError: the extra is not installed.
    """
    from broker.telemetry.sdk import ask

    return ask(seconds)


class Span:
    """Something that takes time. This one is told of and forgotten; what is recorded is a subclass."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self.fail(kind.__name__)
        self.end()

    def answered(self, status: int) -> None:
        """Note the status of our answer."""

    def exchanged(self, status: int | None, *, sent: bool) -> None:
        """Note the status of the other side's answer, if there was one, and whether it may have seen the request."""

    def settled(self, outcome: str, error: str | None = None) -> None:
        """Note how a job ended: in a word, and with the code of what went wrong."""

    def fail(self, why: str) -> None:
        """Note that it failed: a code or the name of an exception, never its message."""

    def end(self) -> None:
        """It is over."""


NOTHING = Span()
"""The span while nothing is recorded."""


class Tracing:
    """Hands out spans: real ones between `start` and `stop`, in the process that asked for them."""

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        self._pid: int | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Record from now on, if the environment asks for it; once in a process, and after a fork, never before."""
        if self._pid == os.getpid():
            return
        with self._starting:
            if self._pid == os.getpid():
                return
            try:
                if is_wanted():
                    from broker.telemetry.sdk import Recorder

                    self.record(Recorder())
            except ImportError:
                log.warning("telemetry.not_installed", advice=f"{NOT_INSTALLED} {HOW_TO_INSTALL}")
            except Exception:
                # A setting of OpenTelemetry that it cannot use must not keep people from connecting.
                log.exception("telemetry.not_started")
            self._pid = os.getpid()

    def record(self, recorder: Recorder) -> None:
        """Hand out this recorder's spans from now on."""
        self._recorder = recorder

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """Record no more, and let the collector take what is left, so many seconds at most."""
        recorder, self._recorder = self._recorder, None
        if recorder is not None:
            recorder.stop(seconds)

    def serving(self, method: str, route: str | None, *, ref: str, traceparent: str | None) -> Span:
        """Begin the span of a request. `traceparent`: its W3C header, None where nobody in front is trusted to set it.

        It stays this thread's current span until its `end`.
        """
        if self._recorder is None:
            return NOTHING
        return self._recorder.serving(_known(method), route, ref, traceparent)

    def working(self, kind: str) -> Span:
        """Begin the span of a job."""
        return NOTHING if self._recorder is None else self._recorder.working(kind)

    def calling(self, method: str, address: str) -> Span:
        """Begin the span of an outbound call; of the address its host alone is kept."""
        return NOTHING if self._recorder is None else self._recorder.calling(_known(method), address)

    @property
    def trace_id(self) -> str | None:
        """The trace this thread works for, as 32 hexadecimal digits; None where nothing is recorded."""
        return None if self._recorder is None else self._recorder.trace_id


def _known(method: str) -> str:
    return method if method in METHODS else "_OTHER"


tracing = Tracing()
"""This process's own, as loggers are."""
