"""Connect links over the API."""

from __future__ import annotations

from flask import g, jsonify, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.web import services
from broker.web.api.schemas import CreatedLinkAnswer, LinkAnswer, LinkBody, read_body


def create_link() -> tuple[Response, int, dict[str, str]]:
    """Make a connect link; its address is in this answer and nowhere else."""
    link = services().links.create(read_body(LinkBody).request(), created_by=g.caller.id)
    answer = jsonify(CreatedLinkAnswer.of(link).model_dump(mode="json"))
    return answer, 201, {"Location": url_for("api.show_link", public_id=link.id)}


def show_link(public_id: str) -> Response:
    """Tell how far a link has come."""
    return jsonify(LinkAnswer.of(services().links.state(public_id)).model_dump(mode="json"))


def revoke_link(public_id: str) -> Response:
    """Take a link back; repeating it changes nothing."""
    link = services().links.revoke(public_id, actor=Actor("api_key", g.caller.id))
    return jsonify(LinkAnswer.of(link).model_dump(mode="json"))
