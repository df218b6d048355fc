"""A whole connect flow as an operator's collector receives it: over a real socket, in OTLP, without a secret."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.databases import SqliteDatabases
from tests.e2e.test_secrets import of_the_settings, of_the_stand_ins, search
from tests.e2e.world import Person, World, eventually


class Collector(ThreadingHTTPServer):
    """Takes traces and keeps every byte of them."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.received: list[bytes] = []
        Thread(target=self.serve_forever, daemon=True).start()

    @property
    def batches(self) -> list[ExportTraceServiceRequest]:
        """Everything received so far."""
        return [ExportTraceServiceRequest.FromString(body) for body in list(self.received)]

    @property
    def spans(self) -> list[Span]:
        """Every span received so far."""
        return [
            span
            for batch in self.batches
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class Taking(BaseHTTPRequestHandler):
    """One batch."""

    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        assert self.path == "/v1/traces"
        self.server.received.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as running:
        yield running
        running.shutdown()


@pytest.fixture
def world(collector: Collector, sqlite_databases: SqliteDatabases, tmp_path: Path) -> Iterator[World]:
    with sqlite_databases.migrated() as url:
        world = World(
            tmp_path, url, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
            # So long that what arrives was sent by the stop.
            OTEL_BSP_SCHEDULE_DELAY="600000", OTEL_RESOURCE_ATTRIBUTES="deployment.environment.name=test",
        )  # fmt: skip
        try:
            world.start_sandbox()
            world.start_web(processes=2)
            world.start_worker()
            yield world
        finally:
            world.stop_all()


def facts(span: Span) -> dict[str, object]:
    """Return a span's attributes, all of which are texts, numbers or truths."""
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_a_connect_flow_arrives_whole_and_without_a_secret(world: World, collector: Collector) -> None:
    world.control("consent", auto="allow")
    person = Person(world)
    link = world.link("person-1", apps=["stripe"])
    person.connect(link, "stripe")
    world.imported("person-1")
    eventually(lambda: world.connections("person-1")[0]["sequin"]["verified_at"])
    assert (world.stop("worker"), world.stop("web")) == (0, 0)

    spans = {span.name: span for span in collector.spans}
    assert spans.keys() >= {
        "POST /api/v1/connect-links", "GET /connect/<token>", "POST /connect/<token>/start/<app_key>",
        "GET /oauth/<app_key>/callback", "GET /flows/<ref>", "job import", "job verify",
    }  # fmt: skip
    callback, job = spans["GET /oauth/<app_key>/callback"], spans["job import"]
    asked = [span.name for span in collector.spans if span.parent_span_id == callback.span_id]
    assert "POST 127.0.0.1" in asked, "the code is redeemed within the callback"
    assert facts(callback)["broker.ref"] in {answer.headers.get("X-Request-Id") for answer in person.seen}
    assert facts(job)["broker.job.outcome"] == "done"
    assert callback.trace_id.hex() in (world.folder / "web.log").read_text()
    assert job.trace_id.hex() in (world.folder / "worker.log").read_text()
    named = [{each.key: each.value.string_value for each in one.resource_spans[0].resource.attributes}
             for one in collector.batches]  # fmt: skip
    assert {one["service.name"] for one in named} == {"sequin-oauth-broker"}
    assert {one["deployment.environment.name"] for one in named} == {"test"}

    travelled = {kind: {value.encode() for value in values} for kind, values in of_the_stand_ins(world).items()}
    assert all(travelled[kind] for kind in ("token", "code", "state"))
    people = {"link": {link.rpartition("/")[2].encode()}, "end user": {b"person-1"}}
    received = [(f"batch {number}", body) for number, body in enumerate(collector.received)]
    assert search(received, travelled | of_the_settings(world) | people) == []
