"""Bulk actions in the console: what is about to happen, how far it has come, and how to stop it."""

from __future__ import annotations

from flask import g, make_response, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.bulk import (
    MOST_PICKED,
    NothingSelected,
    RunState,
    Selection,
    SelectionChanged,
    SelectionGrew,
    TooManySelected,
)
from broker.models import BulkAction
from broker.web import services
from broker.web.console.narrowing import Narrowing, NarrowingWrong

LOOKS_AGAIN_SECONDS = 3
TYPED_FROM = 11
"""From so many on, ending them asks for the number to be typed."""
WORDS = {
    BulkAction.CHECK: "Check now",
    BulkAction.IMPORT: "Import again",
    BulkAction.DISCONNECT: "Disconnect",
}


class BulkAsked:
    """The query of the address that asks for a bulk action, read once."""

    def __init__(self) -> None:
        """Raises NarrowingWrong for what cannot be read."""
        query = request.args
        word = query.get("action", "")
        if word not in set(BulkAction):
            raise NarrowingWrong
        self.action = BulkAction(word)
        self.all = query.get("all") == "1"
        self.narrowing = Narrowing(query)
        self.refs = tuple(dict.fromkeys(query.getlist("ref")))[:MOST_PICKED]
        if self.all and self.narrowing.problems:
            raise NarrowingWrong
        self.selection = Selection(filters=self.narrowing.filters) if self.all else Selection(self.refs)

    @property
    def address(self) -> str:
        """The address of the page that asks, with everything that was chosen."""
        chosen: dict[str, object] = {"all": "1", **self.narrowing.query} if self.all else {"ref": list(self.refs)}
        return url_for("console.confirm_bulk", action=self.action.value, **chosen)  # type: ignore[arg-type]


def list_runs() -> str:
    """List what was done to many connections at once."""
    return render_template("console/bulk_runs.html", runs=services().bulk_runs.recent(), words=WORDS)


def confirm_bulk() -> ResponseReturnValue:
    """Say how many connections are meant and what will be done, before it is."""
    return _confirmation(BulkAsked())


def start_bulk() -> ResponseReturnValue:
    """Begin what was confirmed, and lead to its progress."""
    asked = BulkAsked()
    confirmed, typed = request.form.get("confirmed", ""), request.form.get("typed", "")
    number = int(confirmed) if confirmed.isascii() and confirmed.isdecimal() and len(confirmed) <= 9 else 0
    if _is_typed(asked.action, number) and typed.strip().replace(",", "") != str(number):
        return _confirmation(asked, problem="Type the number of connections as it stands above.", status=422)
    actor = Actor("operator", g.operator.email)
    try:
        seen = request.form.get("seen", "")
        ref = services().bulk_runs.start(asked.action, asked.selection, confirmed=number, actor=actor, seen=seen)
    except (SelectionGrew, SelectionChanged) as changed:
        return _confirmation(asked, problem=changed.advice, status=409)
    except (NothingSelected, TooManySelected):
        return _confirmation(asked)
    return redirect(url_for("console.show_run", ref=ref), 303)


def show_run(ref: str) -> Response:
    """Show how far a run has come; the page comes again by itself until it is over, unless `still` stands in it."""
    run = services().bulk_runs.find(ref)
    is_still = request.args.get("still") == "1"
    response = make_response(render_template("console/bulk_run.html", run=run, words=WORDS, is_still=is_still))
    if run.state is RunState.RUNNING and not is_still:
        # A header, so that the page needs no script; its address stays the same.
        response.headers["Refresh"] = str(LOOKS_AGAIN_SECONDS)
    return response


def stop_run(ref: str) -> Response:
    """End a run where it stands."""
    services().bulk_runs.stop(ref, actor=Actor("operator", g.operator.email))
    return redirect(url_for("console.show_run", ref=ref), 303)


def _is_typed(action: BulkAction, number: int) -> bool:
    return action is BulkAction.DISCONNECT and number >= TYPED_FROM


def _confirmation(asked: BulkAsked, *, problem: str = "", status: int = 200) -> ResponseReturnValue:
    preview, refusal = None, None
    try:
        preview = services().bulk_runs.preview(asked.selection)
    except (NothingSelected, TooManySelected) as failure:
        refusal, status = failure, failure.status
    page = render_template(
        "console/bulk_confirm.html",
        asked=asked,
        words=WORDS,
        preview=preview,
        refusal=refusal,
        problem=problem,
        is_typed=preview is not None and _is_typed(asked.action, preview.count),
        back=asked.narrowing.address(),
    )
    return page, status
