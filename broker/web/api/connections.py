"""Connections over the API."""

from __future__ import annotations

from flask import g, jsonify
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.connections import ConnectionFilters
from broker.web import services
from broker.web.api.schemas import ConnectionAnswer, ConnectionsAnswer, read_connection_query


def list_connections() -> Response:
    """List connections, newest first."""
    query, metadata = read_connection_query()
    filters = ConnectionFilters(metadata=metadata, **query.model_dump(exclude={"limit", "cursor"}))
    page = services().connections.page(filters, limit=query.limit, cursor=query.cursor)
    answer = ConnectionsAnswer(data=list(map(ConnectionAnswer.of, page.items)), next_cursor=page.next_cursor)
    return jsonify(answer.model_dump(mode="json"))


def show_connection(ref: str) -> Response:
    """Show one connection."""
    return jsonify(ConnectionAnswer.of(services().connections.find(ref)).model_dump(mode="json"))


def retry_connection(ref: str) -> tuple[Response, int]:
    """Ask for the import again."""
    services().connections.retry(ref, actor=Actor("api_key", g.caller.id))
    return jsonify(ref=ref), 202


def check_connection(ref: str) -> tuple[Response, int]:
    """Ask for a check now; `health.checked_at` tells when it was made."""
    services().connections.check(ref)
    return jsonify(ref=ref), 202


def disconnect(ref: str) -> tuple[Response, int]:
    """End a connection; repeating it changes nothing. Its note tells what is still to be done."""
    services().disconnections.request(ref, actor=Actor("api_key", g.caller.id))
    return jsonify(ref=ref), 202
