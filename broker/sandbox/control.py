"""The control interface: for tests, rehearsals and curl."""

from __future__ import annotations

from dataclasses import asdict
from http.client import HTTPException

from flask import Blueprint, jsonify, request
from werkzeug.exceptions import Forbidden
from werkzeug.wrappers import Response

from broker.sandbox.consent import parse_consent
from broker.sandbox.emit import parse_order, prepare
from broker.sandbox.faults import Unscripted, parse_fault
from broker.sandbox.options import parse_options
from broker.sandbox.rotation import parse_rules
from broker.sandbox.sequin.store import Health
from broker.sandbox.snapshot import snapshot
from broker.sandbox.webhooks import send
from broker.sandbox.world import current_world

blueprint = Blueprint("control", __name__, url_prefix="/control")


@blueprint.before_request
def refuse_other_sites() -> None:
    """Keep pages on the web from steering a sandbox that happens to run on the visitor's machine."""
    if request.headers.get("Sec-Fetch-Site") == "cross-site":
        raise Forbidden


@blueprint.errorhandler(Unscripted)
def explain(problem: Unscripted) -> Response:
    """Answer a request that makes no sense with a sentence."""
    answer = jsonify(error=str(problem))
    answer.status_code = 400
    return answer


@blueprint.get("/log")
def log() -> Response:
    """Return what was asked so far, newest last; `?after=N` leaves out entries up to number N."""
    return jsonify(data=current_world().log.since(request.args.get("after", 0, type=int)))


@blueprint.post("/faults")
def faults() -> Response:
    """Script a fault."""
    asked = _object()
    fault, times = parse_fault(asked)
    current_world().faults.add(fault, times)
    return jsonify(asked)


@blueprint.delete("/faults")
def end_faults() -> Response:
    """End the scripted faults, those of `?on=` or all, and keep everything else: the outage is over."""
    current_world().faults.clear(request.args.get("on"))
    return jsonify(ended=True)


@blueprint.post("/consent")
def consent() -> Response:
    """Say who answers the consent pages."""
    world, answer = current_world(), parse_consent(_object())
    with world.lock:
        world.consent = answer
    return jsonify(asdict(answer))


@blueprint.get("/options")
def options() -> Response:
    """Show the switches."""
    return jsonify(asdict(current_world().options))


@blueprint.post("/options")
def set_options() -> Response:
    """Turn some switches."""
    world, asked = current_world(), _object()
    with world.lock:
        world.options = parse_options(world.options, asked)
    return jsonify(asdict(world.options))


@blueprint.post("/tokens")
def tokens() -> Response:
    """Say how long access tokens live from now on, and whether a reused refresh token ends its family."""
    world, asked = current_world(), _object()
    with world.lock:
        world.rotations.rules = parse_rules(world.rotations.rules, asked)
    return jsonify(asdict(world.rotations.rules))


@blueprint.post("/health")
def health() -> Response:
    """Set a credential's health at Sequin, as if its own checks had found something."""
    world, asked = current_world(), _object()
    status, notes = asked.get("status"), asked.get("notes", [])
    with world.lock:
        found = world.sequin.credentials.get(str(asked.get("credential")))
        if found is None:
            raise Unscripted("'credential' is not the id of a credential.")
        if not isinstance(status, str) or not isinstance(notes, list):
            raise Unscripted("A health has a status (a string) and notes (a list of strings).")
        found.health = Health(status, [str(note) for note in notes], world.clock.now())
    return jsonify(asked)


@blueprint.post("/drift")
def drift() -> Response:
    """Change a credential at Sequin behind the broker's back: its OAuth app, or some of its properties."""
    world, asked = current_world(), _object()
    with world.lock:
        found = world.sequin.credentials.get(str(asked.get("credential")))
        if found is None:
            raise Unscripted("'credential' is not the id of a credential.")
        app = world.sequin.apps.get(str(asked.get("oauth_app_id", found.oauth_app_id)))
        properties = asked.get("properties", {})
        if app is None or not isinstance(properties, dict):
            raise Unscripted("'oauth_app_id' is the id of an OAuth app, 'properties' an object.")
        world.sequin.alter(found, app, properties)
    return jsonify(asked)


@blueprint.post("/revoke")
def revoke() -> Response:
    """Let the owner of an account end what they granted, at a provider that sends no webhook about it."""
    world, asked = current_world(), _object()
    with world.lock:
        server = world.servers.get(str(asked.get("provider")))
        if server is None:
            raise Unscripted(f"'provider' must be one of {', '.join(world.servers)}.")
        ended = server.end_account(str(asked.get("account")))
    return jsonify(ended=ended)


@blueprint.post("/emit")
def emit() -> Response:
    """Let something happen at a provider and send its webhook to the broker; return what the broker answered."""
    world, order = current_world(), parse_order(_object())
    with world.lock:
        delivery = prepare(world, order)
    if order.unsigned:
        delivery = delivery.unsigned()
    # Not under the lock: the broker may well ask the sandbox something before it answers.
    try:
        for _ in range(order.times):
            status, text = send(delivery)
    except (OSError, HTTPException) as error:
        answer = jsonify(error=f"The broker at {delivery.url} did not answer: {type(error).__name__}.", status=None)
        answer.status_code = 502
        return answer
    sent = {"url": delivery.url, "headers": dict(delivery.headers), "body": delivery.body.decode()}
    return jsonify(status=status, response=text, sent=sent)


@blueprint.post("/reset")
def reset() -> Response:
    """Back to the state after start."""
    current_world().reset()
    return jsonify(reset=True)


@blueprint.get("/state")
def state() -> Response:
    """Show accounts, grants and credentials, secrets included."""
    world = current_world()
    with world.lock:
        return jsonify(snapshot(world))


def _object() -> dict[str, object]:
    body = request.get_json(force=True, silent=True)
    if not isinstance(body, dict):
        raise Unscripted("Send a JSON object.")
    return body
