"""End users over the API: forgetting one."""

from __future__ import annotations

from flask import g, jsonify
from werkzeug.wrappers import Response

from broker.answers import erasure_answer
from broker.apikeys import Scope
from broker.audit import Actor
from broker.contract import ErasureAnswer
from broker.errors import EndUserUnknown
from broker.web import services
from broker.web.api.calls import END_USER, Call


def erase_end_user(end_user_id: str) -> tuple[Response, int]:
    """Disconnect everything of a person, then forget them."""
    erasure = services().erasures.request(end_user_id, actor=Actor("api_key", g.caller.id))
    return jsonify(erasure_answer(erasure).model_dump(mode="json")), 202


CALLS = (
    Call(
        "DELETE",
        "/end-users/<path:end_user_id>",
        erase_end_user,
        Scope.END_USERS_ERASE,
        "Forget a person",
        202,
        ErasureAnswer,
        "Links stop working and every connection is ended at once; access at the provider and the credential in "
        "Sequin are taken away by the worker, retried until done. Then the person’s rows are deleted, and this call "
        "answers 404 as for somebody who was never here. Until then no link can be made for the id. Repeating it "
        "changes nothing.",
        group="End users",
        parts={"end_user_id": END_USER},
        refusals=(EndUserUnknown,),
    ),
)
