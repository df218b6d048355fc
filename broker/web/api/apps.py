"""The OAuth apps over the API."""

from __future__ import annotations

from flask import jsonify
from werkzeug.wrappers import Response

from broker.apps import OfferedApp
from broker.circuits import app_circuit
from broker.web import services
from broker.web.api.schemas import AppAnswer


def list_apps() -> Response:
    """List the OAuth apps that links can offer, without secrets."""
    return jsonify(data=[_answer(app).model_dump(mode="json") for app in services().apps])


def _answer(app: OfferedApp) -> AppAnswer:
    circuit = services().circuits.look(app_circuit(app.key))
    return AppAnswer(
        key=app.key,
        provider=app.provider.name,
        title=app.title,
        kind=app.provider.kind,
        scopes=list(app.scopes),
        why=app.config.why,
        unavailable_since=circuit.since if circuit else None,
        next_try_at=circuit.next_try_at if circuit else None,
    )
