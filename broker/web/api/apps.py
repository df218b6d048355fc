"""The OAuth apps over the API."""

from __future__ import annotations

from flask import jsonify
from werkzeug.wrappers import Response

from broker.web import services
from broker.web.api.schemas import AppAnswer


def list_apps() -> Response:
    """List the OAuth apps that links can offer, without secrets."""
    answers = [
        AppAnswer(
            key=app.key,
            provider=app.provider.name,
            title=app.title,
            kind=app.provider.kind,
            scopes=list(app.scopes),
            why=app.config.why,
        )
        for app in services().apps
    ]
    return jsonify(data=[answer.model_dump(mode="json") for answer in answers])
