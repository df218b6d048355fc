"""Connect links over the API."""

from __future__ import annotations

from flask import g, jsonify, url_for
from werkzeug.wrappers import Response

from broker.answers import created_link_answer, link_answer
from broker.apikeys import Scope
from broker.audit import Actor
from broker.connections import ConnectionUnknown
from broker.contract import CreatedLinkAnswer, LinkAnswer, LinkBody
from broker.errors import AppUnknown, EndUserErased, LinkUnknown
from broker.links import LinkInvalid, LinkRequest
from broker.web import services
from broker.web.api.calls import LINK, Call
from broker.web.api.schemas import read_body


def create_link() -> tuple[Response, int, dict[str, str]]:
    """Make a connect link; its address is in this answer and nowhere else."""
    link = services().links.create(_request(read_body(LinkBody)), created_by=g.caller.id)
    answer = jsonify(created_link_answer(link).model_dump(mode="json"))
    return answer, 201, {"Location": url_for("api.show_link", public_id=link.id)}


def show_link(public_id: str) -> Response:
    """Tell how far a link has come."""
    return jsonify(link_answer(services().links.state(public_id)).model_dump(mode="json"))


def revoke_link(public_id: str) -> Response:
    """Take a link back; repeating it changes nothing."""
    link = services().links.revoke(public_id, actor=Actor("api_key", g.caller.id))
    return jsonify(link_answer(link).model_dump(mode="json"))


def _request(body: LinkBody) -> LinkRequest:
    return LinkRequest(
        end_user_id=body.end_user.id,
        email=body.end_user.email,
        name=body.end_user.name,
        apps=None if body.apps is None else tuple(body.apps),
        return_url=body.return_url,
        auto_return=body.auto_return,
        metadata=body.metadata or {},
        expires_in=body.expires_in,
        reconnects=body.connection,
        confirm=body.confirm,
        manage=body.manage,
    )


CALLS = (
    Call(
        "POST",
        "/connect-links",
        create_link,
        Scope.LINKS_WRITE,
        "Make a connect link",
        201,
        CreatedLinkAnswer,
        "Send the person to its `url`. The address is in this answer and nowhere else.",
        group="Connect links",
        body=LinkBody,
        refusals=(LinkInvalid, ConnectionUnknown, AppUnknown, EndUserErased),
        limited=True,
        located=True,
    ),
    Call(
        "GET",
        "/connect-links/<public_id>",
        show_link,
        Scope.LINKS_READ,
        "Tell how far a link has come",
        200,
        LinkAnswer,
        group="Connect links",
        parts={"public_id": LINK},
        refusals=(LinkUnknown,),
    ),
    Call(
        "DELETE",
        "/connect-links/<public_id>",
        revoke_link,
        Scope.LINKS_WRITE,
        "Take a link back",
        200,
        LinkAnswer,
        "Nobody can start through it any more; repeating it changes nothing.",
        group="Connect links",
        parts={"public_id": LINK},
        refusals=(LinkUnknown,),
    ),
)
