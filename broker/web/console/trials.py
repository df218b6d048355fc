"""Trying an OAuth app out in the operator's own browser, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from flask import g, redirect, render_template, url_for
from werkzeug.wrappers import Response

from broker.audit import Actor
from broker.journal import Browser
from broker.trials import Outcome, Part
from broker.web import cookies, services
from broker.web.console.webhooks import Words
from broker.web.cookies import remembering, this_browser

PARTS: Mapping[Part, str] = MappingProxyType(
    {
        Part.LEAVE: "Leaving for the provider",
        Part.RETURN: "Coming back to the callback address",
        Part.EXCHANGE: "Exchanging the code, with client id and secret",
        Part.ACCOUNT: "Reading the account",
        Part.IMPORT: "What would be imported",
        Part.CLEAN_UP: "Clearing up",
    }
)
OUTCOMES: Mapping[Outcome, Words] = MappingProxyType(
    {
        Outcome.DONE: Words("Worked", "ok", "tick"),
        Outcome.WAITING: Words("Not yet", "neutral", "clock"),
        Outcome.FAILED: Words("Failed", "bad", "cross"),
        Outcome.SKIPPED: Words("Not come to", "neutral", "slash"),
    }
)
ENDS: Mapping[str, str] = MappingProxyType(
    {
        "ended": "The access was ended at the provider, and what was received is erased.",
        "in_use": "What was received is erased. The access stays: a connection uses the same account.",
        "unproven": "What was received is erased. It did not lead to exactly one account, so nothing was ended there.",
        "refused": "What was received is erased. Its access can only be removed at the provider.",
        "given_up": "What was received is erased. Its access could not be ended in time: remove it at the provider.",
    }
)
"""How a grant that ended unattached was let go, by the word in the timeline."""


def begin_trial(app_key: str) -> Response:
    """Lead the operator to the provider; nothing of what comes of it is kept."""
    browser = this_browser() or Browser(cookies.new_browser_secret())
    actor = Actor("operator", g.operator.email)
    return remembering(browser, redirect(services().trials.begin(app_key, browser, actor=actor), 303))


def show_trial(ref: str) -> str:
    """Say what worked and what did not."""
    trial = services().trials.find(ref)
    address = url_for("console.show_providers")
    return render_template("console/trial.html", trial=trial, words=PARTS, outcomes=OUTCOMES, ends=ENDS, set_up=address)
