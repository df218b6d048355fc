"""Trying an OAuth app out: the whole way to the provider and back, by an operator, and nothing is connected.

A trial is a flow like any other until it is known which account it reached. There it ends, as a flow without a
connection: so the grant takes the way of every grant that ends unattached (`discards`), which ends access at the
provider only where no living connection uses it, and erases what was received. Hosts are told nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

import sqlalchemy as sa

from broker import audit
from broker.apps import AppCatalogue, OfferedApp
from broker.audit import Actor
from broker.clock import Clock
from broker.connections import cure_of
from broker.db import Database, table
from broker.errors import FlowFailure, Refused
from broker.journal import Browser
from broker.links import LinkRequest, Links
from broker.models import Flow
from broker.oauth import Grant
from broker.providers.base import Account, GrantIncomplete
from broker.text import storable
from broker.timeline import Entry, Timeline

END_USER = "broker:test"
"""Whom trials are made for: a name that no host gives to a person."""
LIFE_SECONDS = 900
MOST_NAMED = 20
"""Accounts that a trial names; a person may reach very many."""

_flows = table(Flow)


class TrialOver(FlowFailure):
    """A trial has come as far as trials go."""

    code = "trial_over"
    heading = "The test is over"
    advice = "Nothing was connected: it was only a test."
    cure = "Nothing to do."


class TrialUnknown(Refused):
    """There is no such trial; maybe it was purged."""

    code = "trial_unknown"
    status = 404
    heading = "There is no such test"
    advice = "It may have been forgotten: tests are kept for as long as other attempts."


class Part(StrEnum):
    """What a trial tries, in this order."""

    LEAVE = "leave"
    RETURN = "return"
    EXCHANGE = "exchange"
    ACCOUNT = "account"
    IMPORT = "import"
    CLEAN_UP = "clean_up"


class Outcome(StrEnum):
    """How a part went."""

    DONE = "done"
    WAITING = "waiting"
    FAILED = "failed"
    # It was not come to, or there was nothing to do.
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Tried:
    """One part of a trial: how it went, when, how long the other side took, and facts for operators."""

    part: Part
    outcome: Outcome
    at: datetime | None = None
    duration_ms: int | None = None
    facts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TrialView:
    """One trial."""

    ref: str
    app_key: str
    # None for an app that is no longer configured.
    app: OfferedApp | None
    started_at: datetime
    is_over: bool
    # Whether it came as far as trials go.
    worked: bool
    # Why it did not: a stable code, a fact, and what mends it. Empty otherwise.
    error: str
    detail: str
    cure: str
    parts: tuple[Tried, ...]


class Trials:
    """Begin and show trials."""

    def __init__(
        self,
        *,
        database: Database,
        clock: Clock,
        apps: AppCatalogue,
        links: Links,
        timeline: Timeline,
        begin: Callable[[str, str, Browser], str],
    ) -> None:
        """`begin` starts a flow from a link's token and returns the provider's address, as `Flows.begin` does."""
        self._database = database
        self._clock = clock
        self._apps = apps
        self._links = links
        self._timeline = timeline
        self._begin = begin

    def begin(self, app_key: str, browser: Browser, *, actor: Actor) -> str:
        """Start a trial of an OAuth app and return the provider's address. Raises AppUnknown and as `begin` does."""
        app = self._apps.get(app_key)
        asked = LinkRequest(END_USER, apps=(app.key,), expires_in=LIFE_SECONDS, trial=True)
        made = self._links.create(asked, created_by=actor.name)
        with self._database.write() as connection:
            audit.record(
                connection, at=self._clock.now(), actor_kind=actor.kind, actor=actor.name, action="app.tested",
                target=app.key, detail={"link": made.id},
            )  # fmt: skip
        return self._begin(made.url.rpartition("/")[2], app.key, browser)

    def find(self, ref: str) -> TrialView:
        """Return a trial by its flow's reference. Raises TrialUnknown."""
        flow = None
        if storable(ref):
            with self._database.read() as connection:
                flow = connection.execute(
                    sa.select(
                        _flows.c.app_key, _flows.c.created_at, _flows.c.ended_at, _flows.c.failure,
                        _flows.c.failure_detail, _flows.c.grant_sealed,
                    ).where(_flows.c.ref == ref, _flows.c.trial)
                ).one_or_none()  # fmt: skip
        if flow is None:
            raise TrialUnknown
        worked, is_over = flow.failure == TrialOver.code, flow.ended_at is not None
        error = "" if worked else flow.failure or ""
        entries = self._timeline.of_flow(ref)
        return TrialView(
            ref=ref,
            app_key=flow.app_key,
            app=self._apps.get(flow.app_key) if flow.app_key in self._apps else None,
            started_at=flow.created_at,
            is_over=is_over,
            worked=worked,
            error=error,
            detail=(flow.failure_detail or "") if error else "",
            cure=cure_of(error) if error else "",
            parts=tuple(_parts(entries, is_over=is_over, worked=worked, holds_grant=flow.grant_sealed is not None)),
        )


def findings(app: OfferedApp, accounts: Iterable[Account], grant: Grant) -> Iterator[tuple[str, str]]:
    """Yield what a trial found out, as entries of its timeline: names and facts, never a value that was granted."""
    reached = tuple(accounts)
    for account in reached[:MOST_NAMED]:
        yield "account", f"{account.name or account.id}, {account.id}, {account.mode}"
    if not reached:
        yield "account", "None yet: the app is not installed on any account of this person."
        return
    if lacking := app.missing(grant.scopes) if grant.scopes else ():
        yield "importable", f"Not granted: {', '.join(lacking)}"
    try:
        properties = app.provider.properties(app.config, reached[0], grant)
    except GrantIncomplete as failure:
        yield "not_importable", failure.detail
    else:
        yield "importable", f"{app.kind} with {', '.join(sorted(properties))}"


_ENTRIES = {
    Part.LEAVE: ("left",),
    Part.RETURN: ("returned",),
    Part.EXCHANGE: ("redeemed",),
    Part.ACCOUNT: ("account",),
    Part.IMPORT: ("importable", "not_importable"),
}
"""What the timeline calls each part."""


def _parts(entries: list[Entry], *, is_over: bool, worked: bool, holds_grant: bool) -> Iterator[Tried]:
    failed = False
    for part, names in _ENTRIES.items():
        found = [entry for entry in entries if entry.name in names]
        if found:
            bad = any(entry.name == "not_importable" for entry in found)
            facts = tuple(entry.detail for entry in found if entry.detail)
            shown = facts if part in {Part.ACCOUNT, Part.IMPORT} else ()
            yield Tried(part, Outcome.FAILED if bad else Outcome.DONE, found[-1].at, found[-1].duration_ms, shown)
        elif not is_over:
            yield Tried(part, Outcome.WAITING)
        else:
            # What comes after that was not come to.
            yield Tried(part, Outcome.SKIPPED if worked or failed else Outcome.FAILED)
            failed = True
    if not any(entry.name == "redeemed" for entry in entries):
        yield Tried(Part.CLEAN_UP, Outcome.SKIPPED if is_over else Outcome.WAITING)
    elif holds_grant or not is_over:
        yield Tried(Part.CLEAN_UP, Outcome.WAITING)
    else:
        over = next((entry for entry in entries if entry.name == "discarded"), None)
        facts = (over.detail,) if over is not None and over.detail else ()
        yield Tried(Part.CLEAN_UP, Outcome.DONE, over.at if over is not None else None, facts=facts)
