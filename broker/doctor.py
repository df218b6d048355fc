"""The doctor: looks at everything a deployment depends on, and says what is wrong and what mends it.

Every check runs in a thread of its own under one deadline, and keeps its troubles to itself: one that hangs or fails
costs no other. Nothing it says holds a secret.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from time import perf_counter
from typing import Generic, TypeVar

import sqlalchemy as sa
import structlog

from broker.apps import AppCatalogue, OfferedApp
from broker.audit_chain import AuditChain
from broker.circuits import NEEDS, SEQUIN, Circuits, OpenCircuit
from broker.clock import Clock
from broker.db import Database, DatabaseUnavailable, require_current_schema
from broker.errors import BrokerError, NetworkError, SequinUnauthorized
from broker.http import Deadline, Http
from broker.jobs import Jobs
from broker.keyring import KeyRing
from broker.matching import AppMatch, MatchState, compare, unanswered
from broker.models import ConnectedAccount, ImportState
from broker.provider_events import ProviderEvents
from broker.providers.base import GrantIncomplete, calls_within
from broker.sequin import Sequin, SequinOAuthApp
from broker.settings import Settings
from broker.sign_ins import SignIns
from broker.telemetry import HOW_TO_INSTALL, NOT_INSTALLED, ask_collector, is_wanted

CALL_SECONDS = 8.0
"""What a check gives the other side."""
CHECK_SECONDS = 10.0
"""When a check counts as hanging; longer than a call and than the embedded database's patience."""
COLLECTOR_SECONDS = 3.0
"""What the collector of traces gets: so near that it either answers or does not."""
MOST_SKEW = timedelta(seconds=60)
LONGEST_WAIT = timedelta(seconds=60)
"""A job that is due for longer shows that nobody works, or that the workers cannot keep up."""
AUDIT_LOOKED_AT = 1_000
LONGEST_UNSEALED = timedelta(minutes=5)
SHOWN = 5

log = structlog.get_logger(__name__)

Found = TypeVar("Found")


class State(StrEnum):
    """How a check ended, in the order in which they are shown."""

    FAIL = "fail"
    WARN = "warn"
    SKIP = "skip"
    PASS = "pass"  # noqa: S105 - it opens nothing


@dataclass(frozen=True)
class Check:
    """One check: its stable name, the OAuth app it is about, how it ended, and what mends it."""

    name: str
    state: State
    sentence: str
    fix: str = ""
    app: str | None = None


@dataclass(frozen=True)
class Address:
    """An address to register at a provider, where nobody can read what is registered."""

    app: str
    title: str
    # callback, setup or webhook.
    what: str
    address: str


@dataclass(frozen=True)
class Seen:
    """How the request that asks came in; None on the command line, where there is none."""

    origin: str
    # Whether somebody in front of us says that it forwards for others.
    is_forwarded: bool


@dataclass(frozen=True)
class Report:
    """Everything the doctor found, failures first."""

    at: datetime
    checks: tuple[Check, ...]
    addresses: tuple[Address, ...]
    matches: tuple[AppMatch, ...]

    @property
    def has_failures(self) -> bool:
        """Whether anything is wrong."""
        return any(check.state is State.FAIL for check in self.checks)


@dataclass(frozen=True)
class _Listed:
    """Sequin's answer: its OAuth apps, how long it took, and how far its clock is ahead of ours."""

    apps: list[SequinOAuthApp]
    seconds: float
    ahead: timedelta | None


class _Task(threading.Thread, Generic[Found]):
    """Runs one check's work and keeps what came of it."""

    def __init__(self, work: Callable[[], Found]) -> None:
        # A daemon: whatever hangs must not keep the program from ending.
        super().__init__(daemon=True)
        self._work = work
        self._outcome: tuple[Found] | BaseException | None = None
        self.start()

    def run(self) -> None:
        """Do the work."""
        try:
            self._outcome = (self._work(),)
        except BaseException as failure:  # noqa: BLE001 - told by `result`
            self._outcome = failure

    def result(self, deadline: Deadline) -> Found:
        """Return what was found. Raises what the work raised, or _Hangs."""
        self.join(max(0.0, deadline.remaining()))
        if self._outcome is None:
            raise _Hangs
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome[0]


class _Hangs(Exception):
    """A check did not end in time."""


class Doctor:
    """Makes the checks."""

    def __init__(
        self,
        *,
        settings: Settings,
        clock: Clock,
        database: Database,
        apps: AppCatalogue,
        jobs: Jobs,
        circuits: Circuits,
        key_ring: KeyRing,
        sequin: Sequin,
        http: Http,
        provider_events: ProviderEvents,
        audit_chain: AuditChain,
        sign_ins: Sequence[SignIns] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._database = database
        self._apps = apps
        self._jobs = jobs
        self._circuits = circuits
        self._key_ring = key_ring
        self._sequin = sequin
        self._http = http
        self._provider_events = provider_events
        self._audit_chain = audit_chain
        self._sign_ins = sign_ins

    def examine(self, seen: Seen | None = None) -> Report:
        """Make every check; takes as long as the slowest, and never longer than the deadline."""
        deadline = Deadline(CHECK_SECONDS)
        listing = _Task(self._ask_sequin)
        skew = _Task(self._database_ahead)
        tasks: list[tuple[str, str | None, _Task[list[Check]]]] = [
            (name, key, _Task(lambda make=make: list(make())))  # type: ignore[misc]
            for name, key, make in self._checks(seen)
        ]
        checks = [check for name, key, task in tasks for check in self._outcome(name, key, task, deadline)]
        matches, about_sequin = self._about_sequin(listing, deadline)
        checks += about_sequin
        checks += self._about_clocks(listing, skew, deadline)
        order = list(State)
        return Report(
            at=self._clock.now(),
            checks=tuple(sorted(checks, key=lambda check: order.index(check.state))),
            addresses=tuple(self._addresses()),
            matches=tuple(matches),
        )

    def _checks(self, seen: Seen | None) -> Iterator[tuple[str, str | None, Callable[[], Iterable[Check]]]]:
        yield "settings", None, self._about_settings
        yield "public_url", None, lambda: self._about_public_url(seen)
        yield "database", None, self._about_database
        yield "migrations", None, self._about_migrations
        yield "keys", None, self._about_keys
        yield "queue", None, self._about_queue
        yield "parked", None, self._about_parked
        yield "audit", None, self._about_audit
        yield "circuits", None, self._about_circuits
        if is_wanted():
            yield "traces", None, self._about_traces
        for sign_ins in self._sign_ins:
            yield "sign_in", sign_ins.section, lambda one=sign_ins: self._about_sign_in(one)  # type: ignore[misc]
        for app in self._apps:
            yield "client", app.key, lambda app=app: self._about_client(app)  # type: ignore[misc]
            yield "webhook", app.key, lambda app=app: self._about_webhook(app)  # type: ignore[misc]
            yield "grants", app.key, lambda app=app: self._about_grants(app)  # type: ignore[misc]
            yield "provider", app.key, lambda app=app: self._about_provider(app)  # type: ignore[misc]

    def _outcome(self, name: str, key: str | None, task: _Task[list[Check]], deadline: Deadline) -> list[Check]:
        try:
            return task.result(deadline)
        except _Hangs:
            mend = "Look at what this check asks: the database, Sequin or the provider is very slow."
            return [Check(name, State.FAIL, f"Not finished within {CHECK_SECONDS:.0f} seconds.", mend, key)]
        except (DatabaseUnavailable, sa.exc.DBAPIError):
            if name == "database":
                return [
                    Check(name, State.FAIL, "The database cannot be reached or written to.", DatabaseUnavailable.cure)
                ]
            return [Check(name, State.SKIP, "The database, or a table in it, is not there.", app=key)]
        except BrokerError as failure:
            return [Check(name, State.FAIL, _sentence(failure.detail or failure.heading), failure.cure, key)]
        except Exception as failure:
            log.exception("doctor.check_failed", check=name, app=key)
            return [Check(name, State.FAIL, f"The check broke: {type(failure).__name__}.", "Look at the log.", key)]

    # --- this deployment -------------------------------------------------------------------------------

    def _about_settings(self) -> Iterator[Check]:
        # What development lets pass on purpose is no fault there; production refuses most of it at start.
        state = State.WARN if self._settings.production else State.SKIP
        for sentence in self._settings.warnings:
            yield Check("settings", state, _sentence(sentence))
        if not self._settings.warnings:
            yield Check("settings", State.PASS, f"Complete, for {self._settings.environment}.")

    def _about_public_url(self, seen: Seen | None) -> Iterator[Check]:
        url = self._settings.public_url
        if self._settings.production and not self._settings.secure_cookies:
            yield Check("public_url", State.FAIL, f"{url} is not https.", "Set BROKER_PUBLIC_URL to an https address.")
        elif seen is not None and seen.is_forwarded and not self._settings.trusted_proxies:
            fix = (
                "Behind a proxy? Set BROKER_TRUSTED_PROXIES=1, so that people’s addresses are counted and not its own."
            )
            yield Check("public_url", State.WARN, "A proxy stands in front, and none is trusted.", fix)
        elif seen is not None and seen.origin != url:
            sentence = f"You opened {seen.origin}, but BROKER_PUBLIC_URL is {url}."
            yield Check(
                "public_url", State.WARN, sentence, f"Providers send people to {url}. Correct it if it is wrong."
            )
        else:
            same = ", the same as this page’s address" if seen is not None else ""
            cookies = (
                "cookies are Secure" if self._settings.secure_cookies else "cookies without Secure, for development"
            )
            yield Check("public_url", State.PASS, f"{url}{same}; {cookies}.")

    def _addresses(self) -> Iterator[Address]:
        for sign_ins in self._sign_ins:
            yield Address(sign_ins.section, sign_ins.config.name, "callback", sign_ins.callback_url)
        for app in self._apps:
            yield Address(app.key, app.title, "callback", self._settings.callback_url(app.key))
            if app.provider.install_url is not None:
                yield Address(app.key, app.title, "setup", self._settings.setup_url(app.key))
            if app.provider.webhook is not None:
                yield Address(app.key, app.title, "webhook", self._settings.hook_url(app.key))

    def _about_database(self) -> Iterator[Check]:
        began = perf_counter()
        # A unit that writes: a read-only file or a full disk shows only there.
        with self._database.write() as connection:
            connection.execute(sa.select(1))
        kind = "SQLite" if self._database.is_sqlite else "PostgreSQL"
        yield Check("database", State.PASS, f"{kind} answers, {_milliseconds(perf_counter() - began)}.")

    def _about_migrations(self) -> Iterator[Check]:
        require_current_schema(self._database)
        yield Check("migrations", State.PASS, "The tables are those this version needs.")

    def _about_keys(self) -> Iterator[Check]:
        problems = self._key_ring.check()
        for sentence in problems:
            # Each names its own cure.
            yield Check("keys", State.FAIL, sentence, "As the sentence says.")
        sample = self._key_ring.sample()
        if sample.unreadable:
            few = ", ".join(sample.unreadable[:SHOWN])
            yield Check(
                "keys",
                State.FAIL,
                f"{len(sample.unreadable)} of {sample.opened} sealed grants do not open, among them {few}.",
                "Put the key that sealed them back into BROKER_ENCRYPTION_KEYS, or let these people reconnect.",
            )
        for kid in sample.unused:
            fix = f"Run `broker keys retire {kid}`, then remove it from BROKER_ENCRYPTION_KEYS."
            yield Check("keys", State.WARN, f"Nothing is sealed with the key {kid} any more.", fix)
        if not problems and not sample.unreadable and not sample.unused:
            opened = f"{sample.opened} sealed grants" if sample.opened != 1 else "1 sealed grant"
            yield Check("keys", State.PASS, f"The key ring opens its canaries and {opened}.")

    def _about_queue(self) -> Iterator[Check]:
        shut = {circuit.name for circuit in self._circuits.open()}
        count, waited = self._jobs.oldest_due([kind for kind, needed in NEEDS.items() if needed in shut])
        if waited > LONGEST_WAIT:
            sentence = f"{count} jobs are due, the oldest for {int(waited.total_seconds())} seconds."
            fix = "Is a worker running? Start `broker worker`, or more of them, or set BROKER_WORKERS above 0."
            yield Check("queue", State.FAIL, sentence, fix)
        else:
            yield Check("queue", State.PASS, f"{count} jobs are due, none for longer than a minute.")

    def _about_parked(self) -> Iterator[Check]:
        count = self._jobs.parked()
        if count:
            fix = "`broker jobs list` says why. Mend it, then run `broker jobs retry --all`."
            yield Check("parked", State.WARN, f"{count} jobs wait for somebody to look at them.", fix)
        else:
            yield Check("parked", State.PASS, "No job is parked.")

    def _about_audit(self) -> Iterator[Check]:
        found = self._audit_chain.inspect(newest=AUDIT_LOOKED_AT)
        if not found.is_intact:
            fix = "Keep a copy of the database, and run `broker audit verify` for all there is to know."
            more = "" if found.count == 1 else f" That is the first of {found.count} findings."
            yield Check("audit", State.FAIL, f"{found.findings[0].sentence}{more}", fix)
        elif found.waiting_since is not None and self._clock.now() - found.waiting_since > LONGEST_UNSEALED:
            sentence = f"{found.unsealed} records of the audit trail are not sealed yet."
            fix = "A worker seals them: is one running? If one is, its log says why it does not."
            yield Check("audit", State.WARN, sentence, fix)
        else:
            sentence = f"The newest {found.looked_at} of {found.head - found.anchor} sealed records are intact."
            yield Check("audit", State.PASS, sentence)

    def _about_circuits(self) -> Iterator[Check]:
        found = self._circuits.open()
        for circuit in found:
            # Sequin has a check of its own, which has just asked; this says what became of the work.
            state = State.WARN if circuit.name == SEQUIN else State.FAIL
            yield Check("circuits", state, describe(circuit, self._apps), circuit.cure, circuit.app_key)
        if not found:
            yield Check("circuits", State.PASS, "Calls to Sequin and to every provider go through.")

    def _about_traces(self) -> Iterator[Check]:
        began = perf_counter()
        try:
            trouble = ask_collector(COLLECTOR_SECONDS)
        except ImportError:
            yield Check("traces", State.WARN, NOT_INSTALLED, HOW_TO_INSTALL)
            return
        if trouble is not None:
            fix = (
                "OTEL_EXPORTER_OTLP_ENDPOINT takes OTLP as http/protobuf, mostly on port 4318; "
                "OTEL_EXPORTER_OTLP_HEADERS holds what the collector knows us by."
            )
            yield Check("traces", State.WARN, f"The collector {trouble}: traces are lost, all else goes on.", fix)
        else:
            yield Check("traces", State.PASS, f"The collector takes traces, {_milliseconds(perf_counter() - began)}.")

    # --- signing in ------------------------------------------------------------------------------------

    def _about_sign_in(self, sign_ins: SignIns) -> Iterator[Check]:
        """Ask the OpenID provider what a sign-in asks it; a failure is told as any other."""
        config, where = sign_ins.config, sign_ins.section
        began = perf_counter()
        published, keys = sign_ins.provider.look()
        took = _milliseconds(perf_counter() - began)
        if published.algorithms and config.signing_algorithm not in published.algorithms:
            told = (
                f"{config.issuer} signs with {', '.join(published.algorithms)[:200]}, not {config.signing_algorithm}."
            )
            yield Check("sign_in", State.FAIL, told, f"Set signing_algorithm under [{where}] to what it uses.", where)
            return
        if not published.takes_pkce:
            told = f"{config.issuer} does not say that it takes PKCE (S256). It is sent all the same."
            yield Check("sign_in", State.WARN, told, "Switch PKCE on at the OpenID provider if it can be.", where)
        known = "1 key" if keys == 1 else f"{keys} keys"
        yield Check("sign_in", State.PASS, f"{config.issuer} answers and publishes {known}, {took}.", app=where)

    # --- the OAuth apps --------------------------------------------------------------------------------

    def _about_client(self, app: OfferedApp) -> Iterator[Check]:
        config = app.config
        missing = not config.client_id or not all(config.client_secrets)
        if missing:
            yield Check(
                "client",
                State.FAIL,
                "Client id or secret is missing.",
                "Set both from the provider’s console.",
                app.key,
            )
        else:
            yield Check("client", State.PASS, f"{config.client_id}; the secret is set.", app=app.key)
        if not app.provider.kind_documented:
            sentence = f"Sequin documents no kind for {app.title}; {app.kind} is an assumption."
            yield Check("kind", State.WARN, sentence, "Ask Sequin, and set kind and properties as it says.", app.key)

    def _about_webhook(self, app: OfferedApp) -> Iterator[Check]:
        if app.provider.webhook is None:
            return
        if not app.config.webhook_secrets:
            sentence = f"No webhook secret: what happens at {app.title} shows only when it is asked, once a day."
            fix = f"Register {self._settings.hook_url(app.key)} at {app.title} and set the secret it shows for it."
            yield Check("webhook", State.WARN, sentence, fix, app.key)
            return
        count = len(app.config.webhook_secrets)
        said = "The webhook secret is set" if count == 1 else f"{count} webhook secrets are set"
        last = self._provider_events.last_received(app.key)
        when = f"the last event arrived on {last:%d %b at %H:%M} UTC" if last else "no event has arrived yet"
        yield Check("webhook", State.PASS, f"{said}; {when}.", app=app.key)

    def _about_grants(self, app: OfferedApp) -> Iterator[Check]:
        """Tell why imports are parked because of what the provider grants: nothing but this setting mends that."""
        row = ConnectedAccount
        query = sa.select(sa.func.count(), sa.func.max(row.import_error_detail)).where(
            row.app_key == app.key, row.import_error == GrantIncomplete.code, row.disconnected_at.is_(None),
            row.import_state == ImportState.PARKED,
        )  # fmt: skip
        with self._database.read() as connection:
            count, detail = connection.execute(query).one()
        if count:
            which = "1 connection" if count == 1 else f"{count} connections"
            told = f"{which} cannot be imported. {_sentence(detail or '')}"
            yield Check("grants", State.FAIL, told, GrantIncomplete.cure, app.key)

    def _about_provider(self, app: OfferedApp) -> Iterator[Check]:
        if app.provider.diagnose is None:
            scopes = ", ".join(app.scopes) or "what the registration says"
            yield Check("scopes", State.PASS, f"Asks for {scopes}.", app=app.key)
            return
        findings = app.provider.diagnose(app.config, calls_within(self._http, CALL_SECONDS), self._clock.now())
        try:
            for each in findings:
                yield Check(each.name, State(each.state), each.sentence, each.fix, app.key)
        except BrokerError as failure:
            # What was found before stays found.
            sentence = _sentence(f"{app.title} could not be asked: {failure.detail or failure.code}")
            yield Check("provider", State.FAIL, sentence, failure.cure, app.key)

    # --- Sequin and the clocks -------------------------------------------------------------------------

    def _ask_sequin(self) -> _Listed:
        began = perf_counter()
        apps, theirs = self._sequin.survey(deadline=CALL_SECONDS)
        ahead = None if theirs is None else theirs - self._clock.now()
        return _Listed(apps, perf_counter() - began, ahead)

    def _about_sequin(self, listing: _Task[_Listed], deadline: Deadline) -> tuple[list[AppMatch], list[Check]]:
        try:
            found = listing.result(deadline)
        except _Hangs:
            failure: BrokerError = NetworkError("no answer in time")
        except BrokerError as refusal:
            failure = refusal
        except Exception as surprise:
            log.exception("doctor.check_failed", check="sequin_token")
            failure = BrokerError(type(surprise).__name__)
        else:
            token = Check("sequin_token", State.PASS, f"Sequin accepts the API token, {_milliseconds(found.seconds)}.")
            matches = [compare(app, found.apps) for app in self._apps]
            return matches, [token, *map(_of_match, matches)]
        what = "does not accept the API token" if isinstance(failure, SequinUnauthorized) else "could not be asked"
        refused = _sentence(f"Sequin {what}: {failure.detail or failure.code}")
        matches = [unanswered(app, failure) for app in self._apps]
        return matches, [Check("sequin_token", State.FAIL, refused, failure.cure), *map(_of_match, matches)]

    def _database_ahead(self) -> timedelta | None:
        if self._database.is_sqlite:
            return None
        with self._database.read() as connection:
            return self._database.now(connection) - self._clock.now()

    def _about_clocks(
        self, listing: _Task[_Listed], skew: _Task[timedelta | None], deadline: Deadline
    ) -> Iterator[Check]:
        others: dict[str, Callable[[], timedelta | None]] = {
            "the database": lambda: skew.result(deadline),
            "Sequin": lambda: listing.result(deadline).ahead,
        }
        compared = []
        for name, ask in others.items():
            try:
                ahead = ask()
            except Exception:  # noqa: BLE001, S112 - told by the check it belongs to
                continue
            if ahead is None:
                continue
            if abs(ahead) > MOST_SKEW:
                sentence = (
                    f"This machine’s clock differs by {abs(ahead).total_seconds():.0f} seconds from that of {name}."
                )
                yield Check("clock", State.FAIL, sentence, "Keep the time with NTP on every machine.")
                return
            compared.append(name)
        if compared:
            yield Check("clock", State.PASS, f"Agrees with {' and '.join(compared)}.")
        else:
            yield Check("clock", State.SKIP, "There was no other clock to compare with.")


def describe(circuit: OpenCircuit, apps: AppCatalogue) -> str:
    """Return one sentence about an open circuit, with since when and when next."""
    whom = "Sequin"
    if circuit.app_key is not None:
        title = apps.get(circuit.app_key).title if circuit.app_key in apps else "The provider"
        whom = f"{title} ({circuit.app_key})"
    what = "has not answered"
    if circuit.is_refusal:
        what = "does not accept our API token" if circuit.name == SEQUIN else "does not accept our client id and secret"
    return f"{whom} {what} since {circuit.since:%d %b %H:%M} UTC. Next try {circuit.next_try_at:%H:%M} UTC."


def _of_match(match: AppMatch) -> Check:
    states = {MatchState.MATCHED: State.PASS, MatchState.PINNED: State.PASS, MatchState.UNKNOWN: State.SKIP}
    state = states.get(match.state, State.FAIL)
    return Check("oauth_app", state, match.sentence, "" if state is State.SKIP else match.cure, match.key)


def _sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
