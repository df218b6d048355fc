"""The sandbox over real HTTP on loopback: for the command line, and inside tests."""

from __future__ import annotations

import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from broker.clock import Clock
from broker.lifeline import StopSignal
from broker.sandbox.app import create_sandbox
from broker.sandbox.connection import ENVIRON_KEY, Connection
from broker.sandbox.environment import dotenv, environment
from broker.sandbox.secrets import Secrets, load_secrets
from broker.sandbox.world import EXTENSION, World

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

logger = logging.getLogger(__name__)
BACKLOG = 512
POLL = 0.05  # how soon a server notices that it is to stop


@dataclass(frozen=True)
class RunningSandbox:
    """A sandbox that is being served: its address, and everything a test wants to look at."""

    url: str
    secrets: Secrets
    world: World

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the settings that point a broker here."""
        return environment(self.secrets, self.url)


def print_environment(port: int, data_dir: Path) -> str:
    """Return, in `.env` form, the settings for the sandbox that `serve` runs with the same arguments."""
    return dotenv(environment(load_secrets(data_dir), _url(port)))


def serve(port: int, data_dir: Path, *, announce: Callable[[str], None] = print) -> None:
    """Serve until SIGINT or SIGTERM, then return at once. Port 0 takes a free one and announces it.

    Raises SystemExit with a sentence when the port is taken.
    """
    with _served(load_secrets(data_dir), None, port) as sandbox:
        stop_signal = StopSignal()
        announce(f"Sandbox on {sandbox.url}: stand-ins for the providers and Sequin. Nothing real is shared.")
        sys.stdout.flush()
        stop_signal.wait()


@contextlib.contextmanager
def running(source: Secrets | Path, *, clock: Clock | None = None) -> Iterator[RunningSandbox]:
    """Serve on a free port in the background, for in-process tests; `source` is the secrets or a data directory."""
    secrets = source if isinstance(source, Secrets) else load_secrets(source)
    with _served(secrets, clock, 0) as sandbox:
        yield sandbox


@contextlib.contextmanager
def _served(secrets: Secrets, clock: Clock | None, port: int) -> Iterator[RunningSandbox]:
    app = create_sandbox(secrets, clock=clock)
    connections = Connections()
    handler = type("Handler", (Handler,), {"connections": connections})
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(each) for each in _listen(port)]
        servers = [_server(each, app, handler) for each in sockets]
        threads = [threading.Thread(target=each.serve_forever, args=(POLL,), daemon=True) for each in servers]
        for thread in threads:
            thread.start()
        try:
            yield RunningSandbox(_url(servers[0].port), secrets, app.extensions[EXTENSION])
        finally:
            for server in servers:
                server.shutdown()
            for thread in threads:
                thread.join()
            connections.close()


def _url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _listen(port: int) -> list[socket.socket]:
    """Open 127.0.0.1 and, where there is one, [::1]: `localhost` may mean either."""
    try:
        first = socket.create_server(("127.0.0.1", port), backlog=BACKLOG)
    except OSError as error:
        raise SystemExit(f"The sandbox cannot use port {port}: {error.strerror}. Choose another one.") from None
    try:
        number = first.getsockname()[1]
        return [first, socket.create_server(("::1", number), family=socket.AF_INET6, backlog=BACKLOG)]
    except OSError:
        return [first]


def _server(listening: socket.socket, app: Any, handler: type[WSGIRequestHandler]) -> BaseWSGIServer:
    host, port = listening.getsockname()[:2]
    return make_server(host, port, app, threaded=True, request_handler=handler, fd=listening.fileno())


class Connections:
    """The open connections, so that stopping does not wait for any of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[socket.socket] | None = set()

    def add(self, sock: socket.socket) -> None:
        """Note an open one; after `close`, it is closed on the spot."""
        with self._lock:
            if self._open is None:
                _hang_up(sock)
            else:
                self._open.add(sock)

    def remove(self, sock: socket.socket) -> None:
        """Forget one that has ended."""
        with self._lock:
            if self._open is not None:
                self._open.discard(sock)

    def close(self) -> None:
        """End all of them, whatever they are doing."""
        with self._lock:
            remaining, self._open = self._open or set(), None
        for sock in remaining:
            _hang_up(sock)


def _hang_up(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class Handler(WSGIRequestHandler):
    """Werkzeug's handler with connections that stay open.

    Werkzeug closes after every answer and reads on to see whether more is coming, which would swallow the next
    request; here the application has read each body (see app.py), so neither is needed.
    """

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 300
    connections: Connections

    def setup(self) -> None:
        """Begin a connection."""
        super().setup()
        self.connections.add(self.connection)

    def finish(self) -> None:
        """End a connection."""
        self.connections.remove(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (Werkzeug's name for it)
        """Print nothing: requests are in the sandbox's own log."""

    def run_wsgi(self) -> None:
        """Answer one request."""
        if self.headers.get("Expect", "").strip().lower() == "100-continue":
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.environ = environ = self.make_environ()
        environ[ENVIRON_KEY] = Connection(self.connection, self._close_after)
        try:
            self._answer(environ)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        except Exception:
            self.close_connection = True
            logger.exception("The sandbox failed")

    def _close_after(self) -> None:
        self.close_connection = True

    def _answer(self, environ: WSGIEnvironment) -> None:
        head: list[bytes] = []

        def start_response(status: str, headers: list[tuple[str, str]], _failed: Any = None) -> Callable[[bytes], Any]:
            head[:] = [self._head(status, headers)]
            return self.wfile.write

        parts: Iterable[bytes] = self.server.app(environ, start_response)
        try:
            for part in parts:
                # Head and first bytes leave together: one packet for most answers.
                self.wfile.write(b"".join(head) + part)
                head.clear()
            if head:
                self.wfile.write(head[0])
        finally:
            if close := getattr(parts, "close", None):
                close()

    def _head(self, status: str, headers: list[tuple[str, str]]) -> bytes:
        names = {name.lower() for name, _ in headers}
        if "content-length" not in names and status[:3] not in ("204", "304"):
            self.close_connection = True
        after = "close" if self.close_connection else "keep-alive"
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
        lines += [f"Date: {self.date_time_string()}", f"Connection: {after}"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
