"""Confirmation by the host: who came back from the provider, by the host's own sign-in.

Until then a flow's code is held, sealed and not exchanged. Somebody else's coming back ends the flow: whoever passes
a link on to another person must not get that person's account.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Row

from broker import audit
from broker.audit import Actor
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import (
    ConfirmationMismatch,
    ConfirmationMissing,
    ConfirmationTooLate,
    FlowEnded,
    FlowUnknown,
    NotConfirmed,
)
from broker.flows import Flows
from broker.journal import FlowJournal, Step
from broker.models import ENDED, ConnectedAccount, EndUser, Flow, FlowState, Hold
from broker.text import storable

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_flows = table(Flow)
_people = table(EndUser)


@dataclass(frozen=True)
class FlowView:
    """A flow as its host sees it."""

    ref: str
    state: FlowState
    # What a held flow waits for; None for every other.
    hold: str | None
    # Stable code of why it ended without a connection; None for every other.
    failure: str | None
    app: str
    end_user_id: str
    # Reference of what it connected; None until done.
    connection: str | None
    updated_at: datetime


class Confirmations:
    """Takes the host's word for who came back."""

    def __init__(self, *, database: Database, clock: Clock, flows: Flows, journal: FlowJournal) -> None:
        self._database = database
        self._clock = clock
        self._flows = flows
        self._journal = journal

    def confirm(self, ref: str, end_user_id: str, *, actor: Actor) -> FlowView:
        """Go on with a flow that waits for this, and return how it stands afterwards.

        Repeating it for the right person changes nothing. Raises FlowUnknown (also for a flow that asks for no
        confirmation), FlowEnded for one that has ended without being confirmed or for which nobody has come back
        yet, ConfirmationTooLate, or ConfirmationMismatch, after which the flow is dead.
        """
        flow = self._find(ref)
        if flow.external_id != end_user_id:
            self._refuse(flow, actor)
        if flow.hold != Hold.CONFIRMATION:
            return self._standing(flow)
        if flow.code_expires_at <= self._clock.now():
            self._journal.end(Step(flow.id, flow.ref), ConfirmationMissing(), state=FlowState.EXPIRED)
            raise ConfirmationTooLate
        if self._flows.confirmed(flow):
            self._record(flow, actor, "flow.confirmed")
        return _view(self._find(ref))

    def _standing(self, flow: Row[Any]) -> FlowView:
        """Return a flow that waits for no confirmation: it had one, or it never comes to need one."""
        if flow.failure == ConfirmationMissing.code:
            raise ConfirmationTooLate
        if flow.grant_received_at is None and flow.state != FlowState.REDEEMING:
            raise FlowEnded(f"the flow is {flow.state}: there is nothing to confirm")
        return _view(flow)

    def _refuse(self, flow: Row[Any], actor: Actor) -> None:
        """End the flow, whatever it waits for, unless it has ended already; raises ConfirmationMismatch."""
        if flow.state not in ENDED and self._journal.end(Step(flow.id, flow.ref), NotConfirmed()):
            self._record(flow, actor, "flow.refused")
            log.warning("flow.refused", flow=flow.ref)
        raise ConfirmationMismatch

    def _record(self, flow: Row[Any], actor: Actor, action: str) -> None:
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action=action,
                target=flow.ref,
            )  # fmt: skip

    def _find(self, ref: str) -> Row[Any]:
        row = None
        if storable(ref):
            with self._database.read() as connection:
                row = connection.execute(
                    sa.select(_flows, _people.c.external_id, _connections.c.ref.label("connection_ref"))
                    .join(_people, _people.c.id == _flows.c.end_user_id)
                    .outerjoin(_connections, _connections.c.id == _flows.c.connection_id)
                    .where(_flows.c.ref == ref, _flows.c.confirm)
                ).one_or_none()
        if row is None:
            raise FlowUnknown
        return row


def _view(flow: Row[Any]) -> FlowView:
    return FlowView(
        ref=flow.ref,
        state=FlowState(flow.state),
        hold=flow.hold,
        failure=flow.failure,
        app=flow.app_key,
        end_user_id=flow.external_id,
        connection=flow.connection_ref,
        updated_at=flow.updated_at,
    )
