"""The durable steps of a flow: each method is one transaction, and a crash between two of them loses nothing.

opened → left → redeeming → held:<why> → done | failed | expired | interrupted
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, cast

import sqlalchemy as sa
import structlog
from sqlalchemy.engine import Connection, Row

from broker import audit, events
from broker.apps import AppCatalogue, OfferedApp
from broker.clock import Clock
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import (
    ConfirmationMissing,
    FlowEnded,
    FlowExpired,
    FlowFailure,
    FlowInterrupted,
    FlowUnknown,
    LinkExpired,
    LinkRevoked,
    LinkUnknown,
    LinkUsed,
    OtherBrowser,
    StateUnknown,
    TooManyFlows,
    Verdict,
)
from broker.jobs import Jobs
from broker.models import Flow, FlowState, Hold, Hop, HopKind, Link, LinkUse
from broker.oauth import Departure
from broker.references import new_ref
from broker.secret import Secret, digest
from broker.text import storable
from broker.timeline import note
from broker.vault import Binding, Vault

FINISH_AFTER = timedelta(seconds=30)
"""When the worker takes over a flow whose callback did not get to its end."""
FINISH_SOON = timedelta(seconds=1)
"""When the worker tries again what a provider's short failure kept a callback from finishing."""
REDEEMING_AT_MOST = timedelta(seconds=60)
"""A flow that redeems for longer without a grant was cut off: no exchange takes that long."""
MOST_OPEN_FLOWS = 10
MOST_HOPS = 12
"""Trips to the provider's pages in one flow."""
LONGEST_LIFE = timedelta(hours=24)
"""However often a flow waits for the person again, its grant is not kept for longer."""
KEEP_ATTEMPTS = 3

log = structlog.get_logger(__name__)

_flows = table(Flow)
_hops = table(Hop)
_links = table(Link)
_uses = table(LinkUse)

# Built once: every flow runs them, and building a statement costs more than running it. What an UPDATE sets is given
# with its parameters.
_FLOW = sa.update(_flows).where(_flows.c.id == sa.bindparam("key"))
_LIVE_FLOW = _FLOW.where(_flows.c.ended_at.is_(None)).returning(_flows.c.id)
_TAKE_FURTHER = _FLOW.returning(
    _flows.c.ref, _flows.c.confirm, _flows.c.reconnects_id, _flows.c.selector, _flows.c.trial
)
_BIND_LINK = sa.update(_links).where(_links.c.id == sa.bindparam("key"))
_ADD_FLOW = sa.insert(_flows).returning(_flows.c.id)
_ADD_HOP = sa.insert(_hops).inline()
_FORGET_VERIFIERS = sa.update(_hops).where(_hops.c.flow_id == sa.bindparam("flow")).values(verifier_sealed=sa.null())
_LINK_BY_KEY = sa.select(_links).where(_links.c.id == sa.bindparam("which"))
_LINK_BY_TOKEN = sa.select(_links).where(_links.c.token_hash == sa.bindparam("which"))
_LOCKED_LINK_BY_KEY, _LOCKED_LINK_BY_TOKEN = _LINK_BY_KEY.with_for_update(), _LINK_BY_TOKEN.with_for_update()
_UNDER_WAY = (
    sa.select(sa.func.count())
    .select_from(_flows)
    .where(
        _flows.c.link_id == sa.bindparam("link"),
        _flows.c.ended_at.is_(None),
        _flows.c.expires_at > sa.bindparam("now"),
    )
)
_SPENT_APPS = sa.select(_uses.c.app_key).where(_uses.c.link_id == sa.bindparam("link"))


@dataclass(frozen=True)
class Browser:
    """The browser in front of us, known by the secret in its cookie."""

    secret: Secret

    @property
    def hash(self) -> str:
        """What the database keeps of it."""
        return digest(self.secret.reveal())


@dataclass(frozen=True)
class Step:
    """A flow that this process alone is taking further."""

    flow_id: int
    flow_ref: str
    verifier_sealed: bytes | None = None
    # Whether the host has to confirm who came back before the code is exchanged.
    confirm: bool = False
    # The key of the connection that is to be connected again; None for a flow of a plain link.
    reconnects: int | None = None
    # What the person had picked before they left; None when nothing.
    selector: str | None = None
    # Whether it ends once it is known which account was reached.
    trial: bool = False


@dataclass(frozen=True)
class Reload:
    """A second visit with an answer that was taken already: nothing to do but show the flow."""

    flow_ref: str


@dataclass(frozen=True)
class Received:
    """What the provider gave, opened again."""

    answer: dict[str, object] = field(repr=False)
    at: datetime


class FlowJournal:
    """Writes and reads flow and hop rows."""

    def __init__(
        self, *, database: Database, clock: Clock, apps: AppCatalogue, vault: Vault, jobs: Jobs, lifetime: timedelta
    ) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._jobs = jobs
        self._lifetime = lifetime

    # --- leaving ---------------------------------------------------------------------------------------

    def leave(
        self, link: str | int, app: OfferedApp, browser: Browser, departure: Departure, *, selector: str | None = None
    ) -> str:
        """Record that the person leaves for the provider and return the flow's reference.

        `link` is a link's token or, for a flow that follows another, the link's key; `selector` is what the person
        has picked already. The first flow binds the
        link to this browser. Raises LinkUnknown, LinkRevoked, LinkExpired, LinkUsed, OtherBrowser, AppUnknown
        or TooManyFlows, having changed nothing.
        """
        now = self._clock.now()
        expires = now + self._lifetime
        ref = new_ref()
        query, which = (_LOCKED_LINK_BY_KEY, link) if isinstance(link, int) else (_LOCKED_LINK_BY_TOKEN, digest(link))
        with self._database.write() as connection:
            found = connection.execute(query, {"which": which}).one_or_none()
            if found is None:
                raise LinkUnknown
            self._require_open(connection, found, app, browser, now)
            bound = {"key": found.id, "browser_hash": browser.hash, "started_at": found.started_at or now}
            connection.execute(_BIND_LINK, bound)
            flow_id = connection.execute(
                _ADD_FLOW,
                {
                    "ref": ref, "link_id": found.id, "end_user_id": found.end_user_id, "app_key": app.key,
                    "browser_hash": browser.hash, "state": FlowState.LEFT, "selector": selector, "created_at": now,
                    "updated_at": now, "expires_at": expires, "reconnects_id": found.reconnects_id,
                    "confirm": found.confirm, "trial": found.trial,
                },
            ).scalar_one()  # fmt: skip
            self._add_hop(connection, flow_id, HopKind.AUTHORIZE, departure.state, departure.code_verifier, expires)
            note(connection, flow_id, "left", at=now, detail=app.key)
        log.info("flow.left", flow=ref, app=app.key)
        return ref

    def check(self, link: str | int, app: OfferedApp, browser: Browser) -> None:
        """Raise what `leave` would, without leaving."""
        query, which = (_LINK_BY_KEY, link) if isinstance(link, int) else (_LINK_BY_TOKEN, digest(link))
        with self._database.read() as connection:
            found = connection.execute(query, {"which": which}).one_or_none()
            if found is None:
                raise LinkUnknown
            self._require_open(connection, found, app, browser, self._clock.now())

    def _require_open(
        self, connection: Connection, link: Row[Any], app: OfferedApp, browser: Browser, now: datetime
    ) -> None:
        if link.manage:
            # It opens a person's page and nothing else; whoever could start through it could also take it over.
            raise LinkUnknown
        if link.revoked_at is not None:
            raise LinkRevoked
        if link.expires_at <= now:
            raise LinkExpired
        self._apps.require(app.key, link.apps)
        under_way = self._under_way(connection, link.id, now)
        spent = spent_apps(connection, link.id)
        if link.browser_hash not in (None, browser.hash) and (under_way or spent):
            raise OtherBrowser
        if app.key in spent:
            raise LinkUsed
        if under_way >= MOST_OPEN_FLOWS:
            raise TooManyFlows

    def _under_way(self, connection: Connection, link_id: int, now: datetime) -> int:
        return connection.execute(_UNDER_WAY, {"link": link_id, "now": now}).scalar_one()

    def _add_hop(
        self,
        connection: Connection,
        flow_id: int,
        kind: HopKind,
        state: Secret,
        verifier: Secret | None,
        expires: datetime,
    ) -> None:
        state_hash = digest(state.reveal())
        sealed = None
        if verifier is not None:
            sealed = self._vault.seal(verifier.reveal().encode(), hop_binding(state_hash))
        connection.execute(
            _ADD_HOP,
            {
                "flow_id": flow_id, "kind": kind, "state_hash": state_hash, "verifier_sealed": sealed,
                "created_at": self._clock.now(), "expires_at": expires,
            },
        )  # fmt: skip

    # --- coming back -----------------------------------------------------------------------------------

    def consume(self, app: OfferedApp, kind: HopKind, state: Secret, browser: Browser | None) -> Step | Reload:
        """Consume the hop in one statement and take the flow further; committed before any network call.

        Of any number of identical visits exactly one gets a Step. Raises StateUnknown or OtherBrowser, having
        changed nothing, so that the rightful browser can still finish.
        """
        now = self._clock.now()
        browser_hash = browser.hash if browser else ""
        with self._database.write() as connection:
            hop = connection.execute(
                _CONSUME[kind],
                {
                    "which": digest(state.reveal()), "now": now, "app": app.key, "browser": browser_hash,
                    "consumed_at": now,
                },
            ).one_or_none()  # fmt: skip
            if hop is not None:
                further = {"key": hop.flow_id, "state": FlowState.REDEEMING, "hold": None, "updated_at": now}
                flow = connection.execute(_TAKE_FURTHER, further).one()
                note(connection, hop.flow_id, "returned", at=now, detail=kind.value)
                if kind is HopKind.INSTALL:
                    # The grant is there already: the worker can finish even if this process ends right now.
                    self._jobs.enqueue(connection, "finish", hop.flow_id, after=FINISH_AFTER)
                return Step(
                    hop.flow_id,
                    flow.ref,
                    hop.verifier_sealed,
                    flow.confirm,
                    flow.reconnects_id,
                    flow.selector,
                    flow.trial,
                )
        return self._second_visit(app, kind, state, browser_hash)

    def _second_visit(self, app: OfferedApp, kind: HopKind, state: Secret, browser_hash: str) -> Reload:
        """Tell apart what did not consume a hop: a stranger's, another browser's, a reload, or one too late."""
        with self._database.read() as connection:
            flow = connection.execute(
                sa.select(_flows.c.id, _flows.c.ref, _flows.c.browser_hash, _flows.c.app_key, _flows.c.expires_at)
                .join(_hops, _hops.c.flow_id == _flows.c.id)
                .where(_hops.c.state_hash == digest(state.reveal()), _hops.c.kind == kind)
            ).one_or_none()
        if flow is None or flow.app_key != app.key:
            raise StateUnknown
        if flow.browser_hash != browser_hash:
            raise OtherBrowser
        if flow.expires_at <= self._clock.now():
            self.end(Step(flow.id, flow.ref), FlowExpired(), state=FlowState.EXPIRED)
        return Reload(flow.ref)

    def verifier(self, step: Step, state: Secret) -> Secret | None:
        """Return the PKCE verifier of the hop just consumed, None where the provider takes none.

        Raises Unreadable.
        """
        if step.verifier_sealed is None:
            return None
        return Secret(self._vault.open(step.verifier_sealed, hop_binding(digest(state.reveal()))).decode())

    def keep(self, step: Step, answer: Mapping[str, object], *, took: float | None = None) -> Received:
        """Seal the provider's answer into the flow and commit: from here on no crash can lose it.

        The token exists nowhere else yet, so a database that is busy for a moment is asked again. `took` is how
        many seconds the provider needed.
        Raises DatabaseUnavailable.
        """
        now = self._clock.now()
        sealed = self._vault.seal(json.dumps(answer).encode(), flow_binding(step.flow_ref))
        for attempt in range(1, KEEP_ATTEMPTS + 1):
            try:
                self._commit_grant(step, sealed, now, took)
            except DatabaseUnavailable:
                if attempt == KEEP_ATTEMPTS:
                    raise
            else:
                break
        return Received(dict(answer), now)

    def _commit_grant(self, step: Step, sealed: bytes, now: datetime, took: float | None) -> None:
        with self._database.write() as connection:
            held = {"key": step.flow_id, "grant_sealed": sealed, "grant_received_at": now, "updated_at": now}
            if connection.execute(_LIVE_FLOW, held).scalar_one_or_none() is None:
                self._receive_late(connection, step, sealed, now)
                return
            connection.execute(_FORGET_VERIFIERS, {"flow": step.flow_id})
            note(connection, step.flow_id, "redeemed", at=now, seconds=took)
            self._jobs.enqueue(connection, "finish", step.flow_id, after=FINISH_AFTER)

    def _receive_late(self, connection: Connection, step: Step, sealed: bytes, now: datetime) -> None:
        """Take a grant for a flow that has ended meanwhile: only to end the access again."""
        ended = connection.execute(
            sa.update(_flows)
            .where(_flows.c.id == step.flow_id, _flows.c.connection_id.is_(None), _flows.c.grant_sealed.is_(None))
            .values(grant_sealed=sealed, grant_received_at=now, updated_at=now)
            .returning(_flows.c.app_key)
        ).one_or_none()
        if ended is not None:
            self._discard(connection, step, ended.app_key)

    def _discard(self, connection: Connection, step: Step, app_key: str) -> None:
        """Leave what an ended flow was given to the job that ends it at the provider; erase it where there is no way.

        An app that is not configured now may be again.
        """
        provider = self._apps.get(app_key).provider if app_key in self._apps else None
        if provider is None or provider.end_token is not None or provider.revoke is not None:
            self._jobs.enqueue(connection, "discard", step.flow_id)
        else:
            connection.execute(sa.update(_flows).where(_flows.c.id == step.flow_id).values(grant_sealed=None))

    def kept(self, step: Step) -> Received:
        """Open the provider's answer again. Raises FlowEnded when it is gone, Unreadable when it does not open."""
        with self._database.read() as connection:
            flow = connection.execute(
                sa.select(_flows.c.grant_sealed, _flows.c.grant_received_at).where(_flows.c.id == step.flow_id)
            ).one()
        if flow.grant_sealed is None:
            raise FlowEnded
        opened = self._vault.open(flow.grant_sealed, flow_binding(step.flow_ref))
        return Received(cast(dict[str, object], json.loads(opened)), flow.grant_received_at)

    def finish_soon(self, step: Step, *, not_before: float | None = None) -> None:
        """Let the worker go on from the sealed grant shortly: the visit that had it in hand has given up.

        `not_before` is in seconds, when the provider said so. A database that is away changes nothing: the worker
        then comes when it would have come anyway.
        """
        after = max(FINISH_SOON, timedelta(seconds=not_before or 0))
        with suppress(DatabaseUnavailable), self._database.write() as connection:
            self._jobs.enqueue(connection, "finish", step.flow_id, after=after)

    # --- waiting for the host --------------------------------------------------------------------------

    def await_confirmation(self, step: Step, code: Secret, *, good_for: timedelta) -> None:
        """Hold the code, sealed and not exchanged, until the host has said who came back.

        The flow waits no longer than the code is good for.
        """
        now = self._clock.now()
        sealed = self._vault.seal(code.reveal().encode(), code_binding(step.flow_ref))
        with self._database.write() as connection:
            changed = connection.execute(
                sa.update(_flows)
                .where(_flows.c.id == step.flow_id, _flows.c.ended_at.is_(None))
                .values(
                    state=FlowState.HELD, hold=Hold.CONFIRMATION, code_sealed=sealed, code_expires_at=now + good_for,
                    updated_at=now,
                )
            ).rowcount  # fmt: skip
            if changed:
                note(connection, step.flow_id, "held", at=now, detail=Hold.CONFIRMATION.value)
        log.info("flow.held", flow=step.flow_ref, why=Hold.CONFIRMATION.value)

    def take_up(self, flow: Row[Any]) -> tuple[Step, Secret, Secret | None] | None:
        """Take up a flow whose code is held: return it with the code and the PKCE verifier, to whoever asks first.

        Returns None when somebody else did, or the flow has ended. Raises Unreadable.
        """
        now = self._clock.now()
        # Opened first: a code that does not open stays where it is, and the flow can be ended honestly.
        code = Secret(self._vault.open(flow.code_sealed or b"", code_binding(flow.ref)).decode())
        with self._database.write() as connection:
            changed = connection.execute(
                sa.update(_flows)
                .where(_flows.c.id == flow.id, _flows.c.hold == Hold.CONFIRMATION, _flows.c.code_expires_at > now)
                .values(
                    state=FlowState.REDEEMING, hold=None, code_sealed=None, code_expires_at=None, updated_at=now
                )
            ).rowcount  # fmt: skip
            if not changed:
                return None
            note(connection, flow.id, "confirmed", at=now)
            hop = connection.execute(
                sa.select(_hops.c.state_hash, _hops.c.verifier_sealed)
                .where(_hops.c.flow_id == flow.id, _hops.c.kind == HopKind.AUTHORIZE)
                .order_by(_hops.c.id.desc())
                .limit(1)
            ).one()
        verifier = None
        if hop.verifier_sealed is not None:
            verifier = Secret(self._vault.open(hop.verifier_sealed, hop_binding(hop.state_hash)).decode())
        return Step(flow.id, flow.ref, reconnects=flow.reconnects_id, trial=flow.trial), code, verifier

    # --- waiting for the person ------------------------------------------------------------------------

    def hold(
        self,
        step: Step,
        why: Hold,
        *,
        choices: list[dict[str, Any]] | None = None,
        state: Secret | None = None,
        again: bool = False,
    ) -> None:
        """Let the flow wait for the person; `state` opens a hop to the provider's installation page.

        With `again` the person only asked to be sent there once more: raises TooManyFlows when that is too often.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            created_at = connection.execute(
                sa.update(_flows)
                .where(_flows.c.id == step.flow_id, _flows.c.ended_at.is_(None))
                .values(state=FlowState.HELD, hold=why, choices=choices, updated_at=now)
                .returning(_flows.c.created_at)
            ).scalar_one_or_none()
            self._jobs.cancel(connection, "finish", step.flow_id)
            if created_at is None:
                return
            expires = min(now + self._lifetime, created_at + LONGEST_LIFE)
            connection.execute(sa.update(_flows).where(_flows.c.id == step.flow_id).values(expires_at=expires))
            note(connection, step.flow_id, "held", at=now, detail=why.value)
            if again:
                self._require_few_hops(connection, step)
            if state is not None:
                self._add_hop(connection, step.flow_id, HopKind.INSTALL, state, None, expires)
        log.info("flow.held", flow=step.flow_ref, why=why.value)

    def _require_few_hops(self, connection: Connection, step: Step) -> None:
        count = sa.select(sa.func.count()).select_from(_hops).where(_hops.c.flow_id == step.flow_id)
        if connection.execute(count).scalar_one() >= MOST_HOPS:
            raise TooManyFlows

    def resume(self, flow: Row[Any], *waited_for: Hold, account_id: str | None = None) -> Step:
        """Take up a flow that waited for the person, with the account they picked if that was it.

        Raises FlowEnded when it no longer waits for that.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            changed = connection.execute(
                sa.update(_flows)
                .where(
                    _flows.c.id == flow.id,
                    _flows.c.state == FlowState.HELD,
                    _flows.c.hold.in_(waited_for),
                    _flows.c.expires_at > now,
                )
                .values(
                    state=FlowState.REDEEMING, hold=None, chosen_account_id=account_id, selector=None, updated_at=now
                )
            ).rowcount
            if not changed:
                raise FlowEnded
            note(connection, flow.id, "picked" if account_id else "looked_again", at=now, detail=account_id)
            self._jobs.enqueue(connection, "finish", flow.id, after=FINISH_AFTER)
        return Step(flow.id, flow.ref, reconnects=flow.reconnects_id, trial=flow.trial)

    def note_selector(self, step: Step, selector: str | None) -> None:
        """Keep what the person picked at the provider, so that the worker could go on from here."""
        with self._database.write() as connection:
            connection.execute(sa.update(_flows).where(_flows.c.id == step.flow_id).values(selector=selector))

    def tell(self, step: Step, entries: Iterable[tuple[str, str]]) -> None:
        """Add entries to the flow's timeline: a name and a fact for operators each, never a secret."""
        with self._database.write() as connection:
            for name, detail in entries:
                note(connection, step.flow_id, name, at=self._clock.now(), detail=detail)

    # --- ending ----------------------------------------------------------------------------------------

    def end(self, step: Step, failure: FlowFailure, *, state: FlowState = FlowState.FAILED) -> bool:
        """End a flow without a connection: keep the reason, erase the verifier, and let go of what was received.

        Returns False when it had ended already, which stays as it was.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            ended = connection.execute(
                sa.update(_flows)
                .where(_flows.c.id == step.flow_id, _flows.c.ended_at.is_(None))
                .values(
                    state=state, hold=None, failure=failure.code, failure_detail=failure.detail[:500],
                    code_sealed=None, code_expires_at=None, choices=None, updated_at=now, ended_at=now,
                )
                # The value itself: SQLite 3.40 answers `IS NOT NULL` wrongly here.
                .returning(_flows.c.app_key, _flows.c.grant_sealed, _flows.c.trial)
            ).one_or_none()  # fmt: skip
            if ended is None:
                return False
            if ended.grant_sealed is not None:
                self._discard(connection, step, ended.app_key)
            connection.execute(_FORGET_VERIFIERS, {"flow": step.flow_id})
            self._jobs.cancel(connection, "finish", step.flow_id)
            note(connection, step.flow_id, state.value, at=now, detail=failure.code)
            # Operators' tests are counted nowhere, and no host hears of them.
            what = "trial" if ended.trial else "flow"
            audit.record(
                connection, at=now, actor_kind="end_user", actor=step.flow_ref, action=f"{what}.{state.value}",
                target=step.flow_ref, detail={"failure": failure.code},
            )  # fmt: skip
            if not ended.trial:
                events.flow_ended(connection, step.flow_id, at=now)
        write = log.error if failure.verdict is Verdict.CONFIGURATION else log.info
        write("flow.ended", flow=step.flow_ref, outcome=state.value, error=failure.code, detail=failure.detail)
        return True

    def sweep(self, *, most: int = 200) -> int:
        """End what nobody will finish: flows past their time, and exchanges a crash cut off. Returns how many."""
        now = self._clock.now()
        cut_off = sa.and_(
            _flows.c.state == FlowState.REDEEMING,
            _flows.c.grant_sealed.is_(None),
            _flows.c.updated_at < now - REDEEMING_AT_MOST,
        )
        # Whatever its state: a job that should have finished it may have been lost or parked.
        late = _flows.c.expires_at <= now
        unconfirmed = sa.and_(_flows.c.hold == Hold.CONFIRMATION, _flows.c.code_expires_at <= now)
        with self._database.read() as connection:
            rows = connection.execute(
                sa.select(_flows.c.id, _flows.c.ref, cut_off.label("cut_off"), unconfirmed.label("unconfirmed"))
                .where(_flows.c.ended_at.is_(None), sa.or_(cut_off, late, unconfirmed))
                .limit(most)
            ).all()
        for row in rows:
            if row.cut_off:
                self.end(Step(row.id, row.ref), FlowInterrupted(), state=FlowState.INTERRUPTED)
            elif row.unconfirmed:
                self.end(Step(row.id, row.ref), ConfirmationMissing(), state=FlowState.EXPIRED)
            else:
                self.end(Step(row.id, row.ref), FlowExpired(), state=FlowState.EXPIRED)
        return len(rows)

    # --- reading ---------------------------------------------------------------------------------------

    def own(self, flow_ref: str, browser: Browser | None) -> Row[Any]:
        """Return the flow's row to the browser that started it. Raises FlowUnknown to every other."""
        if browser is None or not storable(flow_ref):
            raise FlowUnknown
        with self._database.read() as connection:
            flow = connection.execute(
                sa.select(_flows).where(_flows.c.ref == flow_ref, _flows.c.browser_hash == browser.hash)
            ).one_or_none()
        if flow is None:
            raise FlowUnknown
        return flow

    def unfinished(self, flow_id: int) -> Row[Any] | None:
        """Return the flow's row if it still waits to be finished from its sealed grant."""
        with self._database.read() as connection:
            return connection.execute(
                sa.select(_flows).where(
                    _flows.c.id == flow_id,
                    _flows.c.state == FlowState.REDEEMING,
                    _flows.c.grant_sealed.is_not(None),
                )
            ).one_or_none()


def spent_apps(connection: Connection, link_id: int) -> set[str]:
    """Return the keys of the OAuth apps for which a link has saved a connection."""
    return set(connection.execute(_SPENT_APPS, {"link": link_id}).scalars())


def _consume(kind: HopKind) -> sa.UpdateBase:
    """Return the one statement that consumes a hop of this kind, of a flow of this browser and app that awaits it."""
    state = (
        _flows.c.state == FlowState.LEFT
        if kind is HopKind.AUTHORIZE
        else sa.and_(_flows.c.state == FlowState.HELD, _flows.c.hold == Hold.INSTALLATION)
    )
    now = sa.bindparam("now", type_=_hops.c.expires_at.type)
    # Of this one flow: an embedded database would gather all that await something, however many there are.
    awaiting = sa.select(sa.literal(1)).where(
        _flows.c.id == _hops.c.flow_id,
        state,
        _flows.c.app_key == sa.bindparam("app"),
        _flows.c.browser_hash == sa.bindparam("browser"),
        _flows.c.expires_at > now,
    )
    return (
        sa.update(_hops)
        .where(
            _hops.c.state_hash == sa.bindparam("which"),
            _hops.c.kind == kind,
            _hops.c.consumed_at.is_(None),
            _hops.c.expires_at > now,
            awaiting.exists(),
        )
        .returning(_hops.c.flow_id, _hops.c.verifier_sealed)
    )


_CONSUME = {kind: _consume(kind) for kind in HopKind}


def hop_binding(state_hash: str) -> Binding:
    """Return where a hop's sealed verifier may be opened."""
    return Binding("hops", "verifier", state_hash)


def code_binding(flow_ref: str) -> Binding:
    """Return where a flow's held code may be opened."""
    return Binding("flows", "code", flow_ref)


def flow_binding(flow_ref: str) -> Binding:
    """Return where a flow's sealed grant may be opened."""
    return Binding("flows", "grant", flow_ref)
