"""Webhook endpoints over the API: where the host is told what happens."""

from __future__ import annotations

from datetime import timedelta

from flask import g, jsonify, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.web import services
from broker.web.api.event_schemas import (
    AttemptAnswer,
    DeliveriesAnswer,
    DeliveryAnswer,
    DeliveryDetailsAnswer,
    DeliveryQuery,
    EndpointAnswer,
    EndpointBody,
    EndpointChangesBody,
    EndpointsAnswer,
    NewSecretAnswer,
    RotateBody,
)
from broker.web.api.schemas import read_body, read_optional_body, read_query
from broker.webhook_endpoints import OVERLAP


def create_endpoint() -> tuple[Response, int, dict[str, str]]:
    """Make a webhook endpoint; its secret is in this answer and nowhere else."""
    view, secret = services().webhook_endpoints.create(read_body(EndpointBody).request(), actor=_caller())
    answer = jsonify(NewSecretAnswer.with_secret(view, secret).model_dump(mode="json"))
    return answer, 201, {"Location": url_for("api.show_endpoint", public_id=view.id)}


def list_endpoints() -> Response:
    """List the webhook endpoints."""
    answer = EndpointsAnswer(data=list(map(EndpointAnswer.of, services().webhook_endpoints.list())))
    return jsonify(answer.model_dump(mode="json"))


def show_endpoint(public_id: str) -> Response:
    """Show one webhook endpoint and how it is doing."""
    return jsonify(EndpointAnswer.of(services().webhook_endpoints.find(public_id)).model_dump(mode="json"))


def change_endpoint(public_id: str) -> Response:
    """Change a webhook endpoint; enabling it sends what has waited."""
    changes = read_body(EndpointChangesBody).changes()
    view = services().webhook_endpoints.change(public_id, changes, actor=_caller())
    return jsonify(EndpointAnswer.of(view).model_dump(mode="json"))


def delete_endpoint(public_id: str) -> tuple[str, int]:
    """Forget a webhook endpoint with everything that waits for it."""
    services().webhook_endpoints.delete(public_id, actor=_caller())
    return "", 204


def rotate_secret(public_id: str) -> Response:
    """Give a webhook endpoint a new secret; the one before signs too for a while."""
    seconds = read_optional_body(RotateBody).previous_expires_in
    overlap = OVERLAP if seconds is None else timedelta(seconds=seconds)
    view, secret = services().webhook_endpoints.rotate(public_id, overlap=overlap, actor=_caller())
    return jsonify(NewSecretAnswer.with_secret(view, secret).model_dump(mode="json"))


def list_deliveries(public_id: str) -> Response:
    """List what was and is to be sent to a webhook endpoint, newest first."""
    query = read_query(DeliveryQuery)
    page = services().webhook_endpoints.deliveries(public_id, state=query.state, limit=query.limit, cursor=query.cursor)
    answer = DeliveriesAnswer(data=list(map(DeliveryAnswer.of, page.items)), next_cursor=page.next_cursor)
    return jsonify(answer.model_dump(mode="json"))


def show_delivery(public_id: str, event_id: str) -> Response:
    """Show one delivery with its tries."""
    view, attempts = services().webhook_endpoints.delivery(public_id, event_id)
    answer = DeliveryDetailsAnswer(delivery=DeliveryAnswer.of(view), attempts=list(map(AttemptAnswer.of, attempts)))
    return jsonify(answer.model_dump(mode="json"))


def resend_delivery(public_id: str, event_id: str) -> tuple[Response, int]:
    """Send one event again, whatever became of it; its id stays the same."""
    view = services().webhook_endpoints.resend(public_id, event_id, actor=_caller())
    return jsonify(DeliveryAnswer.of(view).model_dump(mode="json")), 202


def resend_parked(public_id: str) -> tuple[Response, int]:
    """Send everything again that was given up."""
    return jsonify(resent=services().webhook_endpoints.resend_parked(public_id, actor=_caller())), 202


def _caller() -> Actor:
    return Actor("api_key", g.caller.id)
