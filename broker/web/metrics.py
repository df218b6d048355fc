"""Numbers for Prometheus. They come from the database, so it does not matter which process answers."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator

from flask import Blueprint, request
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from werkzeug.exceptions import NotFound, Unauthorized
from werkzeug.wrappers import Response

from broker import __version__
from broker.figures import Numbers
from broker.web import services

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """Answer with the numbers to whoever brings the token; without one in the settings there is no such page."""
    token = services().settings.metrics_token
    if token is None:
        raise NotFound
    brought = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    if not hmac.compare_digest(brought, token.reveal().encode()):
        raise Unauthorized
    registry = CollectorRegistry()
    registry.register(_Collector(services().figures.numbers()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Collector:
    def __init__(self, numbers: Numbers) -> None:
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        """Yield every metric; called by the registry."""
        numbers = self._numbers
        yield InfoMetricFamily("broker_build", "The version that answers.", value={"version": __version__})
        yield _gauge(
            "broker_connections", "Connections by OAuth app and status.", ("app", "status"), numbers.connections.items()
        )
        yield _gauge("broker_jobs", "Unfinished jobs by kind and state.", ("kind", "state"), numbers.jobs.items())
        delays = (((kind,), seconds) for kind, seconds in numbers.job_delay.items())
        yield _gauge("broker_job_delay_seconds", "How long the longest due job of a kind waits.", ("kind",), delays)
        ages = (((app,), seconds) for app, seconds in numbers.probe_age.items())
        meaning = "Since when one of an OAuth app's connections was not asked about at its provider."
        yield _gauge("broker_probe_age_seconds", meaning, ("app",), ages)
        flows = (((state,), count) for state, count in numbers.flows_open.items())
        yield _gauge("broker_flows_open", "Attempts to connect that are under way.", ("state",), flows)
        circuits = (((name,), 1) for name in numbers.circuits_open)
        yield _gauge("broker_circuit_open", "1 for every circuit that is open.", ("circuit",), circuits)
        yield GaugeMetricFamily("broker_webhooks_waiting", "Webhooks to hosts not yet sent.", numbers.webhooks_waiting)
        yield GaugeMetricFamily(
            "broker_provider_events_waiting", "Webhooks of providers not yet acted on.", numbers.provider_events_waiting
        )
        yield GaugeMetricFamily("broker_orphans", "Credentials that belong to no connection.", numbers.orphans)


def _gauge(name: str, meaning: str, labels: tuple[str, ...], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for key, value in sorted(values):
        family.add_metric(key, value)
    return family
