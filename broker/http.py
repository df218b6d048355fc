"""The one door to the network: pooled, never redirected, capped in size, and over at a total deadline.

Nothing else imports requests or urllib3. Every failure leaves as one of our `NetworkError`s, whose `sent` says
whether the other side may have acted, and whose detail names method, host and path but no query, header or body.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import json as jsonlib
import logging
import os
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, partial
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

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
from broker.secret import MASK, Secret
from broker.telemetry import tracing

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
TOTAL_SECONDS = 15.0
MAX_BYTES = 1 << 20
# A pooled connection that rested longer is not used again: common servers close after 5 s or more, and a request
# that crosses with such a close fails in a way nobody can tell from "it was acted on".
MAX_IDLE_SECONDS = 4.0
# What may arrive on the wire beyond the body: headers, 100-continues, chunk framing.
OVERHEAD_BYTES = 256 * 1024
CHUNK_BYTES = 64 * 1024

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


# --- logging ------------------------------------------------------------------------------------------


def _only_errors(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def hush(*names: str) -> None:
    """Keep these loggers at ERROR, whatever level the root logger gets.

    At DEBUG the libraries write request lines (and Authlib the PKCE verifier), and at WARNING urllib3 quotes whole
    addresses and answer headers. A level alone is undone by the next logging configuration; the filter stays.
    """
    for name in names:
        logger = logging.getLogger(name)
        logger.setLevel(logging.ERROR)
        if _only_errors not in logger.filters:
            logger.addFilter(_only_errors)


# A filter does not reach child loggers, so each one that writes is named.
hush("requests", "urllib3", "urllib3.connection", "urllib3.connectionpool", "urllib3.poolmanager", "urllib3.response")
hush("urllib3.util.retry")


# --- time and one call --------------------------------------------------------------------------------


class Deadline:
    """A point in time after which nothing may be waited for."""

    def __init__(self, seconds: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._end = monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left; zero or less once it has passed."""
        return self._end - self._monotonic()

    def check(self) -> None:
        """Raise DeadlineExceeded once it has passed."""
        if self.remaining() <= 0:
            raise DeadlineExceeded("the time for this call is used up")


class _Call:
    """One request and its answer: how long it may still take, how much it may bring, whether it has left."""

    def __init__(self, where: str, seconds: float, max_bytes: int, may_connect: Callable[[Address], bool]) -> None:
        self.where = where
        self.deadline = Deadline(seconds)
        self.max_bytes = max_bytes
        self.may_connect = may_connect
        self.armed = False
        self.sent = False
        self.status: int | None = None
        self._wire_bytes_left = 2 * max_bytes + OVERHEAD_BYTES

    def patience(self, most: float) -> float:
        """Return how long the next socket operation may wait: at most `most`, never past the deadline."""
        left = self.deadline.remaining()
        if left <= 0:
            raise self.failure(DeadlineExceeded, "the total deadline passed")
        return min(most, left)

    def received(self, count: int) -> None:
        """Count bytes off the wire, so that endless framing ends as surely as an endless body."""
        self._wire_bytes_left -= count
        if self._wire_bytes_left < 0:
            raise self.failure(AnswerTooLarge, "headers and framing never end")

    def failure(self, kind: type[NetworkError], why: str) -> NetworkError:
        """Return the error that says what happened to this call, honest about whether it was sent."""
        error = kind(f"{self.where}: {why}")
        if self.armed:
            error.sent = self.sent
        return error


class _CallTimeout(urllib3.Timeout):
    """Carries the call down to the connection: the one argument that travels through requests and urllib3 untouched."""

    def __init__(self, call: _Call) -> None:
        super().__init__(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self.call = call

    def clone(self) -> _CallTimeout:
        return _CallTimeout(self.call)


# --- sockets ------------------------------------------------------------------------------------------


class _TimedReader(io.RawIOBase):
    """Reads a socket, giving every single receive only the time that is left."""

    def __init__(self, sock: socket.socket, call: _Call) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._call = call
        self.ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        # Past the deadline nothing is waited for, but what has arrived is still read: a process that was paused
        # must not throw away the only copy of a token.
        self._sock.settimeout(max(0.0, min(READ_SECONDS, self._call.deadline.remaining())))
        try:
            count = self._raw.readinto(buffer)
        except (TimeoutError, ssl.SSLWantReadError) as error:
            raise self._call.failure(DeadlineExceeded, "no answer in time") from error
        if count is None:
            raise self._call.failure(DeadlineExceeded, "no answer in time")
        self._call.received(count)
        self.ended = count == 0
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


class _Ear:
    """What http.client needs of a socket to read an answer from it: `makefile`, here with a deadline."""

    def __init__(self, sock: socket.socket, call: _Call) -> None:
        self.reader = _TimedReader(sock, call)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self.reader)


class _TimedResponse(http.client.HTTPResponse):
    """An answer read under a deadline, whose headers must arrive whole."""

    def __init__(self, call: _Call, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        ear = _Ear(sock, call)
        super().__init__(ear, *args, **kwargs)  # type: ignore[arg-type]
        self._reader = ear.reader

    def begin(self) -> None:
        super().begin()
        # http.client takes the end of the connection for the end of the headers: half of them would be a 200.
        if self._reader.ended:
            raise http.client.IncompleteRead(b"")


class _TimedConnection(HTTPConnection):
    """A connection that obeys the deadline of the call it currently serves, while connecting, sending and receiving."""

    loopback_only = True
    _call: _Call
    _rested_at = 0.0

    def arm(self, call: _Call) -> None:
        """Serve `call` from now on."""
        self._call = call
        call.armed = True
        self.response_class = partial(_TimedResponse, call)  # type: ignore[assignment]

    def rest(self) -> None:
        """Note when this connection went back to the pool."""
        self._rested_at = time.monotonic()

    @property
    def is_connected(self) -> bool:
        # urllib3 asks this before it uses a pooled connection; no means it connects afresh.
        return super().is_connected and time.monotonic() - self._rested_at < MAX_IDLE_SECONDS

    def connect(self) -> None:
        try:
            super().connect()
        except ssl.SSLError as error:
            raise self._call.failure(CertificateRefused, f"TLS handshake failed ({_tls_reason(error)})") from error
        except TimeoutError as error:
            raise self._call.failure(Unreachable, "TLS handshake did not finish in time") from error
        except OSError as error:
            raise self._call.failure(Unreachable, "the connection ended during the TLS handshake") from error

    def _new_conn(self) -> socket.socket:
        call = self._call
        addresses = self._resolve(call)
        budget = Deadline(call.patience(CONNECT_SECONDS))
        failed: OSError | None = None
        for left in range(len(addresses), 0, -1):
            # Each address gets its share, so that a dead first one leaves time for the next.
            share = max(budget.remaining() / left, 0.01)
            try:
                sock = self._knock(addresses[-left], call.patience(share))
            except OSError as error:
                failed = error
                continue
            # The TLS handshake that follows runs under this timeout as a whole.
            sock.settimeout(call.patience(CONNECT_SECONDS))
            return sock
        raise call.failure(Unreachable, "no connection could be made") from failed

    def _resolve(self, call: _Call) -> list[tuple[Any, ...]]:
        found = _lookup(self._dns_host.strip("[]"), self.port, call)
        # Checked here, on the addresses really used, so that a name cannot pass a check and then resolve elsewhere.
        allowed = [entry for entry in found if _may_use(call, str(entry[4][0]), loopback_only=self.loopback_only)]
        if not allowed:
            raise call.failure(AddressRefused, _NOT_FROM_HERE)
        return allowed

    def _knock(self, entry: tuple[Any, ...], timeout: float) -> socket.socket:
        family, kind, protocol, _, address = entry
        sock = socket.socket(family, kind, protocol)
        try:
            for option in self.socket_options or ():
                sock.setsockopt(*option)
            sock.settimeout(timeout)
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock

    def send(self, data: Any) -> None:
        """Send bytes; every single send gets only the time that is left."""
        if self.sock is None:
            self.connect()
        view = memoryview(data)
        while view:
            self.sock.settimeout(self._call.patience(READ_SECONDS))
            try:
                view = view[self.sock.send(view[:CHUNK_BYTES]) :]
            except TimeoutError as error:
                raise self._call.failure(DeadlineExceeded, "the request was not taken in time") from error
            # Not before: where the very first send fails, the other side has seen nothing.
            self._call.sent = True


class _TimedTlsConnection(_TimedConnection, HTTPSConnection):
    """The same over TLS."""

    loopback_only = False


_NOT_FROM_HERE = "the host resolves to an address that may not be reached from here"


def _lookup(host: str, port: int | None, call: _Call) -> list[tuple[Any, ...]]:
    # Not covered by the deadline: getaddrinfo cannot be interrupted; the resolver's own limits apply
    # (resolv.conf: timeout, attempts).
    try:
        host.encode("idna")
        return list(socket.getaddrinfo(host, port, socket.AF_UNSPEC, socket.SOCK_STREAM))
    except UnicodeError as error:
        raise call.failure(AddressRefused, "the host is not a valid name") from error
    except OSError as error:
        raise call.failure(Unreachable, "the host name does not resolve") from error


def _may_use(call: _Call, text: str, *, loopback_only: bool) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    return call.may_connect(address) and (address.is_loopback or not loopback_only)


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return _plain(error.verify_message)
    return _plain(error.reason or "no TLS")


def _plain(text: str) -> str:
    return re.sub(r"[^\w .,:'()/-]", "?", text, flags=re.ASCII)[:120]


class _Pool(HTTPConnectionPool):
    """A pool that tells each connection which call it serves."""

    ConnectionCls = _TimedConnection

    def _make_request(self, conn: Any, *args: Any, **kwargs: Any) -> Any:
        conn.arm(kwargs["timeout"].call)
        return super()._make_request(conn, *args, **kwargs)

    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.rest()
        super()._put_conn(conn)


class _TlsPool(_Pool, HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = _TimedTlsConnection


class _Transport(HTTPAdapter):
    """The pooled adapter; `send` is inherited, so a test that replaces HTTPAdapter.send replaces the network."""

    def __init__(self, pool_size: int, context: ssl.SSLContext) -> None:
        self._context = context
        # total=False: urllib3 neither retries nor wraps; a token request goes out once.
        super().__init__(
            pool_connections=pool_size, pool_maxsize=pool_size, max_retries=urllib3.Retry(total=False, redirect=False)
        )

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **pool_kwargs: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, ssl_context=self._context, **pool_kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def cert_verify(self, conn: Any, url: str, verify: object, cert: object) -> None:
        """Verify always; the trusted certificates are already in the shared context."""
        conn.cert_reqs = "CERT_REQUIRED"


# --- answers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Answer:
    """A whole answer. Its repr shows no body: that may hold tokens."""

    status: int
    headers: Mapping[str, str]
    """Names are matched whatever their case."""
    body: bytes
    url: str

    def json(self) -> object:
        """Return the body as JSON, or raise UnusableAnswer."""
        return parse_json(self.body, f"{_where('answer of', self.url)} (HTTP {self.status})")

    def __repr__(self) -> str:
        return f"Answer({self.status}, {len(self.body)} bytes)"


class Stream:
    """An answer whose body is read piece by piece while the connection is open."""

    def __init__(self, response: requests.Response, call: _Call) -> None:
        self.status = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.where = call.where
        self._response = response
        self._call = call

    def chunks(self) -> Iterator[bytes]:
        """Yield the body; raises a NetworkError when it breaks off, never ends, or exceeds the cap."""
        with translated(self.where, self._call):
            yield from _chunks(self._response, self._call)


def parse_json(body: bytes, where: str) -> object:
    """Return `body` as JSON; anything that is not JSON (NaN and endless nesting too) is an UnusableAnswer."""
    try:
        return jsonlib.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        # `from None`-like care: the decoder's error carries the whole document, which may hold tokens.
        raise UnusableAnswer(f"{where}: not JSON ({type(error).__name__}, {len(body)} bytes)") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def dated(headers: Mapping[str, str]) -> datetime | None:
    """Return the time by the other side's clock, None without a usable Date."""
    value = next((v for k, v in headers.items() if k.lower() == "date"), "")
    try:
        return parsedate_to_datetime(value).astimezone(UTC)
    except (ValueError, TypeError, OverflowError):
        return None


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return what Retry-After asks for, in seconds between 0 and 900, or None without a usable one."""
    value = next((v for k, v in headers.items() if k.lower() == "retry-after"), "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value, re.ASCII):
        return min(float(value[:20]), 900.0)
    try:
        when = parsedate_to_datetime(value)
        when = when.replace(tzinfo=UTC) if when.tzinfo is None else when
        return min(max((when - (now or datetime.now(UTC))).total_seconds(), 0.0), 900.0)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def readable(text: object, limit: int = 200, secrets: Iterable[str] = ()) -> str:
    """Return text from the other side as one short line that may be logged and stored, with `secrets` masked.

    Control characters and lone surrogates become spaces: a terminal obeys the former, PostgreSQL stores neither.
    """
    line = _without(text if isinstance(text, str) else "", secrets)
    line = " ".join("".join(c if c.isprintable() else " " for c in line).split())
    # Once more, for a secret that only the cleaning put together.
    return _without(line, secrets)[:limit]


def _without(text: str, secrets: Iterable[str]) -> str:
    # The longest first: one secret may contain another.
    for secret in sorted({form for s in secrets if s for form in (s, quote(s, safe=""))}, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _TOKEN_LIKE.sub(MASK, text)


# What the known providers' codes, keys and tokens look like, for one that is echoed without being ours.
_TOKEN_LIKE = re.compile(r"\b(?:(?:ac|gh[oprsu]|github_pat|[rs]k|rt|whsec)_[\w*-]{6,}|ey[\w-]{10,}\.[\w.-]+)", re.ASCII)


def _chunks(response: requests.Response, call: _Call) -> Iterator[bytes]:
    total = 0
    try:
        # Not decoded: identity was asked for, and a compressed answer was refused.
        while chunk := response.raw.read(CHUNK_BYTES, decode_content=False):
            total += len(chunk)
            if total > call.max_bytes:
                raise call.failure(AnswerTooLarge, f"more than {call.max_bytes} bytes")
            yield chunk
    except BaseException:
        # An answer left half read must not go back to the pool with its connection.
        response.close()
        raise


# --- the door -----------------------------------------------------------------------------------------


def is_public(address: Address) -> bool:
    """Say whether an address is on the public internet; for addresses that customers type in."""
    inside = _inside(address) if isinstance(address, ipaddress.IPv6Address) else None
    if inside is not None:
        return is_public(inside)
    return address.is_global and not address.is_multicast


# NAT64 (RFC 6052): the last 32 bits are an IPv4 address, private ones included.
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def _inside(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address that an IPv6 one really leads to, None where it is no such thing."""
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


def _anywhere(_address: Address) -> bool:
    return True


class Http:
    """Sends requests under our rules. One per process is enough: it is thread-safe and survives a fork.

    Plain http is refused unless `allow_plain_loopback`, and then only on this machine. `may_connect` judges every
    address a name resolves to, right before connecting. `ca_file` replaces the trusted certificates.
    """

    def __init__(
        self,
        *,
        allow_plain_loopback: bool,
        user_agent: str,
        pool_size: int = 16,
        may_connect: Callable[[Address], bool] = _anywhere,
        ca_file: str | None = None,
    ) -> None:
        self._allow_plain_loopback = allow_plain_loopback
        self._user_agent = user_agent
        self._pool_size = pool_size
        self._may_connect = may_connect
        self._context = _trust(ca_file)
        self._pooled: tuple[int, _Transport] | None = None

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        json: object | None = None,
        form: Mapping[str, str] | str | None = None,
        basic: tuple[str, Secret] | None = None,
        bearer: Secret | None = None,
        deadline: float = TOTAL_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> Answer:
        """Send one request, never repeated, and return the whole answer, whatever its status (a redirect is refused).

        A `form` that is text is encoded already. `deadline` is in seconds, at most 15. Raises NetworkError.
        """
        with translated(_where(method, url)):
            request = _prepare(method, url, headers, json, form, _authorization(basic, bearer))
        response, body = self._fetch(min(deadline, TOTAL_SECONDS), max_bytes, request)
        return Answer(response.status_code, response.headers, body, str(request.url))

    @contextmanager
    def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        bearer: Secret | None = None,
        deadline: float = TOTAL_SECONDS,
        max_bytes: int = MAX_BYTES,
    ) -> Iterator[Stream]:
        """Send one request and hand out its answer to be read piece by piece; `deadline` covers the reading too."""
        with translated(_where(method, url)):
            request = _prepare(method, url, headers, None, None, _authorization(None, bearer))
        call = self._call(request, deadline, max_bytes)
        with _traced(request, call):
            with translated(call.where, call):
                response = self._open(request, call)
            try:
                yield Stream(response, call)
            finally:
                response.close()

    def post(self, url: str, *, headers: Mapping[str, str], content: bytes, deadline: float = TOTAL_SECONDS) -> Answer:
        """Post these very bytes, never repeated, and return how it was answered, without a body.

        What the answer holds and how it ends does not matter once its status is known (a redirect is refused).
        Raises NetworkError.
        """
        with translated(_where("POST", url)):
            request = _prepare("POST", url, headers, None, None, None, content)
        call = self._call(request, min(deadline, TOTAL_SECONDS), MAX_BYTES)
        with _traced(request, call):
            with translated(call.where, call):
                response = self._open(request, call, _check_redirect)
            try:
                _read_out(response, call)
            finally:
                response.close()
        return Answer(response.status_code, response.headers, b"", str(request.url))

    def check(self, url: str) -> None:
        """Raise AddressRefused for an address that would not be called, now that its name stands for what it does.

        A name that does not resolve passes: it may later, and every address is judged again before connecting.
        """
        with translated(_where("POST", url)):
            request = _prepare("POST", url, None, None, None, None)
        call = self._call(request, TOTAL_SECONDS, MAX_BYTES)
        self._check_address(str(request.url), call)
        parts = _split(str(request.url), call)
        try:
            found = _lookup(parts.hostname or "", parts.port or 443, call)
        except Unreachable:
            return
        plain = parts.scheme == "http"
        if not all(_may_use(call, str(entry[4][0]), loopback_only=plain) for entry in found):
            raise call.failure(AddressRefused, _NOT_FROM_HERE)

    def close(self) -> None:
        """Close pooled connections."""
        if self._pooled is not None:
            self._pooled[1].close()

    def _fetch(
        self, seconds: float, max_bytes: int, request: requests.PreparedRequest
    ) -> tuple[requests.Response, bytes]:
        call = self._call(request, seconds, max_bytes)
        with _traced(request, call), translated(call.where, call):
            response = self._open(request, call)
            return response, b"".join(_chunks(response, call))

    def _call(self, request: requests.PreparedRequest, seconds: float, max_bytes: int) -> _Call:
        return _Call(_where(str(request.method), str(request.url)), seconds, max_bytes, self._may_connect)

    def _open(
        self,
        request: requests.PreparedRequest,
        call: _Call,
        check: Callable[[requests.Response, _Call], None] | None = None,
    ) -> requests.Response:
        self._check_address(str(request.url), call)
        request.headers["User-Agent"] = self._user_agent
        # A compressed answer could unfold to any size; asking for none lets the cap count what arrives.
        request.headers["Accept-Encoding"] = "identity"
        request.headers.pop("Cookie", None)
        response = self._transport().send(request, stream=True, timeout=_CallTimeout(call), verify=True)  # type: ignore[arg-type]
        call.status = response.status_code
        try:
            (check or _check_head)(response, call)
        except NetworkError:
            response.close()
            raise
        return response

    def _transport(self) -> _Transport:
        # A forked child must not write into its parent's sockets. Two threads may both build a pool here; the
        # later one stays, the other closes with its one request.
        if self._pooled is None or self._pooled[0] != os.getpid():
            self._pooled = (os.getpid(), _Transport(self._pool_size, self._context))
        return self._pooled[1]

    def _check_address(self, url: str, call: _Call) -> None:
        parts = _split(url, call)
        if "@" in parts.netloc:
            raise call.failure(AddressRefused, "an address must not hold credentials")
        if parts.scheme == "https":
            return
        if not (parts.scheme == "http" and self._allow_plain_loopback and _is_loopback(parts.hostname or "")):
            raise call.failure(AddressRefused, "only https addresses are called")


@contextmanager
def _traced(request: requests.PreparedRequest, call: _Call) -> Iterator[None]:
    """Give one call, from its beginning to its end, a span. Around `translated`, so that only our errors pass."""
    with tracing.calling(str(request.method), str(request.url)) as span:
        sent = True
        try:
            yield
        except NetworkError as error:
            sent = error.sent
            raise
        finally:
            span.exchanged(call.status, sent=sent)


def _split(url: str, call: _Call) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise call.failure(AddressRefused, "the address cannot be read") from error
    if not parts.hostname:
        raise call.failure(AddressRefused, "the address names no host")
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check_redirect(response: requests.Response, call: _Call) -> None:
    if 300 <= response.status_code < 400:
        raise call.failure(RedirectRefused, f"answered with a redirect (HTTP {response.status_code})")


def _read_out(response: requests.Response, call: _Call) -> None:
    """Read an answer that says it is short, so that its connection can serve the next call."""
    length = response.headers.get("Content-Length", "").strip()
    if length.isdecimal() and len(length) < 8 and int(length) <= CHUNK_BYTES:
        with suppress(NetworkError), translated(call.where, call):
            for _ in _chunks(response, call):
                pass


def _check_head(response: requests.Response, call: _Call) -> None:
    _check_redirect(response, call)
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise call.failure(UnusableAnswer, "the answer is compressed although that was not asked for")
    length = response.headers.get("Content-Length", "").strip()
    if length.isdecimal() and len(length) < 20 and int(length) > call.max_bytes:
        raise call.failure(AnswerTooLarge, f"more than {call.max_bytes} bytes")


@cache
def _trust(ca_file: str | None) -> ssl.SSLContext:
    # The machine's own certificates (a company's too) and the bundle that comes with requests, since slim images
    # have none. Built once per process: loading them takes longer than a handshake.
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file is None:
        context.load_verify_locations(DEFAULT_CA_BUNDLE_PATH)
    return context


def _prepare(
    method: str,
    url: str,
    headers: Mapping[str, str] | None,
    json: object | None,
    form: Mapping[str, str] | str | None,
    authorization: str | None,
    content: bytes | None = None,
) -> requests.PreparedRequest:
    # Parsers disagree about backslashes, blanks and control characters: without any there is nothing to disagree on.
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise AddressRefused(f"{_where(method, url)}: the address holds characters it cannot have")
    # Prepared without a session: no cookies, no netrc, no proxies from the environment.
    sent = {"Accept": "application/json", **(headers or {})}
    body: bytes | str | None = content
    if json is not None:
        try:
            body = jsonlib.dumps(json, separators=(",", ":"), allow_nan=False).encode("ascii")
        except (ValueError, TypeError):
            raise RequestUnsendable(f"{_where(method, url)}: the body is not JSON") from None
        sent["Content-Type"] = "application/json"
    elif form is not None:
        body = form if isinstance(form, str) else urlencode(form).encode("ascii")
        sent["Content-Type"] = "application/x-www-form-urlencoded"
    if authorization is not None:
        # Refused here, because requests' own check quotes the whole header in its message.
        if not re.fullmatch(r"[\x20-\x7e]+", authorization):
            raise RequestUnsendable(f"{_where(method, url)}: a credential holds characters a header cannot carry")
        sent["Authorization"] = authorization
    return requests.Request(method, url, headers=sent, data=body).prepare()


def _authorization(basic: tuple[str, Secret] | None, bearer: Secret | None) -> str | None:
    if bearer is not None:
        return f"Bearer {bearer.reveal()}"
    if basic is not None:
        return basic_auth(basic[0], basic[1].reveal())
    return None


def basic_auth(user: str, password: str) -> str:
    """Return the value of a Basic Authorization header; in UTF-8, since latin-1 fails on some secrets."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode("ascii")


def _where(method: str, url: str) -> str:
    """Name a request for people: method, host, path, and nothing that could be secret."""
    parts = re.fullmatch(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//([^/?#]*)([^?#]*).*", url, re.DOTALL)
    if parts is None:
        return f"{method} (unreadable address)"
    return _plain(f"{method} {parts[1].rpartition('@')[2]}{parts[2]}")


# --- failures -----------------------------------------------------------------------------------------

_UNREADABLE_ADDRESS = (
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidSchema,
    requests.exceptions.InvalidURL,
    urllib3.exceptions.LocationValueError,
    http.client.InvalidURL,
)
_TIMEOUTS = (requests.exceptions.Timeout, urllib3.exceptions.ReadTimeoutError, TimeoutError)
_NOT_CONNECTED = (
    requests.exceptions.ConnectTimeout,
    urllib3.exceptions.ConnectTimeoutError,
    urllib3.exceptions.NewConnectionError,
)
_BROKEN = (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


@contextmanager
def translated(where: str = "", call: _Call | None = None) -> Iterator[None]:
    """Turn whatever requests, urllib3, ssl and the socket raise inside into our NetworkErrors."""
    try:
        yield
    except NetworkError:
        raise
    except _UNREADABLE_ADDRESS as error:
        raise _told(call, where, AddressRefused, "the address cannot be read") from error
    except (UnicodeError, requests.exceptions.InvalidHeader) as error:
        # `from None`: these quote the value they choke on, which may be a secret.
        raise _told(call, where, RequestUnsendable, f"cannot be written ({type(error).__name__})") from None
    except _NOT_CONNECTED as error:
        raise _told(call, where, Unreachable, "no connection could be made") from error
    except _TIMEOUTS as error:
        raise _told(call, where, DeadlineExceeded, "no answer in time") from error
    except requests.exceptions.ContentDecodingError as error:
        raise _told(call, where, UnusableAnswer, "the answer cannot be decoded") from error
    except _BROKEN as error:
        raise _told(call, where, _broken(call, error), f"the connection broke ({type(error).__name__})") from error


def _broken(call: _Call | None, error: Exception) -> type[NetworkError]:
    if call is not None and call.armed:
        return ConnectionBroken if call.sent else Unreachable
    # No connection of ours was involved (a stand-in for the network): the type alone has to tell.
    return Unreachable if type(error) is requests.exceptions.ConnectionError else ConnectionBroken


def _told(call: _Call | None, where: str, kind: type[NetworkError], why: str) -> NetworkError:
    if call is not None:
        return call.failure(kind, why)
    return kind(f"{where}: {why}" if where else why)
