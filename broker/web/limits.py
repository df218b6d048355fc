"""Rate limits of single processes: connect links per API key, what sends a flow on and webhooks per address.

Sign-in throttling is not here: it must count over every process, so the database does it.
"""

from __future__ import annotations

import time
from math import ceil
from typing import cast

from flask import Flask
from flask.typing import RouteCallable
from flask_limiter import Limiter
from flask_limiter.util import get_remote_address
from werkzeug.wrappers import Response

from broker.settings import Settings
from broker.web.api import CALLS, limiter_key


def init_app(app: Flask, settings: Settings) -> None:
    """Limit the routes of `app` that create something; call it after they are registered."""
    limits = settings.limits
    limiter = Limiter(
        get_remote_address,
        app=app,
        storage_uri="memory://",
        strategy="fixed-window",
        enabled=limits.enabled,
    )
    starts = f"{limits.starts_per_second} per second"
    rules = {
        **{call.endpoint: (f"{limits.links_per_second} per second", limiter_key) for call in CALLS if call.limited},
        "connect.start": (starts, get_remote_address),
        "connect.start_again": (starts, get_remote_address),
        "connect.elsewhere": (starts, get_remote_address),
        "connect.install": (starts, get_remote_address),
        "connect.finish": (starts, get_remote_address),
        "connections.connect": (starts, get_remote_address),
        "connections.reconnect": (starts, get_remote_address),
        "sign_in.begin": (starts, get_remote_address),
        "sign_in.callback": (starts, get_remote_address),
        "console.begin_openid": (starts, get_remote_address),
        "console.openid_callback": (starts, get_remote_address),
        "hooks.receive": (f"{limits.hooks_per_second} per second", get_remote_address),
    }
    for endpoint, (rate, key) in rules.items():
        limited = limiter.limit(rate, key_func=key)(app.view_functions[endpoint])
        app.view_functions[endpoint] = cast(RouteCallable, limited)

    @app.after_request
    def tell(response: Response) -> Response:
        """Say what is left, in the fields of the IETF's draft on rate limits; Retry-After comes with the 429."""
        counted = limiter.current_limit
        if counted is not None:
            window = counted.limit.get_expiry()
            left = min(window, max(0, ceil(counted.reset_at - time.time())))
            response.headers["RateLimit-Policy"] = f'"calls";q={counted.limit.amount};w={window}'
            response.headers["RateLimit"] = f'"calls";r={max(0, counted.remaining)};t={left}'
        return response
