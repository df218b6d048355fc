"""A running world: sandbox, web and worker processes as `broker …` starts them, and people who use them."""

from __future__ import annotations

import html
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urljoin

import requests
import sqlalchemy as sa
from dotenv import dotenv_values

from broker.db import Base, UtcDateTime, engine_options, prepare, table
from broker.models import ApiKey, CleanUp, ConnectedAccount, Flow, FlowState, Job, JobState, KeyCanary

ROOT = Path(__file__).parents[2]
START_SECONDS = 90.0
PATIENCE_SECONDS = 90.0
SOON_SECONDS = 60.0
LOG_SHOWN = 3_000
PORTS = (10_000, 32_000)

Found = TypeVar("Found")


def eventually(look: Callable[[], Found | None], *, within: float = PATIENCE_SECONDS) -> Found:
    """Return the first truthy answer of `look`; fail when there is none in time.

    Other processes are at work here: waiting for what they do is the test, not a guess at how long it takes.
    """
    ends = time.monotonic() + within
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > ends:
            raise AssertionError(f"not within {within} s: the last answer was {found!r}")
        time.sleep(0.05)


def free_port() -> int:
    """Return a port nobody listens on, at random: others that run beside us look for one in the same moment.

    Not from the system's own range: whoever calls out meanwhile would be given it before it is listened on.
    """
    while True:
        port = random.randrange(*PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def let_pass(connection: sa.Connection, seconds: float = 10.0) -> bool:
    """Bring forward by so much whatever waits for its time; return whether there was anything, or any work running.

    Instead of waiting: nothing tells a retry in two seconds from one that was due two seconds earlier.
    """
    by, soon = timedelta(seconds=seconds), datetime.now(UTC) + timedelta(seconds=SOON_SECONDS)
    jobs, flows, connections = table(Job), table(Flow), table(ConnectedAccount)
    waiting = sa.and_(jobs.c.state == JobState.WAITING, jobs.c.due_at < soon)
    redeeming, removing = flows.c.state == FlowState.REDEEMING, connections.c.removal == CleanUp.PENDING
    # In the order in which the broker locks them.
    moved = [
        move(connection, flows.c.updated_at, by, redeeming),
        move(connection, jobs.c.due_at, by, waiting),
        # How long a removal waits for what may still arrive goes by this.
        move(connection, connections.c.disconnected_at, by, removing),
    ]
    running = connection.execute(sa.select(jobs.c.id).where(jobs.c.state == JobState.RUNNING)).all()
    return any(moved) or bool(running)


def move(connection: sa.Connection, column: sa.Column[Any], by: timedelta, which: sa.ColumnElement[bool]) -> int:
    """Move a point in time of some rows into the past; return of how many."""
    of = column.table
    rows = connection.execute(sa.select(of.c.id, column).where(which)).all()
    for key, moment in rows:
        # Unless it has moved meanwhile: a job that was just leased must not lose its lease.
        connection.execute(sa.update(of).where(of.c.id == key, column == moment).values({column: moment - by}))
    return len(rows)


def forget_everything(connection: sa.Connection) -> None:
    """Empty the database of people and what they did, as if nobody had ever been here; keys and schedules stay."""
    jobs = table(Job)
    for each in reversed(Base.metadata.sorted_tables):
        if each is jobs:
            # What comes round by itself is about nobody, and carries no subject.
            connection.execute(sa.delete(jobs).where(jobs.c.subject_id != 0))
        elif each.name not in (ApiKey.__tablename__, KeyCanary.__tablename__):
            connection.execute(sa.delete(each))


class Form(HTMLParser):
    """The forms of a page: where each goes and what it would send."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.forms: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "form":
            self.forms.append((found.get("action") or "", {}))
        elif tag == "input" and self.forms and found.get("name"):
            checked = found.get("type") not in ("radio", "checkbox") or "checked" in found
            if checked:
                self.forms[-1][1][str(found["name"])] = found.get("value") or ""


class Place(Protocol):
    """What a person visits."""

    url: str


class Person:
    """Somebody with a browser: keeps cookies, follows redirects one by one, presses buttons."""

    def __init__(self, world: Place) -> None:
        self.world = world
        self.browser = requests.Session()
        self.browser.trust_env = False
        self.seen: list[requests.Response] = []

    def get(self, url: str) -> requests.Response:
        """Open an address, without following where it leads."""
        return self._keep(self.browser.get(urljoin(self.world.url, url), allow_redirects=False, timeout=60))

    def post(self, url: str, fields: Mapping[str, str]) -> requests.Response:
        """Send a form, without following where it leads."""
        return self._keep(self.browser.post(url, data=fields, allow_redirects=False, timeout=60))

    def press(self, page: requests.Response, leads_to: str, /, **fields: str) -> requests.Response:
        """Send the form of `page` that goes to an address ending with `leads_to`, or else to one containing it."""
        targets = [(urljoin(page.url, address), values) for address, values in Form(page.text).forms]
        # The end first: one OAuth app's key may begin with another's.
        for target, values in sorted(targets, key=lambda one: not one[0].endswith(leads_to)):
            if leads_to in target:
                return self.post(target, values | fields)
        raise AssertionError(f"no form leads to {leads_to!r} on {page.url}:\n{page.text}")

    def follow(self, answer: requests.Response, *, until: str = "\0") -> requests.Response:
        """Follow redirects until a page is shown, or until one leads to an address containing `until`."""
        while answer.is_redirect and until not in answer.headers["Location"]:
            answer = self.get(urljoin(answer.url, answer.headers["Location"]))
        return answer

    def leave(self, link: str, app: str) -> requests.Response:
        """Open a connect link and press its Connect button: the answer leads to the provider."""
        answer = self.press(self.get(link), f"/start/{app}")
        assert answer.status_code == 303, answer.text
        return answer

    def come_back(self, link: str, app: str) -> str:
        """Go to the provider and allow; return the callback's address without opening it."""
        answer = self.follow(self.leave(link, app), until=f"{self.world.url}/oauth/")
        assert answer.is_redirect, answer.text
        return str(answer.headers["Location"])

    def connect(self, link: str, app: str) -> requests.Response:
        """Connect an account from link to final page."""
        return self.follow(self.leave(link, app))

    def _keep(self, answer: requests.Response) -> requests.Response:
        self.seen.append(answer)
        return answer


class Witness(Person):
    """Somebody whose browser notes every exchange with the broker, for `tests.e2e.handoff_checker`."""

    def __init__(self, world: Place, name: str, diary: Path) -> None:
        super().__init__(world)
        self.name = name
        self._diary = diary

    def _keep(self, answer: requests.Response) -> requests.Response:
        said = re.findall(r"<h1>(.*?)</h1>|<strong>(.*?)</strong>", answer.text, re.DOTALL)
        shown = [html.unescape(heading or notice).strip() for heading, notice in said]
        self.note(str(answer.request.method), answer.url, answer, shown)
        return super()._keep(answer)

    def note(self, method: str, url: str, answer: requests.Response | None = None, shown: Sequence[str] = ()) -> None:
        """Write down a request and its answer, None when there was none."""
        if not url.startswith(self.world.url):
            return
        location = answer.headers.get("Location", "") if answer is not None else ""
        noted = {
            "person": self.name, "method": method, "url": url, "location": location, "shows": list(shown),
            "status": answer.status_code if answer is not None else 0,
        }  # fmt: skip
        with self._diary.open("a") as diary:
            diary.write(f"{json.dumps(noted)}\n")


class World:
    """The processes. `stop` ends every one of them."""

    pipes_logs = False
    """Whether another process writes the logs, for when the broker's own may write no file."""

    def __init__(self, folder: Path, database_url: str, **settings: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.port = free_port()
        self.sandbox_port = free_port()
        self.url = f"http://localhost:{self.port}"
        self.sandbox_url = f"http://127.0.0.1:{self.sandbox_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.writers: list[subprocess.Popen[bytes]] = []
        self.environment = self._environment(settings)

    def _environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        printed = self.folder / "sandbox.env"
        printed.write_bytes(
            subprocess.run(
                [sys.executable, "-m", "broker", "sandbox", "--print-env", "--port", str(self.sandbox_port),
                 "--data-dir", str(self.folder)],
                check=True, capture_output=True,
            ).stdout
        )  # fmt: skip
        return {
            "PATH": os.environ["PATH"],
            "BROKER_ENV": "development",
            "BROKER_PUBLIC_URL": self.url,
            "BROKER_SECRET_KEY": "a-secret-key-for-tests-that-is-long-enough-0123",
            "BROKER_ENCRYPTION_KEYS": "test:GtSUI3a7Aq6SBuwEeGRIhhPsPnSgmVFxYFbYTxOYT6U=",
            "BROKER_RETURN_ORIGINS": "https://host.example",
            "BROKER_LOG_LEVEL": "DEBUG",
            "BROKER_LOG_FORMAT": "json",
            "DATA_DIR": str(self.folder),
            "DATABASE_URL": self.database_url,
            **{name: value for name, value in dotenv_values(printed, interpolate=False).items() if value is not None},
            **settings,
        }

    # --- processes -------------------------------------------------------------------------------------

    def program(self, name: str) -> tuple[str, ...]:
        """Return the module that is run as `broker` under a name, with arguments of its own."""
        return ("broker",)

    def start(self, name: str, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start `broker ARGUMENTS` under a name; its output goes to `NAME.log`."""
        with self._log(name) as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *self.program(name), *arguments, "--until-eof"],
                env=self.environment | settings, cwd=ROOT, stdin=subprocess.PIPE, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes[name] = process
        return process

    @contextmanager
    def _log(self, name: str) -> Iterator[IO[bytes]]:
        with (self.folder / f"{name}.log").open("ab") as log:
            if not self.pipes_logs:
                yield log
                return
            writer = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=log, start_new_session=True)
        self.writers.append(writer)
        assert writer.stdin is not None
        # It ends with the last process that holds the other end.
        with writer.stdin as pipe:
            yield pipe

    def start_sandbox(self) -> None:
        """Start the sandbox and wait until it answers."""
        self.start("sandbox", "sandbox", "--port", str(self.sandbox_port), "--data-dir", str(self.folder))
        self._answers("sandbox", f"{self.sandbox_url}/control/state")

    def start_web(self, *, processes: int = 1, workers: int = 0) -> None:
        """Start the web server and wait until it answers."""
        self.start(
            "web", "web", "--bind", f"127.0.0.1:{self.port}", "--processes", str(processes), "--threads", "12",
            BROKER_WORKERS=str(workers),
        )  # fmt: skip
        self.answers()

    def start_worker(self, name: str = "worker", *, threads: int = 2, **settings: str) -> None:
        """Start a worker process, with settings of its own where given, and wait until it works."""
        log = self.folder / f"{name}.log"
        before = log.stat().st_size if log.exists() else 0
        process = self.start(name, "worker", "--threads", str(threads), **settings)

        def look() -> bool:
            said = log.read_bytes()[before:]
            assert process.poll() is None, said.decode()[-LOG_SHOWN:]
            return b"worker.started" in said

        eventually(look, within=START_SECONDS)

    def kill(self, name: str) -> None:
        """Kill a process and its children outright, as a power cut would."""
        process = self.processes.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        _reap(process)

    def stop(self, name: str) -> int:
        """Ask a process to stop and return its exit code."""
        process = self.processes.pop(name)
        process.terminate()
        return _reap(process)

    def stop_all(self) -> None:
        """End every process, all at the same time."""
        for process in self.processes.values():
            process.terminate()
        try:
            for name in list(self.processes):
                _reap(self.processes[name])
                del self.processes[name]
        finally:
            # Only what did not stop when it was asked to is left.
            for name in list(self.processes):
                self.kill(name)
            for writer in self.writers:
                writer.wait(timeout=60)

    def answers(self) -> None:
        """Wait until the web server answers."""
        self._answers("web", f"{self.url}/readyz")

    def _answers(self, name: str, url: str) -> None:
        def look() -> bool:
            assert self.processes[name].poll() is None, (self.folder / f"{name}.log").read_text()[-LOG_SHOWN:]
            try:
                return requests.get(url, timeout=60).status_code == 200
            except (requests.ConnectionError, requests.Timeout):
                return False

        eventually(look, within=START_SECONDS)

    # --- command line, API, database -------------------------------------------------------------------

    def run(self, *arguments: str, given: str = "") -> str:
        """Run a `broker` command to its end and return what it printed."""
        done = command(*arguments, environment=self.environment, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @cached_property
    def api_key(self) -> str:
        """A key with every scope."""
        return str(json.loads(self.run("apikey", "create", "--name", "tests", "--json"))["key"])

    def api(self, method: str, path: str, **options: Any) -> requests.Response:
        """Call the host API, as the host's backend does."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return requests.request(method, f"{self.url}/api/v1/{path}", headers=headers, timeout=60, **options)

    def link(self, end_user: str, *, email: str | None = None, **body: object) -> str:
        """Make a connect link and return its address."""
        answer = self.api("POST", "connect-links", json={"end_user": {"id": end_user, "email": email}, **body})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["url"])

    def connections(self, end_user: str) -> list[dict[str, Any]]:
        """Return a person's connections."""
        answer = self.api("GET", "connections", params={"end_user": end_user})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["data"])

    def imported(self, end_user: str, *, within: float = PATIENCE_SECONDS) -> dict[str, Any]:
        """Wait until the person's only connection is imported and return it."""

        def look() -> dict[str, Any] | None:
            found = self.connections(end_user)
            assert len(found) <= 1
            return found[0] if found and found[0]["sequin"]["imported_at"] else None

        return eventually(look, within=within)

    def verified(self, end_user: str) -> dict[str, Any]:
        """Wait until the person's only connection was read back from Sequin, so that nothing more changes it."""
        return eventually(
            lambda: next((one for one in self.connections(end_user) if one["sequin"]["verified_at"]), None)
        )

    def flow_state(self, page_url: str) -> str:
        """Return the state in the database of the flow whose page has this address."""
        ref = page_url.partition("/flows/")[2].partition("?")[0]
        with self.database() as connection:
            return str(connection.execute(sa.text("SELECT state FROM flows WHERE ref = :ref"), {"ref": ref}).scalar())

    @contextmanager
    def database(self) -> Iterator[sa.Connection]:
        """Look into the database directly, in a transaction."""
        engine = sa.create_engine(self.database_url, **engine_options(self.database_url))
        prepare(engine)
        try:
            with engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    def settle(self) -> None:
        """Wait until nothing is under way, so that the late work of one test is not taken for the next one's."""
        due = "SELECT kind, state, error FROM jobs WHERE state IN ('waiting', 'running') AND due_at < :soon"

        def look() -> bool:
            soon = datetime.now(UTC) + timedelta(seconds=SOON_SECONDS)
            with self.database() as connection:
                under_way = connection.execute(sa.text(due).bindparams(sa.bindparam("soon", soon, UtcDateTime()))).all()
            return not under_way

        eventually(look)

    # --- sandbox ---------------------------------------------------------------------------------------

    def fault(self, on: str, fault: str, **more: object) -> None:
        """Let calls to one endpoint of the stand-ins fail, `times` times or until the outage ends."""
        self.control("faults", on=on, fault=fault, **more)

    def end_outage(self) -> None:
        """End every fault."""
        assert requests.delete(f"{self.sandbox_url}/control/faults", timeout=60).status_code == 200

    def close_circuits(self) -> bool:
        """Let calls through again whatever failed before: what one test broke must not stop the next.

        Tells whether there were any: processes may go by them for a second more.
        """
        with self.database() as connection:
            return connection.execute(sa.text("DELETE FROM circuits RETURNING name")).first() is not None

    def control(self, what: str, **body: object) -> Any:
        """Ask the sandbox for something, or tell it something."""
        url = f"{self.sandbox_url}/control/{what}"
        answer = requests.post(url, json=body, timeout=60) if body or what == "reset" else requests.get(url, timeout=60)
        assert answer.status_code < 300, answer.text
        return answer.json()

    def requests_to(self, method: str, path: str) -> list[dict[str, Any]]:
        """Return the sandbox's log of one kind of request."""
        log = self.control("log")["data"]
        return [entry for entry in log if entry["method"] == method and re.fullmatch(path, entry["path"])]

    def credentials(self) -> list[dict[str, Any]]:
        """Return the credentials that the sandbox's Sequin holds."""
        return list(self.control("state")["credentials"])

    def sequin_app(self, key: str) -> str:
        """Return the id under which the sandbox's Sequin knows an OAuth app; two may be of one provider."""
        client_id = self.environment[f"{key.upper()}_CLIENT_ID"]
        answer = requests.get(
            f"{self.sandbox_url}/sequin/v1/oauth-apps",
            headers={"Authorization": f"Bearer {self.environment['SEQUIN_API_TOKEN']}"},
            timeout=60,
        )
        return next(str(app["id"]) for app in answer.json()["data"] if app["client_id"] == client_id)


def command(
    *arguments: str, environment: Mapping[str, str], given: str = "", program: tuple[str, ...] = ("-m", "broker")
) -> subprocess.CompletedProcess[str]:
    """Run `python -m broker ARGUMENTS` to its end, whatever comes of it."""
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=dict(environment), cwd=ROOT, input=given, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def _reap(process: subprocess.Popen[bytes]) -> int:
    assert process.stdin is not None
    process.stdin.close()
    return process.wait(timeout=60)
