"""Grants that ended unattached: access is ended at the provider where nobody needs it, and the grant is erased.

A flow may receive a grant and still make no connection: the account was somebody else's, another tab was faster,
the person never chose. What it received then stays sealed in the flow until the job here has ended it, three days
at most. A flow that connected an account again leaves the token that it replaced in the same way, where the provider
keeps tokens apart. Where the provider ends access by account, and not token by token, it is done only for an account
proven afresh that no living connection uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import outwait
from broker.circuits import CircuitOpen, Circuits
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError, FlowFailure, UnusableAnswer, Verdict
from broker.http import Http
from broker.jobs import GIVE_UP_AFTER, Done, Hold, Jobs, Later, LeasedJob, Outcome, Retry
from broker.journal import FlowJournal, Step
from broker.models import ConnectedAccount, Flow, ImportState
from broker.oauth import Grant, parse_grant
from broker.providers.base import Account, Call, RevocationRefused, TokenRejected, calls_within
from broker.timeline import note

DISCARD_SECONDS = 12.0
"""Total time for all calls about one grant."""
LOOKS_AGAIN_SECONDS = 120.0
"""How often it is looked whether Sequin has what replaced a token."""
KEPT_AT_MOST = GIVE_UP_AFTER
"""After this the grant is erased, whether or not its access could be ended."""

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)
_flows = table(Flow)


class Discarded(StrEnum):
    """What became of the access that a grant gave."""

    ENDED = "ended"
    # A living connection uses this account, so that access stays.
    IN_USE = "in_use"
    # The grant is unusable, or does not lead to exactly one account: nothing may be ended on a guess.
    UNPROVEN = "unproven"
    # The provider has no way, or refused for good.
    REFUSED = "refused"
    # It could not be ended in time.
    GIVEN_UP = "given_up"


class _LeaseLost(Exception):
    """Somebody else has the job."""


@dataclass(frozen=True)
class _Work:
    """One grant to be ended, and who is at it."""

    job: LeasedJob
    flow: Row[Any]
    app: OfferedApp
    grant: Grant
    call: Call
    started: datetime


class Discards:
    """Runs discard jobs; their subject is a flow."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        journal: FlowJournal,
        http: Http,
        jobs: Jobs,
        circuits: Circuits,
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._journal = journal
        self._http = http
        self._jobs = jobs
        self._circuits = circuits

    def run(self, job: LeasedJob) -> Outcome:
        """End what a flow received, erase it, record the outcome with the job, and return it."""
        flow = self._flow(job)
        if flow is None:
            return self._settle(job, Done())
        try:
            if self._is_in_use(flow):
                if self._is_late(flow):
                    return self._over(job, flow, Discarded.GIVEN_UP)
                return self._settle(job, Later(LOOKS_AGAIN_SECONDS))
            if not self._jobs.renew(job):
                return Done()
            end = self._discard(job, flow)
        except _LeaseLost:
            return Done()
        except RevocationRefused as failure:
            log.warning("discard.refused", flow=flow.ref, detail=failure.detail)
            end = Discarded.REFUSED
        except BrokerError as failure:
            return self._failed(job, flow, failure)
        return self._over(job, flow, end)

    def failed(self, job: LeasedJob, outcome: Outcome) -> None:
        """Record a failure nobody foresaw; it keeps no grant for longer than any other."""
        flow = self._flow(job)
        if flow is not None and self._is_late(flow):
            self._over(job, flow, Discarded.GIVEN_UP)
        else:
            self._settle(job, outcome)

    def _flow(self, job: LeasedJob) -> Row[Any] | None:
        with self._database.read() as connection:
            return connection.execute(
                sa.select(_flows).where(
                    _flows.c.id == job.subject_id, _flows.c.ended_at.is_not(None), _flows.c.grant_sealed.is_not(None)
                )
            ).one_or_none()

    def _is_in_use(self, flow: Row[Any]) -> bool:
        """Tell whether Sequin may still work with what is to be ended: its successor has not arrived there."""
        query = sa.select(_connections.c.id).where(
            _connections.c.id == flow.connection_id,
            # What waits for an owner's approval has nothing in Sequin.
            _connections.c.account_id.is_not(None),
            _connections.c.disconnected_at.is_(None),
            _connections.c.revoked_at.is_(None),
            _connections.c.import_state != ImportState.IMPORTED,
        )
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    # --- at the provider -------------------------------------------------------------------------------

    def _discard(self, job: LeasedJob, flow: Row[Any]) -> Discarded:
        """Raises AppUnknown, Unreadable, CircuitOpen, NetworkError, the errors of the providers, or _LeaseLost."""
        app = self._apps.get(flow.app_key)
        received = self._journal.kept(Step(flow.id, flow.ref))
        try:
            grant = parse_grant(
                received.answer, received_at=received.at, requires_access_token=app.provider.requires_access_token
            )
        except UnusableAnswer:
            return Discarded.UNPROVEN
        call = calls_within(self._http, DISCARD_SECONDS)
        work = _Work(job, flow, app, grant, call, self._clock.now())
        with self._circuits.through(app.key):
            return self._end_token(work) if app.provider.end_token is not None else self._end_account(work)

    def _end_token(self, work: _Work) -> Discarded:
        # Nobody else stands on these tokens, so nobody has to be asked.
        assert work.app.provider.end_token is not None
        work.app.provider.end_token(work.app.config, work.grant, work.call)
        return Discarded.ENDED

    def _end_account(self, work: _Work) -> Discarded:
        provider = work.app.provider
        if provider.revoke is None:
            return Discarded.REFUSED
        try:
            accounts = provider.identify(work.app.config, work.grant, work.call)
        except TokenRejected:
            # The provider has ended it already.
            return Discarded.ENDED
        except (UnusableAnswer, FlowFailure):
            return Discarded.UNPROVEN
        if len(accounts) != 1:
            return Discarded.UNPROVEN
        (account,) = accounts
        if not self._is_free(work, account):
            return Discarded.IN_USE
        ended = provider.revoke(work.app.config, account, work.grant, work.call, work.started)
        return Discarded.ENDED if ended else Discarded.REFUSED

    def _is_free(self, work: _Work, account: Account) -> bool:
        """Tell whether no living connection uses this account, nor one that is being made right now."""
        with self._database.read() as connection:
            if _is_used(connection, work.app.key, account):
                return False
        # From here on a connection that is about to be made sees this job, and waits for it (`attach`).
        with self._database.write() as connection:
            connection.execute(
                sa.update(_flows)
                .where(_flows.c.id == work.flow.id)
                .values(account_id=account.id, account_mode=account.mode)
            )
        # One that looked before that is waited for in turn.
        with self._database.write() as connection:
            outwait(connection, work.app.key, account, work.flow.end_user_id)
        if not self._jobs.renew(work.job):
            raise _LeaseLost
        with self._database.read() as connection:
            return not _is_used(connection, work.app.key, account)

    # --- recording -------------------------------------------------------------------------------------

    def _is_late(self, flow: Row[Any]) -> bool:
        return bool(self._clock.now() - flow.ended_at >= KEPT_AT_MOST)

    def _failed(self, job: LeasedJob, flow: Row[Any], failure: BrokerError) -> Outcome:
        told = {"flow": flow.ref, "error": failure.code, "detail": failure.detail}
        if self._is_late(flow):
            log.error("discard.given_up", **told, cure="The account’s owner can remove the access at the provider.")
            return self._over(job, flow, Discarded.GIVEN_UP)
        if isinstance(failure, CircuitOpen):
            return self._settle(job, Hold(failure.code, failure.detail, failure.retry_after))
        log.warning("discard.failed", **told)
        if failure.verdict is Verdict.RETRY:
            return self._settle(job, Retry(failure.code, failure.detail, getattr(failure, "retry_after", None)))
        return self._settle(job, Hold(failure.code, failure.detail))

    def _settle(self, job: LeasedJob, outcome: Outcome) -> Outcome:
        with self._database.write() as connection:
            self._jobs.settle(connection, job, outcome)
        return outcome

    def _over(self, job: LeasedJob, flow: Row[Any], end: Discarded) -> Outcome:
        now = self._clock.now()
        with self._database.write() as connection:
            # The flow before its job, as everywhere. The account stays: what was proven meanwhile is proven again.
            connection.execute(
                sa.update(_flows).where(_flows.c.id == flow.id).values(grant_sealed=None, updated_at=now)
            )
            if not self._jobs.settle(connection, job, Done()):
                connection.rollback()
                return Done()
            note(connection, flow.id, "discarded", at=now, detail=end.value)
            audit.record(
                connection, at=now, actor_kind="worker", actor="discard", action="flow.discarded", target=flow.ref,
                detail={"outcome": end.value},
            )  # fmt: skip
        log.info("discard.over", flow=flow.ref, end=end.value)
        return Done()


def _is_used(connection: Connection, app_key: str, account: Account) -> bool:
    """Tell whether a living connection reaches this account: ending access there would end it too."""
    query = sa.select(_connections.c.id).where(
        _connections.c.app_key == app_key,
        _connections.c.account_id == account.id,
        _connections.c.mode == account.mode,
        _connections.c.disconnected_at.is_(None),
    )
    return connection.execute(query.limit(1)).first() is not None
