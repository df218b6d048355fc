"""Traces: nothing unless asked for, nothing secret in them, and never in anybody's way."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from io import StringIO

import pytest
import requests
import responses
import structlog
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from broker import logs
from broker.errors import NetworkError
from broker.http import Http
from broker.secret import Secret
from broker.telemetry import NOTHING, Tracing, ask_collector, is_wanted, tracing
from broker.telemetry.sdk import Recorder
from tests.connecting import Bench, open_bench
from tests.databases import SqliteDatabases
from tests.web.fakes import TOKEN, application, services, settings

S = "SENTINEL"
TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"
ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector.test:4318"}
TAKEN = "http://collector.test:4318/v1/traces"
Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture
def spans() -> Iterator[Spans]:
    """Record until the spans are asked for; no secret may be in any."""
    exporter = InMemorySpanExporter()
    tracing.record(Recorder(exporter))

    def finished() -> dict[str, ReadableSpan]:
        tracing.stop(60)
        found = exporter.get_finished_spans()
        assert not [span.name for span in found if S in span.to_json() or TOKEN in span.to_json()]
        return {span.name: span for span in found}

    yield finished
    tracing.stop(60)


@pytest.fixture
def written() -> Iterator[StringIO]:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    text = StringIO()
    logs.configure("INFO", "json", text)
    yield text
    logging.captureWarnings(False)
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def told(written: StringIO) -> list[str]:
    return [json.loads(line)["event"] for line in written.getvalue().splitlines()]


def facts(span: ReadableSpan) -> dict[str, object]:
    return dict(span.attributes or {})


# --- off and on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "wanted"),
    [
        ({}, False),
        (ENDPOINT, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": TAKEN}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
        ({**ENDPOINT, "OTEL_SDK_DISABLED": "True"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}, False),
        ({**ENDPOINT, "OTEL_TRACES_EXPORTER": "console, otlp"}, True),
        ({"OTEL_SERVICE_NAME": "broker"}, False),
    ],
)
def test_the_usual_variables_switch_it_on(environ: dict[str, str], wanted: bool) -> None:
    assert is_wanted(environ) is wanted


def test_nothing_of_it_is_imported_while_it_is_off() -> None:
    program = (
        "import sys, broker.app, broker.server, broker.worker; from broker.telemetry import tracing; tracing.start();"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], env={}, check=False, timeout=120).returncode == 0


def test_while_it_is_off_every_span_is_the_same_nothing() -> None:
    off = Tracing()
    assert off.serving("GET", "/", ref="7F3K", traceparent=None) is NOTHING
    assert off.working("import") is NOTHING
    assert off.calling("GET", "https://api.test") is NOTHING
    assert off.trace_id is None


def test_asked_for_but_not_installed_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, written: StringIO
) -> None:
    monkeypatch.setitem(sys.modules, "broker.telemetry.sdk", None)
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    starting = Tracing()
    starting.start()
    starting.start()
    assert starting.working("import") is NOTHING
    assert told(written) == ["telemetry.not_installed"]
    assert "requirements-otel.txt" in written.getvalue()


def test_a_setting_of_opentelemetry_that_cannot_be_used_keeps_nobody_from_connecting(
    monkeypatch: pytest.MonkeyPatch, written: StringIO
) -> None:
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "-1")
    starting = Tracing()
    starting.start()
    assert starting.working("import") is NOTHING
    assert told(written) == ["telemetry.not_started"]


def test_what_the_sdk_complains_of_is_said_without_what_it_quotes(
    monkeypatch: pytest.MonkeyPatch, written: StringIO
) -> None:
    monkeypatch.setenv(*next(iter(ENDPOINT.items())))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"api-key: {S}")
    starting = Tracing()
    starting.start()
    starting.stop(60)
    (line,) = written.getvalue().splitlines()
    assert json.loads(line)["said"].startswith("Header format invalid!")
    assert S not in line


# --- requests -----------------------------------------------------------------------------------------


def test_a_request_is_named_by_its_rule_and_carries_its_reference(spans: Spans) -> None:
    answer = application(services()).test_client().get(
        f"/connect/{TOKEN}?code={S}", headers={"Cookie": f"a={S}", "User-Agent": S, "tracestate": f"a={S}"}
    )  # fmt: skip
    (span,) = spans().values()
    assert (span.name, span.kind, span.parent) == ("GET /connect/<token>", SpanKind.SERVER, None)
    assert facts(span) == {
        "http.request.method": "GET",
        "http.route": "/connect/<token>",
        "http.response.status_code": 200,
        "broker.ref": answer.headers["X-Request-Id"],
    }


def test_an_address_or_a_method_of_a_strangers_making_is_not_repeated(spans: Spans) -> None:
    client = application(services()).test_client()
    client.get(f"/{S}")
    client.open(f"/{S}", method=S)
    assert {name: facts(span)["http.response.status_code"] for name, span in spans().items()} == {
        "GET": 404, "HTTP": 404,
    }  # fmt: skip


def test_a_crash_shows_as_one_without_what_it_said(spans: Spans) -> None:
    fake = services()
    fake.links.failure = ZeroDivisionError(S)
    application(fake).test_client().get(f"/connect/{TOKEN}")
    (span,) = spans().values()
    assert (span.status.status_code, facts(span)["error.type"]) == (StatusCode.ERROR, "500")
    assert (span.status.description, span.events) == (None, ())


@pytest.mark.parametrize(("proxies", "believed"), [(0, False), (1, True)])
def test_a_trace_goes_on_only_where_a_proxy_is_trusted(spans: Spans, proxies: int, believed: bool) -> None:
    fake = services(settings(trusted_proxies=proxies))
    application(fake).test_client().get(
        f"/connect/{TOKEN}", headers={"traceparent": TRACEPARENT, "tracestate": f"a={S}"}
    )
    (span,) = spans().values()
    assert (f"{span.context.trace_id:032x}" == TRACE) is believed


def test_every_line_of_a_request_names_its_trace_and_no_later_line(spans: Spans, written: StringIO) -> None:
    application(services()).test_client().get(f"/connect/{TOKEN}")
    structlog.get_logger("broker.test").info("afterwards")
    (span,) = spans().values()
    *during, after = [json.loads(line) for line in written.getvalue().splitlines()]
    assert {line["trace_id"] for line in during} == {f"{span.context.trace_id:032x}"}
    assert "trace_id" not in after


# --- outbound calls -----------------------------------------------------------------------------------


@pytest.fixture
def http() -> Http:
    return Http(allow_plain_loopback=False, user_agent="tests")


def test_a_call_is_its_host_and_its_status(spans: Spans, http: Http) -> None:
    with responses.RequestsMock() as network:
        network.get(f"https://api.test/{S}", status=404, body=S)
        http.request("GET", f"https://api.test/{S}?code={S}", headers={"X-Key": S}, bearer=Secret(S))
        (call,) = network.calls
    (span,) = spans().values()
    assert (span.name, span.kind, span.status.status_code) == ("GET api.test", SpanKind.CLIENT, StatusCode.ERROR)
    assert facts(span) == {
        "http.request.method": "GET", "server.address": "api.test", "http.response.status_code": 404,
        "broker.sent": True, "error.type": "404",
    }  # fmt: skip
    assert "traceparent" not in call.request.headers, "whom we call learns nothing of our traces"


def test_streams_and_posts_have_a_span_too(spans: Spans, http: Http) -> None:
    with responses.RequestsMock() as network:
        network.get(f"https://stream.test/{S}", body=S)
        network.post(f"https://hook.test/{S}", body=S)
        with http.stream("GET", f"https://stream.test/{S}") as stream:
            assert b"".join(stream.chunks()) == S.encode()
        http.post(f"https://hook.test/{S}", headers={"X-Key": S}, content=S.encode())
    assert {name: facts(span)["http.response.status_code"] for name, span in spans().items()} == {
        "GET stream.test": 200, "POST hook.test": 200,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("failure", "sent", "name"),
    [
        (requests.exceptions.ConnectTimeout(S), False, "Unreachable"),
        (requests.exceptions.ReadTimeout(S), True, "DeadlineExceeded"),
    ],
)
def test_a_failed_call_tells_whether_it_was_sent(
    spans: Spans, http: Http, failure: Exception, sent: bool, name: str
) -> None:
    with responses.RequestsMock() as network:
        network.get("https://api.test/", body=failure)
        with pytest.raises(NetworkError):
            http.request("GET", "https://api.test/")
    (span,) = spans().values()
    assert (facts(span)["broker.sent"], facts(span)["error.type"]) == (sent, name)
    assert span.events == ()


# --- jobs ---------------------------------------------------------------------------------------------


@pytest.fixture
def bench(sqlite_databases: SqliteDatabases) -> Iterator[Bench]:
    # What a span tells does not depend on the database.
    with sqlite_databases.migrated() as url, open_bench(url) as opened:
        opened.stripe()
        opened.sequin()
        yield opened


def test_a_job_is_its_kind_and_outcome_and_its_calls_are_part_of_it(bench: Bench, spans: Spans) -> None:
    bench.connect(end_user=S)
    bench.worker.run_once()
    found = spans()
    job = found["job import"]
    assert (job.kind, job.parent, facts(job)) == (
        SpanKind.CONSUMER, None, {"broker.job.kind": "import", "broker.job.outcome": "done"},
    )  # fmt: skip
    inside = [span.name for span in found.values() if span.parent and span.parent.span_id == job.context.span_id]
    assert inside == ["GET localhost", "POST localhost"]


def test_a_job_that_is_tried_again_tells_its_code(bench: Bench, spans: Spans) -> None:
    bench.connect(end_user=S)
    bench.sequin(status=503, json={"summary": S})
    bench.worker.run_once()
    job = spans()["job import"]
    assert (facts(job)["broker.job.outcome"], facts(job)["error.type"]) == ("retry", "sequin_unavailable")


# --- collectors that hang, fail and are away ----------------------------------------------------------


class Stuck(SpanExporter):
    """A collector that gives some answers, and then none."""

    def __init__(self, *answers: SpanExportResult) -> None:
        self.answers = list(answers)
        self.last = SpanExportResult.SUCCESS
        self.released = threading.Event()
        self.asked = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        if self.answers:
            self.last = self.answers.pop(0)
        else:
            self.asked.set()
            self.released.wait()
        return self.last


def test_a_collector_that_hangs_holds_up_neither_spans_nor_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    stuck = Stuck()
    begun = Tracing()
    begun.record(Recorder(stuck))
    for _ in range(50):
        with begun.working("import"):
            pass
    assert stuck.asked.wait(60)
    begun.stop(0.01)
    assert not stuck.released.is_set(), "all of that came to an end while the collector hung"
    stuck.released.set()


def test_a_stop_does_not_wait_for_a_collector_that_has_taken_nothing_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    stuck = Stuck(SpanExportResult.FAILURE)
    begun = Tracing()
    begun.record(Recorder(stuck))
    for _ in range(2):
        with begun.working("import"):
            pass
    assert stuck.asked.wait(60)
    begun.stop(3600)
    assert not stuck.released.is_set()
    stuck.released.set()


class Moody(SpanExporter):
    """A collector that takes what it likes."""

    def __init__(self, *moods: SpanExportResult) -> None:
        self.moods = iter(moods)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return next(self.moods)


def test_that_spans_are_not_taken_is_said_once_and_so_is_its_end(
    monkeypatch: pytest.MonkeyPatch, written: StringIO
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
    good, bad = SpanExportResult.SUCCESS, SpanExportResult.FAILURE
    begun = Tracing()
    begun.record(Recorder(Moody(good, bad, bad, bad, good, good)))
    for _ in range(6):
        with begun.working("import"):
            pass
    begun.stop(60)
    assert told(written) == ["telemetry.not_taken", "telemetry.taken_again"]


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [({"status": 200}, None), ({"status": 401}, "answers HTTP 401"), ({"body": ValueError(S)}, "does not answer")],
)
def test_asking_the_collector_says_what_is_wrong_and_logs_no_address(
    monkeypatch: pytest.MonkeyPatch, written: StringIO, answer: dict[str, object], trouble: str | None
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{S}:{S}@collector.test:4318")
    with responses.RequestsMock() as network:
        network.post(re.compile(r"http://.*collector\.test:4318/v1/traces"), **answer)
        assert ask_collector(1.0) == trouble
    assert written.getvalue() == ""
