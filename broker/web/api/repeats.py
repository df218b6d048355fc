"""`Idempotency-Key`: the same call again gets the same answer, and does nothing again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any

from flask import current_app, g, request
from werkzeug.wrappers import Response

from broker.errors import BrokerError
from broker.idempotency import Claim, IdempotentCalls, Kept, KeyInvalid
from broker.web import services

HEADER = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT_HEADERS = ("Content-Type", "Location")


def repeatable(view: Callable[..., Any]) -> Callable[..., Any]:
    """Let callers repeat what `view` does."""

    @wraps(view)
    def called(**parts: str) -> Any:
        keys = request.headers.getlist(HEADER)
        if not keys:
            return view(**parts)
        if len(keys) > 1:
            raise KeyInvalid
        calls = services().idempotent_calls
        asked = b"\n".join([request.method.encode(), request.full_path.encode(), request.get_data(cache=True)])
        claim = calls.claim(g.caller.id, keys[0], request=asked)
        if isinstance(claim, Kept):
            return Response(claim.body, claim.status, {**claim.headers, REPLAYED: "true"})
        return _worked_on(calls, claim, view, parts)

    return called


def _worked_on(calls: IdempotentCalls, claim: Claim, view: Callable[..., Any], parts: dict[str, str]) -> Response:
    try:
        response = current_app.make_response(view(**parts))
    except Exception:
        # Whatever went wrong is told; the key is free for another try, here or, if the database is away, in a minute.
        with suppress(BrokerError):
            calls.release(claim)
        raise
    headers = {name: response.headers[name] for name in KEPT_HEADERS if name in response.headers}
    calls.keep(claim, Kept(response.status_code, response.get_data(as_text=True), headers))
    return response
