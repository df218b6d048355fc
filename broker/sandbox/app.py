"""The sandbox as one Flask application."""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, g, request
from werkzeug.exceptions import Forbidden, HTTPException, MethodNotAllowed, NotFound

from broker.clock import Clock, SystemClock
from broker.sandbox import control, pages
from broker.sandbox.connection import ENVIRON_KEY
from broker.sandbox.github import api as github_api
from broker.sandbox.github import app as github_app
from broker.sandbox.github import applications as github_applications
from broker.sandbox.github import authorize as github_authorize
from broker.sandbox.github import install as github_install
from broker.sandbox.github import organizations as github_organizations
from broker.sandbox.github import session as github_session
from broker.sandbox.github import token as github_token
from broker.sandbox.github.answers import refusal as github_refusal
from broker.sandbox.redirects import is_loopback
from broker.sandbox.secrets import Secrets
from broker.sandbox.sequin import apps as sequin_apps
from broker.sandbox.sequin import credentials as sequin_credentials
from broker.sandbox.sequin.answers import outside
from broker.sandbox.stand_ins import discover
from broker.sandbox.stripe import api as stripe_api
from broker.sandbox.stripe import authorize as stripe_authorize
from broker.sandbox.stripe import token as stripe_token
from broker.sandbox.stripe.token import api_error
from broker.sandbox.world import EXTENSION, World, current_world

MODULES = (
    control,
    pages,
    stripe_authorize,
    stripe_token,
    stripe_api,
    github_session,
    github_authorize,
    github_token,
    github_install,
    github_api,
    github_app,
    github_organizations,
    github_applications,
    sequin_credentials,
    sequin_apps,
)
UNLOGGED = ("/control/", pages.STATIC, "/favicon.ico")
LONGEST_BODY = 4 * 1024 * 1024
# No form-action: a consent form answers with a redirect to the broker, which is another origin.
PAGE_POLICY = "default-src 'none'; style-src 'self'; base-uri 'none'; frame-ancestors 'none'"


def create_sandbox(secrets: Secrets, *, clock: Clock | None = None) -> Flask:
    """Build a sandbox with a state of its own."""
    app = Flask(__name__, static_folder=None, template_folder=str(_templates()))
    stand_ins = discover().values()
    app.extensions[EXTENSION] = World(secrets, clock or SystemClock(), stand_ins)
    app.config["MAX_CONTENT_LENGTH"] = LONGEST_BODY
    app.json.sort_keys = False  # type: ignore[attr-defined]
    app.before_request(_receive)
    app.after_request(_conclude)
    app.register_error_handler(HTTPException, _in_the_services_words)
    for module in MODULES:
        app.register_blueprint(module.blueprint)
    for stand_in in stand_ins:
        app.register_blueprint(stand_in.blueprint)
    return app


def _templates() -> Path:
    """Return the templates folder: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "templates"
    return inside if (inside / "sandbox").is_dir() else package.parent / "templates"


def _receive() -> None:
    """Write the request down before anything can go wrong with it."""
    g.entry = None
    # Read whatever was sent, wanted or not: the next request on this connection begins after it.
    body = request.get_data(cache=True)
    if not is_loopback(request.headers.get("Host", "")):
        # Another name for 127.0.0.1 is how a page on the web would reach this (DNS rebinding).
        raise Forbidden("The sandbox answers only to 127.0.0.1, localhost and [::1].")
    if not f"{request.path}/".startswith(UNLOGGED):
        g.entry = current_world().log.begin(request, body)


def _conclude(answer: Response) -> Response:
    if answer.mimetype == "text/html":
        answer.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        answer.headers.setdefault("Cache-Control", "no-store")
    if answer.status_code == 413 and (connection := request.environ.get(ENVIRON_KEY)):
        connection.close_after()  # the rest of the body is still on its way
    if entry := g.get("entry"):
        text = None if answer.is_streamed else answer.get_data(as_text=True)
        current_world().log.finish(entry, answer.status_code, text)
    return answer


def _in_the_services_words(problem: HTTPException) -> Response | HTTPException:
    """Say "no such thing" as the service would whose address this is."""
    if not isinstance(problem, NotFound | MethodNotAllowed):
        return problem
    if request.path.startswith("/sequin/"):
        return outside(404, "Not Found").response()
    if request.path.startswith("/github/api/"):
        return github_refusal(404, "Not Found").response()
    if request.path.startswith("/stripe/v1/"):
        sentence = f"Unrecognized request URL ({request.method}: {request.path.removeprefix('/stripe')})."
        return api_error(404, sentence).response()
    return problem
