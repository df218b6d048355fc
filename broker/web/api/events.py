"""What happened, over the API."""

from __future__ import annotations

from flask import jsonify
from werkzeug.wrappers import Response

from broker.apikeys import Scope
from broker.connection_search import CursorUnknown
from broker.web import services
from broker.web.api.calls import Call
from broker.web.api.event_schemas import EventAnswer, EventQuery, EventsAnswer
from broker.web.api.problems import RequestInvalid
from broker.web.api.schemas import read_query


def list_events() -> Response:
    """List what happened, newest first."""
    query = read_query(EventQuery)
    page = services().events.page(query.filters(), limit=query.limit, cursor=query.cursor)
    answer = EventsAnswer(data=list(map(EventAnswer.of, page.items)), next_cursor=page.next_cursor)
    return jsonify(answer.model_dump(mode="json"))


CALLS = (
    Call(
        "GET",
        "/events",
        list_events,
        Scope.EVENTS_READ,
        "List what happened, newest first",
        200,
        EventsAnswer,
        "Each is what a webhook about it says. Every filter narrows further.",
        group="Events and webhooks",
        query=EventQuery,
        refusals=(RequestInvalid, CursorUnknown),
    ),
)
