"""The fault table: every way to fail at every boundary, each with the outcome that is promised for it.

What is retried goes out again by itself, what a setting must mend is held, what nobody can repeat is told; the person
reads the truth, nothing acknowledged is lost, and once the fault is over everything arrives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import cache
from typing import Any

import pytest
import requests

from broker import disconnection, flows, http
from broker.http import Http
from broker.oauth import OAuth
from broker.sandbox.consent import Consent
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.bench import Bench, running_bench
from tests.e2e.world import Witness

SHORT_SECONDS = 0.3
"""The deadline of the one call that never ends by itself; all others keep theirs."""
LONG_SECONDS = 60.0
"""How long such a call would take without a deadline."""
BIG = 300_000_000
CUT_OFF_AT = 8_000_000
"""No more than this may come back of a big answer: the cap of 1 MiB, and what was on its way in buffers."""
ASKED_SECONDS = 40

Fault = dict[str, Any]
FAULTS: dict[str, Fault] = {
    "hang": {"fault": "hang", "when": "after", "seconds": LONG_SECONDS},
    "drip": {"fault": "drip", "when": "after", "seconds": LONG_SECONDS},
    "refused": {},
    "reset": {"fault": "reset", "when": "after"},
    "reset mid-body": {"fault": "break_off", "when": "after"},
    "truncated": {"fault": "truncate", "when": "after"},
    "429 with seconds": {"fault": "status", "status": 429, "headers": {"Retry-After": str(ASKED_SECONDS)}},
    "429 with a date": {"fault": "status", "status": 429},
    "429": {"fault": "status", "status": 429},
    "500": {"fault": "status", "status": 500},
    "503 afterwards": {"fault": "status", "status": 503, "when": "after"},
    "HTML": {"fault": "html"},
    "wrong types": {"fault": "wrong_types"},
    "300 MB": {"fault": "huge", "when": "after", "bytes": BIG},
    "300 MB unannounced": {"fault": "flood", "when": "after", "bytes": BIG},
    "gzip bomb": {"fault": "gzip_bomb", "when": "after", "bytes": BIG},
    "redirect": {"fault": "redirect", "status": 307},
}
ONE_OF_EACH = ("hang", "refused", "reset", "429 with a date", "HTML", "wrong types", "redirect")
"""The faults are other sides' and not the database's: the table is not gone through twice for it."""
ENDLESS = ("hang", "drip")
ASKED = ("429 with seconds", "429 with a date")

Failing = Callable[[str], AbstractContextManager[None]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Go through the whole table on one database, and through one fault of each outcome on the others."""
    if "name" in metafunc.fixturenames:
        cells = [(database, name) for database in DATABASES for name in FAULTS
                 if database == DATABASES[0] or name in ONE_OF_EACH]  # fmt: skip
        metafunc.parametrize(("database", "name"), cells)


@pytest.fixture(scope="module")
def benches(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Bench]]:
    """Lend a bench on each kind of database, set up when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def lend(database: str) -> Bench:
            databases: Databases = request.getfixturevalue(f"{database}_databases")
            url = stack.enter_context(databases.migrated())
            return stack.enter_context(running_bench(url, tmp_path_factory.mktemp("bench")))

        yield lend


@pytest.fixture
def bench(benches: Callable[[str], Bench], database: str) -> Bench:
    found = benches(database)
    found.afresh()
    return found


@pytest.fixture
def failing(bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch) -> Failing:
    """Return what lets the calls to one endpoint fail, in the way this test is about."""
    fault = dict(FAULTS[name])
    if name == "429 with a date":
        fault["headers"] = {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=ASKED_SECONDS))}

    def start(on: str) -> AbstractContextManager[None]:
        if name in ENDLESS:
            _shorten(monkeypatch, PATHS[on])
        return bench.failing(on, **fault) if fault else bench.relay.unplugged()

    return start


PATHS = {
    "stripe.token": "/stripe/oauth/token",
    "github.token": "/github/login/oauth/access_token",
    "stripe.account": "/stripe/v1/account",
    "stripe.deauthorize": "/stripe/oauth/deauthorize",
    "github.user": "/github/api/user",
    "github.app_installation": "/github/api/app/installations/",
    "sequin.import": "/sequin/v1/credentials",
    "sequin.get": "/sequin/v1/credentials/",
    "sequin.delete": "/sequin/v1/credentials/",
}


def _shorten(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Let calls to one path have less time, so that nobody waits for what never ends."""

    begin_call = Http._call  # noqa: SLF001 - every call goes through it, Authlib's too

    def begin(self: Http, request: requests.PreparedRequest, seconds: float, max_bytes: int) -> Any:
        return begin_call(self, request, SHORT_SECONDS if path in str(request.url) else seconds, max_bytes)

    monkeypatch.setattr(Http, "_call", begin)


class Meter:
    """What one step took: seconds, and bytes that came back."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    def __enter__(self) -> Meter:
        self._began, self._before = time.monotonic(), self._bench.relay.returned
        return self

    def __exit__(self, *_: object) -> None:
        # Nobody waited for it to end by itself, and nobody took it all.
        assert time.monotonic() - self._began < LONG_SECONDS / 2
        assert self._bench.relay.returned - self._before < CUT_OFF_AT


def only(bench: Bench, query: str, **values: object) -> Any:
    (row,) = bench.rows(query, **values)
    return row


def assert_waits(bench: Bench, kind: str, name: str) -> None:
    """The job has not been given up, and comes no sooner than it was asked to."""
    found = only(bench, "SELECT state, due_at, updated_at FROM jobs WHERE kind = :kind", kind=kind)
    assert found.state == "waiting"
    if name in ASKED:
        due, since = (datetime.fromisoformat(str(each)) for each in (found.due_at, found.updated_at))
        assert (due - since).total_seconds() > ASKED_SECONDS / 2


def assert_nothing_was_given_away(bench: Bench) -> None:
    """No redirect was followed with a secret."""
    assert not bench.requests_to("POST", "/elsewhere")
    assert not bench.requests_to("GET", "/elsewhere")


def assert_well(bench: Bench) -> None:
    """Everything has arrived and been seen, once."""
    bench.rest()
    row = only(bench, "SELECT import_state, verified_at, health, grant_sealed FROM connections")
    assert (row.import_state, row.health, row.grant_sealed) == ("imported", "ok", None)
    assert row.verified_at is not None
    assert bench.contradictions() == []


# --- the token endpoint ---------------------------------------------------------------------------------

INTERRUPTED = "The connection was interrupted"
INCOMPLETE = "could not complete the connection"
NOT_RESPONDING = "is not responding"


@pytest.mark.parametrize("app", ["stripe", "github"])
def test_the_token_endpoint(bench: Bench, failing: Failing, name: str, app: str) -> None:
    person = bench.person()
    bench.sandbox.world.consent = Consent(auto="allow", account="solo-sam" if app == "github" else None)
    link = bench.link(person)
    callback = person.come_back(link, app)
    point = f"{app}.token"

    with failing(point), Meter(bench):
        answer = person.get(callback)
    page = person.follow(answer)

    sentence, state = _exchange_promise(name)
    assert answer.status_code == 303
    assert sentence in page.text
    assert only(bench, "SELECT state FROM flows").state == state
    # The code is never sent again: not on a reload, and not by the worker.
    person.get(callback)
    bench.rest()
    assert len(bench.requests_to("POST", PATHS[point])) == (0 if name == "refused" else 1)
    assert bench.rows("SELECT id FROM connections") == []
    assert_nothing_was_given_away(bench)
    again = person.follow(person.press(person.get(link), f"/start/{app}"))
    assert " is connected" in again.text
    assert_well(bench)


def _exchange_promise(name: str) -> tuple[str, str]:
    if name == "refused":
        return NOT_RESPONDING, "failed"
    # Names without a usable token: read and understood, so there is nothing ambiguous about it.
    if name == "wrong types":
        return INCOMPLETE, "failed"
    return INTERRUPTED, "interrupted"


# --- which account it is --------------------------------------------------------------------------------

# What was read whole and cannot be used would not get better by asking again.
USELESS = ("HTML", "wrong types", "gzip bomb")


@pytest.mark.parametrize("point", ["stripe.account", "github.user", "github.app_installation"])
def test_the_identity_call(
    bench: Bench, failing: Failing, name: str, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = point.partition(".")[0]
    person = bench.person()
    bench.sandbox.world.consent = Consent(auto="allow", account="solo-sam" if app == "github" else None)
    link = bench.link(person)
    callback = person.come_back(link, app)

    with _once_redeemed(bench, monkeypatch) if name == "refused" else failing(point), Meter(bench):
        answer = person.get(callback)
        page = person.follow(answer)
        flow = only(bench, "SELECT state, grant_sealed FROM flows")
        if name in USELESS or name == "redirect":
            assert flow.state == "failed"
            assert ("needs to fix a setting" if name == "redirect" else INCOMPLETE) in page.text
        else:
            assert "Finishing with" in page.text
            # The grant is safe, and whoever asks next asks no sooner than is wanted.
            assert (flow.state, flow.grant_sealed is None) == ("redeeming", False)
            assert_waits(bench, "finish", name)

    assert answer.status_code == 303
    assert_nothing_was_given_away(bench)
    if flow.state == "failed":
        assert bench.rows("SELECT id FROM connections") == []
        page = person.follow(person.press(person.get(link), f"/start/{app}"))
    bench.rest()
    assert " is connected" in person.get(page.url).text
    assert len(bench.requests_to("POST", PATHS[f"{app}.token"])) == (2 if flow.state == "failed" else 1)
    assert_well(bench)


@contextmanager
def _once_redeemed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unplug the relay as soon as a code was redeemed: what comes next is done by the same visit."""
    redeem = OAuth.redeem
    with ExitStack() as unplugged:

        def once(self: OAuth, *args: Any, **kwargs: Any) -> Any:
            answer = redeem(self, *args, **kwargs)
            unplugged.enter_context(bench.relay.unplugged())
            return answer

        with monkeypatch.context() as patched:
            patched.setattr(OAuth, "redeem", once)
            yield


# --- Sequin ---------------------------------------------------------------------------------------------


def connected(bench: Bench) -> tuple[Witness, requests.Response]:
    """Let somebody connect; the worker has not had its turn."""
    person = bench.person()
    page = person.connect(bench.link(person), "stripe")
    assert "Stripe is connected" in page.text
    return person, page


def test_the_import(bench: Bench, failing: Failing, name: str) -> None:
    person, page = connected(bench)

    with failing("sequin.import"), Meter(bench):
        bench.turn()

    row = only(bench, "SELECT import_state, import_error, imported_at, credential_id, grant_sealed FROM connections")
    assert (row.imported_at, row.credential_id) == (None, None)
    assert row.grant_sealed is not None
    assert row.import_state == ("held" if name == "redirect" else "pending")
    assert row.import_error
    assert_waits(bench, "import", name)
    told = "We could not finish connecting" if name == "redirect" else "We are finishing set-up"
    assert told in person.get(page.url).text
    assert_nothing_was_given_away(bench)
    bench.rest()
    assert "Everything is set up" in person.get(page.url).text
    assert_well(bench)


def test_the_verification(bench: Bench, failing: Failing, name: str) -> None:
    person, page = connected(bench)
    bench.turn()
    assert only(bench, "SELECT import_state FROM connections").import_state == "imported"

    with failing("sequin.get"), Meter(bench):
        bench.turn()

    row = only(bench, "SELECT verified_at, health, grant_sealed FROM connections")
    # Not called fine, and the grant is not erased before somebody has seen it there.
    assert (row.verified_at, row.health) == (None, None)
    assert row.grant_sealed is not None
    assert_waits(bench, "verify", name)
    assert "Stripe is connected" in person.get(page.url).text
    assert_nothing_was_given_away(bench)
    assert_well(bench)


# --- ending it ------------------------------------------------------------------------------------------


def ended(bench: Bench) -> tuple[Witness, str]:
    """Let somebody connect and disconnect; the worker has not had its turn since."""
    person, _ = connected(bench)
    bench.rest()
    ref = only(bench, "SELECT ref FROM connections").ref
    page = person.get(f"/connections/{ref}/disconnect")
    assert "is disconnected" in person.follow(person.press(page, "/disconnect")).text
    return person, ref


@pytest.mark.parametrize(
    ("point", "kind", "part"),
    [("stripe.deauthorize", "revoke", "revocation"), ("sequin.delete", "remove", "removal")],
    ids=["the revocation", "the deletion in Sequin"],
)
def test_ending_it(bench: Bench, failing: Failing, name: str, point: str, kind: str, part: str) -> None:
    person, ref = ended(bench)

    with failing(point), Meter(bench):
        # A worker whose first call fails leaves what else it has for its next turn.
        bench.turn()
        bench.turn()

    row = only(bench, "SELECT revocation, removal, disconnected_at FROM connections")
    assert (getattr(row, part), row.disconnected_at is None) == ("pending", False)
    assert_waits(bench, kind, name)
    assert "still" in person.get(f"/connections/{ref}").text
    assert_nothing_was_given_away(bench)
    bench.rest()
    row = only(bench, "SELECT revocation, removal FROM connections")
    assert (row.revocation, row.removal) == ("done", "done")
    assert bench.contradictions() == []


def test_the_real_deadlines_are_as_promised() -> None:
    assert http.CONNECT_SECONDS <= 3
    assert http.READ_SECONDS <= 10
    assert max(http.TOTAL_SECONDS, flows.EXCHANGE_SECONDS, disconnection.REVOKE_SECONDS) <= 15
    # The whole callback, whatever the provider does.
    assert flows.EXCHANGE_SECONDS + flows.IDENTITY_SECONDS < 20
