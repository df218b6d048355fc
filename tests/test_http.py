"""The network door against real sockets that behave badly, and against a stand-in for the network."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
import responses
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.errors import (
    AddressRefused,
    AnswerTooLarge,
    CertificateRefused,
    ConnectionBroken,
    DeadlineExceeded,
    NetworkError,
    RedirectRefused,
    RequestUnsendable,
    Unreachable,
    UnusableAnswer,
)
from broker.http import Answer, Deadline, Http, is_public, readable, retry_after, translated
from broker.secret import Secret

Script = Callable[[socket.socket], None]
SOON = 0.4
"""The deadline the misbehaving servers are met with, in seconds."""
SLACK = 1.0
"""How late a busy machine may be; without a deadline the servers would keep a client for 3 s."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """A loopback server that plays one script per connection and keeps what it was sent."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.tls = tls
        self.heard: list[bytes] = []
        self.connections = 0
        self.open: list[socket.socket] = []
        self.stopping = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.url = f"{'https' if tls else 'http'}://{self.address}"
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        while not self.stopping.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self.serve, args=(sock,), daemon=True))
            self.threads[-1].start()

    def serve(self, sock: socket.socket) -> None:
        sock.settimeout(3)
        try:
            with self.tls.wrap_socket(sock, server_side=True) if self.tls else sock as conn:
                self.open.append(conn)
                self.script(conn)
        except OSError:
            pass  # the client has hung up: that is what it should do

    def read(self, sock: socket.socket) -> bytes:
        """Read one request."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := sock.recv(65536)):
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
        while len(body) < length:
            body += sock.recv(65536)
        self.heard.append(head + b"\r\n\r\n" + body)
        return self.heard[-1]

    def drip(self, sock: socket.socket, piece: bytes, pause: float = 0.02) -> None:
        """Send one piece again and again, until the client or the test is gone."""
        end = time.monotonic() + 3
        while time.monotonic() < end and not self.stopping.wait(pause):
            sock.sendall(piece)

    def close(self) -> None:
        self.stopping.set()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in self.open:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(4)


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server that answers with these bytes, or plays this script after it has read the request."""
    servers: list[Server] = []

    def start(answer: bytes | Callable[[Server, socket.socket], None], tls: ssl.SSLContext | None = None) -> Server:
        def script(sock: socket.socket) -> None:
            while server.read(sock):
                if callable(answer):
                    answer(server, sock)
                    return
                sock.sendall(answer)

        server = Server(script, tls)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def http() -> Iterator[Http]:
    door = Http(allow_plain_loopback=True, user_agent="broker-test")
    yield door
    door.close()


def dripping(head: bytes, piece: bytes, pause: float = 0.02) -> Callable[[Server, socket.socket], None]:
    def play(server: Server, sock: socket.socket) -> None:
        sock.sendall(head)
        server.drip(sock, piece, pause)

    return play


def failing(http: Http, url: str, **options: Any) -> tuple[NetworkError, float]:
    """Return how a call failed and how long it took."""
    start = time.monotonic()
    with pytest.raises(NetworkError) as caught:
        http.request("POST", url, form={"code": "SECRET-CODE"}, **options)
    return caught.value, time.monotonic() - start


# --- what is sent and what comes back -----------------------------------------------------------------


@pytest.mark.network
def test_a_request_carries_what_it_was_given_and_asks_for_no_compression(http: Http, serve: Serve) -> None:
    server = serve(OK)
    answer = http.request("POST", server.url + "/x?q=1", json={"a": "é"}, bearer=Secret("tok"))
    head, _, body = server.heard[0].partition(b"\r\n\r\n")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"ok", "2")
    assert head.startswith(b"POST /x?q=1 HTTP/1.1\r\n")
    assert b"Authorization: Bearer tok" in head
    assert b"Accept-Encoding: identity" in head
    assert b"User-Agent: broker-test" in head
    assert json.loads(body) == {"a": "é"}


@pytest.mark.network
def test_basic_credentials_outside_latin_1_are_sent_in_utf_8(http: Http, serve: Serve) -> None:
    server = serve(OK)
    http.request("GET", server.url, basic=("id", Secret("ключ")))
    assert b"Authorization: Basic aWQ60LrQu9GO0Yc=" in server.heard[0]


@pytest.mark.network
def test_an_error_status_is_an_answer_and_no_exception(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n!")
    assert http.request("GET", server.url).status == 500


@pytest.mark.network
def test_connections_are_used_again(http: Http, serve: Serve) -> None:
    server = serve(OK)
    for _ in range(3):
        http.request("GET", server.url)
    assert (server.connections, len(server.heard)) == (1, 3)


@pytest.mark.network
def test_cookies_are_not_kept(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 2\r\n\r\nok")
    http.request("GET", server.url)
    http.request("GET", server.url, headers={"Cookie": "mine=1"})
    assert b"cookie" not in server.heard[1].lower()


@pytest.mark.network
def test_proxies_and_netrc_of_the_environment_are_ignored(
    http: Http, serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server = serve(OK)
    assert http.request("GET", server.url).status == 200
    assert b"authorization" not in server.heard[0].lower()


@pytest.mark.network
def test_threads_share_one_door(http: Http, serve: Serve) -> None:
    server = serve(OK)
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(http.request("GET", server.url).status)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 12


@pytest.mark.network
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_opens_connections_of_its_own(http: Http, serve: Serve) -> None:
    server = serve(OK)
    http.request("GET", server.url)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if http.request("GET", server.url).status == 200 else 1
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    http.request("GET", server.url)
    assert server.connections == 2


# --- the total deadline -------------------------------------------------------------------------------

ENDLESS = {
    "silence": dripping(b"", b"", 3),
    "a drip in the status line": dripping(b"HTTP/1.1 200 ", b"O"),
    "a drip in the headers": dripping(b"HTTP/1.1 200 OK\r\nX-A: ", b"a"),
    "a drip of headers": dripping(b"HTTP/1.1 200 OK\r\n", b"X-A: b\r\n"),
    "a drip in the body": dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"a"),
    "a drip of 100-continue": dripping(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a drip of chunks": dripping(CHUNKED, b"1\r\na\r\n"),
    "a drip in a chunk size": dripping(CHUNKED + b"1;", b"x"),
    "a drip in the trailers": dripping(CHUNKED + b"0\r\n", b"X: y\r\n"),
}


@pytest.mark.network
@pytest.mark.parametrize("play", ENDLESS.values(), ids=ENDLESS.keys())
def test_an_answer_that_never_ends_ends_at_the_deadline(http: Http, serve: Serve, play: Any) -> None:
    server = serve(play)
    error, took = failing(http, server.url, deadline=SOON)
    # http.client itself gives up on more than 100 headers, sooner than the deadline.
    assert isinstance(error, (DeadlineExceeded, ConnectionBroken))
    assert error.sent
    assert took < SOON + SLACK


@pytest.mark.network
def test_a_server_that_does_not_take_the_request_ends_at_the_deadline(http: Http, serve: Serve) -> None:
    server = Server(lambda sock: server.drip(sock, b"", 0.05))
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        http.request("POST", server.url, json="x" * 12_000_000, deadline=SOON)
    server.close()
    assert caught.value.sent
    assert time.monotonic() - start < SOON + SLACK


@pytest.mark.network
def test_a_dripping_tls_handshake_ends_at_the_deadline_with_nothing_sent(http: Http) -> None:
    server = Server(lambda sock: server.drip(sock, b"\x16\x03\x03\x40\x00"[:1]))
    error, took = failing(http, f"https://{server.address}", deadline=SOON)
    server.close()
    assert isinstance(error, (DeadlineExceeded, Unreachable))
    assert not error.sent
    assert took < SOON + SLACK


@pytest.mark.network
def test_the_deadline_can_be_shortened_and_not_stretched(http: Http, serve: Serve, monkeypatch: Any) -> None:
    monkeypatch.setattr("broker.http.TOTAL_SECONDS", SOON)
    server = serve(dripping(b"", b"", 3))
    error, took = failing(http, server.url, deadline=60)
    assert isinstance(error, DeadlineExceeded)
    assert took < SOON + SLACK


def test_a_deadline_counts_down_by_the_clock_it_was_given() -> None:
    now = [100.0]
    deadline = Deadline(5, lambda: now[0])
    deadline.check()
    now[0] = 104.0
    assert deadline.remaining() == 1
    now[0] = 105.0
    with pytest.raises(DeadlineExceeded):
        deadline.check()


# --- size ---------------------------------------------------------------------------------------------

HUGE = {
    "declared": b"HTTP/1.1 200 OK\r\nContent-Length: 2000000\r\n\r\n",
    "undeclared": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"a" * 2_000_000,
    "in chunks": CHUNKED + (b"10000\r\n" + b"a" * 65536 + b"\r\n") * 20,
    "of framing": CHUNKED + (b"1;" + b"x" * 30000 + b"\r\na\r\n") * 100,
    "of continues": b"HTTP/1.1 100 Continue\r\nX: " + b"x" * 30000 + b"\r\n\r\n",
}


@pytest.mark.network
@pytest.mark.parametrize("form", HUGE)
def test_a_huge_answer_is_cut_off(http: Http, serve: Serve, form: str) -> None:
    def play(server: Server, sock: socket.socket) -> None:
        for _ in range(200):
            sock.sendall(HUGE[form])

    error, took = failing(http, serve(play).url, deadline=5)
    assert isinstance(error, AnswerTooLarge)
    assert error.sent
    assert took < 2


@pytest.mark.network
def test_an_answer_as_large_as_its_cap_is_taken(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n0123456789")
    assert http.request("GET", server.url, max_bytes=10).body == b"0123456789"
    with pytest.raises(AnswerTooLarge):
        http.request("GET", server.url, max_bytes=9)


@pytest.mark.network
def test_a_compressed_answer_is_refused_without_unfolding_it(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00")
    error, _ = failing(http, server.url)
    assert isinstance(error, UnusableAnswer)


# --- redirects ----------------------------------------------------------------------------------------


@pytest.mark.network
@pytest.mark.parametrize("status", [301, 302, 303, 304, 307, 308])
def test_a_redirect_is_never_followed(http: Http, serve: Serve, status: int) -> None:
    target = serve(OK)
    server = serve(f"HTTP/1.1 {status} Go\r\nLocation: {target.url}/y\r\nContent-Length: 0\r\n\r\n".encode())
    error, _ = failing(http, server.url)
    assert isinstance(error, RedirectRefused)
    assert error.sent
    assert target.connections == 0


# --- broken connections -------------------------------------------------------------------------------

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"


def resetting(head: bytes) -> Callable[[Server, socket.socket], None]:
    def play(server: Server, sock: socket.socket) -> None:
        sock.sendall(head)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    return play


BROKEN = {
    "before the answer": lambda server, sock: None,
    "in the headers": lambda server, sock: sock.sendall(b"HTTP/1.1 200 OK\r\nConte"),
    "in a body of known length": lambda server, sock: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"),
    "between chunks": lambda server, sock: sock.sendall(CHUNKED + b"2\r\n{}\r\n"),
    "by a reset before the answer": resetting(b""),
    "by a reset in the body": resetting(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{}"),
    "by something that is not HTTP": lambda server, sock: sock.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"),
    "by a chunk size that is no number": lambda server, sock: sock.sendall(CHUNKED + b"zz\r\n{}\r\n"),
    "by endless headers": lambda server, sock: sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n"),
    "by an endless header line": lambda server, sock: sock.sendall(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70000),
}


@pytest.mark.network
@pytest.mark.parametrize("play", BROKEN.values(), ids=BROKEN.keys())
def test_an_answer_that_breaks_off_is_a_broken_connection(http: Http, serve: Serve, play: Any) -> None:
    server = serve(play)
    error, _ = failing(http, server.url + "/oauth/token?secret=1", deadline=2)
    assert isinstance(error, ConnectionBroken)
    assert error.sent
    assert error.detail.startswith(f"POST {server.address}/oauth/token: ")
    assert "secret" not in error.detail.lower()


@pytest.mark.network
def test_an_answer_sent_before_the_whole_request_was_taken_is_read(http: Http) -> None:
    def play(sock: socket.socket) -> None:
        sock.recv(1000)
        sock.sendall(b"HTTP/1.1 413 Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass

    server = Server(play)
    assert http.request("POST", server.url, json="x" * 1_000_000).status == 413
    server.close()


@pytest.mark.network
def test_nothing_is_sent_where_nobody_listens(http: Http) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error, _ = failing(http, f"http://127.0.0.1:{port}/x")
    assert isinstance(error, Unreachable)
    assert not error.sent


@pytest.mark.network
def test_a_kept_connection_that_the_server_has_closed_is_replaced_before_sending(http: Http, serve: Serve) -> None:
    closed = threading.Event()

    def once(server: Server, sock: socket.socket) -> None:
        sock.sendall(OK)
        sock.shutdown(socket.SHUT_RDWR)
        closed.set()

    server = serve(once)
    http.request("GET", server.url)
    assert closed.wait(2)
    assert http.request("POST", server.url, json={}).status == 200
    assert (server.connections, len(server.heard)) == (2, 2)


@pytest.mark.network
def test_a_kept_connection_that_rested_long_is_not_used_again(
    http: Http, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.http.MAX_IDLE_SECONDS", 0.0)
    server = serve(OK)
    for _ in range(2):
        http.request("GET", server.url)
    assert server.connections == 2


@pytest.mark.network
def test_a_request_that_was_lost_on_a_kept_connection_counts_as_sent_and_is_not_repeated(
    http: Http, serve: Serve
) -> None:
    def second_time_lost(server: Server, sock: socket.socket) -> None:
        sock.sendall(OK)
        server.read(sock)

    server = serve(second_time_lost)
    http.request("GET", server.url)
    error, _ = failing(http, server.url)
    assert isinstance(error, ConnectionBroken)
    assert error.sent
    assert len(server.heard) == 2


@pytest.mark.network
def test_a_request_of_which_not_a_byte_could_be_sent_was_not_sent(
    http: Http, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = threading.Event()

    def reset_afterwards(server: Server, sock: socket.socket) -> None:
        sock.sendall(OK)
        read.wait(2)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    server = serve(reset_afterwards)
    http.request("GET", server.url)
    read.set()
    for thread in server.threads[1:]:
        thread.join(2)
    # As if the reset had come right after the check.
    monkeypatch.setattr("broker.http._TimedConnection.is_connected", True)
    error, _ = failing(http, server.url)
    assert isinstance(error, Unreachable)
    assert not error.sent
    assert len(server.heard) == 1


@pytest.mark.network
def test_a_connection_is_not_used_again_after_its_answer_was_refused(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 302 Go\r\nLocation: /\r\nContent-Length: 5\r\n\r\nhello")
    for _ in range(2):
        assert isinstance(failing(http, server.url)[0], RedirectRefused)
    assert server.connections == 2


# --- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://127.0.0.1.example.com/",
        "http://localhost.example.com/",
        "https://user:pw@example.com/",
        "http://127.0.0.1@example.com/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "https:///nohost",
        "/relative",
        "",
        "https://exa mple.com/",
        "https://example.com\\@127.0.0.1/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://" + "a" * 70 + ".example/",
        "https://.example/",
    ],
)
def test_an_address_that_may_not_be_called_is_refused_before_any_socket_opens(http: Http, url: str) -> None:
    error, _ = failing(http, url)
    assert isinstance(error, AddressRefused)
    assert not error.sent
    assert "pw" not in error.detail


def test_plain_http_is_refused_even_on_loopback_unless_allowed() -> None:
    error, _ = failing(Http(allow_plain_loopback=False, user_agent="t"), "http://127.0.0.1:9/")
    assert isinstance(error, AddressRefused)


@pytest.mark.network
def test_plain_http_reaches_this_machine_alone_whatever_localhost_resolves_to(
    http: Http, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: elsewhere)
    error, _ = failing(http, "http://localhost/")
    assert isinstance(error, AddressRefused)
    assert not error.sent


@pytest.mark.network
def test_an_address_is_judged_after_its_name_was_resolved() -> None:
    http = Http(allow_plain_loopback=True, user_agent="t", may_connect=is_public)
    error, _ = failing(http, "https://127.0.0.1/")
    assert isinstance(error, AddressRefused)
    assert not error.sent


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("1.1.1.1", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("127.0.0.1", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("224.0.0.1", False),
        ("2606:4700::1111", True),
    ],
)
def test_public_addresses_are_told_from_private_ones(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("64:ff9b::808:808", True),
        ("64:ff9b::a00:1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:808:808::", True),
        ("2002:7f00:1::", False),
        ("2001:0:808:808::f5ff:fffe", False),
    ],
)
def test_an_address_that_leads_to_another_is_judged_by_that(text: str, public: bool) -> None:
    assert is_public(ipaddress.ip_address(text)) is public


@pytest.mark.network
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
    ],
)
def test_a_post_ends_with_the_status_however_the_rest_is(http: Http, serve: Serve, answer: bytes) -> None:
    server = serve(answer)
    told = http.post(f"{server.url}/hook", headers={"X-A": "b"}, content=b'{"exact": "bytes" }')
    assert (told.status, told.body) == (200, b"")
    assert server.heard[0].endswith(b'\r\n\r\n{"exact": "bytes" }')
    assert b"X-A: b\r\n" in server.heard[0]


@pytest.mark.network
def test_a_post_that_is_answered_too_late_redirected_or_not_at_all_is_a_failure(http: Http, serve: Serve) -> None:
    def late(server: Server, _sock: socket.socket) -> None:
        server.stopping.wait(3)

    redirect = serve(b"HTTP/1.1 307 Elsewhere\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n")
    for server, failure in ((serve(late), DeadlineExceeded), (redirect, RedirectRefused)):
        with pytest.raises(failure):
            http.post(server.url, headers={}, content=b"{}", deadline=SOON)


@pytest.mark.network
def test_an_address_can_be_checked_without_calling_it(monkeypatch: pytest.MonkeyPatch) -> None:
    leads_to: dict[str, list[str]] = {"out.example": ["1.1.1.1"], "both.example": ["1.1.1.1", "10.0.0.1"]}

    def resolve(host: str, port: int, *_more: object) -> list[tuple[object, ...]]:
        if host not in leads_to:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in leads_to[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    http = Http(allow_plain_loopback=False, user_agent="t", may_connect=is_public)
    http.check("https://out.example/hook")
    http.check("https://nobody-knows.example/hook")
    for refused in (
        "https://both.example/",
        "http://out.example/",
        "https://a:b@out.example/",
        "https://out.example\\@x/",
    ):
        with pytest.raises(AddressRefused):
            http.check(refused)


@pytest.mark.network
def test_a_name_that_does_not_resolve_was_not_called(http: Http, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    error, _ = failing(http, "https://nowhere.example/")
    assert isinstance(error, Unreachable)
    assert not error.sent


@pytest.mark.network
def test_a_dead_first_address_leaves_time_for_the_next(
    http: Http, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(OK)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        dead = taken.getsockname()
    alive = server.listener.getsockname()
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (dead, alive)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: both)
    assert http.request("GET", server.url).status == 200


@pytest.mark.parametrize(
    "options",
    [
        {"bearer": Secret("tok\r\nX: y")},
        {"bearer": Secret("ключ")},
        {"headers": {"X-A": "a\r\nb"}},
        {"form": {"a": "\ud800"}},
        {"json": {"a": float("nan")}},
        {"json": {"a": object()}},
    ],
)
def test_a_request_that_cannot_be_written_is_told_from_a_failure_of_the_network(
    http: Http, options: dict[str, Any]
) -> None:
    with pytest.raises(RequestUnsendable) as caught:
        http.request("POST", "https://127.0.0.1:9/", **options)
    assert not caught.value.sent
    assert "tok" not in str(caught.value)
    assert "ключ" not in str(caught.value)


# --- TLS ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1 that nobody but these tests trusts, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(signed.public_bytes(pem) + private)
    return path


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@pytest.mark.network
def test_an_untrusted_certificate_is_refused_with_nothing_sent(http: Http, serve: Serve, tls: ssl.SSLContext) -> None:
    server = serve(OK, tls)
    error, _ = failing(http, server.url)
    assert isinstance(error, CertificateRefused)
    assert not error.sent
    assert "self-signed" in error.detail
    assert server.heard == []


@pytest.mark.network
def test_a_certificate_for_another_name_is_refused(serve: Serve, tls: ssl.SSLContext, certificate: Path) -> None:
    http = Http(allow_plain_loopback=True, user_agent="t", ca_file=str(certificate))
    server = serve(OK, tls)
    assert http.request("GET", server.url).body == b"ok"
    error, _ = failing(http, server.url.replace("127.0.0.1", "localhost"))
    http.close()
    assert isinstance(error, CertificateRefused)


@pytest.mark.network
def test_an_answer_over_tls_ends_at_the_deadline_too(serve: Serve, tls: ssl.SSLContext, certificate: Path) -> None:
    http = Http(allow_plain_loopback=False, user_agent="t", ca_file=str(certificate))
    server = serve(dripping(b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n", b"a"), tls)
    error, took = failing(http, server.url, deadline=SOON)
    assert isinstance(error, DeadlineExceeded)
    assert error.sent
    assert took < SOON + SLACK


@pytest.mark.network
def test_tls_where_none_is_spoken_is_refused_with_nothing_sent(http: Http) -> None:
    server = Server(lambda sock: sock.sendall(b"HTTP/1.1 400 plain\r\n\r\n"))
    error, _ = failing(http, f"https://{server.address}")
    server.close()
    assert isinstance(error, Unreachable)
    assert not error.sent


# --- streams ------------------------------------------------------------------------------------------


@pytest.mark.network
def test_a_stream_is_read_piece_by_piece_under_a_cap_of_its_own(http: Http, serve: Serve) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\n\r\n" + b"a" * 200_000)
    with http.stream("GET", server.url, max_bytes=200_000) as stream:
        assert stream.status == 200
        assert sum(map(len, stream.chunks())) == 200_000
    with http.stream("GET", server.url, max_bytes=300_000) as stream:
        assert len(next(stream.chunks())) < 200_000
    with pytest.raises(AnswerTooLarge), http.stream("GET", server.url, max_bytes=1000) as stream:
        pytest.fail("declared too large")


@pytest.mark.network
def test_a_stream_that_breaks_off_says_so(http: Http, serve: Serve) -> None:
    server = serve(lambda server, sock: sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n[1,"))
    with http.stream("GET", server.url) as stream, pytest.raises(ConnectionBroken):
        list(stream.chunks())


@pytest.mark.network
def test_a_dripping_stream_ends_at_its_deadline(http: Http, serve: Serve) -> None:
    server = serve(dripping(CHUNKED, b"1\r\na\r\n"))
    start = time.monotonic()
    with http.stream("GET", server.url, deadline=SOON) as stream, pytest.raises(DeadlineExceeded):
        list(stream.chunks())
    assert time.monotonic() - start < SOON + SLACK


# --- the stand-in for the network that unit tests use -------------------------------------------------


@responses.activate
def test_unit_tests_can_stand_in_for_the_network(http: Http) -> None:
    responses.get("https://api.example.com/x", json={"a": 1}, headers={"X-Y": "z"})
    answer = http.request("GET", "https://api.example.com/x")
    assert answer.json() == {"a": 1}
    assert answer.headers["x-y"] == "z"


@responses.activate
@pytest.mark.parametrize(
    ("raised", "becomes", "sent"),
    [
        (requests.exceptions.ConnectionError("no"), Unreachable, False),
        (requests.exceptions.ConnectTimeout("no"), Unreachable, False),
        (requests.exceptions.ReadTimeout("no"), DeadlineExceeded, True),
        (requests.exceptions.ChunkedEncodingError("no"), ConnectionBroken, True),
        (requests.exceptions.ContentDecodingError("no"), UnusableAnswer, True),
        (OSError("no"), ConnectionBroken, True),
    ],
)
def test_every_failure_of_the_library_becomes_one_of_ours(
    http: Http, raised: Exception, becomes: type[NetworkError], sent: bool
) -> None:
    responses.get("https://api.example.com/x", body=raised)
    with pytest.raises(becomes) as caught:
        http.request("GET", "https://api.example.com/x")
    assert type(caught.value) is becomes
    assert caught.value.sent is sent
    assert caught.value.__cause__ is raised


def test_our_own_failures_pass_the_translation_untouched() -> None:
    error = RedirectRefused("x")
    with pytest.raises(RedirectRefused) as caught, translated("elsewhere"):
        raise error
    assert caught.value is error


# --- small pure things --------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("999999", 900.0),
        ("9" * 5000, 900.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 0.0),
        ("Sun, 22 Nov 2099 12:00:30 GMT", 900.0),
        ("-5", None),
        ("soon", None),
        ("", None),
        ("٣", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_date_and_clamped(value: str, seconds: float | None) -> None:
    assert retry_after({"retry-AFTER": value}, NOW) == seconds


def test_without_retry_after_there_is_no_wait_and_without_a_time_it_is_now() -> None:
    assert retry_after({}, NOW) is None
    later = datetime.now(UTC) + timedelta(seconds=100)
    assert 90 < (retry_after({"Retry-After": later.strftime("%a, %d %b %Y %H:%M:%S GMT")}) or 0) <= 100


@pytest.mark.parametrize("body", [b"", b"<html>", b"{", b'{"a": NaN}', b"[" * 100_000, b"\xff\xfe\x00", b"9" * 10_000])
def test_what_is_not_json_is_an_unusable_answer_that_quotes_nothing(body: bytes) -> None:
    with pytest.raises(UnusableAnswer) as caught:
        Answer(200, {}, body, "https://h.example/p?secret=1").json()
    assert caught.value.__cause__ is None
    assert "secret" not in caught.value.detail
    assert "h.example/p" in caught.value.detail


def test_an_answer_does_not_print_its_body() -> None:
    assert "tok" not in repr(Answer(200, {}, b"tok", "https://h.example/tok"))


def test_foreign_text_becomes_one_short_line_without_secrets() -> None:
    dirty = "a\x00b\x1b[31m\n\ud800c s\u200bentinel/1 sentinel%2F1 gho_abcdefgh1234 sk_live_abcdef"
    assert readable(dirty, secrets=["sentinel/1"]) == "a b [31m c s entinel/1 ••• ••• •••"
    assert readable("sen\x00tinel", secrets=["sen tinel"]) == "•••"
    assert readable("x" * 500) == "x" * 200
    assert readable(None) == ""


@pytest.mark.network
def test_the_libraries_write_no_request_into_the_log(
    http: Http, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("", "urllib3", "urllib3.connectionpool", "requests"):
        caplog.set_level(logging.DEBUG, logger=name)
    http.request("GET", serve(OK).url + "/?token=SECRET")
    assert "SECRET" not in caplog.text
