"""API keys in the console: make one, see when each was last used, take one back."""

from __future__ import annotations

from flask import g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.apikeys import ApiKeyInvalid, Scope
from broker.audit import Actor
from broker.web import services
from broker.web.languages import in_full


def list_keys() -> Response:
    """List the API keys, and ask for another."""
    return _page("", 200)


def create_key() -> Response:
    """Make a key, and show it this once."""
    name, scopes = request.form.get("name", ""), request.form.getlist("scope")
    try:
        public_id, key = services().api_keys.create(name, scopes, actor=_operator())
    except ApiKeyInvalid as invalid:
        return _page(invalid.detail, 422)
    text = render_template("console/key_created.html", id=public_id, key=key.reveal(), name=name.strip())
    return make_response(text, 201)


def confirm_revoke(public_id: str) -> ResponseReturnValue:
    """Say what taking a key back does, before it is done."""
    key = next((each for each in services().api_keys.list() if each.id == public_id), None)
    if key is None or key.revoked_at is not None:
        return redirect(url_for("console.list_keys"), 303)
    used = "It was never used." if key.last_used_at is None else f"It was last used {in_full(key.last_used_at)}."
    return render_template(
        "console/confirm.html",
        heading=f"Revoke {key.name}?",
        sentences=[
            "Its next call is refused; links and connections made with it stay.",
            used,
            "It cannot be made to work again: a new key has to be made.",
        ],
        address=url_for("console.revoke_key", public_id=public_id),
        label="Revoke key",
        busy="Revoking…",
        back=url_for("console.list_keys"),
        keep="Keep it",
    )


def revoke_key(public_id: str) -> Response:
    """Make a key useless from its next call on."""
    services().api_keys.revoke(public_id, actor=_operator())
    return redirect(url_for("console.list_keys", done="revoked"), 303)


def _operator() -> Actor:
    return Actor("operator", g.operator.email)


def _page(problem: str, status: int) -> Response:
    text = render_template(
        "console/keys.html",
        keys=services().api_keys.list(),
        scopes=[scope.value for scope in Scope],
        chosen=request.form.getlist("scope"),
        name=request.form.get("name", ""),
        problem=problem,
        done=request.args.get("done", ""),
    )
    return make_response(text, status)
