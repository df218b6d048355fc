"""Credentials in Sequin that carry our metadata and that no connection owns, and their one cure."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.web import services


def list_orphans() -> str:
    """List what the last sweep found, oldest first."""
    found = services().reconciliation.orphans()
    return render_template("console/orphans.html", orphans=found, done=request.args.get("done", ""))


def forget_orphan(credential_id: str) -> Response:
    """Delete one of them in Sequin."""
    services().reconciliation.forget(credential_id, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.list_orphans", done="forgotten"), 303)
