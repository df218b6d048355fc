"""Connections over the API."""

from __future__ import annotations

from flask import g, jsonify
from werkzeug.wrappers import Response

from broker.answers import connection_answer
from broker.apikeys import Scope
from broker.audit import Actor
from broker.connection_search import ConnectionFilters, CursorUnknown
from broker.connections import ConnectionEnded, ConnectionUnknown
from broker.contract import AcceptedAnswer, ConnectionAnswer, ConnectionQuery, ConnectionsAnswer
from broker.web import services
from broker.web.api.calls import CONNECTION, Call
from broker.web.api.problems import RequestInvalid
from broker.web.api.schemas import read_connection_query


def list_connections() -> Response:
    """List connections, newest first."""
    query, metadata = read_connection_query()
    filters = ConnectionFilters(metadata=metadata, **query.model_dump(exclude={"limit", "cursor"}))
    page = services().connections.page(filters, limit=query.limit, cursor=query.cursor)
    answer = ConnectionsAnswer(data=list(map(connection_answer, page.items)), next_cursor=page.next_cursor)
    return jsonify(answer.model_dump(mode="json"))


def show_connection(ref: str) -> Response:
    """Show one connection."""
    return jsonify(connection_answer(services().connections.find(ref)).model_dump(mode="json"))


def retry_connection(ref: str) -> tuple[Response, int]:
    """Ask for the import again."""
    services().connections.retry(ref, actor=Actor("api_key", g.caller.id))
    return _accepted(ref)


def check_connection(ref: str) -> tuple[Response, int]:
    """Ask for a check now; `health.checked_at` tells when it was made."""
    services().connections.check(ref)
    return _accepted(ref)


def disconnect(ref: str) -> tuple[Response, int]:
    """End a connection; repeating it changes nothing. Its note tells what is still to be done."""
    services().disconnections.request(ref, actor=Actor("api_key", g.caller.id))
    return _accepted(ref)


def _accepted(ref: str) -> tuple[Response, int]:
    return jsonify(AcceptedAnswer(ref=ref).model_dump(mode="json")), 202


CALLS = (
    Call(
        "GET",
        "/connections",
        list_connections,
        Scope.CONNECTIONS_READ,
        "List connections, newest first",
        200,
        ConnectionsAnswer,
        "Every filter narrows further. `metadata.<key>=<value>` compares one of your own facts as text.",
        group="Connections",
        query=ConnectionQuery,
        refusals=(RequestInvalid, CursorUnknown),
    ),
    Call(
        "GET",
        "/connections/<ref>",
        show_connection,
        Scope.CONNECTIONS_READ,
        "Show a connection",
        200,
        ConnectionAnswer,
        group="Connections",
        parts={"ref": CONNECTION},
        refusals=(ConnectionUnknown,),
    ),
    Call(
        "DELETE",
        "/connections/<ref>",
        disconnect,
        Scope.CONNECTIONS_WRITE,
        "Disconnect",
        202,
        AcceptedAnswer,
        "Ended here at once; at the provider and in Sequin by the worker, retried until done. The connection’s `note` "
        "tells what is still to be done. Repeating it changes nothing.",
        group="Connections",
        parts={"ref": CONNECTION},
        refusals=(ConnectionUnknown,),
    ),
    Call(
        "POST",
        "/connections/<ref>/check",
        check_connection,
        Scope.CONNECTIONS_WRITE,
        "Ask for a check now",
        202,
        AcceptedAnswer,
        "`health.checked_at` tells when it was made.",
        group="Connections",
        parts={"ref": CONNECTION},
        refusals=(ConnectionUnknown, ConnectionEnded),
    ),
    Call(
        "POST",
        "/connections/<ref>/retry",
        retry_connection,
        Scope.CONNECTIONS_WRITE,
        "Ask for the import again",
        202,
        AcceptedAnswer,
        "One that stands in Sequin as it should is left alone.",
        group="Connections",
        parts={"ref": CONNECTION},
        refusals=(ConnectionUnknown, ConnectionEnded),
    ),
)
