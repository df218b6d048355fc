"""The kill sweep: a process is killed outright at every step of its way in turn, and afterwards nothing is amiss.

    python -m tests.e2e.kill_sweep            both databases, every journey; prints a table

Which steps there are is not written down here: each journey is made once undisturbed, and what `tests.e2e.dying` saw
in it is then gone through step by step. After every kill the process comes back, the person goes on as a person would
(repeats the request, reloads, starts again where the page says so), everything comes to rest, and the checker of the
hand-off compares what sandbox, browsers and database say.

Waiting is done by moving what is due instead: a lease of 30 s or a retry after 2 s only costs a look.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import requests
import sqlalchemy as sa

from broker.db import engine_options, prepare, table, upgrade
from broker.models import Job, JobState
from tests.databases import Databases, PostgresqlDatabases, SqliteDatabases, postgresql
from tests.e2e.handoff_checker import Violation, gather, violations
from tests.e2e.world import Witness, World, eventually, forget_everything, let_pass, move

LEASE = timedelta(seconds=31)
TRIES = 6
PATIENCE = 15.0
BESIDES = ("Sessions.purge", "Purge.", "Reconciliation.", "Notifications.", "/readyz")
"""What a process does of its own accord, whether or not anybody is on the way."""

_jobs = table(Job)


class DoomedWorld(World):
    """A world whose web and worker processes die where they are told to and come back at once."""

    _mourned = 0

    def program(self, name: str) -> tuple[str, ...]:
        """Run everything but the sandbox under `tests.e2e.dying`."""
        return super().program(name) if name == "sandbox" else ("tests.e2e.dying", str(self.folder), name)

    def begin(self) -> None:
        """Start everything and wait until it is at rest."""
        self.start_sandbox()
        self.start_web()
        self.start_worker(threads=1)
        assert self.api_key
        self.rest()

    @property
    def diary(self) -> Path:
        """Where browsers note what they are shown."""
        return self.folder / "clients.jsonl"

    @cached_property
    def engine(self) -> sa.Engine:
        """The way into the database for the test itself."""
        engine = sa.create_engine(self.database_url, **engine_options(self.database_url))
        prepare(engine)
        return engine

    def afresh(self) -> None:
        """Empty sandbox, browsers' log and database, as if nobody had ever been here."""
        self.control("reset")
        self.diary.write_text("")
        with self.engine.begin() as connection:
            forget_everything(connection)

    # --- killing -----------------------------------------------------------------------------------------

    def doom(self, name: str, step: str, occurrence: int) -> None:
        """Let a process die at a step, the so-manieth time that it comes there."""
        fate = self.folder / f"{name}.fate"
        draft = fate.with_suffix(".draft")
        draft.write_text(f"{occurrence} {step}")
        draft.replace(fate)

    def is_doomed(self, name: str) -> bool:
        """Tell whether a process has yet to come to where it is to die."""
        return (self.folder / f"{name}.fate").exists()

    def met_its_fate(self, name: str) -> bool:
        """Tell whether a process has died where it was to; one that will not is spared."""
        with suppress(AssertionError):
            eventually(lambda: not self.is_doomed(name), within=PATIENCE)
            return True
        (self.folder / f"{name}.fate").unlink(missing_ok=True)
        return False

    def steps(self, name: str) -> list[str]:
        """Return every step of a process so far, without what it does of its own accord."""
        steps = (self.folder / f"{name}.steps").read_text().splitlines()
        return [step for step in steps if not any(each in step for each in BESIDES)]

    def lives(self, name: str) -> int:
        """Return how often a process has begun."""
        return (self.folder / f"{name}.log").read_text().count(f"{name}.started")

    def reborn(self, name: str) -> None:
        """Give a process a new life, which remembers nothing."""
        before = self.lives(name)
        self.processes[name].send_signal(signal.SIGUSR1)
        self.back(name, before)

    def back(self, name: str, before: int) -> None:
        """Wait until a process has begun another life than its first so many, and works."""
        eventually(lambda: self.lives(name) > before)
        if name == "web":
            self.answers()

    # --- coming to rest ----------------------------------------------------------------------------------

    def rest(self) -> None:
        """Let time pass until nothing is under way."""
        eventually(self._is_at_rest)

    def _is_at_rest(self) -> bool:
        deaths = self.folder / "worker.deaths"
        count = len(deaths.read_text().splitlines()) if deaths.exists() else 0
        with self.engine.begin() as connection:
            if count > self._mourned:
                # The leases that a dead worker held run out.
                move(connection, _jobs.c.due_at, LEASE, _jobs.c.state == JobState.RUNNING)
                self._mourned = count
            return not let_pass(connection)

    def contradictions(self) -> list[Violation]:
        """Return what the checker finds."""
        keys = self.environment["BROKER_ENCRYPTION_KEYS"]
        evidence = gather(sandbox=self.sandbox_url, database=self.database_url, clients=self.diary, keys=keys)
        return violations(evidence)


class Traveller(Witness):
    """Somebody who repeats a request whose answer never came, as people do."""

    world: DoomedWorld

    def get(self, url: str) -> requests.Response:
        """Open an address, again if need be."""
        return self._insist("GET", url, partial(super().get, url))

    def post(self, url: str, fields: Any) -> requests.Response:
        """Send a form, again if need be."""
        return self._insist("POST", url, partial(super().post, url, fields))

    def _insist(self, method: str, url: str, send: Callable[[], requests.Response]) -> requests.Response:
        for _ in range(TRIES):
            try:
                return send()
            except requests.RequestException:
                self.note(method, url)
                self.world.answers()
        raise AssertionError("no answer, however often it was asked for")

    def arrive(self, page: requests.Response, app: str) -> bool:
        """Go on from a flow's page until the account is connected; tell whether it took another start."""
        again = False
        for _ in range(TRIES):
            self.world.rest()
            page = self.get(page.url)
            if " is connected" in page.text:
                return again
            if "Continue to GitHub" in page.text:
                page = self.follow(self.press(page, "/install"))
            elif "The connection was interrupted" in page.text:
                again = True
                page = self.follow(self.press(page, f"/start/{app}"))
        raise AssertionError(f"never connected:\n{page.text}")


# --- journeys -------------------------------------------------------------------------------------------

NAME = "doomed"
ACCOUNT = "acct_1Doomed"
Prepare = Callable[[DoomedWorld, Traveller], str]
Travel = Callable[[DoomedWorld, Traveller, str], bool]


@dataclass(frozen=True)
class Journey:
    """A way that somebody goes while the victim is to die; only the steps from the first `since` to the
    first `until` are of interest.

    `prepare` happens before anybody is doomed and returns the address where the way begins. `travel` goes it, and
    tells whether the person had to start again.
    """

    name: str
    victim: str
    prepare: Prepare
    travel: Travel
    since: str = ""
    until: str = ""

    def __str__(self) -> str:
        return f"{self.name}, {self.victim}"


def invited(account: str | None = None) -> Prepare:
    """Return what gives somebody a connect link, and says which account they have at the provider."""

    def prepare(world: DoomedWorld, person: Traveller) -> str:
        world.control("consent", auto="allow", account=account)
        return world.link(NAME, metadata={"plan": "gold"})

    return prepare


def looked_up_later(world: DoomedWorld, person: Traveller) -> str:
    """Let the provider not say at once whose account it is, so that the worker has to find out."""
    world.fault("stripe.account", "status", status=503, times=1)
    return invited()(world, person)


def invited_again(world: DoomedWorld, person: Traveller) -> str:
    """Let the account be connected already."""
    connect("stripe")(world, person, invited(ACCOUNT)(world, person))
    return invited(ACCOUNT)(world, person)


def connected(world: DoomedWorld, person: Traveller) -> str:
    """Let an account be connected, and return its page."""
    connect("stripe")(world, person, invited(ACCOUNT)(world, person))
    return f"{world.url}/connections/{world.connections(NAME)[0]['ref']}"


def connect(app: str) -> Travel:
    """Return the way from a connect link to a connected account."""
    return lambda world, person, link: person.arrive(person.connect(link, app), app)


def choose(world: DoomedWorld, person: Traveller, link: str) -> bool:
    """Connect one of several accounts."""
    page = person.connect(link, "github")
    return person.arrive(person.follow(person.press(page, "/choose", account="90002")), "github")


def disconnect(world: DoomedWorld, person: Traveller, address: str) -> bool:
    """Disconnect on the pages."""
    page = person.follow(person.press(person.get(f"{address}/disconnect"), "/disconnect"))
    assert "is disconnected" in page.text, page.text
    world.rest()
    return False


STRIPE, GITHUB = connect("stripe"), connect("github")
FROM_CALLBACK_TO_ANSWER = ("received GET /oauth/stripe/callback", "answered GET /oauth/stripe/callback")
FROM_CALLBACK_TO_SETUP = ("received GET /oauth/github/callback", "answered GET /oauth/github/setup")
THE_CHOICE = ("received POST /flows/…/choose", "answered POST /flows/…/choose")
JOURNEYS = (
    Journey("connecting Stripe", "web", invited(), STRIPE, until="answered GET /flows/…"),
    Journey("connecting Stripe", "worker", invited(), STRIPE),
    Journey("looked up later", "worker", looked_up_later, STRIPE, until="committed Worker._settle"),
    Journey("connecting again", "web", invited_again, STRIPE, *FROM_CALLBACK_TO_ANSWER),
    Journey("connecting again", "worker", invited_again, STRIPE),
    Journey("installing on GitHub", "web", invited("octo-jo"), GITHUB, *FROM_CALLBACK_TO_SETUP),
    Journey("choosing at GitHub", "web", invited("many-mona"), choose, *THE_CHOICE),
    Journey("disconnecting", "web", connected, disconnect, "received POST /connections/…/disconnect"),
    Journey("disconnecting", "worker", connected, disconnect),
)
NAMED = {
    "flow row committed": "committed FlowJournal.leave",
    "redirect sent (to the provider)": "answered POST /connect/…/start/stripe",
    "callback received": "received GET /oauth/stripe/callback",
    "state consumed": "committed FlowJournal.consume",
    "token request sent": "sent POST /stripe/oauth/token",
    "token answer read": "read POST /stripe/oauth/token",
    "grant committed": "committed FlowJournal._commit_grant",
    "connection committed": "committed Flows._attach",
    "redirect sent (to the page)": "answered GET /oauth/stripe/callback",
    "delivery leased": "committed Jobs.lease",
    "import sent": "sent POST /sequin/v1/credentials",
    "2xx read": "read POST /sequin/v1/credentials",
    "outcome committed": "committed Deliveries._record",
    "verification committed": "committed Verifications.run",
    "disconnect committed": "committed Disconnections._request",
    "revocation sent": "sent POST /stripe/oauth/deauthorize",
    "revocation committed": "committed Disconnections._revoked",
    "removal sent": "sent DELETE /sequin/v1/credentials/…",
    "removal committed": "committed Disconnections._removed",
}
"""The kill points that the security reference names, and the steps that they are."""
STARTS_AGAIN = {
    "committed FlowJournal.consume",
    "sent POST /stripe/oauth/token",
    "read POST /stripe/oauth/token",
    "sent POST /github/login/oauth/access_token",
    "read POST /github/login/oauth/access_token",
}
"""Where nothing can save the attempt: the code may be spent, and its token was in the dead process alone."""


# --- the sweep ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One kill and what came of it."""

    step: str
    occurrence: int
    started_again: bool
    violations: tuple[Violation, ...]
    missed: bool

    @property
    def point(self) -> str:
        """The step, and the how-manieth time."""
        return f"{self.step} (time {self.occurrence})" if self.occurrence > 1 else self.step

    @property
    def is_good(self) -> bool:
        """Whether the process died there and nothing is amiss."""
        return not self.violations and not self.missed


def steps_of(world: DoomedWorld, journey: Journey) -> list[tuple[str, int]]:
    """Make a journey undisturbed; return every step of its victim, and the how-manieth of that name it is."""
    world.afresh()
    person = Traveller(world, NAME, world.diary)
    start = journey.prepare(world, person)
    world.reborn("worker")
    before = len(world.steps(journey.victim))
    journey.travel(world, person, start)
    seen: Counter[str] = Counter()
    found = []
    for step in world.steps(journey.victim)[before:]:
        seen[step] += 1
        found.append((step, seen[step]))
    names = [step for step, _ in found]
    first = names.index(journey.since) if journey.since else 0
    return found[first : names.index(journey.until) + 1 if journey.until else None]


def sweep(world: DoomedWorld, journey: Journey) -> Iterator[Run]:
    """Kill at every step of a journey in turn."""
    for step, occurrence in steps_of(world, journey):
        yield kill_at(world, journey, step, occurrence)


def kill_at(world: DoomedWorld, journey: Journey, step: str, occurrence: int) -> Run:
    """Make a journey during which the victim dies at one step."""
    world.afresh()
    person = Traveller(world, NAME, world.diary)
    start = journey.prepare(world, person)
    if "oauth-apps" in step:
        # A worker that has looked before would not look again.
        world.reborn("worker")
    lives = world.lives(journey.victim)
    world.doom(journey.victim, step, occurrence)
    started_again = journey.travel(world, person, start)
    missed = not world.met_its_fate(journey.victim)
    if not missed:
        world.back(journey.victim, lives)
        world.rest()
    return Run(step, occurrence, started_again, tuple(world.contradictions()), missed)


@contextmanager
def doomed_world(databases: Databases, folder: Path) -> Iterator[DoomedWorld]:
    """Lend a running world on a database of its own."""
    with databases.migrated() as url:
        world = DoomedWorld(folder, url)
        try:
            world.begin()
            yield world
        finally:
            world.stop_all()
            world.engine.dispose()


# --- the program ----------------------------------------------------------------------------------------


def summary(runs: dict[str, dict[Journey, list[Run]]]) -> str:
    """Return how many kill points and runs there were, and how they went."""
    points = {(journey, run.point) for found in runs.values() for journey, each in found.items() for run in each}
    every = [run for found in runs.values() for each in found.values() for run in each]
    return (
        f"{len(points)} kill points on {' and '.join(sorted(runs))}: {len(every)} runs, "
        f"{sum(run.started_again for run in every)} started again, "
        f"{sum(len(run.violations) for run in every)} violations, {sum(run.missed for run in every)} missed"
    )


def outcome(run: Run) -> str:
    """Return one word, or what is amiss."""
    if run.missed:
        return "MISSED"
    if run.violations:
        return "; ".join(map(str, run.violations))
    return "started again" if run.started_again else "fine"


def main() -> int:
    """Sweep every journey on the databases asked for."""
    arguments = argparse.ArgumentParser(prog="kill_sweep", description="Kill at every step of the way.")
    arguments.add_argument("--database", choices=["sqlite", "postgresql"], action="append", help="both by default")
    arguments.add_argument("--journey", default="", help="only journeys with this in their name")
    given = arguments.parse_args()
    asked = given.database or ["sqlite", "postgresql"]
    journeys = [journey for journey in JOURNEYS if given.journey in str(journey)]
    runs: dict[str, dict[Journey, list[Run]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kill-sweep-")))
        for name in asked:
            databases: Databases
            if name == "sqlite":
                databases = SqliteDatabases(folder, upgrade)
            else:
                databases = PostgresqlDatabases(stack.enter_context(postgresql()), upgrade)
                stack.callback(databases.close)
            (folder / name).mkdir()
            with doomed_world(databases, folder / name) as world:
                runs[name] = {}
                for journey in journeys:
                    print(f"\n{name}: {journey}", flush=True)
                    runs[name][journey] = []
                    for run in sweep(world, journey):
                        runs[name][journey].append(run)
                        print(f"  {run.point:<70} {outcome(run)}", flush=True)
    print(f"\n{summary(runs)}")
    return 0 if all(run.is_good for found in runs.values() for each in found.values() for run in each) else 1


if __name__ == "__main__":
    sys.exit(main())
