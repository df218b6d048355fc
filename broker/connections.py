"""Connections as people, hosts and operators see them: one status, one sentence and one cure for each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.apps import AppCatalogue
from broker.audit import Actor
from broker.clock import Clock
from broker.connected import account_of
from broker.connection_search import ConnectionFilters, Count, Order, Place, Search, cursor_of, told_of
from broker.contract import MOST_ON_A_PAGE
from broker.db import Database
from broker.errors import AppUnknown, BrokerError, Refused, by_code
from broker.jobs import Jobs
from broker.models import CleanUp, ConnectedAccount, EndUser, ImportState, Job, LinkUse
from broker.status import NOT_APPROVED, NOTES, TROUBLES, Status, status_of
from broker.steps import Step, steps_of
from broker.text import storable, translatable

ENDED_SHOWN_FOR = timedelta(days=30)
"""How long a person still sees what was disconnected."""
ENDING_SOON = timedelta(days=14)
"""How long before a refresh token’s own end people are warned."""
MOST_OF_ONE_PERSON = 500
MOST_EXPORTED = 50_000
EXPORTED_AT_ONCE = 500
_Query = sa.Select[*tuple[Any, ...]]
_Row = Row[*tuple[Any, ...]]


class ConnectionUnknown(Refused):
    """No connection has this reference, or it belongs to somebody else."""

    code = "connection_unknown"
    status = 404
    heading = "Page not found"
    advice = "Check the address, or go back to the list of accounts."


class ConnectionEnded(Refused):
    """The connection was disconnected or revoked, so there is nothing left to import."""

    code = "connection_ended"
    status = 409
    heading = "This account is no longer connected"
    advice = "Connect it again instead."
    cure = "Send the person a new connect link."


class TokenErased(Refused):
    """The token that an import would send was erased after it had been verified."""

    code = "token_erased"
    status = 409
    heading = "The token is no longer here"
    advice = "It was erased once it had arrived. Connect the account again instead."
    cure = "Send the person a new connect link."


@dataclass(frozen=True)
class Person:
    """The end user a connection belongs to, as the host describes them."""

    key: int
    id: str
    email: str | None
    name: str | None

    @property
    def label(self) -> str:
        """What to call them on a page."""
        return self.email or self.name or self.id


@dataclass(frozen=True)
class AccountView:
    """The connected account at the provider."""

    id: str
    name: str
    type: str | None
    mode: str


@dataclass(frozen=True)
class Health:
    """The outcome of the last check: ok, error or unknown."""

    status: str
    notes: tuple[str, ...]
    checked_at: datetime | None


@dataclass(frozen=True)
class HandOff:
    """How far a connection has come on its way into Sequin; the times are None until it got there."""

    state: ImportState
    credential_id: str | None
    oauth_app_id: str | None
    imported_at: datetime | None
    verified_at: datetime | None
    # Why the last attempt failed: a stable code, the facts, and what an operator can do. Empty after a success.
    error: str
    detail: str
    cure: str
    # Stable code of what the last check found different in Sequin; None when it found nothing.
    drift: str | None
    # Failures in a row, since when, and when it is tried next.
    failures: int
    failing_since: datetime | None
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class EndingPart:
    """How far one part of a disconnect has come."""

    state: CleanUp
    # Why the last try failed, in words for operators; empty unless it did.
    problem: str
    # When it is tried next; None unless it is still to be done.
    next_attempt_at: datetime | None


@dataclass(frozen=True)
class Ending:
    """What a disconnect does besides: ending the access at the provider, and deleting the credential in Sequin."""

    revocation: EndingPart
    removal: EndingPart

    @property
    def is_pending(self) -> bool:
        """Whether something is still to be done."""
        return CleanUp.PENDING in {self.revocation.state, self.removal.state}

    @property
    def note(self) -> str:
        """One sentence for the person whose account it was; empty when nothing is left to say."""
        if self.revocation.state in _REVOCATION_NOTES:
            return _REVOCATION_NOTES[self.revocation.state]
        return _REMOVAL_NOTE if self.removal.state is CleanUp.PENDING else ""

    @property
    def operator_note(self) -> str:
        """What is still to be done, and what stands in its way; empty when nothing is."""
        parts = (("End the access at the provider", self.revocation), ("Delete the credential", self.removal))
        return " ".join(
            f"Still to do: {what.lower()}." + (f" Last time: {part.problem}" if part.problem else "")
            for what, part in parts
            if part.state is CleanUp.PENDING
        )


_REVOCATION_NOTES: Mapping[CleanUp, str] = MappingProxyType(
    {
        CleanUp.PENDING: translatable(
            "This account is disconnected here; we are still ending the access at {provider}."
        ),
        CleanUp.REFUSED: translatable(
            "This account is disconnected here; {provider} keeps the access until you remove it there."
        ),
    }
)
_REMOVAL_NOTE = translatable(
    "This account is disconnected; we are still clearing up after it, which takes a minute or two."
)


@dataclass(frozen=True)
class ConnectionView:
    """Everything about a connection that may leave the use cases; never a token."""

    # The row's key stays inside this program; `ref` is what leaves it.
    id: int
    ref: str
    end_user: Person
    provider: str
    provider_title: str
    app: str
    kind: str
    # None while an owner's approval is awaited.
    account: AccountView | None
    scopes: tuple[str, ...]
    status: Status
    health: Health
    hand_off: HandOff
    metadata: Mapping[str, object]
    # Whether sealed token material is still kept.
    holds_grant: bool
    connected_at: datetime
    revoked_at: datetime | None
    disconnected_at: datetime | None
    created_at: datetime
    updated_at: datetime
    # Whether what an import sends is still here, or can be made afresh.
    can_import: bool = True
    # When a refresh was found to have been cut off; None otherwise.
    interrupted_at: datetime | None = None
    # What the provider said is wrong with the account: a key of TROUBLES; None when it said nothing is.
    trouble: str | None = None
    # Since when checks do not pass; None while the last one passed.
    failing_since: datetime | None = None
    # When the refresh token ends by itself; None where it does not or nobody said.
    refresh_expires_at: datetime | None = None
    # The names of the accounts whose owners were asked; empty unless an approval is awaited and they are known.
    asked: str = ""
    # The scopes asked for that were not granted.
    missing_scopes: tuple[str, ...] = ()
    # What a disconnect does besides; None while the connection lives.
    ending: Ending | None = None
    # The provider's own page about this connection; None where it has none.
    manage_url: str | None = None
    # How far it has come on its way into Sequin; empty once it has ended.
    steps: tuple[Step, ...] = ()

    @property
    def note(self) -> str:
        """One sentence for the person whose account it is."""
        return self.note_template.format(provider=self.provider_title)

    @property
    def note_template(self) -> str:
        """That sentence before the `{provider}` is filled in, for pages that translate it."""
        told = self.ending.note if self.ending is not None else ""
        if self.status is Status.ERROR and self.trouble is not None and self.trouble in TROUBLES:
            told = TROUBLES[self.trouble].person
        if self.status is Status.DISCONNECTED and self.account is None:
            told = NOT_APPROVED
        return told or NOTES[self.status]

    @property
    def operator_note(self) -> str:
        """One sentence for operators: what is known about why it stands where it stands."""
        if self.status is Status.ERROR and self.health.notes:
            return " ".join(self.health.notes)
        if self.status in {Status.IMPORT_FAILED, Status.PENDING} and self.hand_off.error:
            what_happened = _joined(self.hand_off.detail or self.hand_off.error, self.hand_off.cure)
            return f"Tried again soon. Last time: {what_happened}" if self.status is Status.PENDING else what_happened
        if self.ending is not None and self.ending.is_pending:
            return self.ending.operator_note
        return _OPERATOR_NOTES.get(self.status) or self.note

    @property
    def can_retry(self) -> bool:
        """Whether asking for the import again would do something."""
        ended = self.disconnected_at or self.revoked_at or self.interrupted_at
        if self.account is None:
            return False
        wanted = self.hand_off.state is not ImportState.IMPORTED or self.hand_off.drift is not None
        return ended is None and wanted and self.can_import


_OPERATOR_NOTES: Mapping[Status, str] = MappingProxyType(
    {
        Status.REVOKED: "The provider says that the grant is gone. The person has to connect again.",
        Status.INTERRUPTED: "A refresh was cut off after the old token was spent. The person has to connect again.",
        Status.ERROR: "The last check did not pass. The person has to connect again.",
        Status.IMPORT_FAILED: "Sequin has not taken it yet. Retry the import.",
        Status.AWAITING_APPROVAL: "The provider is asked again by itself until an owner approves, for 30 days.",
        Status.PENDING: "Waiting for its turn to be imported into Sequin.",
        Status.UNKNOWN: "Imported into Sequin; no check has passed in the last 24 hours.",
        Status.OK: "Imported into Sequin, and the last check passed.",
    }
)


@dataclass(frozen=True)
class ConnectionPage:
    """Some connections in the order asked for, and where to go on and back; None at the end and at the beginning."""

    items: tuple[ConnectionView, ...]
    next_cursor: str | None
    previous_cursor: str | None = None
    # How many there are in all; None where nobody asked, or the page is empty.
    count: Count | None = None


class Connections:
    """List, show and retry connections."""

    def __init__(self, database: Database, clock: Clock, apps: AppCatalogue, jobs: Jobs) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._jobs = jobs

    def page(
        self,
        filters: ConnectionFilters,
        *,
        limit: int,
        cursor: str | None = None,
        before: str | None = None,
        order: Order = Order.NEWEST,
        counted: bool = False,
    ) -> ConnectionPage:
        """Return the connections that match: those after `cursor`, or the last ones before `before`.

        With `counted` it says how many there are in all, as far as looking at some thousands of them tells. Raises
        CursorUnknown.
        """
        limit = max(1, min(limit, MOST_ON_A_PAGE))
        came_from = before if cursor is None else cursor
        back = cursor is None and before is not None
        with self._database.read() as connection:
            search = Search(connection, filters, self._clock.now(), order)
            found = search.places(limit + 1, beyond=search.place_of(came_from), back=back)
            more, found = len(found) > limit, found[:limit]
            views = self._views(connection, found[::-1] if back else found)
            count = search.count() if counted and found else None
        if not views:
            return ConnectionPage((), None)
        goes_on, goes_back = (True, more) if back else (more, came_from is not None)
        (first, at), (last, until) = views[0], views[-1]
        return ConnectionPage(
            tuple(view for view, _ in views),
            cursor_of(last.ref, until) if goes_on else None,
            cursor_of(first.ref, at) if goes_back else None,
            count,
        )

    def export(
        self, filters: ConnectionFilters, *, order: Order = Order.NEWEST, actor: Actor
    ) -> Iterator[tuple[ConnectionView, ...]]:
        """Record that `actor` exports, then return what matches in batches, MOST_EXPORTED connections at most.

        Each batch is a look of its own, so that neither memory nor a snapshot grows with the list.
        """
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name,
                action="connections.exported", target="connections", detail=told_of(filters),
            )  # fmt: skip
        return self._batches(filters, order)

    def _batches(self, filters: ConnectionFilters, order: Order) -> Iterator[tuple[ConnectionView, ...]]:
        left, last = MOST_EXPORTED, None
        while left > 0:
            most = min(left, EXPORTED_AT_ONCE)
            with self._database.read() as connection:
                found = Search(connection, filters, self._clock.now(), order).places(most, beyond=last)
                views = self._views(connection, found)
            if views:
                yield tuple(view for view, _ in views)
            if found:
                last = found[-1]
            left = left - len(found) if len(found) == most else 0

    def _views(self, connection: Connection, places: Sequence[Place]) -> list[tuple[ConnectionView, Place]]:
        """Return what stands at these places of a list, in their order; found first, so that no join is made twice."""
        keys = [place.id for place in places]
        found = {row.id: row for row in connection.execute(_viewed().where(ConnectedAccount.id.in_(keys)))}
        return [(self._view(found[place.id]), place) for place in places if place.id in found]

    def find(self, ref: str) -> ConnectionView:
        """Return the connection with this reference. Raises ConnectionUnknown."""
        return self._one(ConnectedAccount.ref == ref) if storable(ref) else _unknown()

    def by_id(self, key: int) -> ConnectionView:
        """Return the connection with this key. Raises ConnectionUnknown."""
        return self._one(ConnectedAccount.id == key)

    def of_person(self, end_user_id: int, *, link_id: int | None) -> list[ConnectionView]:
        """Return what an end user has connected, what needs attention first; `link_id` narrows to one link's.

        What was disconnected stays for 30 days, and until all of it is done; then it leaves the person's page.
        """
        query = _viewed().where(
            ConnectedAccount.end_user_id == end_user_id,
            sa.or_(
                ConnectedAccount.disconnected_at.is_(None),
                ConnectedAccount.disconnected_at > self._clock.now() - ENDED_SHOWN_FOR,
                ConnectedAccount.revocation == CleanUp.PENDING,
                ConnectedAccount.removal == CleanUp.PENDING,
            ),
        )
        if link_id is not None:
            spent = sa.select(LinkUse.connection_id).where(LinkUse.link_id == link_id)
            query = query.where(ConnectedAccount.id.in_(spent))
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(ConnectedAccount.id.desc()).limit(MOST_OF_ONE_PERSON)).all()
        return sorted(map(self._view, rows), key=lambda view: _URGENCY[view.status])

    def check(self, ref: str) -> None:
        """Ask for a check now; a worker makes it. Raises ConnectionUnknown or ConnectionEnded."""
        with self._database.write() as connection:
            self.check_with(connection, ref)
        self._jobs.wakeup.set()

    def check_with(self, connection: Connection, ref: str) -> bool:
        """Do the same in the caller's transaction; False when there is nothing to check yet."""
        row = _standing(connection, ref)
        if row.disconnected_at or row.revoked_at or row.interrupted_at:
            raise ConnectionEnded
        kinds = ["verify"] if row.import_state == ImportState.IMPORTED else []
        if row.account_id is None:
            kinds.append("approval")
        elif row.app_key in self._apps and self._apps.get(row.app_key).provider.probe is not None:
            kinds.append("probe")
        for kind in kinds:
            self._jobs.enqueue(connection, kind, row.id)
        return bool(kinds)

    def retry(self, ref: str, *, actor: Actor) -> None:
        """Ask for the import again. One that stands in Sequin as it should is left alone.

        Raises ConnectionUnknown, ConnectionEnded or TokenErased.
        """
        with self._database.write() as connection:
            self.retry_with(connection, ref, actor=actor)
        self._jobs.wakeup.set()

    def retry_with(self, connection: Connection, ref: str, *, actor: Actor) -> bool:
        """Do the same in the caller's transaction; False when it was left alone."""
        now = self._clock.now()
        row = _standing(connection, ref)
        if row.disconnected_at or row.revoked_at or row.interrupted_at:
            raise ConnectionEnded
        if row.account_id is None:
            # There is nothing to import yet, but something to ask for.
            self._jobs.enqueue(connection, "approval", row.id)
            return True
        if row.import_state == ImportState.IMPORTED and row.drift is None:
            return False
        if not self._can_import(row):
            # Trying would only replace what is known about it by something less helpful.
            raise TokenErased
        # Job before connection, as the worker takes them: the other order could deadlock.
        self._jobs.enqueue(connection, "import", row.id)
        connection.execute(
            sa.update(ConnectedAccount)
            .where(ConnectedAccount.id == row.id)
            # What the last check found is about to be mended; the next one tells whether it was.
            .values(
                import_state=ImportState.PENDING,
                drift=None,
                drifted_at=None,
                health=None,
                health_note=None,
                verified_at=None,
                updated_at=now,
            )
        )
        audit.record(
            connection,
            at=now,
            actor_kind=actor.kind,
            actor=actor.name,
            action="connection.retry",
            target=ref,
            detail={"import_state": row.import_state},
        )
        return True

    def _one(self, which: sa.ColumnElement[bool]) -> ConnectionView:
        with self._database.read() as connection:
            row = connection.execute(_viewed().where(which)).one_or_none()
        return self._view(row) if row is not None else _unknown()

    def _view(self, row: _Row) -> ConnectionView:
        account = None
        if row.account_id is not None:
            account = AccountView(row.account_id, row.account_name, row.account_type, row.mode)
        return ConnectionView(
            id=row.id,
            ref=row.ref,
            end_user=Person(row.end_user_id, row.external_id, row.email, row.name),
            provider=row.provider,
            provider_title=self._title(row.app_key, row.provider),
            app=row.app_key,
            kind=row.kind,
            account=account,
            scopes=tuple(row.scopes),
            status=status_of(row, self._clock.now()),
            health=Health(row.health or "unknown", self._health_notes(row), row.checked_at),
            hand_off=_hand_off(row),
            metadata=MappingProxyType(dict(row.host_metadata)),
            holds_grant=row.holds_grant,
            can_import=self._can_import(row),
            connected_at=row.connected_at,
            revoked_at=row.revoked_at,
            interrupted_at=row.interrupted_at,
            disconnected_at=row.disconnected_at,
            created_at=row.created_at,
            updated_at=row.updated_at,
            ending=_ending(row),
            trouble=row.trouble,
            failing_since=row.failing_since,
            refresh_expires_at=row.refresh_expires_at if row.holds_grant else None,
            asked=row.account_name if account is None else "",
            missing_scopes=self._missing_scopes(row),
            manage_url=self._manage_url(row),
            steps=steps_of(row, failing_since=row.import_failing_since, awaits_approval=row.account_id is None),
        )

    def _health_notes(self, row: _Row) -> tuple[str, ...]:
        notes: tuple[str, ...] = (row.health_note,) if row.health_note else ()
        ends = row.refresh_expires_at if row.holds_grant else None
        if ends is not None and ends - self._clock.now() < ENDING_SOON:
            notes += (f"The refresh token ends on {ends:%Y-%m-%d}. The person has to connect again before.",)
        return notes

    def _can_import(self, row: _Row) -> bool:
        if row.holds_grant or row.app_key not in self._apps:
            return True
        return not self._apps.get(row.app_key).provider.import_needs_grant

    def _missing_scopes(self, row: _Row) -> tuple[str, ...]:
        if row.app_key not in self._apps or row.account_id is None:
            return ()
        return self._apps.get(row.app_key).missing(row.scopes)

    def _manage_url(self, row: _Row) -> str | None:
        if row.app_key not in self._apps or row.account_id is None:
            return None
        app = self._apps.get(row.app_key)
        return app.provider.manage_url(app.config, account_of(row)) if app.provider.manage_url else None

    def _title(self, app_key: str, provider: str) -> str:
        """Return the provider's name for people, also when its OAuth app is no longer configured."""
        try:
            return self._apps.get(app_key).title
        except AppUnknown:
            return provider.replace("_", " ").title()


_URGENCY: Mapping[Status, int] = MappingProxyType(
    {
        Status.ERROR: 0,
        Status.REVOKED: 0,
        Status.INTERRUPTED: 0,
        Status.AWAITING_APPROVAL: 1,
        Status.IMPORT_FAILED: 2,
        Status.PENDING: 2,
        Status.UNKNOWN: 3,
        Status.OK: 3,
        Status.DISCONNECTED: 4,
    }
)


def cure_of(code: str) -> str:
    """Return what an operator can do about a failure kept by its code; empty when no such failure is known."""
    failure: type[BrokerError] | None = by_code(code)
    return failure.cure if failure is not None else ""


def _unknown() -> ConnectionView:
    raise ConnectionUnknown


def _joined(first: str, second: str) -> str:
    ended = first if first.endswith((".", "!", "?")) else f"{first}."
    return f"{ended} {second}".strip()


def _hand_off(row: _Row) -> HandOff:
    code = row.import_error or row.job_error or ""
    return HandOff(
        state=ImportState(row.import_state),
        credential_id=row.credential_id,
        oauth_app_id=row.sequin_oauth_app_id,
        imported_at=row.imported_at,
        verified_at=row.verified_at,
        error=code,
        detail=(row.import_error_detail if row.import_error else row.job_error_detail) or "",
        cure=cure_of(code) if code else "",
        drift=row.drift,
        failures=row.failures or 0,
        failing_since=row.import_failing_since,
        next_attempt_at=row.due_at,
    )


def _ending(row: _Row) -> Ending | None:
    if row.revocation is None or row.removal is None:
        return None
    return Ending(
        EndingPart(CleanUp(row.revocation), _problem(row.revoke_error, row.revoke_detail), row.revoke_due_at),
        EndingPart(CleanUp(row.removal), _problem(row.remove_error, row.remove_detail), row.remove_due_at),
    )


def _problem(code: str | None, detail: str | None) -> str:
    return _joined(detail or code, cure_of(code)) if code else ""


def _viewed() -> _Query:
    """Return the one SELECT behind every view. The grant itself is never read here."""
    shown = [column for column in ConnectedAccount.__table__.columns if column.name != "grant_sealed"]
    importing = sa.and_(Job.kind == "import", Job.subject_id == ConnectedAccount.id)
    revoke, remove = (sa.orm.aliased(Job, name=kind) for kind in ("revoke", "remove"))
    return (
        sa.select(
            *shown,
            ConnectedAccount.grant_sealed.is_not(None).label("holds_grant"),
            EndUser.external_id,
            EndUser.email,
            EndUser.name,
            Job.error.label("job_error"),
            Job.error_detail.label("job_error_detail"),
            Job.failures,
            Job.failing_since.label("import_failing_since"),
            Job.due_at,
            revoke.error.label("revoke_error"),
            revoke.error_detail.label("revoke_detail"),
            revoke.due_at.label("revoke_due_at"),
            remove.error.label("remove_error"),
            remove.error_detail.label("remove_detail"),
            remove.due_at.label("remove_due_at"),
        )
        .join(EndUser, EndUser.id == ConnectedAccount.end_user_id)
        .outerjoin(Job, importing)
        .outerjoin(revoke, _work_on_what_ended(revoke, "revoke"))
        .outerjoin(remove, _work_on_what_ended(remove, "remove"))
    )


def _work_on_what_ended(job: type[Job], kind: str) -> sa.ColumnElement[bool]:
    # For live rows, nearly all, the database need not look.
    ended = ConnectedAccount.disconnected_at.is_not(None)
    return sa.and_(ended, job.kind == kind, job.subject_id == ConnectedAccount.id)


def _standing(connection: Connection, ref: str) -> _Row:
    row = None
    if storable(ref):
        row = connection.execute(
            sa.select(
                ConnectedAccount.id,
                ConnectedAccount.grant_sealed.is_not(None).label("holds_grant"),
                ConnectedAccount.account_id,
                ConnectedAccount.import_state,
                ConnectedAccount.disconnected_at,
                ConnectedAccount.app_key,
                ConnectedAccount.revoked_at,
                ConnectedAccount.interrupted_at,
                ConnectedAccount.drift,
            ).where(ConnectedAccount.ref == ref)
        ).one_or_none()
    if row is None:
        raise ConnectionUnknown
    return row
