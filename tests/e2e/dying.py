"""Runs a `broker` command so that it can be killed at any step, and starts it again whenever that has happened.

    python -m tests.e2e.dying FOLDER NAME web --bind 127.0.0.1:8000

Every step of the process becomes a line in FOLDER/NAME.steps, as it happens:

    received GET /oauth/stripe/callback    a request has arrived
    committed FlowJournal.consume          the database has confirmed a COMMIT, and what in the broker asked for it
    sent POST /stripe/oauth/token          the last byte of a request to another side is on its way
    read POST /stripe/oauth/token          the last byte of its answer has arrived
    answered GET /oauth/stripe/callback    the last byte of our own answer is on its way

When FOLDER/NAME.fate holds a step, the whole process group ends with SIGKILL at that very point: no handler, no
flush, no goodbye. SIGUSR1 ends a life in the same way, wherever it is. The steps are found below and above the broker
(the database driver, urllib3, gunicorn), so nothing in the broker knows of it. A child is forked for each life, so that
coming back takes no second round of imports.
"""

from __future__ import annotations

import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from gunicorn.workers.gthread import ThreadWorker
from sqlalchemy.engine.default import DefaultDialect
from urllib3.connection import HTTPConnection

IDLE_SECONDS = 0.05
SWEEP_SECONDS = 0.5
"""A worker's rhythms here: when something is noticed changes with them, and not what is done about it."""
PLAIN_SEGMENT = re.compile(r"[a-z][a-z0-9_-]{0,24}")


class Fate:
    """Notes every step of this process, and ends it where it is told to."""

    def __init__(self, folder: Path, name: str) -> None:
        self._fate = folder / f"{name}.fate"
        self._deaths = folder / f"{name}.deaths"
        self._steps = os.open(folder / f"{name}.steps", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self._lock = threading.Lock()

    def step(self, what: str) -> None:
        """Note a step; does not return from the one it is to die at."""
        with self._lock:
            os.write(self._steps, f"{what}\n".encode())
            try:
                count, _, where = self._fate.read_text().partition(" ")
            except FileNotFoundError:
                return
            if where != what:
                return
            if int(count) > 1:
                self._fate.write_text(f"{int(count) - 1} {where}")
                return
            self._fate.unlink()
            with self._deaths.open("a") as deaths:
                deaths.write(f"{what}\n")
            os.killpg(0, signal.SIGKILL)
            signal.pause()


def watch(step: Callable[[str], None]) -> None:
    """Let `step` be called at every step of this process from now on."""
    commit: Callable[..., None] = DefaultDialect.do_commit
    request: Callable[..., None] = HTTPConnection.request
    getresponse: Callable[..., Any] = HTTPConnection.getresponse
    handle_request: Callable[..., Any] = ThreadWorker.handle_request

    def do_commit(self: Any, dbapi_connection: Any) -> None:
        commit(self, dbapi_connection)
        step(f"committed {_asking(inspect.currentframe())}")

    def send(self: Any, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        request(self, method, url, *args, **kwargs)
        self.about = f"{method} {_shape(url)}"
        step(f"sent {self.about}")

    def receive(self: Any) -> Any:
        response = getresponse(self)
        release, about = response.release_conn, self.about

        def release_conn() -> None:
            # Called more than once; the first time is when the last byte was read.
            response.release_conn = release
            step(f"read {about}")
            release()

        response.release_conn = release_conn
        return response

    def handle(self: Any, req: Any, conn: Any) -> Any:
        about = f"{req.method} {_shape(req.path)}"
        step(f"received {about}")
        stays_open = handle_request(self, req, conn)
        step(f"answered {about}")
        return stays_open

    DefaultDialect.do_commit = do_commit  # type: ignore[method-assign]
    HTTPConnection.request = send  # type: ignore[method-assign]
    HTTPConnection.getresponse = receive  # type: ignore[method-assign]
    ThreadWorker.handle_request = handle


def _asking(frame: FrameType | None) -> str:
    """Return the function of the broker, above its database module, that a COMMIT is for."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.startswith("broker.") and module != "broker.db":
            return frame.f_code.co_qualname
        frame = frame.f_back
    return "?"


def _shape(url: str) -> str:
    """Return a path without what differs each time: ids, references, tokens."""
    path = url.partition("?")[0]
    return "/".join(part if PLAIN_SEGMENT.fullmatch(part) else "…" if part else "" for part in path.split("/"))


def live(arguments: list[str]) -> None:
    """Be a `broker` process, in a group of its own, for one life."""
    from broker import cli, worker

    os.setsid()
    worker.IDLE_SECONDS, worker.SWEEP_SECONDS = IDLE_SECONDS, SWEEP_SECONDS
    sys.argv = ["broker", *arguments]
    cli.main()


def main() -> int:
    """Live again and again, until a life ends by itself."""
    folder, name, *arguments = sys.argv[1:]
    _import_all()
    watch(Fate(Path(folder), name).step)
    alive: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        for pid in alive:
            os.killpg(pid, signal.SIGKILL if number == signal.SIGUSR1 else number)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, pass_on)
    while True:
        pid = os.fork()
        if pid == 0:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            live(arguments)
            os._exit(0)
        alive[:] = [pid]
        ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        alive.clear()
        if ended != -signal.SIGKILL:
            return ended


def _import_all() -> None:
    """Import what the commands import when they are used, so that a new life begins at once."""
    import broker.app
    import broker.cli.processes
    import broker.server
    import broker.web.embedded  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
