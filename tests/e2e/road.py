"""A road between a worker and Sequin: it can be slow, it can be blocked, and it counts who is on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PATIENCE_SECONDS = 60.0
HOP_BY_HOP = {"connection", "transfer-encoding", "keep-alive"}


@dataclass
class Roadblock:
    """Stops what comes along. First each request, until `let_through`; then its answer, until `let_back`."""

    method: str
    path: str
    # Whether the traveller is lost on the way back: the connection ends where the answer would come.
    loses_answer: bool = False
    arrived: threading.Event = field(default_factory=threading.Event)
    answered: threading.Event = field(default_factory=threading.Event)
    may_pass: threading.Event = field(default_factory=threading.Event)
    may_return: threading.Event = field(default_factory=threading.Event)

    def wait_for_request(self) -> None:
        """Wait until a request stands here: it has left the worker for good."""
        assert self.arrived.wait(PATIENCE_SECONDS)

    def let_through(self) -> None:
        """Let the request reach Sequin, and wait until Sequin has acted."""
        self.may_pass.set()
        assert self.answered.wait(PATIENCE_SECONDS)

    def let_back(self) -> None:
        """Let the answer go back."""
        self.may_return.set()


class Road:
    """A forwarding server on loopback; `url` stands for `target`."""

    def __init__(self, target: str) -> None:
        self._target = urlsplit(target)
        self._lock = threading.Lock()
        self._blocks: list[Roadblock] = []
        self._now: dict[str, int] = {}
        self.most_at_once: dict[str, int] = {}
        """How many requests of each method were under way at the same time, at most."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{self._target.path}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def block(self, method: str, path: str, *, loses_answer: bool = False) -> Roadblock:
        """Stop the next request of this kind; those after it pass."""
        block = Roadblock(method, path, loses_answer)
        with self._lock:
            self._blocks.append(block)
        return block

    def close(self) -> None:
        """Take the road away."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        road = self

        class Traveller(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _travel(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                block = road._blocked(self.command, self.path)
                with road._counted(self.command):
                    if block:
                        block.arrived.set()
                        assert block.may_pass.wait(PATIENCE_SECONDS)
                    status, headers, answer = road._forward(self.command, self.path, dict(self.headers), body)
                    if block:
                        block.answered.set()
                        assert block.may_return.wait(PATIENCE_SECONDS)
                if block and block.loses_answer:
                    self.close_connection = True
                    return
                self._answer(status, headers, answer)

            def _answer(self, status: int, headers: list[tuple[str, str]], answer: bytes) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    if name.lower() not in HOP_BY_HOP | {"content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_DELETE = _travel  # noqa: N815 - as http.server calls them

            def log_message(self, *_: object) -> None:
                pass

        return Traveller

    def _blocked(self, method: str, path: str) -> Roadblock | None:
        with self._lock:
            for block in self._blocks:
                if (block.method, block.path) == (method, path.removeprefix(self._target.path)):
                    self._blocks.remove(block)
                    return block
        return None

    @contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        with self._lock:
            self._now[method] = self._now.get(method, 0) + 1
            self.most_at_once[method] = max(self._now[method], self.most_at_once.get(method, 0))
        try:
            yield
        finally:
            with self._lock:
                self._now[method] -= 1

    def _forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        kept = {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP | {"host"}}
        connection = HTTPConnection(self._target.hostname or "", self._target.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request(method, path, body, {**kept, "Host": self._target.netloc})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()


@contextmanager
def road_to(target: str) -> Iterator[Road]:
    """Lend a road to an address."""
    road = Road(target)
    try:
        yield road
    finally:
        road.close()
