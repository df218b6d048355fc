"""Worker threads inside a web process, so that one command is a whole broker.

They start in the process that serves, after any fork: by `broker web` as soon as a process is ready, under any
other WSGI server with the first request.
"""

from __future__ import annotations

import os
import threading

from flask import Flask

from broker.services import Services
from broker.worker import Worker


class EmbeddedWorker:
    """The worker of this process, started at most once in each process."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._worker: Worker | None = None

    def start(self) -> None:
        """Start the threads, unless this process has them or the settings ask for none."""
        if self._pid == os.getpid() or not self._services.settings.workers:
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self._worker = Worker(self._services, threads=self._services.settings.workers)
            self._worker.start()
            self._pid = os.getpid()

    def stop(self) -> None:
        """Let running jobs finish and hand the others back."""
        if self._worker is not None and self._pid == os.getpid():
            self._worker.stop()


def init_app(app: Flask, services: Services) -> None:
    """Start the worker with the first request, where nobody started it before."""
    worker = EmbeddedWorker(services)
    app.extensions["broker.worker"] = worker
    if not app.testing:
        app.before_request(worker.start)
