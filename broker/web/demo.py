"""The demo's host page: a pretend SaaS that sends its one user here and shows what it learns back.

It uses the broker as a host does: it asks for a connect link, sends the person there, and lists connections.
The composition root registers it for `broker demo` alone.
"""

from __future__ import annotations

from flask import Blueprint, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from broker.apps import OfferedApp
from broker.connection_search import ConnectionFilters
from broker.links import LinkRequest
from broker.status import Status
from broker.web import services
from broker.web.connect import LOOKS
from broker.web.security import allow_leaving

HOST = "Acme Analytics"
PERSON_ID = "jo-lind"
PERSON_NAME = "Jo Lind"
PERSON_EMAIL = "jo@example.com"

MOVING = (Status.PENDING, Status.AWAITING_APPROVAL)

blueprint = Blueprint("demo", __name__, url_prefix="/demo")


@blueprint.get("/")
def index() -> str:
    """Show the pretend product's integrations page."""
    allow_leaving()
    page = services().connections.page(ConnectionFilters(end_user=PERSON_ID), limit=50)
    looks = request.args.get("n", 0, type=int)
    moving = any(connection.status in MOVING for connection in page.items)
    return render_template(
        "demo/index.html",
        host=HOST,
        person={"id": PERSON_ID, "name": PERSON_NAME, "email": PERSON_EMAIL},
        apps=_offered(),
        connections=page.items,
        stage="/".join(f"{connection.ref}:{connection.status}" for connection in page.items),
        next_look=url_for("demo.index", n=looks + 1) if moving and 0 <= looks < LOOKS else None,
        came_back=request.args.get("status"),
    )


@blueprint.post("/connect")
def connect() -> Response:
    """Ask for a connect link that offers every app, as a host's backend does, and send the person there."""
    return _send()


@blueprint.post("/manage")
def manage() -> Response:
    """Ask for a link to the person's whole page and send them there."""
    return _send(manage=True)


def _offered() -> list[OfferedApp]:
    """Return every app: first those the demo says something about, of them those with an installation page last."""
    return sorted(services().apps, key=_place)


def _place(app: OfferedApp) -> tuple[bool, bool, bool]:
    return not app.config.why, app.provider.install_url is not None, not app.provider.kind_documented


def _send(*, manage: bool = False) -> Response:
    settings = services().settings
    wanted = LinkRequest(
        end_user_id=PERSON_ID,
        name=PERSON_NAME,
        email=PERSON_EMAIL,
        apps=tuple(app.key for app in _offered()) or None,
        # The demo lists its own origin; elsewhere the page does without the way back.
        return_url=f"{settings.public_url}/demo/" if settings.public_url in settings.return_origins else None,
        manage=manage,
    )
    return redirect(services().links.create(wanted, created_by="demo").url, 303)
