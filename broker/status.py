"""How a connection is doing, in one word and one sentence.

The status is worked out here and nowhere else, twice over the same steps: `status_of` for a row in hand and
`status_expression` for filters, so that a list can never disagree with the pages behind it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any, Protocol

import sqlalchemy as sa

from broker.contract import Status
from broker.models import ConnectedAccount, ImportState
from broker.text import translatable

__all__ = [
    "FRESH_FOR",
    "NOTES",
    "NOT_APPROVED",
    "STANDING",
    "TROUBLES",
    "Status",
    "StatusFacts",
    "Trouble",
    "has_status",
    "status_expression",
    "status_of",
]

FRESH_FOR = timedelta(hours=24)
"""How long a passed check lets a connection call itself fine."""

NOTES: Mapping[Status, str] = MappingProxyType(
    {
        Status.DISCONNECTED: "This account is no longer connected.",
        Status.REVOKED: "{provider} says that access to this account was removed. Reconnect it to go on.",
        Status.ERROR: "The last check of this account did not pass. Reconnect it to go on.",
        Status.IMPORT_FAILED: "Set-up is taking longer than usual. You do not need to do anything.",
        Status.AWAITING_APPROVAL: "An owner of this account has to approve the request at {provider}. We keep looking.",
        Status.PENDING: "We are finishing set-up. This takes a minute or two.",
        Status.UNKNOWN: "This account is connected. It was not checked in the last day.",
        Status.OK: "This account is connected, and its last check passed.",
        Status.INTERRUPTED: "Renewing the access to this account was interrupted. Reconnect it to go on.",
    }
)
"""One sentence for each status, for the person whose account it is."""
NOT_APPROVED = translatable(
    "Nobody approved this request in time, or it was taken back. Connect again to ask once more."
)
"""What stands in the place of the note once waiting for an owner has ended."""


@dataclass(frozen=True)
class Trouble:
    """What is wrong with an account at its provider: a sentence for the person, and one for operators."""

    person: str
    operator: str


TROUBLES: Mapping[str, Trouble] = MappingProxyType(
    {
        "account_suspended": Trouble(
            "{provider} has suspended our access to this account. Its owner can allow it again there.",
            "The provider has suspended access to this account. Its owner has to lift the suspension there.",
        ),
        "permissions_reduced": Trouble(
            "Some permissions of this account were taken back at {provider}. Reconnect it to go on.",
            "The grant holds fewer permissions than when it was given. The person has to connect again.",
        ),
        "refresh_failing": Trouble(
            "{provider} is not renewing our access at the moment. You do not need to do anything.",
            "The token has ended and could not be renewed yet. It is tried again by itself; look at the provider’s "
            "status and at this OAuth app’s circuit.",
        ),
    }
)
"""By the code in the column `trouble`."""


NEEDS_ATTENTION = frozenset({Status.REVOKED, Status.ERROR, Status.IMPORT_FAILED, Status.INTERRUPTED})
"""The statuses that do not pass without somebody doing something."""


def attention_after(before: Status | None, status: Status) -> Status | None:
    """Return the status that needs attention once a connection has come to `status`, None when none does.

    What needed attention `before` goes on needing it until a check has passed: an import that is tried again is
    pending for a while, and may well fail again.
    """
    if status in NEEDS_ATTENTION:
        return status
    return None if status in {Status.OK, Status.DISCONNECTED} else before


class StatusFacts(Protocol):
    """The columns of a connection that decide its status."""

    @property
    def account_id(self) -> str | None:
        """The provider's id of the account; None while an owner's approval is awaited."""

    @property
    def disconnected_at(self) -> datetime | None:
        """When it ended here."""

    @property
    def revoked_at(self) -> datetime | None:
        """When the provider said that the grant is gone."""

    @property
    def interrupted_at(self) -> datetime | None:
        """When a refresh was found to have been cut off."""

    @property
    def health(self) -> str | None:
        """Outcome of the last check."""

    @property
    def checked_at(self) -> datetime | None:
        """When the last check was made."""

    @property
    def import_state(self) -> str:
        """How far the current token has come."""


def status_of(facts: StatusFacts, now: datetime) -> Status:
    """Return a connection's status at a time. `status_expression` is the same in SQL."""
    fresh = facts.checked_at is not None and facts.checked_at >= now - FRESH_FOR
    steps = (
        (facts.disconnected_at is not None, Status.DISCONNECTED),
        (facts.revoked_at is not None, Status.REVOKED),
        (facts.interrupted_at is not None, Status.INTERRUPTED),
        (facts.health == "error", Status.ERROR),
        (facts.import_state in {ImportState.PARKED, ImportState.HELD}, Status.IMPORT_FAILED),
        (facts.account_id is None, Status.AWAITING_APPROVAL),
        (facts.import_state == ImportState.PENDING, Status.PENDING),
        (facts.health == "ok" and fresh, Status.OK),
    )
    return next((status for applies, status in steps if applies), Status.UNKNOWN)


def status_expression(now: datetime) -> sa.Case[str]:
    """Return a connection's status at a time as SQL. `status_of` is the same in Python."""
    row = ConnectedAccount
    return sa.case(
        (row.disconnected_at.is_not(None), Status.DISCONNECTED.value),
        (row.revoked_at.is_not(None), Status.REVOKED.value),
        (row.interrupted_at.is_not(None), Status.INTERRUPTED.value),
        (row.health == "error", Status.ERROR.value),
        (row.import_state.in_([ImportState.PARKED, ImportState.HELD]), Status.IMPORT_FAILED.value),
        (row.account_id.is_(None), Status.AWAITING_APPROVAL.value),
        (row.import_state == ImportState.PENDING, Status.PENDING.value),
        (sa.and_(row.health == "ok", row.checked_at >= now - FRESH_FOR), Status.OK.value),
        else_=Status.UNKNOWN.value,
    )


STANDING: Any = sa.literal_column(
    "CASE WHEN disconnected_at IS NOT NULL THEN 'disconnected' "
    "WHEN revoked_at IS NOT NULL THEN 'revoked' "
    "WHEN interrupted_at IS NOT NULL THEN 'interrupted' "
    "WHEN health = 'error' THEN 'error' "
    "WHEN import_state IN ('parked', 'held') THEN 'import_failed' "
    "WHEN account_id IS NULL THEN 'awaiting_approval' "
    "WHEN import_state = 'pending' THEN 'pending' "
    "WHEN health = 'ok' THEN 'ok' ELSE 'unknown' END",
    sa.Text(),
)
"""A connection's status as it would be if a passed check held for ever, in the very words of the index over it."""


def has_status(
    status: Status, row: Mapping[str, Any], now: datetime, *, standing: Any = STANDING
) -> sa.ColumnElement[bool]:
    """Tell in SQL whether rows have a status at a time, so that the index over STANDING finds them.

    `row` has the column `checked_at`; the columns of STANDING are those of the only table that has such.
    """
    stale = sa.or_(row["checked_at"].is_(None), row["checked_at"] < now - FRESH_FOR)
    if status is Status.OK:
        return sa.and_(standing == Status.OK.value, row["checked_at"] >= now - FRESH_FOR)
    if status is Status.UNKNOWN:
        return sa.or_(standing == Status.UNKNOWN.value, sa.and_(standing == Status.OK.value, stale))
    return standing == status.value  # type: ignore[no-any-return]
