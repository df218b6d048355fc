"""Operators in the console: who they are, where they are signed in, and the end of that."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.web import services


def list_operators() -> str:
    """List the operators; who may see this may end their sessions."""
    found = services().operators.list()
    openid = services().operator_sign_ins
    return render_template(
        "console/operators.html",
        operators=found,
        label=openid.config.name if openid is not None else "",
        done=request.args.get("done", ""),
    )


def end_sessions() -> Response:
    """Sign an operator out in every browser."""
    email = request.form.get("email", "")
    services().sessions.end_all(email, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.list_operators", done="ended"), 303)
