"""What hosts call: `/api/v1`. A key in the Authorization header says who calls; cookies mean nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flask import Blueprint, g, request
from werkzeug.exceptions import Forbidden
from werkzeug.routing import BaseConverter

from broker.apikeys import Scope
from broker.secret import digest
from broker.web import services
from broker.web.api import apps, connections, end_users, events, flows, links, problems, webhook_endpoints
from broker.web.api.calls import Call
from broker.web.api.repeats import repeatable
from broker.web.security import csrf

PREFIX = "/api/v1"

blueprint = Blueprint("api", __name__, url_prefix=PREFIX)
# Safe because no cookie is ever looked at: a browser that is made to call this brings no key along.
csrf.exempt(blueprint)

CALLS: tuple[Call, ...] = (
    *links.CALLS, *flows.CALLS, *apps.CALLS, *connections.CALLS, *end_users.CALLS, *events.CALLS,
    *webhook_endpoints.CALLS,
)  # fmt: skip
"""Every call, in the order in which the docs tell of them. A module for further things adds its own CALLS here."""


class EventId(BaseConverter):
    """An event's id in an address: not the name of the call that stands where an id could."""

    regex = r"(?!resend-parked$)[^/]+"
    part_isolating = True


# Before the routes, which name it: otherwise `Allow` would promise what the other route takes.
blueprint.record_once(lambda setup: setup.app.url_map.converters.update(event=EventId))

for _call in CALLS:
    _view = repeatable(_call.view) if _call.repeatable else _call.view
    blueprint.add_url_rule(_call.path, view_func=_view, methods=[_call.method])

SCOPES: Mapping[str, Scope] = MappingProxyType({call.endpoint: call.scope for call in CALLS})
"""What a key needs for each endpoint. An endpoint that is not listed is refused to everybody."""

problems.register(blueprint)


@blueprint.before_request
def authenticate() -> None:
    """Let nobody past without a key that has the endpoint's scope."""
    caller = services().api_keys.authenticate(request.headers.get("Authorization"))
    scope = SCOPES.get(request.endpoint or "")
    if scope is None:
        raise Forbidden
    caller.require(scope)
    g.caller = caller


def limiter_key() -> str:
    """Return what rate limits count by: the key presented (never the key itself), or the address without one."""
    presented = request.headers.get("Authorization")
    return f"key:{digest(presented)[:32]}" if presented else f"address:{request.remote_addr}"
