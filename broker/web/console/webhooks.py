"""The host's webhook endpoints as operators see them: how each is doing, and what was sent to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from flask import g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connections import cure_of
from broker.models import SendState
from broker.web import services
from broker.webhook_endpoints import EndpointChanges, EndpointView

ON_A_PAGE = 50


@dataclass(frozen=True)
class Words:
    """How a state reads, its colour, and the shape that stands for the colour."""

    word: str
    tone: str
    icon: str


SENT: Mapping[SendState, Words] = MappingProxyType(
    {
        SendState.PENDING: Words("Waiting", "neutral", "clock"),
        SendState.DELIVERED: Words("Delivered", "ok", "tick"),
        SendState.PARKED: Words("Given up", "bad", "cross"),
    }
)


_CURES: Mapping[str, str] = MappingProxyType(
    {
        "unreachable": "Check that the endpoint runs, and that this machine can reach it.",
        "deadline_exceeded": "The endpoint has to answer within 10 seconds; let it work on events afterwards.",
        "redirect_refused": "The endpoint redirects elsewhere: the host has to save the final address.",
        "address_refused": "Its name leads to an address that is not public; [webhooks] private_networks can allow it.",
    }
)
"""What an operator can do where the general advice does not fit."""


def standing(endpoint: EndpointView) -> Words:
    """Return how an endpoint is doing, in a word."""
    if endpoint.disabled_at is not None:
        gone = endpoint.disabled_reason == "gone"
        return Words("Disabled: it answered 410" if gone else "Switched off", "bad" if gone else "neutral", "slash")
    if endpoint.failing_since is not None or endpoint.error:
        return Words("Failing", "bad", "alert")
    if endpoint.delivered_at is None:
        return Words("Not used yet", "neutral", "question")
    return Words("Working", "ok", "tick")


def list_endpoints() -> str:
    """List the webhook endpoints."""
    endpoints = services().webhook_endpoints.list()
    return render_template("console/webhooks.html", endpoints=endpoints, standing=standing)


def show_endpoint(public_id: str) -> str:
    """Show one webhook endpoint and what was sent to it."""
    endpoint = services().webhook_endpoints.find(public_id)
    page = services().webhook_endpoints.deliveries(public_id, limit=ON_A_PAGE, cursor=request.args.get("after") or None)
    return render_template(
        "console/webhook.html",
        endpoint=endpoint,
        page=page,
        standing=standing(endpoint),
        cure=_cure(endpoint.error),
        sent=SENT,
        first="after" not in request.args,
        done=request.args.get("done", ""),
    )


def enable_endpoint(public_id: str) -> Response:
    """Send to an endpoint again, what has waited first."""
    services().webhook_endpoints.change(public_id, EndpointChanges(enabled=True), actor=_operator())
    return _back(public_id, "enabled")


def test_endpoint(public_id: str) -> Response:
    """Send an endpoint a test event."""
    services().webhook_endpoints.test(public_id, actor=_operator())
    return _back(public_id, "tested")


def resend_parked(public_id: str) -> Response:
    """Send everything again that was given up."""
    services().webhook_endpoints.resend_parked(public_id, actor=_operator())
    return _back(public_id, "resent")


def resend_delivery(public_id: str, event_id: str) -> Response:
    """Send one event again."""
    services().webhook_endpoints.resend(public_id, event_id, actor=_operator())
    return _back(public_id, "resent")


def _cure(error: str) -> str:
    if error.startswith("http_"):
        return "Look why the endpoint answers so; what waits goes out by itself once it takes it."
    return _CURES.get(error, cure_of(error) if error else "")


def _operator() -> Actor:
    return Actor("operator", g.operator.email)


def _back(public_id: str, done: str) -> Response:
    return redirect(url_for("console.show_webhook_endpoint", public_id=public_id, done=done), 303)
