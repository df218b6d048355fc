"""The shapes of GitHub's API: errors, pages, and who is asking."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from flask import jsonify, request
from werkzeug.wrappers import Response

from broker.sandbox.github.hub import Token
from broker.sandbox.github.people import Installation, Org, User, account
from broker.sandbox.redirects import with_query
from broker.sandbox.refusal import Refusal
from broker.sandbox.world import World

DOCS = "https://docs.github.com/rest"


def refusal(status: int, message: str) -> Refusal:
    """Return an error as GitHub's API writes it."""
    return Refusal(status, {"message": message, "documentation_url": DOCS, "status": str(status)})


def bearer() -> str:
    """Return the token in the Authorization header, or an empty string."""
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    return value.strip() if scheme.lower() in ("bearer", "token") else ""


def user_token(world: World) -> Token:
    """Return the user token of this request. Raises a 401 Refusal."""
    token = world.github.holder(bearer())
    if token is None:
        raise refusal(401, "Bad credentials")
    return token


def for_token(token: Token, body: object) -> Response:
    """Answer with JSON and the headers that go with a user token."""
    answer = jsonify(body)
    if not token.client.is_app:
        answer.headers["X-OAuth-Scopes"] = ", ".join(token.scopes)
        answer.headers["X-Accepted-OAuth-Scopes"] = ""
    return answer


def slice_of(items: Sequence[Installation]) -> tuple[Sequence[Installation], dict[str, str]]:
    """Return the page that was asked for, and the Link header that leads on."""
    per_page = min(100, max(1, request.args.get("per_page", 30, type=int)))
    page = max(1, request.args.get("page", 1, type=int))
    last = max(1, -(-len(items) // per_page))
    pages = {"next": page + 1, "last": last} if page < last else {}
    if page > 1:
        pages |= {"prev": page - 1, "first": 1}
    address = request.base_url
    links = [
        f'<{with_query(address, per_page=str(per_page), page=str(number))}>; rel="{name}"'
        for name, number in pages.items()
    ]
    return items[(page - 1) * per_page : page * per_page], {"Link": ", ".join(links)} if links else {}


def installation_resource(world: World, installation: Installation) -> dict[str, object]:
    """Return the API's installation object."""
    api = f"{request.url_root.rstrip('/')}/github/api"
    suspender = world.github.owner_of(installation.account_login) if installation.suspended_at else None
    return {
        "id": installation.id,
        "account": account(installation.account_id, installation.account_login, installation.account_type),
        "app_id": world.github.app_id,
        "app_slug": world.github.app_slug,
        "client_id": world.github.app.id,
        "target_id": installation.account_id,
        "target_type": installation.account_type,
        "repository_selection": "all",
        "permissions": {"metadata": "read", "contents": "read", "members": "read"},
        "events": [],
        "access_tokens_url": f"{api}/app/installations/{installation.id}/access_tokens",
        "html_url": f"{request.url_root.rstrip('/')}/github/settings/installations/{installation.id}",
        "created_at": stamp(installation.created_at),
        "updated_at": stamp(installation.suspended_at or installation.created_at),
        "suspended_at": stamp(installation.suspended_at) if installation.suspended_at else None,
        "suspended_by": account(suspender.id, suspender.login, "User") if suspender else None,
    }


def request_resource(world: World, number: int, org: Org, asker: User) -> dict[str, object]:
    """Return the API's object for a request to an owner that is still open."""
    return {
        "id": number,
        "account": account(org.id, org.login, "Organization"),
        "requester": account(asker.id, asker.login, "User"),
        "created_at": stamp(world.clock.now()),
    }


def stamp(moment: datetime) -> str:
    """Write a time as GitHub does."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
