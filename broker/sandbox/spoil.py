"""How an answer goes wrong: one small function per kind of fault."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

from werkzeug.wrappers import Response

from broker.sandbox.connection import Connection
from broker.sandbox.faults import Fault

JSON = "application/json"
DRIP_INTERVAL = 0.05
CHUNK = 64 * 1024
GZIP = zlib.MAX_WBITS | 16

# What a good answer looks like, for spoiling one before the effect. None of these values is ever accepted.
GRANT = {"access_token": "sandbox-sample-token", "token_type": "bearer", "scope": "read_write", "livemode": False}
SAMPLES: Mapping[str, Mapping[str, object]] = {
    "stripe.token": {**GRANT, "refresh_token": "rt_sample", "stripe_user_id": "acct_sample"},
    "stripe.account": {"id": "acct_sample", "object": "account", "business_profile": {"name": "Sample"}},
    "stripe.deauthorize": {"stripe_user_id": "acct_sample"},
    "github.token": {**GRANT, "expires_in": 28800, "refresh_token": "ghr_sample"},
    "github.user": {"id": 1, "login": "sample", "type": "User", "name": "Sample"},
    "github.installations": {"total_count": 1, "installations": [{"id": 1}]},
    "github.memberships": {"state": "active", "role": "admin", "organization": {"login": "sample", "id": 2}},
    "sequin.delete": {"id": "sample", "deleted": True},
    "sequin.list": {"data": [{"id": "sample"}]},
    "sequin.oauth_apps": {"data": [{"id": "sample"}]},
}
ANY_SAMPLE: Mapping[str, object] = {"id": "sample", "account": {"id": 1}, "properties": {}, "provider": "sample"}


@dataclass(frozen=True)
class Spoilt:
    """The answer as it will be sent, and what the log says of it (None: nothing was answered)."""

    response: Response
    status: int | None
    text: str | None


def spoil(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    """Return the answer that `fault` makes of `real`, the true one, which is None before the effect."""
    return KINDS[fault.kind](fault, real, connection)


def _status(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    status = fault.status or 500
    text = "" if status in (204, 304) else _error_text(fault, status)
    return _whole(Response(text, status, mimetype=JSON), fault, text)


def _redirect(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    # The default leads back here, to a page that is logged: a client that follows shows what it gave away.
    response = Response("", fault.status or 302, {"Location": fault.location or "/elsewhere"})
    return _whole(response, fault, "")


def _html(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    text = fault.body or "<!doctype html><title>One moment</title><h1>One moment, please</h1><p>A page, not an answer."
    return _whole(Response(text, fault.status or 200, mimetype="text/html"), fault, text)


def _wrong_types(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    text = json.dumps(_twisted(_object(fault, real)))
    return _whole(Response(text, fault.status or 200, mimetype=JSON), fault, text)


def _truncate(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    return _half(fault, real, connection.abandon)


def _break_off(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    return _half(fault, real, connection.reset)


def _half(fault: Fault, real: Response | None, end: Callable[[], NoReturn]) -> Spoilt:
    response, body = _base(fault, real)

    def half() -> Iterator[bytes]:
        yield body[: len(body) // 2]
        end()

    return _streamed(response, half(), len(body), fault, body)


def _drip(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    response, body = _base(fault, real)
    if real is None:
        # A slow answer that arrives whole may be believed, so before the effect it must be a failure.
        body = _error_text(fault, 503).encode()
        response = Response(status=fault.status or 503, mimetype=JSON)
    steps = max(1, min(len(body), math.ceil(fault.seconds / DRIP_INTERVAL)))
    size = math.ceil(len(body) / steps) or 1

    def drops() -> Iterator[bytes]:
        yield b""  # the head goes out at once
        for start in range(0, len(body), size):
            if not connection.wait(fault.seconds / steps):
                connection.abandon()
            yield body[start : start + size]

    return _streamed(response, drops(), len(body), fault, body)


def _huge(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    size, parts = _padded(fault, real)
    return _streamed(Response(status=fault.status or 200, mimetype=JSON), parts, size, fault, b"")


def _flood(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    _, parts = _padded(fault, real)
    return _streamed(Response(status=fault.status or 200, mimetype=JSON), parts, None, fault, b"")


def _gzip_bomb(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    _, parts = _padded(fault, real)
    packer = zlib.compressobj(wbits=GZIP)

    def packed() -> Iterator[bytes]:
        for part in parts:
            yield packer.compress(part)
        yield packer.flush()

    response = Response(status=fault.status or 200, headers={"Content-Encoding": "gzip"}, mimetype=JSON)
    return _streamed(response, packed(), None, fault, b"")


def _padded(fault: Fault, real: Response | None) -> tuple[int, Iterator[bytes]]:
    """Return a true answer in a body of the size asked for, as a stream: it is never whole in memory."""
    head, tail = b'{"padding":"', b'",' + json.dumps(_object(fault, real)).encode()[1:]
    if real is None:
        tail = b'"}'
    padding = max(0, fault.size - len(head) - len(tail))

    def parts() -> Iterator[bytes]:
        yield head
        for start in range(0, padding, CHUNK):
            yield b"x" * min(CHUNK, padding - start)
        yield tail

    return len(head) + padding + len(tail), parts()


def _hang(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    def silence() -> None:
        connection.wait(fault.seconds)
        connection.abandon()

    return Spoilt(Response(_nothing_but(silence)), None, None)


def _reset(fault: Fault, real: Response | None, connection: Connection) -> Spoilt:
    return Spoilt(Response(_nothing_but(connection.reset)), None, None)


KINDS = {
    "status": _status,
    "hang": _hang,
    "drip": _drip,
    "reset": _reset,
    "break_off": _break_off,
    "truncate": _truncate,
    "html": _html,
    "wrong_types": _wrong_types,
    "huge": _huge,
    "flood": _flood,
    "gzip_bomb": _gzip_bomb,
    "redirect": _redirect,
}


def _nothing_but(act: Callable[[], None]) -> Iterator[bytes]:
    """Act, when the answer should begin, instead of answering."""
    act()
    yield b""


def _whole(response: Response, fault: Fault, text: str) -> Spoilt:
    response.headers.update(dict(fault.headers))
    return Spoilt(response, response.status_code, text)


def _streamed(response: Response, parts: Iterator[bytes], size: int | None, fault: Fault, body: bytes) -> Spoilt:
    """Send the parts one by one; without a size the end of the connection is the end of the answer."""
    response.response = parts
    if size is not None:
        response.headers["Content-Length"] = str(size)
    response.headers.update(dict(fault.headers))
    return Spoilt(response, response.status_code, body.decode("utf-8", "replace"))


def _base(fault: Fault, real: Response | None) -> tuple[Response, bytes]:
    """Return an answer to spoil and its body: the true one, or a sample of it."""
    if real is not None:
        return real, real.get_data()
    return Response(status=fault.status or 200, mimetype=JSON), json.dumps(_object(fault, None)).encode()


def _object(fault: Fault, real: Response | None) -> object:
    if real is not None:
        try:
            return json.loads(real.get_data())
        except ValueError:
            pass
    return dict(SAMPLES.get(fault.on, ANY_SAMPLE))


def _twisted(value: object) -> object:
    """Return an object whose members have the wrong types: right names, nothing usable."""
    if isinstance(value, dict):
        return {name: _wrong(member) for name, member in value.items()}
    return _wrong(value)


def _wrong(value: object) -> object:
    if isinstance(value, str):
        return 12345
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, list):
        return {"0": "not a list"}
    return "not a number"


def _error_text(fault: Fault, status: int) -> str:
    if fault.body is not None:
        return fault.body
    sentence = f"A scripted failure with status {status}."
    service = fault.on.split(".")[0]
    if service == "stripe":
        # Not an OAuth error string: Stripe's own failures put an object there.
        kind = "rate_limit_error" if status == 429 else "api_error"
        return json.dumps({"error": {"type": kind, "message": sentence}})
    return json.dumps({"message" if service == "github" else "summary": sentence})
