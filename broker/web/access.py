"""One line in the log, and a span where they are recorded, for every request: its reference, and no query string."""

from __future__ import annotations

from time import perf_counter

import structlog
from flask import Flask, g, request
from werkzeug.wrappers import Response

from broker.settings import Settings
from broker.telemetry import NOTHING, is_wanted, tracing
from broker.web import request_ref

log = structlog.get_logger("broker.access")


def init_app(app: Flask, settings: Settings) -> None:
    """Log every request of `app`. Call it first: what others do before a request belongs to its span."""
    if is_wanted() and not app.testing:
        # Under any other WSGI server nobody has started it after the fork.
        app.before_request(tracing.start)

    @app.before_request
    def start() -> None:
        g.started = perf_counter()
        structlog.contextvars.clear_contextvars()
        ref = request_ref()
        structlog.contextvars.bind_contextvars(ref=ref)
        # Strangers could choose its trace and have every request recorded; a proxy may.
        traceparent = request.environ.get("HTTP_TRACEPARENT") if settings.trusted_proxies else None
        g.span = tracing.serving(request.method, _route(), ref=ref, traceparent=traceparent)

    @app.after_request
    def finish(response: Response) -> Response:
        took = round((perf_counter() - g.get("started", perf_counter())) * 1000, 1)
        route = _route() or "unknown"
        log.info("request", method=request.method, route=route, status=response.status_code, ms=took)
        g.get("span", NOTHING).answered(response.status_code)
        return response

    @app.teardown_request
    def end(_error: BaseException | None) -> None:
        g.pop("span", NOTHING).end()


def _route() -> str | None:
    # The rule, not the path: paths hold link tokens.
    return request.url_rule.rule if request.url_rule is not None else None
