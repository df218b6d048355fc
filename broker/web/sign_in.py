"""Signing in at an OpenID provider: the people's pages, and what the console's do alike."""

from __future__ import annotations

import re

import structlog
from flask import Blueprint, abort, make_response, redirect, render_template, request, session, url_for
from werkzeug.wrappers import Response

from broker.callback import parse_callback
from broker.errors import PrefetchRefused, SignInFailure, by_code
from broker.journal import Browser
from broker.sign_ins import Admitted, SignIns
from broker.web import cookies, request_ref, services
from broker.web.cookies import remembering, this_browser
from broker.web.errors import Sentence
from broker.web.security import allow_leaving, is_ahead_of_the_person

# A page of one's own in plain characters: no scheme, no host, no dots, nothing a browser would rewrite.
_INSIDE = re.compile(r"/connections(?:/[A-Za-z0-9-]+)?")
_REFERENCE = re.compile(r"[0-9A-Z]{4}(-[0-9A-Z]{4}){2}")
REFUSED_ACCOUNT = "refused_account"
"""In Flask's session, for one page: the account that was refused, so that the person sees which one it was."""

log = structlog.get_logger("broker.errors")

blueprint = Blueprint("sign_in", __name__)


@blueprint.get("/sign-in")
def show() -> Response:
    """Offer to sign in; who is signed in already goes on."""
    sign_ins = _people()
    onward = inside(request.args.get("next"))
    signed_in = services().sessions.find(cookies.read(cookies.SESSION))
    if signed_in is not None and signed_in.by_sign_in:
        return redirect(onward or url_for("connections.index"), 303)
    allow_leaving()
    failure = told_failure()
    text = render_template(
        "connections/sign_in.html",
        label=sign_ins.config.name,
        next=onward,
        ended="ended" in request.args,
        failure=failure and Sentence(failure.code, failure.heading, failure.advice).for_people,
        ref=told_reference(),
    )
    return make_response(text, failure.status if failure else 200)


@blueprint.post("/sign-in")
def begin() -> Response:
    """Lead the person to the OpenID provider."""
    onward = inside(request.form.get("next"))
    return leave(_people(), "sign_in.show", onward)


@blueprint.get("/sign-in/callback")
def callback() -> Response:
    """Take the OpenID provider's answer and sign the person in; always leads on to a clean address."""
    back = come_back(_people(), "sign_in.show")
    if not isinstance(back, Admitted):
        return back
    # The CSRF token of the page before must not outlive it.
    session.clear()
    response = redirect(inside(back.onward) or url_for("connections.index"), 303)
    cookies.sign_in(response, end_user_id=back.key, link_id=None, by_sign_in=True)
    browser = services().self_service.renewed(back.key, this_browser())
    cookies.write(response, cookies.BROWSER, browser.secret, cookies.BROWSER_LIFE)
    return response


def leave(sign_ins: SignIns, page: str, onward: str) -> Response:
    """Send somebody to the OpenID provider, or back to the sign-in page `page` with what is wrong."""
    browser = this_browser() or Browser(cookies.new_browser_secret())
    try:
        address = sign_ins.begin(browser, request.remote_addr or "", onward=onward, another="another" in request.form)
    except SignInFailure as failure:
        return _back_to(page, failure, onward)
    return remembering(browser, redirect(address, 303))


def come_back(sign_ins: SignIns, page: str) -> Admitted | Response:
    """Take somebody back from the OpenID provider; a failure of theirs is told on the sign-in page `page`.

    Raises CallbackInvalid and the like for what does not belong to this browser, having changed nothing.
    """
    if request.method == "HEAD":
        return Response(status=204)
    if is_ahead_of_the_person():
        raise PrefetchRefused
    answer = parse_callback(request.query_string)
    try:
        return sign_ins.complete(answer, this_browser(), request.remote_addr or "")
    except SignInFailure as failure:
        return _back_to(page, failure, "")


def told_failure() -> type[SignInFailure] | None:
    """Return the failure that the address of a sign-in page names, None when it names none."""
    found = by_code(request.args.get("problem", ""))
    return found if found is not None and issubclass(found, SignInFailure) else None


def told_reference() -> str:
    """Return the reference of the request that failed, empty unless it looks like one."""
    ref = request.args.get("ref", "")
    return ref if _REFERENCE.fullmatch(ref) else ""


def inside(wanted: str | None) -> str:
    """Return a page of people's own that may be gone to after signing in, empty for anything else."""
    return wanted if wanted and _INSIDE.fullmatch(wanted) else ""


def _back_to(page: str, failure: SignInFailure, onward: str) -> Response:
    say = log.error if failure.status >= 500 else log.info
    say("refused", error=failure.code, detail=failure.detail)
    if shown := getattr(failure, "shown", ""):
        session[REFUSED_ACCOUNT] = str(shown)[:320]
    return redirect(url_for(page, problem=failure.code, ref=request_ref(), next=onward or None), 303)


def _people() -> SignIns:
    sign_ins = services().people_sign_ins
    if sign_ins is None:
        abort(404)
    return sign_ins
