"""What a flow's page says: one heading, one sentence and one way on for every state a flow can be in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from flask_babel import gettext as _

from broker.errors import (
    AccountNotPermitted,
    AccountSuspended,
    AccountTaken,
    BrokerError,
    FlowExpired,
    FlowInterrupted,
    Verdict,
)
from broker.flow_page import FlowPage
from broker.models import FlowState, Hold

LATE_AFTER = timedelta(minutes=2)
"""When a page stops refreshing itself and says that set-up takes longer than usual."""


_OF_ONE_ACCOUNT = (AccountNotPermitted, AccountSuspended, AccountTaken)
"""Failures after which another account may do."""


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
    # Whether the page offers to look once more for what somebody else decides, and which accounts were asked about.
    recheck: bool = False
    # Whether the page offers to look again at what the person can reach, and to go and choose another account.
    look_again: bool = False
    elsewhere: bool = False
    status: int = 200

    @property
    def looks_again(self) -> bool:
        """Whether the page looks again by itself."""
        return self.waiting or self.being_checked or self.recheck


def describe(page: FlowPage, *, host: str, now: datetime) -> Outcome:
    """Return what the page of a flow says."""
    if page.state is FlowState.DONE:
        return _done(page, host, now)
    if page.state is FlowState.REDEEMING:
        return _finishing(page, now)
    if page.state is FlowState.HELD:
        return _held(page, host)
    if page.state in (FlowState.OPENED, FlowState.LEFT):
        text = _(
            "You left for %(provider)s and have not come back from it yet. "
            "If its page is still open, go on there. Otherwise you can start again.",
            provider=page.app.title,
        )
        heading = _("You have not finished connecting %(provider)s", provider=page.app.title)
        return Outcome(heading, text, icon="info", retry=True)
    return _failed(page, host)


def opening(text: str) -> str:
    """Return `text` as it stands at the start of a sentence."""
    return text[:1].upper() + text[1:]


def _done(page: FlowPage, host: str, now: datetime) -> Outcome:
    provider = page.app.title
    connected = _("%(provider)s is connected", provider=provider)
    status = page.connection.status if page.connection else "pending"
    if status == "awaiting_approval":
        asked = page.connection.asked if page.connection and page.connection.asked else _("the account")
        text = _(
            "%(provider)s has asked the owners of %(account)s. You can close this page: for 30 days we look by "
            "ourselves, and once an owner has agreed, %(host)s can go on.",
            provider=provider, account=asked, host=host,
        )  # fmt: skip
        return Outcome(_("Waiting for an owner to approve"), text, "warn", "clock", recheck=True)
    if status == "pending":
        if page.ended_at is not None and now - page.ended_at > LATE_AFTER:
            text = _("Set-up is taking longer than usual. We keep trying; you do not need to do anything.")
            return Outcome(connected, text, waiting=True)
        text = _("We are finishing set-up. This takes a minute or two. You can leave this page.")
        return Outcome(connected, text, waiting=True)
    if status == "import_failed":
        text = _(
            "Your permission has arrived and is kept encrypted, but the last step did not work. "
            "%(host)s sees this in its list of connections and can finish it without you. "
            "You can also try the last step again.",
            host=opening(host),
        )
        heading = _("We could not finish connecting %(provider)s", provider=provider)
        return Outcome(heading, text, "warn", "alert", finish=True)
    if status in ("unknown", "ok"):
        text = _("Everything is set up. %(host)s can now read what you allowed.", host=opening(host))
        return Outcome(connected, text, "ok", "tick", being_checked=_is_being_checked(page, now))
    return Outcome(
        _("%(provider)s was connected", provider=provider),
        _("Its state has changed since. Your accounts show how it is now."),
        "warn",
        "info",
    )


def _is_being_checked(page: FlowPage, now: datetime) -> bool:
    """Tell whether a connection has been imported just now, so that its first check is still to come."""
    if page.connection is None or page.connection.status != "unknown":
        return False
    imported_at = page.connection.hand_off.imported_at
    return imported_at is not None and now - imported_at < LATE_AFTER


def _finishing(page: FlowPage, now: datetime) -> Outcome:
    provider = page.app.title
    text = _(
        "%(provider)s has sent you back to us. We are checking its answer; this takes a few seconds.", provider=provider
    )
    if now - page.updated_at > LATE_AFTER:
        text = _("This is taking longer than usual. We keep trying; you can leave this page.")
    return Outcome(_("Finishing with %(provider)s", provider=provider), text, waiting=True)


def _held(page: FlowPage, host: str) -> Outcome:
    provider = page.app.title
    if page.hold is Hold.CHOICE:
        text = _("You can reach several %(provider)s accounts. Choose one of them.", provider=provider)
        return Outcome(_("One more step"), text, icon="info", elsewhere=page.app.provider.install_url is not None)
    if page.hold is Hold.OTHER_ACCOUNT:
        text = _(
            "Nothing was changed yet. %(account)s stays as it is; you can connect the other account beside it, or try "
            "again with the right one.",
            account=page.renews.account.name if page.renews and page.renews.account else provider,
        )
        return Outcome(_("You came back with another %(provider)s account", provider=provider), text, "warn", "alert")
    if page.hold is Hold.CONFIRMATION:
        text = _(
            "%(host)s now makes sure that it was you who came back from %(provider)s. This page looks again by "
            "itself. It does not take long; what you allowed is not used before.",
            host=opening(host), provider=provider,
        )  # fmt: skip
        return Outcome(_("Waiting for %(host)s", host=host), text, waiting=True)
    text = _(
        "Choose there where %(host)s may have access. Then %(provider)s brings you back here. "
        "If it does not, because access was set up before, find it from here.",
        host=host, provider=provider,
    )  # fmt: skip
    return Outcome(_("One more step at %(provider)s", provider=provider), text, icon="info", look_again=True)


def _failed(page: FlowPage, host: str) -> Outcome:
    assumed: type[BrokerError] = FlowExpired if page.state is FlowState.EXPIRED else FlowInterrupted
    failure = page.failure or assumed
    words = {"provider": page.app.title, "host": host}
    text = _(failure.advice).format(**words)
    if not page.can_retry and "{host}" not in failure.advice:
        text += " " + _("This link has ended: go back to %(host)s for a new one.", host=host)
    return Outcome(
        opening(_(failure.heading).format(**words)),
        text,
        "warn" if failure.status < 500 else "bad",
        "alert",
        # A wrong setting stays wrong however often somebody tries.
        retry=page.can_retry and failure.verdict is not Verdict.CONFIGURATION,
        elsewhere=page.can_retry and failure in _OF_ONE_ACCOUNT and page.app.provider.install_url is not None,
        status=failure.status,
    )
