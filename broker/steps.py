"""The four steps of a connection on its way into Sequin: how far it has come, and since when.

Worked out here and nowhere else, so that pages, the API and the command line cannot disagree.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from broker.models import ImportState

CLOCKS_AGREE_WITHIN = timedelta(minutes=1)
"""A check that is older than the last import by more than this speaks of what was imported before."""


class StepName(StrEnum):
    """The steps, in their order."""

    # The grant was received and committed.
    CONNECTED = "connected"
    # It was sealed for this connection.
    SEALED = "sealed"
    # Sequin's answer to the import was recorded, with the credential's id.
    IMPORTED = "imported"
    # Reading the credential back showed what was imported.
    VERIFIED = "verified"


class StepState(StrEnum):
    """Where a step stands."""

    DONE = "done"
    # Its turn has not come, or it is being taken.
    WAITING = "waiting"
    # It was tried, and what stands in its way is no short failure; or it was taken and no longer holds.
    FAILED = "failed"


@dataclass(frozen=True)
class Step:
    """One step."""

    name: StepName
    state: StepState
    # Since when it stands so: taken then, or failed since then; None while it waits, and where nobody knows.
    at: datetime | None
    # A fact besides, for operators: a credential's id, or a stable error code. Empty where there is none.
    detail: str = ""


class HandOffFacts(Protocol):
    """The columns of a connection that its steps are read from."""

    @property
    def connected_at(self) -> datetime:
        """When the current grant was committed, and sealed with it."""

    @property
    def import_state(self) -> str:
        """How far the current token has come."""

    @property
    def imported_at(self) -> datetime | None:
        """When Sequin's answer was recorded."""

    @property
    def credential_id(self) -> str | None:
        """Sequin's id of it."""

    @property
    def import_error(self) -> str | None:
        """Why the last import failed."""

    @property
    def verified_at(self) -> datetime | None:
        """When it was last seen in Sequin as it should be."""

    @property
    def drift(self) -> str | None:
        """What the last check found different."""

    @property
    def drifted_at(self) -> datetime | None:
        """Since when."""

    @property
    def disconnected_at(self) -> datetime | None:
        """When it was ended here."""


def steps_of(row: HandOffFacts, *, failing_since: datetime | None, awaits_approval: bool = False) -> tuple[Step, ...]:
    """Return the steps of a connection; none where there is nothing to hand off: it has ended, or not begun.

    `failing_since` is when the import that is being tried began to fail.
    """
    if row.disconnected_at is not None or awaits_approval:
        return ()
    return (
        Step(StepName.CONNECTED, StepState.DONE, row.connected_at),
        # One transaction with the step before.
        Step(StepName.SEALED, StepState.DONE, row.connected_at),
        _imported(row, failing_since),
        _verified(row),
    )


def _imported(row: HandOffFacts, failing_since: datetime | None) -> Step:
    if row.import_state == ImportState.IMPORTED and row.imported_at is not None:
        return Step(StepName.IMPORTED, StepState.DONE, row.imported_at, row.credential_id or "")
    if row.import_state in (ImportState.HELD, ImportState.PARKED):
        return Step(StepName.IMPORTED, StepState.FAILED, failing_since, row.import_error or "")
    return Step(StepName.IMPORTED, StepState.WAITING, None, row.import_error or "")


def _verified(row: HandOffFacts) -> Step:
    if row.import_state != ImportState.IMPORTED:
        # What was verified before speaks of an import before this one.
        return Step(StepName.VERIFIED, StepState.WAITING, None)
    if row.drift is not None:
        return Step(StepName.VERIFIED, StepState.FAILED, row.drifted_at, row.drift)
    is_current = row.verified_at is not None and (
        row.imported_at is None or row.verified_at >= row.imported_at - CLOCKS_AGREE_WITHIN
    )
    if is_current:
        return Step(StepName.VERIFIED, StepState.DONE, row.verified_at)
    return Step(StepName.VERIFIED, StepState.WAITING, None)
