"""Connect links: the addresses a host asks for, one for each person it wants to send here.

A link is spent for an OAuth app when a connection is saved, never by being opened: mail scanners open links first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from broker import audit, end_users
from broker.apps import AppCatalogue, OfferedApp
from broker.audit import COMMAND_LINE, Actor
from broker.clock import Clock
from broker.connections import ConnectionUnknown
from broker.contract import (
    LARGEST_NUMBER,
    LONGEST_ADDRESS,
    LONGEST_EMAIL,
    LONGEST_ID,
    LONGEST_KEY,
    LONGEST_LINK_LIFE,
    LONGEST_NAME,
    LONGEST_VALUE,
    MOST_METADATA,
    RESERVED_METADATA,
    LinkState,
)
from broker.db import Database, table
from broker.errors import (
    LinkExpired,
    LinkRevoked,
    LinkUnknown,
    LinkUsed,
    OtherBrowser,
    Refused,
    TooManyFlows,
)
from broker.journal import MOST_OPEN_FLOWS
from broker.models import ConnectedAccount, EndUser, Flow, FlowState, Link, LinkUse
from broker.references import new_id
from broker.secret import digest, random_token
from broker.settings import Settings, addresses
from broker.text import one_line, storable

_Query = sa.Select[*tuple[Any, ...]]
_Row = Row[*tuple[Any, ...]]


class LinkInvalid(Refused):
    """A link was asked for that cannot be made; `fields` gives the reasons by field."""

    code = "link_invalid"
    status = 422
    heading = "That link cannot be made"
    advice = "Correct the fields listed and try again."
    cure = "Correct the fields listed in the call that makes the link."

    def __init__(self, fields: Mapping[str, Sequence[str]]) -> None:
        self.fields = {name: list(reasons) for name, reasons in fields.items()}
        super().__init__("; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in self.fields.items()))


BY_PERSON = "person"
"""Who makes the link when somebody connects an account, or connects one again, from their own page."""


@dataclass(frozen=True)
class LinkRequest:
    """What a host asks a link for."""

    end_user_id: str
    email: str | None = None
    name: str | None = None
    apps: tuple[str, ...] | None = None
    return_url: str | None = None
    # Whether the person goes there by itself once an account is connected.
    auto_return: bool = False
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    # Seconds; None for the configured default.
    expires_in: int | None = None
    # Reference of the connection that is to be connected again; None for a plain link.
    reconnects: str | None = None
    # Whether the host has to confirm who came back before anything is exchanged.
    confirm: bool = False
    manage: bool = False
    # Whether an operator tries an OAuth app out, so that nothing is connected.
    trial: bool = False


@dataclass(frozen=True)
class CreatedLink:
    """A new link. Its address is shown this once; only a digest of it is stored."""

    id: str
    url: str
    expires_at: datetime


@dataclass(frozen=True)
class SavedConnection:
    """What a link has connected through one OAuth app."""

    app: str
    ref: str


@dataclass(frozen=True)
class LinkView:
    """A link as its host and operators see it: everything but the address."""

    id: str
    state: LinkState
    end_user_id: str
    # None means every OAuth app configured.
    apps: tuple[str, ...] | None
    return_url: str | None
    auto_return: bool
    # The connection that a reconnect link is for; None for a plain link.
    reconnects: str | None
    confirm: bool
    manage: bool
    created_by: str
    created_at: datetime
    expires_at: datetime
    connections: tuple[SavedConnection, ...]


@dataclass(frozen=True)
class OpenedLink:
    """A link as the person who follows it sees it."""

    id: int
    end_user_id: int
    # E-mail, else name, else the host's id.
    end_user_label: str
    apps: tuple[OfferedApp, ...]
    # OAuth app key to the connection it was spent for.
    spent: Mapping[str, int]
    # OAuth app key to when an attempt in this browser began that has not ended well.
    unfinished: Mapping[str, datetime]
    return_url: str | None
    manage: bool
    expires_at: datetime


class Links:
    """Make, show, open and take back connect links."""

    def __init__(self, database: Database, clock: Clock, apps: AppCatalogue, settings: Settings) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._settings = settings

    def create(self, request: LinkRequest, *, created_by: str) -> CreatedLink:
        """Make a link for an end user, who is remembered or brought up to date.

        Raises LinkInvalid, ConnectionUnknown for a reconnect link of somebody else's connection, AppUnknown when its
        OAuth app is no longer configured, EndUserErased while that person is being forgotten, or TooManyFlows for a
        person who has begun too much by themself.
        """
        return_url = self._checked(request)
        public_id, token, now = new_id("lnk"), random_token(), self._clock.now()
        expires_at = now + self._life(request.expires_in)
        with self._database.write() as connection:
            end_user_id = end_users.remember(
                connection, request.end_user_id, email=request.email, name=request.name, now=now
            )
            if created_by == BY_PERSON and _under_way(connection, end_user_id, now) >= MOST_OPEN_FLOWS:
                raise TooManyFlows
            reconnects = self._reconnects(connection, request, end_user_id)
            apps = None if request.apps is None else list(dict.fromkeys(request.apps))
            connection.execute(
                sa.insert(Link).values(
                    public_id=public_id,
                    token_hash=digest(token),
                    end_user_id=end_user_id,
                    apps=apps if reconnects is None else [reconnects.app_key],
                    return_url=return_url,
                    auto_return=request.auto_return and return_url is not None,
                    # A reconnect changes nothing the host did not say anew.
                    host_metadata=dict(request.metadata) or (reconnects.host_metadata if reconnects else {}),
                    reconnects_id=None if reconnects is None else reconnects.id,
                    confirm=request.confirm,
                    manage=request.manage,
                    trial=request.trial,
                    created_by=created_by,
                    created_at=now,
                    expires_at=expires_at,
                )
            )
            detail = {"end_user": request.end_user_id}
            _audit(connection, now, actor_of(created_by), "link.created", public_id, detail)
        return CreatedLink(public_id, f"{self._settings.public_url}/connect/{token}", expires_at)

    def _reconnects(self, connection: Connection, request: LinkRequest, end_user_id: int) -> _Row | None:
        """Return the row of the connection that a reconnect link is for, None for a plain link."""
        if request.reconnects is None:
            return None
        row = None
        if storable(request.reconnects):
            row = connection.execute(
                sa.select(ConnectedAccount.id, ConnectedAccount.app_key, ConnectedAccount.host_metadata).where(
                    ConnectedAccount.ref == request.reconnects, ConnectedAccount.end_user_id == end_user_id
                )
            ).one_or_none()
        if row is None:
            # Somebody else's reads like one that does not exist.
            raise ConnectionUnknown
        if request.apps is not None and set(request.apps) != {row.app_key}:
            raise LinkInvalid({"apps": ["a reconnect link offers the connection’s own OAuth app: leave the field out"]})
        self._apps.get(row.app_key)
        return row

    def state(self, public_id: str) -> LinkView:
        """Return the link with this id. Raises LinkUnknown."""
        with self._database.read() as connection:
            return self._view(connection, public_id)

    def list(
        self, *, limit: int = 100, after: str | None = None, state: LinkState | None = None
    ) -> tuple[LinkView, ...]:
        """Return up to `limit` links, newest first, those after the one with id `after`; of one state if it is given.

        Raises LinkUnknown.
        """
        query = _viewed().order_by(Link.id.desc()).limit(limit)
        if state is not None:
            query = query.where(*_in_state(state, self._clock.now()))
        with self._database.read() as connection:
            if after is not None:
                query = query.where(Link.id < _key_of(connection, after))
            rows = connection.execute(query).all()
            saved = _saved(connection, [row.id for row in rows])
        return tuple(_link_view(row, saved.get(row.id, ()), self._clock.now()) for row in rows)

    def revoke(self, public_id: str, *, actor: Actor = COMMAND_LINE) -> LinkView:
        """Take a link back, so that nobody can start through it any more. Raises LinkUnknown."""
        now = self._clock.now()
        with self._database.write() as connection:
            key = _key_of(connection, public_id)
            changed = connection.execute(
                sa.update(Link).where(Link.id == key, Link.revoked_at.is_(None)).values(revoked_at=now)
            ).rowcount
            if changed:
                _audit(connection, now, actor, "link.revoked", public_id)
            return self._view(connection, public_id)

    def opened(self, token: str, browser_hash: str | None, *, count: bool) -> OpenedLink:
        """Return the link behind an address for the page that explains it; spends nothing.

        With `count` the link is marked as opened. Raises LinkUnknown, LinkRevoked, LinkUsed, OtherBrowser or
        LinkExpired; a used link shows itself to the browser that used it for as long as it is kept.
        """
        now = self._clock.now()
        with self._database.read() as connection:
            row = _by_token(connection, token)
            if row is None:
                raise LinkUnknown
            spent = _spent(connection, row.id)
            _admit(connection, row, _is_used(row, spent), browser_hash, now)
            unfinished = _unfinished(connection, row.id, browser_hash)
        if count and row.opened_at is None:
            self._mark_opened(row.id, now)
        return OpenedLink(
            id=row.id,
            end_user_id=row.end_user_id,
            end_user_label=row.email or row.name or row.external_id,
            apps=tuple(self._apps.offered(row.apps)),
            spent=spent,
            unfinished={key: since for key, since in unfinished.items() if key not in spent},
            return_url=still_allowed(row.return_url, self._settings.return_origins),
            manage=row.manage,
            expires_at=row.expires_at,
        )

    def enter(self, token: str, browser_hash: str) -> int:
        """Spend a manage link on one browser and return whose page it opens; that browser may come again.

        Raises LinkUnknown (for other links too), LinkRevoked, LinkUsed or LinkExpired.
        """
        now = self._clock.now()
        with self._database.write() as connection:
            row = _by_token(connection, token)
            if row is None or not row.manage:
                raise LinkUnknown
            _admit(connection, row, _is_used(row, {}), browser_hash, now)
            bound = connection.execute(
                sa.update(Link)
                .where(Link.id == row.id, sa.or_(Link.browser_hash.is_(None), Link.browser_hash == browser_hash))
                .values(
                    browser_hash=browser_hash,
                    started_at=sa.func.coalesce(Link.started_at, now),
                    opened_at=sa.func.coalesce(Link.opened_at, now),
                )
            ).rowcount
            if not bound:
                raise LinkUsed
            end_user_id: int = row.end_user_id
        return end_user_id

    def _view(self, connection: Connection, public_id: str) -> LinkView:
        if not storable(public_id):
            raise LinkUnknown
        row = connection.execute(_viewed().where(Link.public_id == public_id)).one_or_none()
        if row is None:
            raise LinkUnknown
        return _link_view(row, _saved(connection, [row.id]).get(row.id, ()), self._clock.now())

    def _mark_opened(self, key: int, now: datetime) -> None:
        with self._database.write() as connection:
            connection.execute(_MARK_OPENED, {"link": key, "now": now})

    def _life(self, expires_in: int | None) -> timedelta:
        if expires_in is not None:
            return timedelta(seconds=expires_in)
        return timedelta(minutes=self._settings.link_minutes)

    def _checked(self, request: LinkRequest) -> str | None:
        """Return the return address in its one form. Raises LinkInvalid with every problem."""
        problems: dict[str, list[str]] = {}
        _check_person(request, problems)
        _check_apps(request.apps, self._apps, problems)
        _check_metadata(request.metadata, problems)
        if request.expires_in is not None and not 1 <= request.expires_in <= LONGEST_LINK_LIFE:
            problems["expires_in"] = [f"must be between 1 and {LONGEST_LINK_LIFE} seconds"]
        return_url = None
        if request.return_url is not None:
            try:
                return_url = return_address(request.return_url, self._settings.return_origins)
            except ValueError as problem:
                problems["return_url"] = [str(problem)]
        if problems:
            raise LinkInvalid(problems)
        return return_url


def return_address(address: str, allowed: Iterable[str]) -> str:
    """Return `address` in the one form that is stored and sent, if its origin is one of `allowed`.

    Raises ValueError with a sentence. The parser refuses whatever a browser might read differently.
    """
    parsed = addresses.parse(address)
    if parsed.origin not in allowed:
        raise ValueError("its origin is not one of BROKER_RETURN_ORIGINS")
    result = parsed.origin + (parsed.path or "/") + (f"?{parsed.query}" if parsed.query else "")
    if len(result) > LONGEST_ADDRESS:
        raise ValueError(f"is longer than {LONGEST_ADDRESS} characters")
    return result


def still_allowed(address: str | None, allowed: Iterable[str]) -> str | None:
    """Return a link's stored return address, or None where today's settings no longer allow its origin."""
    try:
        return None if address is None else return_address(address, allowed)
    except ValueError:
        return None


def actor_of(created_by: str) -> Actor:
    """Return who a link's `created_by` means: the command line, the person, an operator's e-mail or a key's id."""
    if created_by == COMMAND_LINE.name:
        return COMMAND_LINE
    if created_by == BY_PERSON:
        return Actor("end_user", BY_PERSON)
    return Actor("operator" if "@" in created_by else "api_key", created_by)


# --- what a host gives us ---------------------------------------------------------------------------


def _check_person(request: LinkRequest, problems: dict[str, list[str]]) -> None:
    for name, value, longest in (
        ("end_user.id", request.end_user_id, LONGEST_ID),
        ("end_user.email", request.email, LONGEST_EMAIL),
        ("end_user.name", request.name, LONGEST_NAME),
    ):
        reasons = [] if value is None else _text_problems(value, longest)
        if reasons:
            problems[name] = reasons
    if request.email is not None and "@" not in request.email:
        problems.setdefault("end_user.email", []).append("must be an e-mail address")


def _check_apps(keys: tuple[str, ...] | None, known: AppCatalogue, problems: dict[str, list[str]]) -> None:
    if keys is None:
        return
    if not keys:
        problems["apps"] = ["name at least one OAuth app, or leave the field out to offer all of them"]
    elif any(key not in known for key in keys):
        offered = ", ".join(app.key for app in known) or "none"
        problems["apps"] = [f"an OAuth app that is not configured; configured are: {offered}"]


def _text_problems(value: str, longest: int) -> list[str]:
    if not value.strip():
        return ["must not be empty"]
    if not one_line(value):
        return ["must be one line of plain text without control characters"]
    return [f"must be at most {longest} characters"] if len(value) > longest else []


def _check_metadata(metadata: Mapping[str, object], problems: dict[str, list[str]]) -> None:
    if len(metadata) > MOST_METADATA:
        problems["metadata"] = [f"must have at most {MOST_METADATA} keys"]
        return
    for key, value in metadata.items():
        reason = _key_problem(key) or _value_problem(value)
        if reason:
            problems.setdefault("metadata", []).append(f"{key[:LONGEST_KEY]!a}: {reason}")


def _key_problem(key: str) -> str:
    if key in RESERVED_METADATA:
        return "this name is reserved for the broker"
    if len(key) > LONGEST_KEY or not one_line(key):
        return f"a key must be one line of 1 to {LONGEST_KEY} characters"
    return ""


def _value_problem(value: object) -> str:
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, str):
        fits = len(value) <= LONGEST_VALUE and storable(value)
        return "" if fits else f"a text must be at most {LONGEST_VALUE} characters without NUL"
    if isinstance(value, int | float):
        fits = math.isfinite(value) and abs(value) <= LARGEST_NUMBER
        return "" if fits else "a number must be finite and at most 2^53"
    return "a value must be a text, a number, true, false or null"


# --- what the database says -------------------------------------------------------------------------


def _viewed() -> _Query:
    return sa.select(
        Link.id, Link.public_id, Link.apps, Link.return_url, Link.auto_return, Link.confirm, Link.manage,
        Link.created_by, Link.created_at, Link.expires_at, Link.opened_at, Link.started_at, Link.revoked_at,
        EndUser.external_id, ConnectedAccount.ref.label("reconnects"),
    ).join(EndUser, EndUser.id == Link.end_user_id).outerjoin(
        ConnectedAccount, ConnectedAccount.id == Link.reconnects_id
    )  # fmt: skip


# The page of a link is the one most people see: its statements are built once.
_BY_TOKEN = (
    sa.select(
        Link.id, Link.end_user_id, Link.apps, Link.return_url, Link.manage, Link.expires_at, Link.opened_at,
        Link.revoked_at, Link.browser_hash, EndUser.external_id, EndUser.email, EndUser.name,
    )
    .join(EndUser, EndUser.id == Link.end_user_id)
    .where(Link.token_hash == sa.bindparam("token_hash"))
)  # fmt: skip
_SPENT = sa.select(LinkUse.app_key, LinkUse.connection_id).where(LinkUse.link_id == sa.bindparam("link"))
_UNFINISHED = (
    sa.select(Flow.app_key, Flow.created_at)
    .where(
        Flow.link_id == sa.bindparam("link"),
        Flow.browser_hash == sa.bindparam("browser_hash"),
        # A failed attempt has told the person so on its own page.
        Flow.state.not_in([FlowState.DONE, FlowState.FAILED]),
    )
    .order_by(Flow.created_at)
)
_MARK_OPENED = (
    sa.update(table(Link))
    .where(table(Link).c.id == sa.bindparam("link"), table(Link).c.opened_at.is_(None))
    .values(opened_at=sa.bindparam("now"))
)


def _by_token(connection: Connection, token: str) -> _Row | None:
    # A lone surrogate cannot be hashed; no link has such a token.
    token_hash = digest(token) if storable(token) else ""
    return connection.execute(_BY_TOKEN, {"token_hash": token_hash}).one_or_none()


def _key_of(connection: Connection, public_id: str) -> int:
    found = None
    if storable(public_id):
        found = connection.execute(sa.select(Link.id).where(Link.public_id == public_id)).scalar_one_or_none()
    if found is None:
        raise LinkUnknown
    return found


def _saved(connection: Connection, link_ids: Sequence[int]) -> dict[int, tuple[SavedConnection, ...]]:
    rows = connection.execute(
        sa.select(LinkUse.link_id, LinkUse.app_key, ConnectedAccount.ref)
        .join(ConnectedAccount, ConnectedAccount.id == LinkUse.connection_id)
        .where(LinkUse.link_id.in_(link_ids))
        .order_by(LinkUse.spent_at)
    )
    found: dict[int, tuple[SavedConnection, ...]] = {}
    for link_id, app_key, ref in rows:
        found[link_id] = (*found.get(link_id, ()), SavedConnection(app_key, ref))
    return found


def _link_view(row: _Row, saved: tuple[SavedConnection, ...], now: datetime) -> LinkView:
    return LinkView(
        id=row.public_id,
        state=_state(row, bool(saved), now),
        end_user_id=row.external_id,
        apps=None if row.apps is None else tuple(row.apps),
        return_url=row.return_url,
        auto_return=row.auto_return,
        reconnects=row.reconnects,
        confirm=row.confirm,
        manage=row.manage,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        connections=saved,
    )


def _state(row: _Row, used: bool, now: datetime) -> LinkState:
    steps = (
        (row.revoked_at is not None, LinkState.REVOKED),
        (used, LinkState.USED),
        (row.expires_at <= now, LinkState.EXPIRED),
        (row.started_at is not None, LinkState.STARTED),
        (row.opened_at is not None, LinkState.OPENED),
    )
    return next((state for applies, state in steps if applies), LinkState.UNOPENED)


def _in_state(state: LinkState, now: datetime) -> list[sa.ColumnElement[bool]]:
    """Return what holds for the links of a state; `_state` is the same in Python."""
    used = sa.exists().where(LinkUse.link_id == Link.id)
    steps = {
        LinkState.REVOKED: Link.revoked_at.is_not(None),
        LinkState.USED: used,
        LinkState.EXPIRED: Link.expires_at <= now,
        LinkState.STARTED: Link.started_at.is_not(None),
        LinkState.OPENED: Link.opened_at.is_not(None),
        LinkState.UNOPENED: sa.true(),
    }
    found: list[sa.ColumnElement[bool]] = []
    if state in {LinkState.STARTED, LinkState.OPENED, LinkState.UNOPENED}:
        # Such links were made not long ago: the others need not be looked at.
        found.append(Link.created_at > now - timedelta(seconds=LONGEST_LINK_LIFE))
    for each, holds in steps.items():
        if each is state:
            return [*found, holds]
        found.append(sa.not_(holds))
    return found


def _spent(connection: Connection, link_id: int) -> dict[str, int]:
    return {row.app_key: row.connection_id for row in connection.execute(_SPENT, {"link": link_id})}


def _is_used(row: _Row, spent: Mapping[str, int]) -> bool:
    """Tell whether a link belongs to its browser for good: it saved a connection, or opened a person's page."""
    return bool(spent) or (row.manage and row.browser_hash is not None)


def _admit(connection: Connection, row: _Row, used: bool, browser_hash: str | None, now: datetime) -> None:
    """Raise unless this browser may see the link now."""
    if row.revoked_at is not None:
        raise LinkRevoked
    same_browser = row.browser_hash is not None and row.browser_hash == browser_hash
    if used:
        if not same_browser:
            raise LinkUsed
        return
    # A start binds the link to its browser until that flow has ended or expired.
    if row.browser_hash is not None and not same_browser and _flow_is_open(connection, row.id, now):
        raise OtherBrowser
    if row.expires_at <= now:
        raise LinkExpired


def _under_way(connection: Connection, end_user_id: int, now: datetime) -> int:
    """Return how many flows a person has begun by themself and not ended: each has a link of its own."""
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(Flow)
        .join(Link, Link.id == Flow.link_id)
        .where(
            Link.end_user_id == end_user_id,
            Link.created_by == BY_PERSON,
            Flow.ended_at.is_(None),
            Flow.expires_at > now,
        )
    ).scalar_one()


def _flow_is_open(connection: Connection, link_id: int, now: datetime) -> bool:
    alive = sa.select(Flow.id).where(Flow.link_id == link_id, Flow.ended_at.is_(None), Flow.expires_at > now).limit(1)
    return connection.execute(alive).first() is not None


def _unfinished(connection: Connection, link_id: int, browser_hash: str | None) -> dict[str, datetime]:
    if browser_hash is None:
        return {}
    rows = connection.execute(_UNFINISHED, {"link": link_id, "browser_hash": browser_hash})
    return {row.app_key: row.created_at for row in rows}


def _audit(
    connection: Connection,
    at: datetime,
    actor: Actor,
    action: str,
    target: str,
    detail: Mapping[str, object] | None = None,
) -> None:
    audit.record(
        connection, at=at, actor_kind=actor.kind, actor=actor.name, action=action, target=target, detail=detail
    )
