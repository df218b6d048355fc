"""What hosts call: `/api/v1`. A key in the Authorization header says who calls; cookies mean nothing here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flask import Blueprint, g, request
from flask.typing import RouteCallable
from werkzeug.exceptions import Forbidden

from broker.apikeys import Scope
from broker.secret import digest
from broker.web import services
from broker.web.api import apps, connections, events, links, problems, webhook_endpoints
from broker.web.security import csrf

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")
# Safe because no cookie is ever looked at: a browser that is made to call this brings no key along.
csrf.exempt(blueprint)

_ENDPOINT = "/webhook-endpoints/<public_id>"
_ROUTES: tuple[tuple[str, str, RouteCallable, Scope], ...] = (
    ("POST", "/connect-links", links.create_link, Scope.LINKS_WRITE),
    ("GET", "/connect-links/<public_id>", links.show_link, Scope.LINKS_READ),
    ("DELETE", "/connect-links/<public_id>", links.revoke_link, Scope.LINKS_WRITE),
    ("GET", "/apps", apps.list_apps, Scope.APPS_READ),
    ("GET", "/connections", connections.list_connections, Scope.CONNECTIONS_READ),
    ("GET", "/connections/<ref>", connections.show_connection, Scope.CONNECTIONS_READ),
    ("DELETE", "/connections/<ref>", connections.disconnect, Scope.CONNECTIONS_WRITE),
    ("POST", "/connections/<ref>/check", connections.check_connection, Scope.CONNECTIONS_WRITE),
    ("POST", "/connections/<ref>/retry", connections.retry_connection, Scope.CONNECTIONS_WRITE),
    ("GET", "/events", events.list_events, Scope.EVENTS_READ),
    ("POST", "/webhook-endpoints", webhook_endpoints.create_endpoint, Scope.WEBHOOKS_WRITE),
    ("GET", "/webhook-endpoints", webhook_endpoints.list_endpoints, Scope.WEBHOOKS_READ),
    ("GET", _ENDPOINT, webhook_endpoints.show_endpoint, Scope.WEBHOOKS_READ),
    ("PATCH", _ENDPOINT, webhook_endpoints.change_endpoint, Scope.WEBHOOKS_WRITE),
    ("DELETE", _ENDPOINT, webhook_endpoints.delete_endpoint, Scope.WEBHOOKS_WRITE),
    ("POST", f"{_ENDPOINT}/rotate-secret", webhook_endpoints.rotate_secret, Scope.WEBHOOKS_WRITE),
    ("GET", f"{_ENDPOINT}/deliveries", webhook_endpoints.list_deliveries, Scope.WEBHOOKS_READ),
    ("POST", f"{_ENDPOINT}/deliveries/resend-parked", webhook_endpoints.resend_parked, Scope.WEBHOOKS_WRITE),
    ("GET", f"{_ENDPOINT}/deliveries/<event_id>", webhook_endpoints.show_delivery, Scope.WEBHOOKS_READ),
    ("POST", f"{_ENDPOINT}/deliveries/<event_id>/resend", webhook_endpoints.resend_delivery, Scope.WEBHOOKS_WRITE),
)

for _method, _path, _view, _ in _ROUTES:
    blueprint.add_url_rule(_path, view_func=_view, methods=[_method])

SCOPES: Mapping[str, Scope] = MappingProxyType({f"api.{view.__name__}": scope for _, _, view, scope in _ROUTES})
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
