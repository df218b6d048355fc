"""Circuits: while another side does not answer, or does not accept us, nothing hammers it; one call in a while looks.

A circuit stands for Sequin or for one OAuth app at its provider. Its state is a row, so that all processes agree;
each process keeps what it read for a second, so that the hot paths pay next to nothing while all is well.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Row

from broker.clock import Clock
from broker.db import Database, DatabaseUnavailable, table
from broker.errors import (
    BrokerError,
    ClientRefused,
    FlowFailure,
    NetworkError,
    OAuthFailure,
    RegistrationDoubted,
    SequinError,
    SequinUnauthorized,
    UnusableAnswer,
    Verdict,
    by_code,
)
from broker.jobs import Jobs
from broker.models import Circuit, ConnectedAccount, Flow
from broker.providers.base import ProviderRefused, ProviderUnavailable, TokenRejected

SEQUIN = "sequin"
OPENS_AFTER = 5
"""Failures in a row that open a circuit."""
PROBE_SECONDS = 12.0
"""How often an open circuit lets one call through; with what a worker adds until it looks, under 15 seconds."""
MIN_WAIT_SECONDS = 5.0
HOPELESS_AFTER = 2
"""Refusals of a registration after which background work stops trying it every few seconds."""
HOPELESS_FOR = timedelta(minutes=15)
KNOWN_SECONDS = 1.0
"""How long a process goes by what it has read."""

NEEDS: Mapping[str, str] = MappingProxyType(dict.fromkeys(("import", "verify", "remove", "reconcile"), SEQUIN))
"""The circuit that each kind of job needs closed."""
NEEDS_APP = ("revoke", "refresh", "probe", "discard")
"""The kinds of job that call an OAuth app's provider; each looks at the circuit of its own app."""
REFUSALS = frozenset({ClientRefused.code, RegistrationDoubted.code})
"""What says that our own registration at a provider must be mended."""
WAIT_SPREAD_SECONDS = 60.0
"""Over how long jobs that wait for an app's circuit spread their looks, so that thousands cost next to nothing."""

log = structlog.get_logger(__name__)

_circuits = table(Circuit)
_ALL = sa.select(_circuits)
_connections = table(ConnectedAccount)
_flows = table(Flow)


class CircuitOpen(BrokerError):
    """Nothing is sent to the other side at the moment; `retry_after` is in seconds."""

    code = "circuit_open"
    verdict = Verdict.RETRY
    cure = "Nothing to do here: it goes on by itself as soon as the other side answers again."

    def __init__(self, detail: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(detail)


def app_circuit(app_key: str) -> str:
    """Return the name of the circuit of an OAuth app's provider calls."""
    return f"app:{app_key}"


@dataclass(frozen=True)
class OpenCircuit:
    """A circuit that lets nothing through, for pages, the doctor and the API."""

    name: str
    since: datetime
    next_try_at: datetime
    # The last failure's stable code, and a fact for operators.
    error: str
    detail: str
    failures: int
    # Whether the next call may be let through already.
    is_due: bool
    # Whether background work should leave it alone for longer, because trying once more would tell nothing new.
    is_hopeless: bool = False

    @property
    def app_key(self) -> str | None:
        """The OAuth app it stands for, None for Sequin."""
        kind, _, key = self.name.partition(":")
        return key if kind == "app" else None

    @property
    def is_refusal(self) -> bool:
        """Whether the other side answers but does not accept us: a setting must be mended."""
        return self.error == SequinUnauthorized.code or self.error in REFUSALS

    @property
    def cure(self) -> str:
        """What an operator can do."""
        failure: type[BrokerError] | None = by_code(self.error)
        return failure.cure if failure is not None else NetworkError.cure


class Circuits:
    """Opens, probes and closes circuits."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        jobs: Jobs,
        *,
        secrets: Mapping[str, str] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`secrets` has, for each circuit, a digest of what this process proves itself with."""
        self._secrets = secrets or {}
        self._database = database
        self._clock = clock
        self._jobs = jobs
        self._jitter = jitter
        self._lock = threading.Lock()
        self._known: tuple[float, Mapping[str, OpenCircuit | None]] | None = None

    # --- asking ----------------------------------------------------------------------------------------

    def look(self, name: str, *, afresh: bool = False) -> OpenCircuit | None:
        """Return the circuit if it is open; from memory, where this process has looked within a second.

        With `afresh` a circuit that memory has as open is read again: for whoever is about to turn a person away.
        """
        found = self._rows().get(name)
        if found is not None and afresh:
            self._forget()
            found = self._rows().get(name)
        return found

    def open(self) -> list[OpenCircuit]:
        """Return every open circuit, Sequin's first."""
        found = [circuit for circuit in self._rows().values() if circuit is not None]
        return sorted(found, key=lambda circuit: (circuit.name != SEQUIN, circuit.name))

    def claim(self, name: str) -> bool:
        """Take the next probe of an open circuit: of any number of processes that ask at once, one may call."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            claimed = connection.execute(
                sa.update(_circuits)
                .where(_circuits.c.name == name, sa.or_(_circuits.c.probe_at <= now, self._has_other_secrets(name)))
                .values(probe_at=now + timedelta(seconds=PROBE_SECONDS), refused_secrets=None, updated_at=now)
            ).rowcount
        self._forget()
        return bool(claimed)

    def _has_other_secrets(self, name: str) -> sa.ColumnElement[bool]:
        """Tell whether what was refused is not what this process has: then nothing speaks against trying at once."""
        return sa.and_(
            _circuits.c.refused_secrets.is_not(None), _circuits.c.refused_secrets != self._secrets.get(name, "")
        )

    def admit(self, name: str) -> float | None:
        """Let one call of background work through, or say for how many seconds to leave the other side alone.

        A registration that was refused twice is not tried again soon unless its secrets have changed: thousands of
        connections waiting for a refresh must not hammer, and a person who connects shows sooner that it works again.
        """
        self._forget()
        circuit = self._rows().get(name)
        if circuit is None or (circuit.is_due and not circuit.is_hopeless and self.claim(name)):
            return None
        return max(MIN_WAIT_SECONDS, (circuit.next_try_at - self._clock.now()).total_seconds())

    # --- telling ---------------------------------------------------------------------------------------

    @contextmanager
    def watching(self, name: str, *, conclusive: bool = True) -> Iterator[None]:
        """Note how the calls inside go, and raise whatever they raise.

        An answer closes the circuit, be it a refusal of what was asked. With `conclusive=False` only failures count:
        for the first of several calls that stand for one success together.
        """
        try:
            yield
        except BrokerError as failure:
            if isinstance(failure, SequinUnauthorized | ClientRefused):
                self._note(partial(self.failed, name, failure, at_once=True))
            elif _is_failure(failure):
                self._note(partial(self.failed, name, failure))
            elif conclusive and isinstance(failure, _ANSWERS):
                self._note(partial(self.succeeded, name, proves_accounts=False))
            raise
        if conclusive:
            self._note(partial(self.succeeded, name))

    @contextmanager
    def through(self, app_key: str) -> Iterator[None]:
        """Let the calls of a job reach an OAuth app's provider, and note how they go.

        While the circuit is open only its probe gets through; its success closes the circuit. Otherwise only
        failures count: that access can be ended does not show that people can connect.
        Raises CircuitOpen instead of calling, and whatever the calls raise.
        """
        name = app_circuit(app_key)
        circuit = self.look(name)
        if circuit is not None and self.admit(name) is not None:
            raise self._waiting(circuit)
        with self.watching(name, conclusive=False):
            yield
        if circuit is not None:
            self._note(partial(self.succeeded, name, proves_accounts=False))

    def _waiting(self, circuit: OpenCircuit) -> CircuitOpen:
        left = (circuit.next_try_at - self._clock.now()).total_seconds()
        wait = max(1.0, left) + self._jitter() * WAIT_SPREAD_SECONDS
        trouble = "has not accepted" if circuit.is_refusal else "has not answered"
        since = f"{circuit.since.day} {circuit.since:%b, %H:%M} UTC"
        return CircuitOpen(f"The provider {trouble} {circuit.app_key} since {since} ({circuit.error})", wait)

    def succeeded(self, name: str, *, proves_accounts: bool = True) -> None:
        """Close the circuit, or forget single failures; no statement when there is nothing to forget.

        With `proves_accounts=False` it was an answer that a stranger's registration would have had, too: what was
        opened because every account was unknown stays open.
        """
        if name not in self._rows():
            return
        with self._database.write() as connection:
            before = self._locked(connection, name)
            if before is None or (before.error == RegistrationDoubted.code and not proves_accounts):
                return
            connection.execute(sa.delete(_circuits).where(_circuits.c.name == name))
            if before.opened_at is not None:
                self._hasten(connection, name)
        self._forget()
        if before.opened_at is not None:
            log.info("circuit.closed", circuit=name, since=before.opened_at.isoformat())
            self._jobs.wakeup.set()

    def _hasten(self, connection: Connection, name: str) -> None:
        """Make what waited for this circuit due."""
        if name == SEQUIN:
            self._jobs.hasten(connection, list(NEEDS))
            return
        app_key = name.partition(":")[2]
        for kind in NEEDS_APP:
            subjects = _flows if kind == "discard" else _connections
            theirs = sa.select(subjects.c.id).where(subjects.c.app_key == app_key)
            self._jobs.hasten(connection, [kind], subjects=theirs, failed=True)

    def failed(self, name: str, failure: BrokerError, *, at_once: bool = False) -> None:
        """Count a failure; the fifth in a row, or one `at_once`, opens the circuit."""
        with self._database.write() as connection:
            now = self._database.now(connection)
            insert = sqlite.insert if self._database.is_sqlite else postgresql.insert
            fresh = insert(_circuits).values(name=name, failures=0, updated_at=now)
            connection.execute(fresh.on_conflict_do_nothing(index_elements=["name"]))
            before = self._locked(connection, name)
            assert before is not None
            failures = before.failures + 1
            is_open = at_once or before.opened_at is not None or failures >= OPENS_AFTER
            connection.execute(
                sa.update(_circuits)
                .where(_circuits.c.name == name)
                .values(
                    failures=failures, updated_at=now, error=failure.code, error_detail=failure.detail[:500],
                    refused_secrets=self._secrets.get(name) if isinstance(failure, ClientRefused) else None,
                    opened_at=(before.opened_at or now) if is_open else None,
                    probe_at=_next_probe(before.probe_at, now, failure) if is_open else None,
                )
            )  # fmt: skip
        self._forget()
        if is_open and before.opened_at is None:
            # The one alert of an outage: what waits for it is not an error of its own.
            log.error("circuit.opened", circuit=name, error=failure.code, detail=failure.detail, cure=failure.cure)

    # --- the rows --------------------------------------------------------------------------------------

    def _locked(self, connection: Connection, name: str) -> Row[Any] | None:
        return connection.execute(sa.select(_circuits).where(_circuits.c.name == name).with_for_update()).one_or_none()

    def _rows(self) -> Mapping[str, OpenCircuit | None]:
        """Return the circuits that have a row: None for one that has failed but is closed."""
        known = self._known
        if known is not None and self._clock.monotonic() - known[0] < KNOWN_SECONDS:
            return known[1]
        # One question at a time; the threads that wait here would all ask the same.
        with self._lock:
            known = self._known
            if known is None or self._clock.monotonic() - known[0] >= KNOWN_SECONDS:
                known = self._known = (self._clock.monotonic(), self._read())
        return known[1]

    def _read(self) -> dict[str, OpenCircuit | None]:
        with self._database.look() as connection:
            rows = connection.execute(_ALL).all()
            now = self._database.now(connection) if rows else self._clock.now()
        return {
            row.name: None
            if row.opened_at is None
            else OpenCircuit(
                name=row.name,
                since=row.opened_at,
                next_try_at=row.probe_at,
                error=row.error or "",
                detail=row.error_detail or "",
                failures=row.failures,
                is_due=row.probe_at <= now or self._is_news(row),
                is_hopeless=row.error in REFUSALS
                and row.failures >= HOPELESS_AFTER
                and now - row.updated_at < HOPELESS_FOR
                and not self._is_news(row),
            )
            for row in rows
        }

    def _is_news(self, row: Row[Any]) -> bool:
        return row.refused_secrets is not None and row.refused_secrets != self._secrets.get(row.name, "")

    def _forget(self) -> None:
        with self._lock:
            self._known = None

    def _note(self, write: Callable[[], None]) -> None:
        """Write down how a call went; that must never be what makes it fail."""
        try:
            write()
        except DatabaseUnavailable as failure:
            log.warning("circuit.not_noted", error=failure.code, detail=failure.detail)


_ANSWERS = (SequinError, OAuthFailure, FlowFailure, ProviderRefused, TokenRejected)
"""What shows that the other side is there and knows us."""


def _is_failure(failure: BrokerError) -> bool:
    # An answer without what we looked for may be about this one account.
    if isinstance(failure, UnusableAnswer):
        return False
    passing = isinstance(failure, SequinError | OAuthFailure | ProviderUnavailable) and failure.verdict is Verdict.RETRY
    return passing or isinstance(failure, NetworkError)


def _next_probe(claimed: datetime | None, now: datetime, failure: BrokerError) -> datetime:
    """Return when to look again: in the rhythm the probes have, later where the other side asked for it."""
    asked = now + timedelta(seconds=getattr(failure, "retry_after", None) or 0.0)
    rhythm = claimed if claimed is not None and claimed > now else now + timedelta(seconds=PROBE_SECONDS)
    return max(rhythm, asked)
