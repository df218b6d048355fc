"""Flows over the API: the host's word for who came back."""

from __future__ import annotations

from flask import g, jsonify
from werkzeug.wrappers import Response

from broker.answers import flow_answer
from broker.apikeys import Scope
from broker.audit import Actor
from broker.contract import ConfirmBody, FlowAnswer
from broker.errors import ConfirmationMismatch, ConfirmationTooLate, FlowEnded, FlowUnknown
from broker.web import services
from broker.web.api.calls import FLOW, Call
from broker.web.api.schemas import read_body


def confirm_flow(ref: str) -> Response:
    """Say who came back; the wrong person ends the flow."""
    body = read_body(ConfirmBody)
    flow = services().confirmations.confirm(ref, body.end_user_id, actor=Actor("api_key", g.caller.id))
    return jsonify(flow_answer(flow).model_dump(mode="json"))


CALLS = (
    Call(
        "POST",
        "/flows/<ref>/confirm",
        confirm_flow,
        Scope.LINKS_WRITE,
        "Confirm who came back",
        200,
        FlowAnswer,
        "For links made with `confirm`. The return address carries the flow as `ref`, with `status=held`; say which of "
        "your users came back with it. Only then is the provider’s code exchanged, in this call: it takes up to 20 "
        "seconds. Anybody but the person of the link ends the flow. Codes do not last (Stripe’s five minutes), so "
        "confirm as soon as the person is back.",
        group="Flows",
        parts={"ref": FLOW},
        body=ConfirmBody,
        refusals=(FlowUnknown, FlowEnded, ConfirmationMismatch, ConfirmationTooLate),
    ),
)
