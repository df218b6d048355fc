"""Connecting an account: the link's page, the way to the provider and back, and the page of each attempt."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from flask import Blueprint, Response, make_response, redirect, render_template, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from broker.apps import OfferedApp
from broker.audit import Actor
from broker.callback import parse_callback, parse_setup
from broker.errors import EndUserErased, PrefetchRefused
from broker.flow_page import FlowPage
from broker.flows import Onward
from broker.journal import Browser
from broker.links import OpenedLink
from broker.models import FlowState
from broker.sessions import SignedIn
from broker.status import Status
from broker.web import cookies, services
from broker.web.connections import NEEDS_A_PERSON
from broker.web.cookies import remembering, this_browser
from broker.web.languages import product_name
from broker.web.outcome import describe
from broker.web.security import allow_leaving, is_ahead_of_the_person, keep_own_referrer

LOOKS = 24
"""How often a pending page without script looks again, every 5 s: two minutes."""

SESSION_AFTER_DONE = timedelta(minutes=30)
"""How long after a connection was saved its page still signs its browser in."""

blueprint = Blueprint("connect", __name__)


@blueprint.get("/connect/<token>")
def link(token: str) -> BaseResponse:
    """Explain what is about to be connected, for whom; spends nothing."""
    browser = this_browser()
    counts = not is_ahead_of_the_person()
    opened = services().links.opened(token, browser.hash if browser else None, count=counts)
    if opened.manage:
        keep_own_referrer()
        response = make_response(render_template("connect/manage.html", link=opened, token=token))
    else:
        allow_leaving()
        # A link that offers nothing is a mistake of whoever runs this.
        response = make_response(_offer(opened, token), 200 if opened.apps else 503)
    # The browser gets its secret before it starts anything: were it to come with the start's answer, a lost answer
    # would make the next try look like another browser.
    return response if is_ahead_of_the_person() else remembering(browser, response)


@blueprint.post("/connect/<token>/start/<app_key>")
def start(token: str, app_key: str) -> BaseResponse:
    """Start a flow and lead the person to the provider."""
    browser = this_browser() or Browser(cookies.new_browser_secret())
    return remembering(browser, redirect(services().flows.begin(token, app_key, browser), 303))


@blueprint.post("/connect/<token>/open")
def open_manage(token: str) -> BaseResponse:
    """Sign the person in whom a manage link was made for."""
    browser = this_browser() or Browser(cookies.new_browser_secret())
    end_user_id = services().links.enter(token, browser.hash)
    response = redirect(url_for("connections.index"), 303)
    cookies.sign_in(response, end_user_id=end_user_id, link_id=None)
    return remembering(browser, response)


@blueprint.get("/oauth/<app_key>/callback")
def callback(app_key: str) -> BaseResponse:
    """Take the provider's answer; always leads on to a clean address."""
    if request.method == "HEAD":
        return Response(status=204)
    if is_ahead_of_the_person():
        raise PrefetchRefused
    answer = parse_callback(request.query_string)
    return _onward(services().flows.complete(app_key, answer, this_browser()))


@blueprint.get("/oauth/<app_key>/setup")
def setup(app_key: str) -> BaseResponse:
    """Take the person back from the provider's installation page."""
    if request.method == "HEAD":
        return Response(status=204)
    if is_ahead_of_the_person():
        raise PrefetchRefused
    onward = services().flows.installed(app_key, parse_setup(request.query_string), this_browser())
    if onward is None:
        return make_response(
            render_template("connect/approved.html", asked=request.args.get("setup_action") == "request")
        )
    return _onward(onward)


@blueprint.get("/flows/<ref>")
def flow(ref: str) -> BaseResponse:
    """Show how far an attempt has come."""
    page = services().flow_pages.page(ref, this_browser())
    if page.trial:
        return redirect(url_for("console.show_trial", ref=ref), 303)
    now = services().clock.now()
    view = describe(page, host=product_name(services().settings.branding), now=now)
    looks = request.args.get("n", 0, type=int)
    following = url_for("connect.flow", ref=ref, n=looks + 1) if view.looks_again and 0 <= looks < LOOKS else None
    allow_leaving()
    text = render_template(
        "connect/flow.html",
        page=page,
        view=view,
        stage=_stage(page),
        next_look=following,
        choose_one="choose" in request.args,
    )
    response = make_response(text, view.status)
    if page.state is FlowState.DONE and page.ended_at is not None and now - page.ended_at < SESSION_AFTER_DONE:
        _sign_in(response, page, life=page.ended_at + SESSION_AFTER_DONE - now)
    return response


@blueprint.post("/flows/<ref>/start/<app_key>")
def start_again(ref: str, app_key: str) -> BaseResponse:
    """Start another attempt through the same link."""
    return redirect(services().flows.begin_again(ref, app_key, this_browser()), 303)


@blueprint.post("/flows/<ref>/install")
def install(ref: str) -> BaseResponse:
    """Lead the person to the provider's installation page once more."""
    return redirect(services().flows.install_again(ref, this_browser()), 303)


@blueprint.post("/flows/<ref>/look-again")
def look_again(ref: str) -> BaseResponse:
    """Look afresh which accounts the person reaches."""
    services().flows.look_again(ref, this_browser())
    return redirect(url_for("connect.flow", ref=ref), 303)


@blueprint.post("/flows/<ref>/elsewhere")
def elsewhere(ref: str) -> BaseResponse:
    """Start another attempt that leads to the provider's installation page."""
    app_key = services().flow_pages.page(ref, this_browser()).app.key
    return redirect(services().flows.begin_again(ref, app_key, this_browser(), elsewhere=True), 303)


@blueprint.post("/flows/<ref>/choose")
def choose(ref: str) -> BaseResponse:
    """Go on with the account the person picked."""
    account = request.form.get("account")
    if not account:
        return redirect(url_for("connect.flow", ref=ref, choose=1), 303)
    services().flows.choose(ref, account, this_browser())
    return redirect(url_for("connect.flow", ref=ref), 303)


@blueprint.post("/flows/<ref>/finish")
def finish(ref: str) -> BaseResponse:
    """Try the last step of a saved connection once more, where it was given up or waits for somebody else."""
    connection = services().flow_pages.page(ref, this_browser()).connection
    if connection is not None and connection.status is Status.AWAITING_APPROVAL:
        services().connections.check(connection.ref)
    if connection is not None and connection.status is Status.IMPORT_FAILED:
        services().connections.retry(connection.ref, actor=Actor("end_user", connection.end_user.id))
    return redirect(url_for("connect.flow", ref=ref), 303)


def _offer(opened: OpenedLink, token: str) -> str:
    """Return the page of a link: what needs attention first, then what is connected, then what can be."""
    by_id = services().connections.by_id
    connected = {app_key: by_id(connection_id) for app_key, connection_id in opened.spent.items()}

    def urgency(app: OfferedApp) -> int:
        if app.key not in connected:
            return 2
        return 0 if connected[app.key].status in NEEDS_A_PERSON else 1

    signed_in = services().sessions.find(cookies.read(cookies.SESSION))
    return render_template(
        "connect/link.html",
        link=opened,
        token=token,
        cards=sorted(opened.apps, key=urgency),
        connected=connected,
        attention=NEEDS_A_PERSON,
        open=opened.expires_at > services().clock.now(),
        sees_details=signed_in is not None
        and signed_in.end_user_id == opened.end_user_id
        and signed_in.link_id in (None, opened.id),
    )


def _onward(onward: Onward) -> BaseResponse:
    return redirect(onward.address or url_for("connect.flow", ref=onward.flow_ref), 303)


def _stage(page: FlowPage) -> str:
    connection = page.connection
    steps = ",".join(step.state for step in connection.steps) if connection else ""
    shown = f"{connection.status}/{connection.asked}" if connection else ""
    return f"{page.state}/{page.hold or ''}/{shown}/{steps}"


def _sign_in(response: BaseResponse, page: FlowPage, *, life: timedelta) -> None:
    """Let the browser that saved a connection see it, unless it can already or nobody is looking."""
    if is_ahead_of_the_person():
        return
    signed_in = services().sessions.find(cookies.read(cookies.SESSION))
    if signed_in is not None and signed_in.end_user_id == page.end_user_id and _shows(signed_in, page):
        return
    if signed_in is not None and signed_in.end_user_id != page.end_user_id and _came_after(signed_in, page):
        return
    # The page tells how it went, also to whoever is being forgotten.
    with suppress(EndUserErased):
        cookies.sign_in(response, end_user_id=page.end_user_id, link_id=page.session_link_id, life=life)


def _came_after(signed_in: SignedIn, page: FlowPage) -> bool:
    """Tell whether somebody has this browser since the attempt was over: then its page gives it back to nobody."""
    return signed_in.opened_at is not None and page.ended_at is not None and signed_in.opened_at >= page.ended_at


def _shows(signed_in: SignedIn, page: FlowPage) -> bool:
    if signed_in.link_id in (None, page.session_link_id) or page.connection is None:
        return True
    # Connected again from their own page: what they saw there is to stay.
    seen = services().connections.of_person(page.end_user_id, link_id=signed_in.link_id)
    return any(connection.ref == page.connection.ref for connection in seen)
