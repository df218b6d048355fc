"""How a list of connections is narrowed, searched, sorted, paged and counted, with a million of them too.

Every filter has an index of its own that knows its connections by key. What is narrowed to a few rows is gathered from
there; a filter that many rows pass is walked in the order of the list, and meets enough of them soon. Which of the two
it is, is looked at and not guessed: the embedded database keeps no statistics to guess from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from broker.db import table
from broker.errors import Refused
from broker.models import ConnectedAccount, EndUser, MetadataMember
from broker.references import ALPHABET
from broker.status import FRESH_FOR, STANDING, Status, has_status
from broker.text import storable

MOST_COUNTED = 10_000
"""How many rows are counted: of more than these it is told that there are at least so many."""
MOST_TRIED = 1_000
"""How many rows are read to count those that pass a filter without an index of its own: the others stay open."""
LEAST_TYPED = 3
"""From so many characters on, the beginning of a name or an e-mail is enough; fewer must be all of it."""
MOST_NAMED = 1_000
"""Up to so many rows that a filter names are looked up first; more are met soon enough by walking the list."""

_LOOK_ALIKES = str.maketrans({"O": "0", "I": "1", "L": "1", "-": None, " ": None})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_MOMENT = 17
"""Digits of a time in microseconds: enough until the year 5138, and never more than a date can hold."""

_row = table(ConnectedAccount).c
_person = table(EndUser).c
_Columns = Mapping[str, Any]
_Clause = sa.ColumnElement[bool]


class CursorUnknown(Refused):
    """The page asked for does not follow any known row."""

    code = "cursor_unknown"
    status = 404
    heading = "The list has changed"
    advice = "Start from the first page."


@dataclass(frozen=True)
class ConnectionFilters:
    """What a list is narrowed to; None and empty leave a field alone."""

    end_user: str | None = None
    provider: str | None = None
    app: str | None = None
    kind: str | None = None
    status: Status | None = None
    account: str | None = None
    mode: str | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    # Exactly a reference, an account id, a Sequin credential id or an end user id, or how an account's name or an end
    # user's e-mail begins.
    search: str | None = None
    # When the current grant was committed: from the first on, and before the second. A list that is narrowed so is
    # sorted by that time.
    connected_from: datetime | None = None
    connected_before: datetime | None = None


class Order(StrEnum):
    """How a list is sorted."""

    NEWEST = "newest"
    OLDEST = "oldest"
    CHANGED = "changed"


@dataclass(frozen=True)
class Count:
    """How many rows a list has; at least so many unless `is_all`."""

    number: int
    is_all: bool


@dataclass(frozen=True)
class Place:
    """One row's place in a list: its key, and the time that the list is sorted by, None where it is sorted by key."""

    id: int
    at: datetime | None


@dataclass(frozen=True)
class _Facet:
    """One filter."""

    # What holds for the rows that pass. The second argument keeps the embedded database's planner from choosing this
    # filter's index, where another leads the way.
    holds: Callable[[_Columns, bool], _Clause]
    # The keys of the rows that pass, through an index of the filter's own; each select by itself.
    ways: tuple[sa.Select[tuple[int]], ...]
    # Whether the index gives the rows in the order of their keys. Metadata leads the way by its own table instead.
    leads: bool = False
    member: tuple[str, str] | None = None


class Search:
    """One look at one list, inside the caller's read."""

    def __init__(self, connection: Connection, filters: ConnectionFilters, now: datetime, order: Order) -> None:
        """Raises nothing: filters that no row can pass find nothing."""
        self._connection = connection
        self._order = order
        self._now = now
        self._is_embedded = connection.dialect.name == "sqlite"
        self._is_hopeless = not _can_be_stored(filters)
        self._time: Any = _row.updated_at if order is Order.CHANGED else None
        self._from, self._before = filters.connected_from, filters.connected_before
        self._within = self._between(_row.connected_at, _row.connected_at)
        if self._within:
            # What is narrowed by a time is sorted by that time, so that one index does both.
            self._time = _row.connected_at
        self._facets = [] if self._is_hopeless else self._read(filters)
        self._search = None if self._is_hopeless else filters.search

    # --- what stands where -----------------------------------------------------------------------------

    def place_of(self, cursor: str | None) -> Place | None:
        """Return the place a cursor names. Raises CursorUnknown."""
        if cursor is None:
            return None
        ref, dot, moment = cursor.partition(".")
        is_moment = moment.isascii() and moment.isdecimal() and len(moment) <= LONGEST_MOMENT
        if bool(dot) != is_moment or is_moment != (self._time is not None):
            raise CursorUnknown
        found = None
        if storable(ref):
            found = self._connection.execute(sa.select(_row.id).where(_row.ref == ref)).scalar_one_or_none()
        if found is None:
            raise CursorUnknown
        at = _EPOCH + timedelta(microseconds=int(moment)) if moment else None
        return Place(found, at)

    def places(self, limit: int, *, beyond: Place | None = None, back: bool = False) -> list[Place]:
        """Return the first `limit` places of the list, or those behind a place, or those before it for `back`."""
        if self._is_hopeless:
            return []
        falls = (self._order is not Order.OLDEST) != back
        within = self._within
        if beyond is not None and within and self._is_embedded:
            # Of two bounds on one side the embedded database would start at either.
            lower, upper = _row.connected_at, _hidden(_row.connected_at)
            within = self._between(lower, upper) if falls else self._between(upper, lower)
        query, key = self._query(within)
        if beyond is not None:
            query = query.where(self._after(key, beyond, back=back))
        columns = [key] if self._time is None else [self._time, key]
        query = query.order_by(*(column.desc() if falls else column.asc() for column in columns)).limit(limit)
        if self._time is None:
            return [Place(row[0], None) for row in self._connection.execute(query)]
        timed = query.add_columns(self._time)
        return [Place(row[0], row[1]) for row in self._connection.execute(timed)]

    def count(self) -> Count:
        """Return how many rows the list has, counting MOST_COUNTED and reading MOST_TRIED of them at most."""
        if self._is_hopeless:
            return Count(0, is_all=True)
        # Counting takes no notice of how the list is sorted.
        leader, few = self._leader(by_key=not self._within)
        _, clause = self._searched
        if clause is not None:
            # Looking told already that there are more than MOST_NAMED; how many more of them pass the rest stays open.
            return Count(0 if self._facets or self._within else MOST_NAMED, is_all=False)
        looked_at, left = self._candidates(leader, few)
        if not left:
            counted = looked_at.limit(MOST_COUNTED + 1).subquery()
            number = self._connection.execute(sa.select(sa.func.count()).select_from(counted)).scalar_one()
            return Count(min(number, MOST_COUNTED), number <= MOST_COUNTED)
        some = looked_at.with_only_columns(*_NEEDED).limit(MOST_TRIED + 1).subquery()
        passes = sa.and_(*(facet.holds(cast(_Columns, some.c), False) for facet in left))
        seen, number = self._connection.execute(
            sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((passes, 1), else_=0)), 0)).select_from(
                some
            )
        ).one()
        return Count(number, seen <= MOST_TRIED)

    # --- how it is found -------------------------------------------------------------------------------

    def _query(self, within: Sequence[_Clause]) -> tuple[sa.Select[Any], Any]:
        """Return what selects the keys of the list, unsorted, and the column they come from."""
        leader, few = self._leader(by_key=self._time is None)
        _, clause = self._searched
        key: Any = _row.id
        if leader is not None and leader.member is not None:
            query, key = self._by_member(leader)
        else:
            query = sa.select(_row.id).where(*within)
        if few is not None:
            query = query.where(_row.id.in_(few))
        rest = [facet.holds(cast(_Columns, _row), self._is_embedded and facet is not leader) for facet in self._facets
                if facet is not leader or facet.member is None]  # fmt: skip
        if leader is not None and leader.member is not None and not rest and clause is None:
            return query, key
        if leader is not None and leader.member is not None:
            query = query.join(ConnectedAccount, _row.id == key)
        query = query.where(*rest)
        if clause is not None:
            query = query.join(EndUser, _person.id == _row.end_user_id).where(clause(cast(_Columns, _row)))
        return query, key

    def _by_member(self, facet: _Facet) -> tuple[sa.Select[Any], Any]:
        assert facet.member is not None
        member = table(MetadataMember).c
        key, value = facet.member
        return sa.select(member.connection_id).where(member.key == key, member.value == value), member.connection_id

    def _candidates(self, leader: _Facet | None, few: set[int] | None) -> tuple[sa.Select[Any], list[_Facet]]:
        """Return what selects the rows worth a look to be counted, and the filters that are still to be tried."""
        left = [facet for facet in self._facets if facet is not leader]
        if leader is not None and leader.member is not None:
            query, key = self._by_member(leader)
            return (query.join(ConnectedAccount, _row.id == key) if left else query), left
        query = sa.select(_row.id).where(*self._within)
        if few is not None:
            return query.where(_row.id.in_(few)), left
        if leader is not None:
            query = query.where(leader.holds(cast(_Columns, _row), False))
        return query, left

    def _leader(self, *, by_key: bool) -> tuple[_Facet | None, set[int] | None]:
        """Return the filter whose index leads the way, or the keys of the few rows that can pass; neither for none.

        `by_key` says that nothing but the key sorts what is wanted: only then does an index of a filter's own help.
        """
        leaders = [facet for facet in self._facets if facet.leads and by_key]
        # One filter alone whose index is in the order of the list needs no look first.
        alone = len(self._facets) == len(leaders) <= 1 and self._search is None
        few = None if alone else self._few
        if few is not None:
            return None, few
        return (leaders[0] if leaders else None), None

    @cached_property
    def _few(self) -> set[int] | None:
        """The keys of the rows that can pass; None for more than MOST_NAMED."""
        few, _ = self._searched
        if few is None:
            for facet in self._narrow():
                found = self._gather(facet.ways)
                if found is not None:
                    few = found if few is None else few & found
        return few

    def _narrow(self) -> list[_Facet]:
        """Return the filters that may be passed by few rows, without reading the keys of those that many pass."""
        if not self._facets:
            return []
        # An offset costs the database a walk along an index, and nobody a thousand keys.
        beyond = [sa.or_(*(sa.exists(way.offset(MOST_NAMED).limit(1)) for way in each.ways)) for each in self._facets]
        told = self._connection.execute(sa.select(*beyond)).one()
        return [facet for facet, many in zip(self._facets, told, strict=True) if not many]

    @cached_property
    def _searched(self) -> tuple[set[int] | None, Callable[[_Columns], _Clause] | None]:
        """The keys of the rows that are searched for, or what holds for them where they are too many to name."""
        if self._search is None:
            return None, None
        ways, clause = _named(self._search, self._connection.dialect.name)
        few = self._gather(ways)
        return few, clause if few is None else None

    def _gather(self, ways: Sequence[sa.Select[tuple[int]]]) -> set[int] | None:
        """Return the keys that some ways find, None for more than MOST_NAMED."""
        # Each way by itself, so that it can use its own index; none gathers more than tells that it is too many.
        some = [way.limit(MOST_NAMED + 1).subquery() for way in ways]
        query = sa.union_all(*(sa.select(one.c.id) for one in some)).limit(len(ways) * (MOST_NAMED + 1))
        found = set(self._connection.execute(query).scalars())
        return found if len(found) <= MOST_NAMED else None

    def _between(self, lower: Any, upper: Any) -> list[_Clause]:
        found = [lower >= self._from] if self._from is not None else []
        return [*found, upper < self._before] if self._before is not None else found

    def _read(self, filters: ConnectionFilters) -> list[_Facet]:
        found = [_member(key, value) for key, value in filters.metadata.items()]
        if filters.end_user is not None:
            # Looked up first, so that the person's own rows are found through their index.
            person = sa.select(_person.id).where(_person.external_id == filters.end_user).scalar_subquery()
            found.append(_equals("end_user_id", person))
        if filters.status is not None:
            found.append(self._has_status(filters.status))
        exact = {
            "account_id": filters.account, "app_key": filters.app, "kind": filters.kind,
            "provider": filters.provider, "mode": filters.mode,
        }  # fmt: skip
        return found + [_equals(name, value) for name, value in exact.items() if value is not None]

    def _has_status(self, status: Status) -> _Facet:
        now = self._now

        def holds(row: _Columns, hidden: bool) -> _Clause:
            return has_status(status, row, now, standing=_hidden(STANDING) if hidden else STANDING)

        key = sa.select(_row.id)
        if status not in {Status.OK, Status.UNKNOWN}:
            return _Facet(holds, (key.where(holds(cast(_Columns, _row), False)),), leads=True)
        # These two change as time passes: the index of passed checks tells which are too old.
        standing = _hidden(STANDING) if self._is_embedded else STANDING
        passed = (_row.health == sa.literal_column("'ok'"), standing == Status.OK.value)
        if status is Status.OK:
            return _Facet(holds, (key.where(*passed, _row.checked_at >= now - FRESH_FOR),))
        stale = (_row.checked_at < now - FRESH_FOR, _row.checked_at.is_(None))
        never = key.where(Status.UNKNOWN.value == STANDING)
        return _Facet(holds, (never, *(key.where(*passed, each) for each in stale)))

    def _after(self, key: Any, place: Place, *, back: bool) -> _Clause:
        """Return what holds for the rows behind a place in the list, or before it for `back`."""
        falls = (self._order is not Order.OLDEST) != back
        if self._time is None:
            return key < place.id if falls else key > place.id  # type: ignore[no-any-return]
        at = sa.tuple_(sa.literal(place.at, self._time.type), sa.literal(place.id, key.type))
        where = sa.tuple_(self._time, key)
        return where < at if falls else where > at


def told_of(filters: ConnectionFilters) -> dict[str, str]:
    """Return what may be written down of filters. What names a person stays out: the trail outlives them."""
    given = {
        "provider": filters.provider, "app": filters.app, "kind": filters.kind, "mode": filters.mode,
        "status": filters.status.value if filters.status is not None else None,
    }  # fmt: skip
    days = {"connected_from": filters.connected_from, "connected_before": filters.connected_before}
    person = {"search": filters.search, "end_user": filters.end_user, "metadata": filters.metadata}
    told = {name: value for name, value in given.items() if value}
    told |= {name: f"{value:%Y-%m-%d}" for name, value in days.items() if value}
    return told | {name: "given" for name, value in person.items() if value}


def cursor_of(ref: str, place: Place) -> str:
    """Return the name of a row's place. It holds the time too where that is sorted by, because it may move."""
    return ref if place.at is None else f"{ref}.{(place.at - _EPOCH) // timedelta(microseconds=1)}"


_NEEDED = (
    _row.id, _row.end_user_id, _row.provider, _row.app_key, _row.kind, _row.mode, _row.account_id, _row.disconnected_at,
    _row.revoked_at, _row.interrupted_at, _row.health, _row.import_state, _row.checked_at,
)  # fmt: skip
"""What filters, search aside, look at."""


def _can_be_stored(filters: ConnectionFilters) -> bool:
    """Tell whether any row can hold the texts asked for."""
    fields = (filters.end_user, filters.provider, filters.app, filters.kind, filters.account, filters.mode)
    texts = (*fields, filters.search, *filters.metadata, *filters.metadata.values())
    return all(storable(text) for text in texts if text is not None)


def _hidden(column: Any) -> Any:
    """Return a column that SQLite takes no index for: a unary plus is its own way to say so."""
    return sa.UnaryExpression(column, operator=sa.sql.operators.custom_op("+"), type_=column.type)


def _equals(name: str, value: Any) -> _Facet:
    return _Facet(
        lambda row, hidden: (_hidden(row[name]) if hidden else row[name]) == value,
        (sa.select(_row.id).where(_row[name] == value).order_by(_row.id),),
        leads=True,
    )


def _member(key: str, value: str) -> _Facet:
    member = table(MetadataMember).c
    mine = (member.key == key, member.value == value)
    found = sa.select(member.connection_id.label("id")).where(*mine).order_by(member.connection_id)
    # By another name: the list may be led by another member of the same table.
    other = table(MetadataMember).alias().c
    its = (other.key == key, other.value == value)
    return _Facet(
        lambda row, _: sa.exists(sa.select(sa.literal(1)).where(*its, other.connection_id == row["id"])),
        (found,),
        leads=True,
        member=(key, value),
    )


def _named(text: str, dialect: str) -> tuple[list[sa.Select[tuple[int]]], Callable[[_Columns], _Clause]]:
    """Return the ways to the rows that `text` names, and what holds for them."""
    person = table(EndUser)

    def own(row: _Columns) -> tuple[_Clause, ...]:
        exact = (row["ref"] == _as_ref(text), row["account_id"] == text, row["credential_id"] == text)
        return (*exact, _begins(row["account_name"], text, dialect))

    theirs = (person.c.external_id == text, _begins(person.c.email, text, dialect))
    by_person = sa.select(_row.id).join(person, person.c.id == _row.end_user_id)
    ways = [sa.select(_row.id).where(way) for way in own(cast(_Columns, _row))]
    ways += [by_person.where(way) for way in theirs]
    return ways, lambda row: sa.or_(*own(row), *theirs)


def _begins(column: Any, text: str, dialect: str) -> _Clause:
    """Tell whether a text begins so, whatever the case; in the words of the index that finds it."""
    start: sa.ColumnElement[str] = sa.literal(text, sa.Text())
    if dialect == "sqlite":
        column = column.collate("NOCASE")
    else:
        column, start = sa.func.lower(column).collate("C"), sa.func.lower(start)
    if len(text) < LEAST_TYPED:
        return column == start  # type: ignore[no-any-return]
    # A range: LIKE would read % and _ as its own.
    return sa.and_(column >= start, column < start + sa.literal("\U0010ffff", sa.Text()))


def _as_ref(text: str) -> str:
    """Return what somebody typed in the form references have: capitals in groups of four, look-alikes mended."""
    letters = text.upper().removeprefix("REF ").translate(_LOOK_ALIKES)
    if len(letters) != 12 or not set(letters) <= set(ALPHABET):
        return text
    return "-".join(letters[start : start + 4] for start in (0, 4, 8))
