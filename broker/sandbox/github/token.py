"""GitHub's token endpoint: it answers 200 whatever happens, in the format the Accept header asks for."""

from __future__ import annotations

from html import escape
from urllib.parse import urlencode

from flask import Blueprint, jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.github.hub import REFRESH_LIFE, Client, Refused, Token
from broker.sandbox.points import point
from broker.sandbox.refusal import Refusal
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_token", __name__, url_prefix="/github")
DOCS = "https://docs.github.com/apps/managing-oauth-apps/troubleshooting-oauth-app-access-token-request-errors/"
DESCRIPTIONS = {
    "incorrect_client_credentials": "The client_id and/or client_secret passed are incorrect.",
    "redirect_uri_mismatch": "The redirect_uri MUST match the registered callback URL for this application.",
    "bad_verification_code": "The code passed is incorrect or expired.",
    "bad_refresh_token": "The refresh token passed is incorrect or expired.",
    "unsupported_grant_type": "The grant_type passed is not supported.",
}


@blueprint.post("/login/oauth/access_token")
@point("github.token")
def access_token() -> Response:
    """Exchange a code or a refresh token."""
    world = current_world()
    sent = _sent()
    client = world.github.client(sent.get("client_id"))
    if client is None:
        raise Refusal(404, {"error": "Not Found"})
    try:
        return _formatted(_answer(_token(world, client, sent)))
    except Refused as refused:
        return _formatted(
            {
                "error": refused.error,
                "error_description": DESCRIPTIONS[refused.error],
                "error_uri": f"{DOCS}#{refused.error.replace('_', '-')}",
            }
        )


def _sent() -> dict[str, str]:
    """Return the parameters, from query, form or JSON. Basic authentication is not documented, so not taken."""
    sent = {**request.args.to_dict(), **request.form.to_dict()}
    body = request.get_json(silent=True)
    if isinstance(body, dict):
        sent.update({str(name): value for name, value in body.items() if isinstance(value, str)})
    return sent


def _token(world: World, client: Client, sent: dict[str, str]) -> Token:
    # PKCE does not replace the secret at GitHub.
    if sent.get("client_secret") != client.secret:
        raise Refused("incorrect_client_credentials")
    kind = sent.get("grant_type", "authorization_code")
    if kind == "refresh_token":
        return world.github.refresh(client, sent.get("refresh_token", ""))
    if kind != "authorization_code":
        raise Refused("unsupported_grant_type")
    return world.github.redeem(client, sent.get("code", ""), sent.get("redirect_uri"), sent.get("code_verifier"))


def _answer(token: Token) -> dict[str, object]:
    answer: dict[str, object] = {"access_token": token.value}
    if token.refresh:
        answer |= {
            "expires_in": max(1, int(token.life.total_seconds())),
            "refresh_token": token.refresh,
            "refresh_token_expires_in": int(REFRESH_LIFE.total_seconds()),
        }
    return {**answer, "scope": ",".join(token.scopes), "token_type": "bearer"}


def _formatted(answer: dict[str, object]) -> Response:
    accept = request.headers.get("Accept", "")
    if "application/json" in accept:
        return jsonify(answer)
    if "application/xml" in accept:
        members = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in answer.items())
        return Response(f"<OAuth>{members}</OAuth>", mimetype="application/xml")
    return Response(urlencode({n: str(v) for n, v in answer.items()}), mimetype="application/x-www-form-urlencoded")
