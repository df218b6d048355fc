"""Where faults happen: each view of a stand-in is wrapped once, here."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from flask import g, make_response, request
from werkzeug.wrappers import Response

from broker.sandbox.connection import ENVIRON_KEY, NoConnection
from broker.sandbox.faults import POINTS
from broker.sandbox.refusal import Refusal
from broker.sandbox.spoil import spoil
from broker.sandbox.world import World, current_world

Args = ParamSpec("Args")


def point(name: str | None = None) -> Callable[[Callable[Args, Response]], Callable[Args, Response]]:
    """Run a view under the world's lock, and let the faults scripted for `name` happen to it."""
    if name is not None and name not in POINTS:
        raise ValueError(f"{name} is not a known fault point")

    def decorate(view: Callable[Args, Response]) -> Callable[Args, Response]:
        @wraps(view)
        def answer(*args: Args.args, **kwargs: Args.kwargs) -> Response:
            world = current_world()
            fault = world.faults.take(name) if name else None
            if fault is None:
                return _effect(world, lambda: view(*args, **kwargs))
            g.entry.fault = fault.kind
            # Outside the lock from here on: a hanging answer must not stop the others.
            real = _effect(world, lambda: view(*args, **kwargs)) if fault.when == "after" else None
            spoilt = spoil(fault, real, request.environ.get(ENVIRON_KEY) or NoConnection())
            world.log.finish(g.entry, spoilt.status, spoilt.text)
            g.entry = None
            return spoilt.response

        return answer

    return decorate


def _effect(world: World, view: Callable[[], Response]) -> Response:
    with world.lock:
        try:
            return make_response(view())
        except Refusal as refusal:
            return refusal.response()
