"""Webhook endpoints over the API: where the host is told what happens."""

from __future__ import annotations

from datetime import timedelta

from flask import g, jsonify, url_for
from werkzeug.wrappers import Response

from broker.apikeys import Scope
from broker.audit import Actor
from broker.connection_search import CursorUnknown
from broker.web import services
from broker.web.api.calls import ENDPOINT, EVENT, Call
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
    ResentAnswer,
    RotateBody,
)
from broker.web.api.problems import RequestInvalid
from broker.web.api.schemas import read_body, read_optional_body, read_query
from broker.webhook_endpoints import (
    OVERLAP,
    DeliveryUnknown,
    EndpointDisabled,
    EndpointInvalid,
    EndpointUnknown,
    TooManyEndpoints,
)


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


def test_endpoint(public_id: str) -> tuple[Response, int]:
    """Send a test event to a webhook endpoint."""
    view = services().webhook_endpoints.test(public_id, actor=_caller())
    return jsonify(DeliveryAnswer.of(view).model_dump(mode="json")), 202


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
    resent = services().webhook_endpoints.resend_parked(public_id, actor=_caller())
    return jsonify(ResentAnswer(resent=resent).model_dump(mode="json")), 202


def _caller() -> Actor:
    return Actor("api_key", g.caller.id)


_ENDPOINT = "/webhook-endpoints/<public_id>"

CALLS = (
    Call(
        "POST",
        "/webhook-endpoints",
        create_endpoint,
        Scope.WEBHOOKS_WRITE,
        "Make a webhook endpoint",
        201,
        NewSecretAnswer,
        group="Events and webhooks",
        about="Its signing secret is in this answer and nowhere else. What is sent follows Standard Webhooks.",
        body=EndpointBody,
        refusals=(EndpointInvalid, TooManyEndpoints),
        located=True,
    ),
    Call(
        "GET",
        "/webhook-endpoints",
        list_endpoints,
        Scope.WEBHOOKS_READ,
        "List the webhook endpoints",
        200,
        EndpointsAnswer,
        group="Events and webhooks",
    ),
    Call(
        "GET",
        _ENDPOINT,
        show_endpoint,
        Scope.WEBHOOKS_READ,
        "Show a webhook endpoint and how it is doing",
        200,
        EndpointAnswer,
        group="Events and webhooks",
        parts={"public_id": ENDPOINT},
        refusals=(EndpointUnknown,),
    ),
    Call(
        "PATCH",
        _ENDPOINT,
        change_endpoint,
        Scope.WEBHOOKS_WRITE,
        "Change a webhook endpoint",
        200,
        EndpointAnswer,
        group="Events and webhooks",
        about="What is left out stays. Enabling it sends what has waited.",
        parts={"public_id": ENDPOINT},
        body=EndpointChangesBody,
        refusals=(EndpointUnknown, EndpointInvalid),
    ),
    Call(
        "DELETE",
        _ENDPOINT,
        delete_endpoint,
        Scope.WEBHOOKS_WRITE,
        "Forget a webhook endpoint",
        204,
        None,
        group="Events and webhooks",
        about="With everything that waits for it.",
        parts={"public_id": ENDPOINT},
        refusals=(EndpointUnknown,),
    ),
    Call(
        "POST",
        f"{_ENDPOINT}/rotate-secret",
        rotate_secret,
        Scope.WEBHOOKS_WRITE,
        "Give a webhook endpoint a new secret",
        200,
        NewSecretAnswer,
        group="Events and webhooks",
        about="The one before signs too for a while.",
        parts={"public_id": ENDPOINT},
        body=RotateBody,
        body_required=False,
        refusals=(EndpointUnknown, EndpointInvalid),
    ),
    Call(
        "POST",
        f"{_ENDPOINT}/test",
        test_endpoint,
        Scope.WEBHOOKS_WRITE,
        "Send a test event to a webhook endpoint",
        202,
        DeliveryAnswer,
        group="Events and webhooks",
        about=(
            "Signed and sent like any other, whatever the endpoint’s `events`: its `type` is `webhook.test` and its "
            '`data` holds `"test": true`. It goes out behind what waits already; a test that still waits is tried at '
            "once instead of another. `GET /events` does not list it."
        ),
        parts={"public_id": ENDPOINT},
        refusals=(EndpointUnknown, EndpointDisabled),
    ),
    Call(
        "GET",
        f"{_ENDPOINT}/deliveries",
        list_deliveries,
        Scope.WEBHOOKS_READ,
        "List what was and is to be sent",
        200,
        DeliveriesAnswer,
        group="Events and webhooks",
        parts={"public_id": ENDPOINT},
        query=DeliveryQuery,
        refusals=(RequestInvalid, EndpointUnknown, CursorUnknown),
    ),
    Call(
        "POST",
        f"{_ENDPOINT}/deliveries/resend-parked",
        resend_parked,
        Scope.WEBHOOKS_WRITE,
        "Send everything again that was given up",
        202,
        ResentAnswer,
        group="Events and webhooks",
        parts={"public_id": ENDPOINT},
        refusals=(EndpointUnknown,),
    ),
    Call(
        "GET",
        f"{_ENDPOINT}/deliveries/<event:event_id>",
        show_delivery,
        Scope.WEBHOOKS_READ,
        "Show a delivery with its tries",
        200,
        DeliveryDetailsAnswer,
        group="Events and webhooks",
        parts={"public_id": ENDPOINT, "event_id": EVENT},
        refusals=(EndpointUnknown, DeliveryUnknown),
    ),
    Call(
        "POST",
        f"{_ENDPOINT}/deliveries/<event:event_id>/resend",
        resend_delivery,
        Scope.WEBHOOKS_WRITE,
        "Send an event again",
        202,
        DeliveryAnswer,
        group="Events and webhooks",
        about="Whatever became of it; its id stays the same.",
        parts={"public_id": ENDPOINT, "event_id": EVENT},
        refusals=(EndpointUnknown, DeliveryUnknown),
    ),
)
