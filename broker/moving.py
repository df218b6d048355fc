"""Moving out and in: connections as JSON lines, and existing tokens from a CSV.

Both ways stream, so that memory does not grow with the file. Moving in can be broken off at any line and started again:
what is here already is left alone. Grants travel sealed for a key of the mover's own, or not at all.
"""

from __future__ import annotations

import base64
import binascii
import csv
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Annotated, Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from broker import audit
from broker.apps import AppCatalogue, OfferedApp
from broker.attach import grant_binding
from broker.audit import COMMAND_LINE
from broker.clock import Clock
from broker.connection_metadata import index_new
from broker.connections import ConnectionUnknown
from broker.contract import LONGEST_EMAIL, LONGEST_ID, LONGEST_NAME, REF
from broker.db import Database, table
from broker.errors import BrokerError, Unreadable, UnusableAnswer
from broker.jobs import Jobs
from broker.models import Claim, ConnectedAccount, EndUser, ImportState
from broker.oauth import Grant, parse_grant
from broker.providers.base import Account
from broker.references import new_ref
from broker.settings import EncryptionKey
from broker.text import VISIBLE_LINE, storable
from broker.vault import Binding, Vault

AT_ONCE = 500
"""Rows read in one transaction."""
WRITTEN_AT_ONCE = 250
"""Lines written in one transaction: an embedded database has one writer at a time, and people wait behind it."""
LONGEST_LINE = 1 << 20
CHECKED_WITHIN = timedelta(hours=20)
"""Over how long the first checks of what moved in are spread, so that Sequin is not asked for everything at once."""

_claims = table(Claim)
_connections = table(ConnectedAccount)
_people = table(EndUser)


class LineRefused(BrokerError):
    """A line cannot be moved in; the detail says why, without quoting what may be a token."""

    code = "line_refused"
    cure = "Correct the line and run the import again: what is in already is left alone."


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, regex_engine="python-re")


class MovedPerson(_Part):
    """Whose connection it is."""

    id: Annotated[str, Field(min_length=1, max_length=LONGEST_ID, pattern=VISIBLE_LINE)]
    email: Annotated[str | None, Field(max_length=LONGEST_EMAIL)] = None
    name: Annotated[str | None, Field(max_length=LONGEST_NAME)] = None


class MovedAccount(_Part):
    """The account at the provider; `facts` is what an import needs besides."""

    id: Annotated[str, Field(min_length=1, max_length=255, pattern=VISIBLE_LINE)]
    name: Annotated[str, Field(max_length=200)]
    type: Annotated[str | None, Field(max_length=40)] = None
    mode: Literal["test", "live"]
    facts: dict[str, Any] = {}


class MovedCredential(_Part):
    """What Sequin holds of it already."""

    credential_id: Annotated[str, Field(min_length=1, max_length=64)]
    oauth_app_id: Annotated[str | None, Field(max_length=64)] = None
    imported_at: datetime


class MovedGrant(_Part):
    """The grant, sealed for the mover's key."""

    sealed: str
    token_version: int


class MovedConnection(_Part):
    """One line of an export."""

    ref: Annotated[str, Field(pattern=REF)]
    end_user: MovedPerson
    app: str
    account: MovedAccount
    scopes: list[str] = []
    metadata: dict[str, Any] = {}
    sequin: MovedCredential | None = None
    grant: MovedGrant | None = None
    connected_at: datetime
    created_at: datetime


class Outcome(StrEnum):
    """What became of a line."""

    SAVED = "saved"
    HERE_ALREADY = "here_already"
    BAD = "bad"


@dataclass(frozen=True)
class LineOutcome:
    """What became of one line, counted from 1; `problem` says why it is bad."""

    line: int
    outcome: Outcome
    problem: str = ""


@dataclass(frozen=True)
class _Arrival:
    """A line that has been understood."""

    moved: MovedConnection
    app: OfferedApp
    grant: Grant | None = field(repr=False)
    sealed: bytes | None = field(repr=False)
    # Why it could never get into Sequin, empty when it could. What is here already need not.
    unfit: str


TAKEN = "its account is connected to another end user here"

_Reader = tuple[int, Callable[[], _Arrival]]
_Place = tuple[str, str, str]
"""An account by its app, the provider's id and the mode."""


def _claim(insert: Any) -> Any:
    """Return the statement that claims accounts and tells whose they are; `insert` is the dialect's own."""
    # The update that changes nothing keeps a claim from being given up before this commits.
    return (
        insert(_claims)
        .on_conflict_do_update(
            index_elements=["app_key", "account_id", "mode"], set_={"end_user_id": _claims.c.end_user_id}
        )
        .returning(_claims.c.app_key, _claims.c.account_id, _claims.c.mode, _claims.c.end_user_id)
    )


_CLAIM = {"sqlite": _claim(sqlite.insert), "postgresql": _claim(postgresql.insert)}
_ADD_PEOPLE = {
    "sqlite": sqlite.insert(_people).on_conflict_do_nothing(),
    "postgresql": postgresql.insert(_people).on_conflict_do_nothing(),
}
_ADD_CONNECTIONS = sa.insert(_connections).returning(_connections.c.id, _connections.c.ref)


class Moving:
    """Exports and imports connections."""

    def __init__(self, *, database: Database, clock: Clock, apps: AppCatalogue, vault: Vault, jobs: Jobs) -> None:
        self._database = database
        self._clock = clock
        self._apps = apps
        self._vault = vault
        self._jobs = jobs

    # --- out -------------------------------------------------------------------------------------------

    def export(self, *, key: EncryptionKey | None = None, after: str | None = None) -> Iterator[str]:
        """Yield every live connection as a JSON line, oldest first, those after the one called `after`.

        With `key` grants are sealed for it, otherwise they are left out. Raises ConnectionUnknown, and Unreadable
        for a grant that does not open.
        """
        sealer = Vault([key]) if key is not None else None
        last = self._key_of(after) if after is not None else 0
        while True:
            with self._database.read() as connection:
                rows = connection.execute(
                    sa.select(_connections, _people.c.external_id, _people.c.email, _people.c.name)
                    .join(_people, _people.c.id == _connections.c.end_user_id)
                    .where(
                        _connections.c.id > last,
                        _connections.c.disconnected_at.is_(None),
                        _connections.c.account_id.is_not(None),
                    )
                    .order_by(_connections.c.id)
                    .limit(AT_ONCE)
                ).all()
            if not rows:
                return
            for row in rows:
                yield self._line(row, sealer)
            last = rows[-1].id

    def _key_of(self, ref: str) -> int:
        found = None
        if storable(ref):
            with self._database.read() as connection:
                query = sa.select(_connections.c.id).where(_connections.c.ref == ref)
                found = connection.execute(query).scalar_one_or_none()
        if found is None:
            raise ConnectionUnknown(f"no connection is called {ref!a}")
        return int(found)

    def _line(self, row: Row[Any], sealer: Vault | None) -> str:
        grant = None
        if sealer is not None and row.grant_sealed is not None:
            opened = self._vault.open(row.grant_sealed, grant_binding(row.ref, row.token_version))
            sealed = sealer.seal(opened, _export_binding(row.ref, row.token_version))
            grant = MovedGrant(sealed=base64.b64encode(sealed).decode(), token_version=row.token_version)
        sequin = None
        if row.credential_id is not None and row.imported_at is not None:
            sequin = MovedCredential(
                credential_id=row.credential_id, oauth_app_id=row.sequin_oauth_app_id, imported_at=row.imported_at
            )
        return MovedConnection(
            ref=row.ref,
            end_user=MovedPerson(id=row.external_id, email=row.email, name=row.name),
            app=row.app_key,
            account=MovedAccount(
                id=row.account_id, name=row.account_name, type=row.account_type, mode=row.mode, facts=row.account_facts
            ),
            scopes=row.scopes,
            metadata=row.host_metadata,
            sequin=sequin,
            grant=grant,
            connected_at=row.connected_at,
            created_at=row.created_at,
        ).model_dump_json()

    # --- in --------------------------------------------------------------------------------------------

    def take_lines(self, lines: Iterable[bytes], *, key: EncryptionKey | None = None) -> Iterator[LineOutcome]:
        """Move in what `export` wrote, and yield what became of each line; `key` opens the grants."""
        opener = Vault([key]) if key is not None else None
        return self._take((number, partial(self._read, text, opener)) for number, text in _numbered(lines))

    def take_table(self, rows: Iterable[str]) -> Iterator[LineOutcome]:
        """Move in existing tokens from a CSV with a heading, and yield what became of each line.

        Columns: `end_user_id`, `app`, `account_id`, `mode`; optionally `email`, `name`, `account_name`,
        `account_type`, `access_token`, `refresh_token`, `scope`, `metadata.<key>`, `fact.<name>`, and whatever else the
        provider's token answer has. Raises LineRefused for a heading without the first four.
        """
        reader = csv.DictReader(rows, strict=True)
        missing = {"end_user_id", "app", "account_id", "mode"} - set(reader.fieldnames or ())
        if missing:
            raise LineRefused(f"line 1: the heading has no {', '.join(sorted(missing))}")
        return self._take((number, partial(self._read_row, row)) for number, row in _records(reader))

    def _take(self, readers: Iterable[_Reader]) -> Iterator[LineOutcome]:
        for batch in _batches(readers, WRITTEN_AT_ONCE):
            outcomes: dict[int, LineOutcome] = {}
            arrivals: dict[int, _Arrival] = {}
            # Read, checked and sealed before the transaction: nobody waits for that.
            for number, read in batch:
                try:
                    arrivals[number] = read()
                except LineRefused as refusal:
                    outcomes[number] = LineOutcome(number, Outcome.BAD, refusal.detail)
            if arrivals:
                outcomes |= self._save(arrivals)
                self._jobs.wakeup.set()
            # Told only once it is committed.
            for number, _ in batch:
                yield outcomes[number]

    def _read(self, text: bytes, opener: Vault | None) -> _Arrival:
        if len(text) > LONGEST_LINE:
            raise LineRefused(f"is longer than {LONGEST_LINE} bytes")
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise LineRefused("is not JSON") from None
        moved = _validated(content)
        return self._arrival(moved, self._app(moved.app), _opened(moved, opener))

    def _read_row(self, row: Mapping[str, str] | None) -> _Arrival:
        if row is None:
            raise LineRefused("is not a line of the table: it has other columns than the heading, or broken quotes")
        told = {name: value for name, value in row.items() if value != ""}
        known = ("end_user_id", "app", "account_id", "mode", "email", "name", "account_name", "account_type")
        answer = {name: value for name, value in told.items() if name not in known and "." not in name}
        now = self._clock.now().isoformat()
        moved = _validated(
            {
                "ref": new_ref(),
                "end_user": {"id": told.get("end_user_id"), "email": told.get("email"), "name": told.get("name")},
                "app": told.get("app"),
                "account": {
                    "id": told.get("account_id"),
                    "name": told.get("account_name") or told.get("account_id"),
                    "type": told.get("account_type"),
                    "mode": told.get("mode"),
                    "facts": _below(told, "fact."),
                },
                "scopes": answer.get("scope", "").split(),
                "metadata": _below(told, "metadata."),
                "connected_at": now,
                "created_at": now,
            }
        )
        app = self._app(moved.app)
        try:
            grant = parse_grant(
                {"token_type": "bearer", **answer}, received_at=self._clock.now(), requires_access_token=False
            )
        except UnusableAnswer as failure:
            raise LineRefused(failure.detail) from None
        has_token = grant.access_token is not None or grant.refresh_token is not None
        return self._arrival(moved, app, grant if has_token else None)

    def _arrival(self, moved: MovedConnection, app: OfferedApp, grant: Grant | None) -> _Arrival:
        sealed = None if grant is None else self._vault.seal(grant.to_json(), grant_binding(moved.ref, 1))
        return _Arrival(moved, app, grant, sealed, _unfit(moved, app, grant))

    def _app(self, key: str) -> OfferedApp:
        if key not in self._apps:
            raise LineRefused("names an OAuth app that is not configured here")
        return self._apps.get(key)

    def _save(self, arrivals: Mapping[int, _Arrival]) -> dict[int, LineOutcome]:
        """Save in one transaction what is not here already, and return what became of each line.

        A statement for each table and not for each line: that is what a large move takes its time for.
        """
        now = self._clock.now()
        outcomes: dict[int, LineOutcome] = {}
        with self._database.write() as connection:
            here = _Here.look(connection, [arrival.moved for arrival in arrivals.values()], now)
            new: dict[int, _Arrival] = {}
            for number, arrival in arrivals.items():
                try:
                    outcomes[number] = LineOutcome(number, here.judge(arrival))
                except LineRefused as refusal:
                    outcomes[number] = LineOutcome(number, Outcome.BAD, refusal.detail)
                    continue
                if outcomes[number].outcome is Outcome.SAVED:
                    new[number] = arrival
            for number in here.claim(connection, new):
                outcomes[number] = LineOutcome(number, Outcome.BAD, TAKEN)
                del new[number]
            if new:
                self._insert(connection, list(new.values()), here, now)
        return outcomes

    def _insert(self, connection: Connection, new: Sequence[_Arrival], here: _Here, now: datetime) -> None:
        rows = [_row(arrival, here.people[arrival.moved.end_user.id], now) for arrival in new]
        keys = {row.ref: row.id for row in connection.execute(_ADD_CONNECTIONS, rows)}
        lines = [arrival.moved for arrival in new]
        index_new(connection, {keys[line.ref]: line.metadata for line in lines})
        at_once = {keys[line.ref]: timedelta(0) for line in lines if line.sequin is None}
        self._jobs.enqueue_all(connection, "import", at_once)
        later = {keys[line.ref]: _spread(line.ref) for line in lines if line.sequin is not None}
        self._jobs.enqueue_all(connection, "verify", later)
        details = {line.ref: {"app": line.app, "account": line.account.id, "mode": line.account.mode} for line in lines}
        audit.record_all(
            connection, at=now, actor_kind=COMMAND_LINE.kind, actor=COMMAND_LINE.name, action="connection.moved_in",
            details=details,
        )  # fmt: skip


@dataclass
class _Here:
    """What a batch of lines meets here; kept up with while the batch is gone through line by line."""

    # People's keys by the host's own ids, and who of them is being erased.
    people: dict[str, int]
    erasing: set[str]
    # Whose every account is, and which of them are here as a connection.
    owners: dict[_Place, int]
    connected: set[tuple[int, _Place]]
    refs: set[str]

    @classmethod
    def look(cls, connection: Connection, lines: Sequence[MovedConnection], now: datetime) -> _Here:
        """Return what there is of these lines; adds the people that are new."""
        people = {line.end_user.id: line.end_user for line in lines}
        known = sa.select(_people.c.external_id, _people.c.id, _people.c.erasure_asked_at).where(
            _people.c.external_id.in_(people)
        )
        found = {row.external_id: row for row in connection.execute(known)}
        missing = [
            {"external_id": person.id, "email": person.email, "name": person.name, "created_at": now}
            # In one order everywhere, so that two imports never wait for each other.
            for _, person in sorted(people.items())
            if person.id not in found
        ]
        if missing:
            connection.execute(_ADD_PEOPLE[connection.dialect.name], missing)
            found = {row.external_id: row for row in connection.execute(known)}
        keys = {name: int(row.id) for name, row in found.items()}
        erasing = {name for name, row in found.items() if row.erasure_asked_at is not None}
        connected = cls._connected(connection, {(keys[line.end_user.id], _place(line)) for line in lines})
        refs = sa.select(_connections.c.ref).where(_connections.c.ref.in_([line.ref for line in lines]))
        taken = set(connection.execute(refs).scalars())
        return cls(keys, erasing, cls._owners(connection, set(map(_place, lines))), connected, taken)

    @staticmethod
    def _connected(connection: Connection, sought: Collection[tuple[int, _Place]]) -> set[tuple[int, _Place]]:
        columns = (_connections.c.end_user_id, _connections.c.app_key, _connections.c.account_id, _connections.c.mode)
        among = sa.tuple_(*columns).in_([(person, *place) for person, place in sought])
        return {(row[0], (row[1], row[2], row[3])) for row in connection.execute(sa.select(*columns).where(among))}

    @staticmethod
    def _owners(connection: Connection, places: Collection[_Place]) -> dict[_Place, int]:
        place = (_claims.c.app_key, _claims.c.account_id, _claims.c.mode)
        query = sa.select(*place, _claims.c.end_user_id).where(sa.tuple_(*place).in_(list(places)))
        return {(row[0], row[1], row[2]): row[3] for row in connection.execute(query)}

    def judge(self, arrival: _Arrival) -> Outcome:
        """Return what becomes of the next line. Raises LineRefused."""
        moved, place = arrival.moved, _place(arrival.moved)
        if moved.end_user.id in self.erasing:
            raise LineRefused("is about an end user who is being erased here")
        person = self.people[moved.end_user.id]
        if (person, place) in self.connected:
            return Outcome.HERE_ALREADY
        if arrival.unfit:
            raise LineRefused(arrival.unfit)
        if moved.ref in self.refs:
            raise LineRefused(f"its reference {moved.ref} stands for another connection here")
        if self.owners.setdefault(place, person) != person:
            raise LineRefused(TAKEN)
        self.connected.add((person, place))
        self.refs.add(moved.ref)
        return Outcome.SAVED

    def claim(self, connection: Connection, new: Mapping[int, _Arrival]) -> list[int]:
        """Claim the accounts of these lines; returns the lines that somebody else came before, since `look`."""
        # In one order everywhere, so that two imports never wait for each other.
        places = sorted({_place(arrival.moved) for arrival in new.values()})
        if not places:
            return []
        rows = [
            {"app_key": app, "account_id": account, "mode": mode, "end_user_id": self.owners[app, account, mode]}
            for app, account, mode in places
        ]
        claimed = connection.execute(_CLAIM[connection.dialect.name], rows)
        owners = {(row[0], row[1], row[2]): row[3] for row in claimed}
        return [
            number
            for number, arrival in new.items()
            if owners[_place(arrival.moved)] != self.owners[_place(arrival.moved)]
        ]


def _place(moved: MovedConnection) -> _Place:
    return moved.app, moved.account.id, moved.account.mode


def _row(arrival: _Arrival, person: int, now: datetime) -> dict[str, object]:
    moved, grant, sequin = arrival.moved, arrival.grant, arrival.moved.sequin
    return {
        "ref": moved.ref,
        "end_user_id": person,
        "app_key": moved.app,
        "provider": arrival.app.provider.name,
        "kind": arrival.app.provider.kind,
        "account_id": moved.account.id,
        "account_name": moved.account.name,
        "account_type": moved.account.type,
        "mode": moved.account.mode,
        "account_facts": moved.account.facts,
        "scopes": moved.scopes,
        "host_metadata": moved.metadata,
        "grant_sealed": arrival.sealed,
        "grant_expires_at": grant.expires_at if grant else None,
        "refresh_expires_at": grant.refresh_expires_at if grant else None,
        "token_version": 1,
        "import_state": ImportState.PENDING if sequin is None else ImportState.IMPORTED,
        "credential_id": sequin.credential_id if sequin else None,
        "sequin_oauth_app_id": sequin.oauth_app_id if sequin else None,
        "imported_at": sequin.imported_at if sequin else None,
        "connected_at": moved.connected_at,
        "created_at": moved.created_at,
        "updated_at": now,
    }


def _unfit(moved: MovedConnection, app: OfferedApp, grant: Grant | None) -> str:
    """Return why a connection could never get into Sequin; empty when it could."""
    try:
        _require_importable(moved, app, grant)
    except LineRefused as refusal:
        return refusal.detail
    return ""


def _require_importable(moved: MovedConnection, app: OfferedApp, grant: Grant | None) -> None:
    """Raise LineRefused for a connection that could never get into Sequin, or that pages and checks could not read."""
    provider = app.provider
    if moved.sequin is None and grant is None and provider.import_needs_grant:
        raise LineRefused("has neither a token nor a credential in Sequin, so nothing could be imported")
    account = Account(moved.account.id, moved.account.name, moved.account.type, moved.account.mode, moved.account.facts)
    try:
        provider.identity(account)
        if provider.manage_url is not None:
            provider.manage_url(app.config, account)
        if moved.sequin is None:
            provider.properties(app.config, account, grant)
    except BrokerError as failure:
        raise LineRefused(failure.detail) from None
    except (KeyError, TypeError, ValueError):
        # Its text may quote what was given.
        raise LineRefused("lacks what the provider's import needs of an account (`facts`)") from None


def _opened(moved: MovedConnection, opener: Vault | None) -> Grant | None:
    if moved.grant is None:
        return None
    if opener is None:
        raise LineRefused("holds a sealed grant: name the key that it was sealed for")
    try:
        sealed = base64.b64decode(moved.grant.sealed, validate=True)
        return Grant.from_json(opener.open(sealed, _export_binding(moved.ref, moved.grant.token_version)))
    except (binascii.Error, Unreadable):
        raise LineRefused("its grant does not open with this key") from None


def _validated(content: object) -> MovedConnection:
    try:
        moved = MovedConnection.model_validate(content)
    except ValidationError as failure:
        found = failure.errors(include_url=False, include_context=False, include_input=False)
        told = "; ".join(f"{'.'.join(str(part) for part in each['loc'])}: {each['msg']}"[:200] for each in found[:5])
        raise LineRefused(told) from None
    if moved.connected_at.tzinfo is None or moved.created_at.tzinfo is None:
        raise LineRefused("connected_at, created_at: a time needs its zone")
    if moved.sequin is not None and moved.sequin.imported_at.tzinfo is None:
        raise LineRefused("sequin.imported_at: a time needs its zone")
    try:
        # One pass over all of it, nested texts included.
        whole = moved.model_dump_json()
    except ValueError:
        raise LineRefused("holds a character that cannot be stored") from None
    if "\\u0000" in whole:
        raise LineRefused("holds a character that cannot be stored")
    return moved


def _below(told: Mapping[str, str], prefix: str) -> dict[str, object]:
    """Return the columns below a prefix; numbers stay numbers where they are written as JSON writes them."""
    return {
        name.removeprefix(prefix): int(value) if value.isascii() and value.isdigit() else value
        for name, value in told.items()
        if name.startswith(prefix)
    }


def _numbered(lines: Iterable[bytes]) -> Iterator[tuple[int, bytes]]:
    return ((number, text) for number, text in enumerate(lines, 1) if text.strip())


def _records(reader: csv.DictReader[str]) -> Iterator[tuple[int, Mapping[str, str] | None]]:
    """Yield line numbers and rows, None for a row that is not one of this table."""
    while True:
        try:
            row: Mapping[Any, Any] = next(reader)
        except StopIteration:
            return
        except csv.Error:
            # The table itself has not counted this one yet.
            yield reader.reader.line_num, None
            continue
        whole = None not in row and None not in row.values()
        yield reader.line_num, row if whole else None


def _spread(ref: str) -> timedelta:
    """Return when something that moved in is first checked: the same for a reference each time, and spread evenly."""
    share = int.from_bytes(sha256(ref.encode()).digest()[:4], "big") / 2**32
    return CHECKED_WITHIN * share


def _export_binding(ref: str, token_version: int) -> Binding:
    return Binding("export", "grant", ref, token_version)


def _batches(items: Iterable[_Reader], size: int) -> Iterator[list[_Reader]]:
    given = iter(items)
    while batch := list(islice(given, size)):
        yield batch
