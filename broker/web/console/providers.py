"""The operators' page about the set-up: the doctor's checks, the addresses to register, the match with Sequin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from urllib.parse import urlsplit

from flask import render_template, request

from broker.doctor import Seen, State, describe
from broker.web import services
from broker.web.security import allow_leaving


@dataclass(frozen=True)
class Words:
    """How the state of a check reads, its colour, and the shape that stands for the colour."""

    word: str
    tone: str
    icon: str


STATES: Mapping[State, Words] = MappingProxyType(
    {
        State.FAIL: Words("Failed", "bad", "cross"),
        State.WARN: Words("Look", "warn", "alert"),
        State.SKIP: Words("Skipped", "neutral", "question"),
        State.PASS: Words("Passed", "ok", "tick"),
    }
)

_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host")


def show_providers() -> str:
    """Make every check now and show what came of it, failures first."""
    parts = urlsplit(request.host_url)
    seen = Seen(f"{parts.scheme}://{parts.netloc}", any(name in request.headers for name in _FORWARDED))
    report = services().doctor.examine(seen)
    # The Test button leads to a provider.
    allow_leaving()
    return render_template("console/providers.html", report=report, states=STATES, apps=list(services().apps))


def outages() -> list[dict[str, str]]:
    """Return a sentence and its cure for every other side that nothing is sent to at the moment."""
    apps = services().apps
    return [{"sentence": describe(each, apps), "cure": each.cure} for each in services().circuits.open()]
