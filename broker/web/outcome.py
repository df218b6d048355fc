"""What a flow's page says: one heading, one sentence and one way on for every state a flow can be in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.errors import BrokerError, FlowExpired, FlowInterrupted, Verdict
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
    # Whether the person waits for something that is about to happen by itself.
    waiting: bool = False
    # Whether everything is done but the first check, which is about to be made.
    being_checked: bool = False
    # Whether the page offers the same provider once more.
    retry: bool = False
    # Whether the page offers the last step once more.
    finish: bool = False
    status: int = 200

    @property
    def looks_again(self) -> bool:
        """Whether the page looks again by itself."""
        return self.waiting or self.being_checked


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
            "Your permission has arrived and is kept encrypted, but the last step did not work. "
            f"{opening(host)} sees this in its list of connections and can finish it without you. "
            "You can also try the last step again."
        )
        return Outcome(f"We could not finish connecting {provider}", text, "warn", "alert", finish=True)
    if status in ("unknown", "ok"):
        text = f"Everything is set up. {opening(host)} can now read what you allowed."
        return Outcome(connected, text, "ok", "tick", being_checked=_is_being_checked(page, now))
    return Outcome(
        f"{provider} was connected", "Its state has changed since. Your accounts show how it is now.", "warn", "info"
    )


def _is_being_checked(page: FlowPage, now: datetime) -> bool:
    """Tell whether a connection has been imported just now, so that its first check is still to come."""
    if page.connection is None or page.connection.status != "unknown":
        return False
    imported_at = page.connection.hand_off.imported_at
    return imported_at is not None and now - imported_at < LATE_AFTER


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
    if page.hold is Hold.CONFIRMATION:
        text = (
            f"{opening(host)} now makes sure that it was you who came back from {provider}. This page looks again by "
            "itself. It does not take long; what you allowed is not used before."
        )
        return Outcome(f"Waiting for {host}", text, waiting=True)
    text = (
        f"{provider} has asked the owners of the account. You can close this page. "
        f"Once an owner has agreed, come back to it and continue at {provider}."
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
        # A wrong setting stays wrong however often somebody tries.
        retry=page.can_retry and failure.verdict is not Verdict.CONFIGURATION,
        status=failure.status,
    )
