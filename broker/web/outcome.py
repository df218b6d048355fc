"""What a flow's page says: one heading, one sentence and one way on for every state a flow can be in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.errors import BrokerError, FlowExpired, FlowInterrupted
from broker.flow_page import FlowPage
from broker.models import FlowState, Hold

LATE_AFTER = timedelta(minutes=2)
"""When a page stops refreshing itself and says that set-up takes longer than usual."""


@dataclass(frozen=True)
class Outcome:
    """The words and the shape of a flow's page."""

    heading: str
    text: str
    tone: str = "neutral"
    icon: str = "clock"
    # Whether something is about to change by itself.
    waiting: bool = False
    # Whether the page offers the same provider once more.
    retry: bool = False
    status: int = 200


def describe(page: FlowPage, *, host: str, now: datetime) -> Outcome:
    """Return what the page of a flow says."""
    if page.state is FlowState.DONE:
        return _done(page, host, now)
    if page.state is FlowState.REDEEMING:
        return _finishing(page, now)
    if page.state is FlowState.HELD:
        return _held(page, host)
    if page.state in (FlowState.OPENED, FlowState.LEFT):
        return Outcome(
            f"You have not finished connecting {page.app.title}",
            f"You left for {page.app.title} and have not come back from it yet. "
            "If its page is still open, go on there. Otherwise you can start again.",
            icon="info",
            retry=True,
        )
    return _failed(page, host)


def opening(text: str) -> str:
    """Return `text` as it stands at the start of a sentence."""
    return text[:1].upper() + text[1:]


def _done(page: FlowPage, host: str, now: datetime) -> Outcome:
    provider = page.app.title
    connected = f"{provider} is connected"
    status = page.connection.status if page.connection else "pending"
    if status == "pending":
        if page.ended_at is not None and now - page.ended_at > LATE_AFTER:
            text = "Set-up is taking longer than usual. We keep trying; you do not need to do anything."
            return Outcome(connected, text, waiting=True)
        text = "We are finishing set-up. This takes a minute or two. You can leave this page."
        return Outcome(connected, text, waiting=True)
    if status == "import_failed":
        text = (
            f"Your permission has arrived and is kept safe, but the last step needs {host}. "
            "Nothing more is needed from you: quote the reference if you ask about it."
        )
        return Outcome(f"We could not finish setting up {provider}", opening(text), "warn", "alert")
    if status in ("unknown", "ok"):
        return Outcome(connected, f"Everything is set up. {opening(host)} can now read what you allowed.", "ok", "tick")
    return Outcome(
        f"{provider} was connected", "Its state has changed since. Your accounts show how it is now.", "warn", "info"
    )


def _finishing(page: FlowPage, now: datetime) -> Outcome:
    text = f"{page.app.title} has sent you back to us. We are checking its answer; this takes a few seconds."
    if now - page.updated_at > LATE_AFTER:
        text = "This is taking longer than usual. We keep trying; you can leave this page."
    return Outcome(f"Finishing with {page.app.title}", text, waiting=True)


def _held(page: FlowPage, host: str) -> Outcome:
    provider = page.app.title
    if page.hold is Hold.CHOICE:
        return Outcome("One more step", f"You can reach several {provider} accounts. Choose one of them.", icon="info")
    if page.hold is Hold.INSTALLATION:
        text = f"Choose there where {host} may have access. Then {provider} brings you back here."
        return Outcome(f"One more step at {provider}", text, icon="info")
    text = (
        f"{provider} has asked the owners of the account. You can close this page. "
        "Once an owner has agreed, come back to it and continue."
    )
    return Outcome("Waiting for an owner to approve", text, "warn", "clock")


def _failed(page: FlowPage, host: str) -> Outcome:
    assumed: type[BrokerError] = FlowExpired if page.state is FlowState.EXPIRED else FlowInterrupted
    failure = page.failure or assumed
    words = {"provider": page.app.title, "host": host}
    text = failure.advice.format(**words)
    if not page.can_retry and "{host}" not in failure.advice:
        text += f" This link has ended: go back to {host} for a new one."
    return Outcome(
        opening(failure.heading.format(**words)),
        text,
        "warn" if failure.status < 500 else "bad",
        "alert",
        retry=page.can_retry,
        status=failure.status,
    )
