"""Everything that speaks HTTP: a view parses, calls one use case and answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from flask import Flask, current_app, g

from broker.references import new_ref

if TYPE_CHECKING:
    from broker.services import Services
    from broker.settings import Settings


def services() -> Services:
    """Return the collaborators of the running application."""
    return cast("Services", current_app.extensions["broker"])


def request_ref() -> str:
    """Return the reference of the request being answered: in the log, in `X-Request-Id` and on error pages."""
    if "request_ref" not in g:
        g.request_ref = new_ref()
    return cast(str, g.request_ref)


def init_web(app: Flask, settings: Settings) -> None:
    """Give `app` what every page needs: protection, the look of the pages, and errors that read well.

    Call it before any route is added; blueprints are registered by the composition root.
    """
    from broker.web import access, assets, errors, pages, security

    access.init_app(app, settings)
    security.init_app(app, settings)
    assets.init_app(app)
    pages.init_app(app, settings)
    errors.init_app(app)
