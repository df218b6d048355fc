"""Connect links in the console: make one, see how far each has come, take one back."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flask import g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.contract import LinkState
from broker.links import LinkInvalid, LinkRequest
from broker.web import services
from broker.web.console.webhooks import Words

ON_A_PAGE = 50
PAIRS = 3
LIVES = {"": "As set for this broker", "900": "15 minutes", "86400": "24 hours", "604800": "7 days"}
STATES: Mapping[LinkState, Words] = MappingProxyType(
    {
        LinkState.UNOPENED: Words("Not opened", "neutral", "clock"),
        LinkState.OPENED: Words("Opened", "neutral", "info"),
        LinkState.STARTED: Words("Started", "warn", "out"),
        LinkState.USED: Words("Used", "ok", "tick"),
        LinkState.EXPIRED: Words("Expired", "neutral", "slash"),
        LinkState.REVOKED: Words("Revoked", "bad", "cross"),
    }
)
REVOCABLE = frozenset({LinkState.UNOPENED, LinkState.OPENED, LinkState.STARTED})


def list_links() -> str:
    """List connect links, newest first; the state they are narrowed to stands in the address."""
    wanted = request.args.get("state", "")
    state = LinkState(wanted) if wanted in set(LinkState) else None
    found = services().links.list(limit=ON_A_PAGE + 1, after=request.args.get("after") or None, state=state)
    shown = found[:ON_A_PAGE]
    return render_template(
        "console/links.html",
        links=shown,
        next_cursor=shown[-1].id if len(found) > ON_A_PAGE else None,
        states=STATES,
        state=state,
        revocable=REVOCABLE,
        first="after" not in request.args,
        done=request.args.get("done", ""),
    )


def new_link() -> Response:
    """Ask what the link is for."""
    return _form({}, 200)


def create_link() -> Response:
    """Make the link, and show its address this once."""
    given = {name: request.form.get(name, "").strip() for name in ("end_user", "email", "name", "return_url")}
    life = request.form.get("expires_in", "")
    wanted = LinkRequest(
        end_user_id=given["end_user"],
        email=given["email"] or None,
        name=given["name"] or None,
        apps=tuple(request.form.getlist("app")) or None,
        return_url=given["return_url"] or None,
        metadata=_metadata(),
        expires_in=int(life) if life and life in LIVES else None,
    )
    try:
        created = services().links.create(wanted, created_by=g.operator.email)
    except LinkInvalid as invalid:
        return _form({name.removeprefix("end_user."): reasons for name, reasons in invalid.fields.items()}, 422)
    return make_response(render_template("console/link_created.html", created=created, end_user=given["end_user"]), 201)


def confirm_revoke(public_id: str) -> ResponseReturnValue:
    """Say what taking a link back does, before it is done."""
    link = services().links.state(public_id)
    if link.state not in REVOCABLE:
        return redirect(url_for("console.list_links"), 303)
    return render_template(
        "console/confirm.html",
        heading=f"Revoke the link for {link.end_user_id}?",
        sentences=[
            f"Nobody can start through {link.id} any more; whoever is at a provider may still come back and connect.",
            "What it has connected stays connected.",
            "It cannot be made to work again: a new link has to be made.",
        ],
        address=url_for("console.revoke_link", public_id=public_id),
        label="Revoke link",
        busy="Revoking…",
        back=url_for("console.list_links"),
        keep="Keep it",
    )


def revoke_link(public_id: str) -> Response:
    """Take a link back."""
    services().links.revoke(public_id, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.list_links", done="revoked"), 303)


def _metadata() -> dict[str, object]:
    pairs = zip(request.form.getlist("key"), request.form.getlist("value"), strict=False)
    return {key.strip(): value.strip() for key, value in pairs if key.strip()}


def _form(problems: Mapping[str, list[str]], status: int) -> Response:
    given = request.form
    pairs = list(zip(given.getlist("key"), given.getlist("value"), strict=False))[:PAIRS]
    text = render_template(
        "console/link_new.html",
        given=given,
        chosen=given.getlist("app"),
        pairs=pairs + [("", "")] * (PAIRS - len(pairs)),
        problems={name: f"{', '.join(reasons)}." for name, reasons in problems.items()},
        apps=list(services().apps),
        lives=LIVES,
        link_minutes=services().settings.link_minutes,
    )
    return make_response(text, status)
