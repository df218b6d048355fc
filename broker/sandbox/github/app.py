"""GitHub's API for the App itself, which signs each request with its private key."""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

from flask import Blueprint, jsonify
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import RSAKey
from werkzeug.wrappers import Response

from broker.sandbox.github.answers import bearer, installation_resource, refusal, request_resource, slice_of, stamp
from broker.sandbox.github.people import Installation
from broker.sandbox.points import point
from broker.sandbox.world import World, current_world

blueprint = Blueprint("github_app", __name__, url_prefix="/github/api/app")
LONGEST = 600
INSTALLATION_TOKEN_LIFE = timedelta(hours=1)


@blueprint.get("")
@point("github.app_installation")
def app() -> Response:
    """Show the App."""
    world = current_world()
    require_app(world)
    return jsonify(
        id=world.github.app_id,
        slug=world.github.app_slug,
        client_id=world.github.app.id,
        name="Sandbox broker",
        permissions={"metadata": "read", "contents": "read", "members": "read"},
        events=[],
    )


@blueprint.get("/installations")
@point("github.app_installation")
def installations() -> Response:
    """List every installation."""
    world = current_world()
    require_app(world)
    some, links = slice_of(list(world.github.installations.values()))
    answer = jsonify([installation_resource(world, one) for one in some])
    answer.headers.update(links)
    return answer


@blueprint.get("/installations/<int:number>")
@point("github.app_installation")
def installation(number: int) -> Response:
    """Show one installation."""
    world = current_world()
    return jsonify(installation_resource(world, _installation(world, number)))


@blueprint.get("/installation-requests")
@point("github.app_installation")
def installation_requests() -> Response:
    """List what members have asked owners for and nobody has answered."""
    world = current_world()
    require_app(world)
    asked = world.github.open_requests()
    return jsonify([request_resource(world, number, org, asker) for number, (org, asker) in enumerate(asked, 1)])


@blueprint.post("/installations/<int:number>/access_tokens")
@point("github.app_installation")
def access_tokens(number: int) -> Response:
    """Mint a token for an installation; refused while it is suspended."""
    world = current_world()
    found = _installation(world, number)
    if found.suspended_at:
        raise refusal(403, "This installation has been suspended")
    until = world.clock.now() + INSTALLATION_TOKEN_LIFE
    answer = jsonify(
        token=_stateless_token(world, found, int(until.timestamp())),
        expires_at=stamp(until),
        permissions={"metadata": "read", "contents": "read", "members": "read"},
        repository_selection="all",
    )
    answer.status_code = 201
    return answer


@blueprint.delete("/installations/<int:number>")
@point("github.uninstall")
def uninstall(number: int) -> Response:
    """Take the App off an account."""
    world = current_world()
    world.github.uninstall(_installation(world, number))
    return Response(status=204)


@blueprint.put("/installations/<int:number>/suspended")
@point("github.app_installation")
def suspend(number: int) -> Response:
    """Suspend an installation."""
    world = current_world()
    _installation(world, number).suspended_at = world.clock.now()
    return Response(status=204)


@blueprint.delete("/installations/<int:number>/suspended")
@point("github.app_installation")
def unsuspend(number: int) -> Response:
    """End a suspension."""
    world = current_world()
    _installation(world, number).suspended_at = None
    return Response(status=204)


def _installation(world: World, number: int) -> Installation:
    require_app(world)
    found = world.github.installations.get(number)
    if found is None:
        raise refusal(404, "Not Found")
    return found


def require_app(world: World) -> None:
    """Verify the App's JWT. Raises a 401 Refusal that says which claim is wrong, as GitHub does."""
    try:
        claims = jwt.decode(bearer(), _key(world.secrets.github_private_key), algorithms=["RS256"]).claims
    except (JoseError, ValueError):
        raise refusal(401, "A JSON web token could not be decoded") from None
    now = world.clock.now().timestamp()
    issued, ends = _number(claims.get("iat")), _number(claims.get("exp"))
    if issued is None or issued > now:
        raise refusal(
            401, "'Issued at' claim ('iat') must be an Integer representing the time that the assertion was issued"
        )
    if ends is None or ends <= now:
        raise refusal(
            401,
            "'Expiration time' claim ('exp') must be a numeric value representing the future time at which the "
            "assertion expires",
        )
    if ends > now + LONGEST:
        raise refusal(401, "'Expiration time' claim ('exp') is too far in the future")
    if str(claims.get("iss")) not in (world.github.app.id, str(world.github.app_id)):
        raise refusal(401, "'Issuer' claim ('iss') must be the client ID or the ID of the App")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


@lru_cache(maxsize=8)
def _key(pem: str) -> RSAKey:
    return RSAKey.import_key(pem)


def _stateless_token(world: World, found: Installation, expires: int) -> str:
    """Make a long token, as GitHub now does: nobody may rely on 40 characters."""
    claims = {"iss": world.github.app_id, "ins": found.id, "exp": expires}
    signed = jwt.encode({"alg": "RS256"}, claims, _key(world.secrets.github_private_key))
    return f"ghs_{world.github.app_id}_{signed}"
