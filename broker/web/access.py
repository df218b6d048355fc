"""One line in the log for every request, with its reference and without its query string."""

from __future__ import annotations

from time import perf_counter

import structlog
from flask import Flask, g, request
from werkzeug.wrappers import Response

from broker.web import request_ref

log = structlog.get_logger("broker.access")


def init_app(app: Flask) -> None:
    """Log every request of `app`."""

    @app.before_request
    def start() -> None:
        g.started = perf_counter()
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(ref=request_ref())

    @app.after_request
    def finish(response: Response) -> Response:
        # The rule, not the path: paths hold link tokens.
        route = request.url_rule.rule if request.url_rule is not None else "unknown"
        took = round((perf_counter() - g.get("started", perf_counter())) * 1000, 1)
        log.info("request", method=request.method, route=route, status=response.status_code, ms=took)
        return response
