"""Providers' webhooks: the raw body goes to one use case, which verifies it before anything reads it."""

from __future__ import annotations

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.web import services
from broker.web.security import csrf

LONGEST_BODY = 4 * 1024 * 1024
"""GitHub lists every repository of an installation; what is larger is refused with 413 before it is read."""

blueprint = Blueprint("hooks", __name__)
csrf.exempt(blueprint)


@blueprint.post("/hooks/<app_key>")
def receive(app_key: str) -> Response:
    """Take an event in; the worker acts on it. One that came before is answered in the same way."""
    request.max_content_length = LONGEST_BODY
    # Names of headers have no case; providers' functions ask for them as they are usually written.
    headers = {name.title(): value for name, value in request.headers.items()}
    services().provider_events.receive(app_key, headers, request.get_data(cache=False))
    return jsonify(received=True)
