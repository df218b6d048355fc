"""Which OAuth app of Sequin's stands for which of ours: found by provider and exact client id, never typed in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import sqlalchemy as sa
import structlog

from broker.apps import AppCatalogue, OfferedApp
from broker.clock import Clock
from broker.db import Database, table
from broker.errors import BrokerError, NetworkError, Verdict
from broker.jobs import Done, Jobs, LeasedJob
from broker.models import ConnectedAccount, ImportState
from broker.sequin import Sequin, SequinOAuthApp

TRUSTED_SECONDS = 60.0
"""How long an answer is used before Sequin is asked again."""
UNMATCHED_SECONDS = 1.0
"""How long an answer without a match is used: many deliveries may wait for it, and whoever mends it is watching."""
WAITING_TURNS, TURN_SECONDS = 120, 0.5
"""How often, and how far apart, a second `apps sync --create` looks whether the first is through: a minute in all."""

log = structlog.get_logger(__name__)

_connections = table(ConnectedAccount)


class OAuthAppUnmatched(BrokerError):
    """Sequin has no OAuth app, or several, with this provider and client id: imports are held until it is mended."""

    code = "oauth_app_unmatched"
    verdict = Verdict.CONFIGURATION
    cure = (
        "Register the OAuth app in Sequin with exactly this client id and secret (`broker apps sync --create` does), "
        "or pin one with <PROVIDER>_SEQUIN_OAUTH_APP_ID; the imports then go out by themselves."
    )


class OAuthAppMatch:
    """Looks the match up, and remembers Sequin's list for a minute."""

    def __init__(self, sequin: Sequin, clock: Clock) -> None:
        self._sequin = sequin
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, list[SequinOAuthApp]] | None = None
        self._missed: set[str] = set()

    def sequin_id(self, app: OfferedApp) -> str:
        """Return the id of Sequin's OAuth app for `app`, the pinned one if configuration names one.

        Raises OAuthAppUnmatched, SequinError or NetworkError.
        """
        if app.config.sequin_oauth_app_id:
            return app.config.sequin_oauth_app_id
        found = matching(app, self._list(TRUSTED_SECONDS))
        if len(found) != 1:
            found = matching(app, self._list(UNMATCHED_SECONDS))
        if len(found) != 1:
            count = "no OAuth app" if not found else f"{len(found)} OAuth apps"
            unmatched = OAuthAppUnmatched(
                f"Sequin has {count} for {app.provider.sequin_provider} with the client id of {app.key!r}"
            )
            if app.key not in self._missed:
                # Once, and not for every delivery that waits.
                log.error("oauth_app.unmatched", app=app.key, detail=unmatched.detail, cure=unmatched.cure)
                self._missed.add(app.key)
            raise unmatched
        self._missed.discard(app.key)
        return found[0].id

    def forget(self) -> None:
        """Ask Sequin again next time."""
        with self._lock:
            self._known = None

    def _list(self, trusted_seconds: float) -> list[SequinOAuthApp]:
        # One question at a time: the threads that wait here would all ask the same.
        with self._lock:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] > trusted_seconds:
                self._known = (now, self._sequin.oauth_apps())
            return self._known[1]


def matching(app: OfferedApp, known: Iterable[SequinOAuthApp]) -> list[SequinOAuthApp]:
    """Return the OAuth apps of Sequin's with this provider and exactly this client id."""
    wanted = (app.provider.sequin_provider, app.config.client_id)
    return [each for each in known if (each.provider, each.client_id) == wanted]


# --- the comparison, for people -----------------------------------------------------------------------


class MatchState(StrEnum):
    """How one of our OAuth apps stands in Sequin."""

    MATCHED = "matched"
    MISSING = "missing"
    AMBIGUOUS = "ambiguous"
    PINNED = "pinned"
    PINNED_UNKNOWN = "pinned_unknown"
    PINNED_MISMATCH = "pinned_mismatch"
    # Sequin did not answer.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class AppMatch:
    """One OAuth app of ours and what Sequin has for it."""

    key: str
    provider: str
    client_id: str
    state: MatchState
    sequin_id: str | None
    sequin_name: str | None
    sentence: str
    # What to do about it; empty when there is nothing to do.
    cure: str
    created: bool = False

    @property
    def is_usable(self) -> bool:
        """Whether imports can go out under it."""
        return self.state in (MatchState.MATCHED, MatchState.PINNED)


def compare(app: OfferedApp, known: list[SequinOAuthApp], *, created: bool = False) -> AppMatch:
    """Return how an OAuth app of ours stands in Sequin's list. Secrets are never asked for, so never compared."""
    pinned = app.config.sequin_oauth_app_id
    found = matching(app, known) if pinned is None else [each for each in known if each.id == pinned]
    one = found[0] if len(found) == 1 else None
    state, sentence, cure = _pinned(app, pinned, one) if pinned else _found(app, found, known)
    return AppMatch(
        key=app.key,
        provider=app.provider.name,
        client_id=app.config.client_id,
        state=state,
        sequin_id=pinned or (one.id if one else None),
        sequin_name=one.name if one else None,
        sentence=sentence,
        cure=cure,
        created=created,
    )


def unanswered(app: OfferedApp, failure: BrokerError) -> AppMatch:
    """Return what is known of an OAuth app while Sequin cannot be asked."""
    return AppMatch(
        key=app.key,
        provider=app.provider.name,
        client_id=app.config.client_id,
        state=MatchState.UNKNOWN,
        sequin_id=app.config.sequin_oauth_app_id,
        sequin_name=None,
        sentence=f"Sequin could not be asked: {failure.detail or failure.code}.",
        cure=failure.cure,
    )


_SAME = "has the same client id; the secret cannot be compared."


def _found(app: OfferedApp, found: list[SequinOAuthApp], known: list[SequinOAuthApp]) -> tuple[MatchState, str, str]:
    ours, theirs = app.config.client_id, app.provider.sequin_provider
    if len(found) == 1:
        return MatchState.MATCHED, f"Sequin’s OAuth app {found[0].name or found[0].id} {_SAME}", ""
    if found:
        ids = ", ".join(sorted(each.id for each in found))
        sentence = f"Sequin has {len(found)} OAuth apps for {theirs} with the client id {ours}: {ids}."
        return MatchState.AMBIGUOUS, sentence, f"Pin the right one: {_pin(app)}, or delete the others in Sequin."
    others = [each.client_id for each in known if each.provider == theirs and each.client_id]
    sentence = f"Sequin has no OAuth app for {theirs} with the client id {ours}."
    if others:
        sentence += f" Those it has use {', '.join(sorted(set(others))[:3])}."
    return (
        MatchState.MISSING,
        sentence,
        "Register it with exactly this client id and secret: run `broker apps sync --create`, or use Sequin’s console.",
    )


def _pinned(app: OfferedApp, pinned: str, one: SequinOAuthApp | None) -> tuple[MatchState, str, str]:
    mend = f"Correct {_pin(app)}, or remove it: the OAuth app is then found by its client id."
    if one is None:
        return MatchState.PINNED_UNKNOWN, f"Sequin has no OAuth app {pinned}, which is pinned for {app.key}.", mend
    if one.provider != app.provider.sequin_provider or one.client_id not in (None, app.config.client_id):
        sentence = (
            f"The pinned OAuth app {one.name or pinned} is for {one.provider} with the client id {one.client_id}; "
            f"this broker uses {app.config.client_id}. Imports would be accepted and then stop working."
        )
        return MatchState.PINNED_MISMATCH, sentence, mend
    return MatchState.PINNED, f"Sequin’s OAuth app {one.name or one.id}, which is pinned, {_SAME}", ""


def _pin(app: OfferedApp) -> str:
    if app.key == app.provider.name:
        return f"{app.key.upper()}_SEQUIN_OAUTH_APP_ID"
    return f"sequin_oauth_app_id in [apps.{app.key}]"


class OAuthApps:
    """`apps list` and `apps sync`: compares every OAuth app of ours with Sequin's, and registers missing ones."""

    def __init__(
        self,
        *,
        database: Database,
        apps: AppCatalogue,
        sequin: Sequin,
        match: OAuthAppMatch,
        jobs: Jobs,
        pause: Callable[[float], object] = time.sleep,
    ):
        self._pause = pause
        self._database = database
        self._apps = apps
        self._sequin = sequin
        self._match = match
        self._jobs = jobs

    def survey(self) -> list[AppMatch]:
        """Compare afresh; where Sequin does not answer, every state says so."""
        try:
            known = self._sequin.oauth_apps()
        except BrokerError as failure:
            return [unanswered(app, failure) for app in self._apps]
        return [compare(app, known) for app in self._apps]

    def sync(self, *, create: bool, host: str = "") -> list[AppMatch]:
        """Compare afresh, register what is missing if told to, and let held imports of what matches go out.

        However many do this at once, one registers: Sequin would take the same OAuth app twice. The others wait.
        """
        self._match.forget()
        found = self.survey()
        if create and any(one.state is MatchState.MISSING for one in found):
            found = self._register(found, host)
        self._rearm([one.key for one in found if one.is_usable])
        return found

    def _register(self, found: list[AppMatch], host: str) -> list[AppMatch]:
        lease = self._alone()
        if lease is None:
            return [_busy(one) if one.state is MatchState.MISSING else one for one in found]
        try:
            return [
                self._create(self._apps.get(one.key), host, lease) if one.state is MatchState.MISSING else one
                for one in found
            ]
        finally:
            with self._database.write() as connection:
                self._jobs.settle(connection, lease, Done())

    def _alone(self) -> LeasedJob | None:
        """Wait until nobody else registers; whoever died at it is waited for until their lease is over."""
        for _ in range(WAITING_TURNS):
            lease = self._jobs.alone("register")
            if lease is not None:
                return lease
            self._pause(TURN_SECONDS)
        return None

    def _create(self, app: OfferedApp, host: str, lease: LeasedJob) -> AppMatch:
        """Register a missing OAuth app once: asking twice makes two, so the list decides what has happened."""
        known: list[SequinOAuthApp] = []
        try:
            # Again, right before: somebody else, or another app of ours with this client id, may have registered it.
            known = self._sequin.oauth_apps()
            if matching(app, known):
                return compare(app, known)
            if not self._jobs.renew(lease):
                return _busy(compare(app, known))
            self._sequin.create_oauth_app(
                provider=app.provider.sequin_provider,
                client_id=app.config.client_id,
                client_secret=app.config.client_secrets[0],
                name=f"{host} – {app.title} ({app.key})".removeprefix(" – "),
            )
        except NetworkError as failure:
            log.warning("oauth_app.creation_unclear", app=app.key, error=failure.code, detail=failure.detail)
            if not failure.sent:
                return unanswered(app, failure)
        except BrokerError as failure:
            if failure.verdict is not Verdict.RETRY:
                return _refused(compare(app, known), failure)
            log.warning("oauth_app.creation_unclear", app=app.key, error=failure.code, detail=failure.detail)
        try:
            known = self._sequin.oauth_apps()
        except BrokerError as failure:
            return unanswered(app, failure)
        result = compare(app, known, created=bool(matching(app, known)))
        if result.created:
            log.info("oauth_app.created", app=app.key, state=result.state.value, sequin_id=result.sequin_id)
        return result

    def _rearm(self, keys: list[str]) -> None:
        """Let held imports look again; not before every worker has stopped going by the list it had."""
        held = sa.select(_connections.c.id).where(
            _connections.c.import_state == ImportState.HELD, _connections.c.app_key.in_(keys)
        )
        with self._database.write() as connection:
            self._jobs.hasten(connection, ["import"], after=timedelta(seconds=UNMATCHED_SECONDS), subjects=held)
        self._jobs.wakeup.set()


def _busy(found: AppMatch) -> AppMatch:
    return replace(
        found,
        sentence=f"{found.sentence} Somebody else is registering OAuth apps right now.",
        cure="Run `broker apps sync` again in a minute.",
    )


def _refused(found: AppMatch, failure: BrokerError) -> AppMatch:
    return replace(
        found,
        sequin_id=None,
        sequin_name=None,
        sentence=f"{found.sentence} Sequin refused to register it: {failure.detail or failure.code}.",
        cure=failure.cure,
    )
