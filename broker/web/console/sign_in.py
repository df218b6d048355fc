"""Signing operators in and out."""

from __future__ import annotations

import re

from flask import abort, g, make_response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.operators import SignInRefused
from broker.secret import Secret
from broker.sessions import OPERATOR_LIMIT
from broker.sign_ins import Admitted, SignIns
from broker.throttle import SignInThrottled
from broker.web import cookies, services
from broker.web.security import allow_leaving
from broker.web.sign_in import REFUSED_ACCOUNT, come_back, leave, told_failure, told_reference

# A path of the console in plain characters: no scheme, no host, no dots, no backslash, nothing a browser would rewrite.
_INSIDE = re.compile(r"/ops(?:/[A-Za-z0-9_-]+)*/?(?:\?[A-Za-z0-9._~%&=+:@-]*)?")


def show_sign_in() -> Response:
    """Show the form; who is signed in already goes on."""
    if g.operator is not None:
        return redirect(_onward(request.args.get("next")), 303)
    notice = next((name for name in ("ended", "out") if name in request.args), "")
    return _form(request.args.get("next"), notice=notice)


def do_sign_in() -> Response:
    """Sign an operator in under a new session."""
    email, password = request.form.get("email", ""), Secret(request.form.get("password", ""))
    onward = request.form.get("next")
    try:
        operator_id = services().operators.sign_in(email, password, request.remote_addr or "")
    except SignInRefused as refusal:
        return _form(onward, email=email, problem=f"{refusal.heading}.", status=refusal.status)
    except SignInThrottled as refusal:
        minutes = "a minute" if refusal.minutes == 1 else f"{refusal.minutes} minutes"
        sentence = f"{refusal.heading}. Try again in {minutes}."
        response = _form(onward, email=email, problem=sentence, status=refusal.status)
        response.headers["Retry-After"] = str(refusal.retry_after)
        return response
    return _signed_in(operator_id, onward)


def begin_openid() -> Response:
    """Lead an operator to the OpenID provider."""
    wanted = request.form.get("next")
    return leave(_openid(), "console.show_sign_in", wanted if wanted and _INSIDE.fullmatch(wanted) else "")


def openid_callback() -> Response:
    """Take the OpenID provider's answer and sign the operator in."""
    back = come_back(_openid(), "console.show_sign_in")
    return _signed_in(back.key, back.onward) if isinstance(back, Admitted) else back


def sign_out_everywhere() -> Response:
    """End every session of the operator in front of us, this one too."""
    services().sessions.end_all(g.operator.email, actor=Actor("operator", g.operator.email))
    session.clear()
    response = redirect(url_for("console.show_sign_in", out="everywhere"), 303)
    cookies.forget(response, cookies.OPERATOR)
    return response


def _signed_in(operator_id: int, onward: str | None) -> Response:
    services().sessions.end(cookies.read(cookies.OPERATOR))
    # The CSRF token of the page before must not outlive it.
    session.clear()
    response = redirect(_onward(onward), 303)
    cookies.write(response, cookies.OPERATOR, services().sessions.open_operator(operator_id), OPERATOR_LIMIT)
    return response


def _openid() -> SignIns:
    sign_ins = services().operator_sign_ins
    if sign_ins is None:
        abort(404)
    return sign_ins


def do_sign_out() -> Response:
    """End the session here, not only in the browser."""
    services().sessions.end(cookies.read(cookies.OPERATOR))
    session.clear()
    response = redirect(url_for("console.show_sign_in", out=1), 303)
    cookies.forget(response, cookies.OPERATOR)
    return response


def sign_in_address(*, ended: bool) -> str:
    """Return the address of the form that leads back to where this request wanted to go."""
    wanted = request.full_path.rstrip("?") if request.method == "GET" else None
    known = wanted if wanted and _INSIDE.fullmatch(wanted) else None
    return url_for("console.show_sign_in", next=known, ended=1 if ended else None)


def _onward(wanted: str | None) -> str:
    """Return where to go after signing in: a page of the console, never an address from outside."""
    return wanted if wanted and _INSIDE.fullmatch(wanted) else url_for("console.list_connections")


def _form(onward: str | None, *, notice: str = "", email: str = "", problem: str = "", status: int = 200) -> Response:
    openid, failure = services().operator_sign_ins, told_failure() if request.method == "GET" else None
    if openid is not None:
        allow_leaving()
    text = render_template(
        "console/sign_in.html",
        label=openid.config.name if openid is not None else "",
        failure=failure,
        refused=session.pop(REFUSED_ACCOUNT, "") if failure is not None else "",
        ref=told_reference(),
        next=onward if onward and _INSIDE.fullmatch(onward) else None,
        notice=notice,
        everywhere=request.args.get("out") == "everywhere",
        email=email[:320],
        problem=problem,
        nobody_yet=not services().operators.exist(),
    )
    return make_response(text, failure.status if failure is not None else status)
