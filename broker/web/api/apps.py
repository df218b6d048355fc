"""The OAuth apps over the API."""

from __future__ import annotations

from flask import jsonify
from werkzeug.wrappers import Response

from broker.answers import app_answer
from broker.apikeys import Scope
from broker.circuits import app_circuit
from broker.contract import AppsAnswer
from broker.web import services
from broker.web.api.calls import Call


def list_apps() -> Response:
    """List the OAuth apps that links can offer, without secrets."""
    look = services().circuits.look
    answer = AppsAnswer(data=[app_answer(app, look(app_circuit(app.key))) for app in services().apps])
    return jsonify(answer.model_dump(mode="json"))


CALLS = (
    Call(
        "GET",
        "/apps",
        list_apps,
        Scope.APPS_READ,
        "List the OAuth apps that links can offer",
        200,
        AppsAnswer,
        "Without secrets. `unavailable_since` tells while nobody is sent to the provider.",
        group="OAuth apps",
    ),
)
