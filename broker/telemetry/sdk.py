"""What talks to OpenTelemetry's SDK; imported only where traces are wanted, in the process that records them.

Endpoint, headers, sampling, batches and resource are the SDK's own settings, which it reads from OTEL_… by itself.
Spans wait in memory for a thread of its own, which sends them; when they are too many, the SDK drops the oldest.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

import structlog
from opentelemetry.context import Context, attach, detach
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span as SdkSpan
from opentelemetry.trace import (
    SpanKind,
    Status,
    StatusCode,
    format_trace_id,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker import __version__, telemetry

NAME = "sequin-oauth-broker"

log = structlog.get_logger(__name__)


class _Complaints(logging.Handler):
    """Says what the SDK has to say without what it quotes, which may be the collector's address or our key to it."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._status: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Log the sentence alone; of the exporter, which repeats itself, only keep the status it names."""
        if record.name != trace_exporter.__name__:
            log.warning("telemetry.complaint", said=str(record.msg))
        elif record.levelno >= logging.ERROR:
            self._status = next((value for value in record.args or () if isinstance(value, int)), None)

    def take(self) -> int | None:
        """Return the status of the collector's last bad answer, once; None when it did not answer."""
        status, self._status = self._status, None
        return status


_complaints = _Complaints()
_theirs = logging.getLogger("opentelemetry")
_theirs.addHandler(_complaints)
_theirs.propagate = False


class _Watched(SpanExporter):
    """An exporter that tells once when the collector stops taking spans, and once when it takes them again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send; what is not taken is lost."""
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self.is_failing:
            log.warning("telemetry.not_taken", status=_complaints.take(), advice="`broker doctor` asks the collector.")
        elif self.is_failing and not failing:
            log.info("telemetry.taken_again")
        self.is_failing = failing
        return result

    def shutdown(self) -> None:
        """Close its connection."""
        self._exporter.shutdown()


class Recorder:
    """Records spans and sends them to `exporter`, the collector that the environment names by default.

    Raises whatever the SDK raises over a setting of its own that it cannot use.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        # Not at exit by itself: the SDK would wait for a collector that hangs for half a minute.
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._exporter = _Watched(exporter or OTLPSpanExporter())
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("broker", __version__)

    def serving(self, method: str, route: str | None, ref: str, traceparent: str | None) -> telemetry.Span:
        """Begin the span of a request; see `Tracing`."""
        # Never what this thread did before. `tracestate` stays behind: it is text of somebody else's making.
        parent = Context()
        if traceparent is not None:
            parent = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, parent)
        facts = {"http.request.method": method, "broker.ref": ref}
        if route is not None:
            facts["http.route"] = route
        verb = "HTTP" if method == "_OTHER" else method
        return self._begin(f"{verb} {route}" if route else verb, SpanKind.SERVER, facts, parent)

    def working(self, kind: str) -> telemetry.Span:
        """Begin the span of a job, a trace of its own: what asked for it may lie days back."""
        return self._begin(f"job {kind}", SpanKind.CONSUMER, {"broker.job.kind": kind}, Context())

    def calling(self, method: str, address: str) -> telemetry.Span:
        """Begin the span of an outbound call, part of the request or job that makes it."""
        host = _host(address)
        facts = {"http.request.method": method, "server.address": host}
        return self._begin(f"{method} {host}", SpanKind.CLIENT, facts, None)

    @property
    def trace_id(self) -> str | None:
        """The trace this thread works for."""
        context = get_current_span().get_span_context()
        return format_trace_id(context.trace_id) if context.is_valid else None

    def stop(self, seconds: float) -> None:
        """Send what is left and end; wait so many seconds at most, and none for a collector that takes nothing."""
        # In a thread: the SDK itself knows no deadline that also ends a call under way.
        ending = threading.Thread(target=self._provider.shutdown, name="telemetry-stop", daemon=True)
        ending.start()
        if not self._exporter.is_failing:
            ending.join(seconds)

    def _begin(self, name: str, kind: SpanKind, facts: dict[str, str], parent: Context | None) -> telemetry.Span:
        return _Recorded(self._tracer.start_span(name, context=parent, kind=kind, attributes=facts))


class _Recorded(telemetry.Span):
    """A span that is recorded, this thread's current one until it ends."""

    def __init__(self, span: SdkSpan) -> None:
        self._span = span
        self._before = attach(set_span_in_context(span))

    def answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        # What a caller did wrong is no fault of ours.
        if status >= 500:
            self.fail(str(status))

    def exchanged(self, status: int | None, *, sent: bool) -> None:
        self._span.set_attribute("broker.sent", sent)
        if status is not None:
            self._span.set_attribute("http.response.status_code", status)
            if status >= 400:
                self.fail(str(status))

    def settled(self, outcome: str, error: str | None = None) -> None:
        self._span.set_attribute("broker.job.outcome", outcome)
        if error:
            self.fail(error)

    def fail(self, why: str) -> None:
        self._span.set_attribute("error.type", why)
        self._span.set_status(Status(StatusCode.ERROR))

    def end(self) -> None:
        detach(self._before)
        self._span.end()


def ask(seconds: float) -> str | None:
    """Send the collector an empty batch; return what is wrong with its answer, None when it takes traces."""
    exporter = OTLPSpanExporter(timeout=seconds)
    try:
        if exporter.export(()) is SpanExportResult.SUCCESS:
            return None
        status = _complaints.take()
        return "does not answer" if status is None else f"answers HTTP {status}"
    finally:
        exporter.shutdown()  # type: ignore[no-untyped-call]  # published without types


def _resource() -> Resource:
    given = Resource.create()
    ours = {SERVICE_VERSION: __version__}
    # Without OTEL_SERVICE_NAME the SDK makes a name up.
    if str(given.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        ours[SERVICE_NAME] = NAME
    return given.merge(Resource(ours))


def _host(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
