"""The web server: gunicorn with threads, which brings process management, graceful stops and restarts.

It expects a proxy in front for TLS and slow clients (CONTRIBUTING.md, decisions).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from broker.services import Services
from broker.telemetry import tracing
from broker.web.embedded import EmbeddedWorker

GRACE_SECONDS = 25
"""How long a stop waits for requests; more than the 20 s a callback may take."""
KEEP_ALIVE_SECONDS = 5


class Server(BaseApplication):  # type: ignore[misc]  # published without types
    """Serves one application from any number of processes. The application is built once, before the fork."""

    def __init__(
        self, app: Flask, *, bind: str, processes: int, threads: int, on_ready: Callable[[], None] | None = None
    ) -> None:
        """`on_ready` is called in each process as soon as it answers."""
        self._app = app
        self._on_ready = on_ready
        self._options: dict[str, Any] = {
            "bind": bind,
            "workers": processes,
            "threads": threads,
            "worker_class": "gthread",
            "keepalive": KEEP_ALIVE_SECONDS,
            "graceful_timeout": GRACE_SECONDS,
            # gthread workers report in from a thread of their own: this only ends a process that hangs altogether.
            "timeout": 60,
            # The access line is ours: gunicorn's would hold the query string, which carries codes.
            # As much as a callback may carry; anything longer gets the server's own bare page.
            "limit_request_line": 8190,
            "accesslog": None,
            "loglevel": "warning",
            "control_socket_disable": True,
            "proc_name": "broker-web",
            "post_fork": self._after_fork,
            "post_worker_init": self._answers,
            "when_ready": _stop_on_hangup,
            "worker_exit": self._before_exit,
        }
        super().__init__()

    def load_config(self) -> None:
        """Give gunicorn our options, and none from the command line or the environment."""
        for name, value in self._options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Return the application."""
        return self._app

    def _after_fork(self, _arbiter: object, _worker: object) -> None:
        services: Services = self._app.extensions["broker"]
        services.database.after_fork()
        tracing.start()
        self._worker.start()

    def _answers(self, _worker: object) -> None:
        # Ctrl-C reaches the whole group at once; the parent passes it on in its own way, and both together can
        # leave this process hanging until it is killed.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._on_ready is not None:
            self._on_ready()

    def _before_exit(self, _arbiter: object, _worker: object) -> None:
        self._worker.stop()
        tracing.stop()

    @property
    def _worker(self) -> EmbeddedWorker:
        worker: EmbeddedWorker = self._app.extensions["broker.worker"]
        return worker


def _stop_on_hangup(_arbiter: object) -> None:
    # gunicorn would load the application again; a terminal that closes means "stop", as for any other program.
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
