"""Processes that die or are told to stop at the worst moment: what was acknowledged arrives, once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta

import pytest
import requests
import sqlalchemy as sa

from broker.db import table
from broker.models import Flow, Job, JobState
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, eventually

LEASE_SECONDS = 75
"""A lease is 30 s; the promise is that a killed worker's work runs elsewhere within 60 s."""


@pytest.fixture(scope="module", params=DATABASES)
def mortal_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of this module's own, whose processes may be killed."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("mortal"), url)
        try:
            world.start_sandbox()
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def world(mortal_world: World) -> World:
    """The mortal world with everything running and nothing left in the sandbox."""
    begin_afresh(mortal_world)
    return mortal_world


def begin_afresh(world: World) -> None:
    """Let everything run and come to rest, then empty the sandbox."""
    revive(world)
    world.end_outage()
    world.settle()
    world.control("reset")
    world.control("consent", auto="allow")


def revive(world: World) -> None:
    """Start what is not running."""
    if "web" not in world.processes:
        world.start_web(processes=2)
    if "worker" not in world.processes:
        world.start_worker()


def stuck(world: World, method: str, path: str) -> None:
    """Wait until a call has arrived at the stand-ins and hangs there."""
    eventually(lambda: [one for one in world.requests_to(method, path) if one["fault"] and one["status"] is None])


class Visit:
    """A visit under way in a thread of its own, because its answer may never come."""

    def __init__(self, person: Person, url: str) -> None:
        self.answer: requests.Response | None = None
        self._thread = threading.Thread(target=self._go, args=(person, url), daemon=True)
        self._thread.start()

    def _go(self, person: Person, url: str) -> None:
        try:
            self.answer = person.get(url)
        except requests.RequestException:
            self.answer = None

    def end(self) -> requests.Response | None:
        """Wait for the answer; None when the connection broke."""
        self._thread.join(30)
        assert not self._thread.is_alive()
        return self.answer


# --- killed -------------------------------------------------------------------------------------------


def test_the_success_redirect_outlives_the_process_that_sent_it(world: World, person: Person, end_user: str) -> None:
    assert world.stop("worker") == 0
    callback = person.come_back(world.link(end_user), "stripe")

    answer = person.get(callback)
    world.kill("web")

    assert answer.status_code == 303
    revive(world)
    assert "Stripe is connected" in person.follow(answer).text
    connection = world.imported(end_user)
    assert [one["id"] for one in world.credentials()] == [connection["sequin"]["credential_id"]]
    assert len(world.requests_to("POST", "/stripe/oauth/token")) == 1


@dataclass
class PowerCut:
    """Three people whose business was cut off at three points of the way."""

    world: World
    exchanging: tuple[Person, str]
    identifying: tuple[Person, str]
    importing: tuple[Person, str]


@pytest.fixture(scope="module")
def power_cut(mortal_world: World) -> PowerCut:
    """Cut the power, everywhere at once: web and worker processes are killed outright in the middle of their calls."""
    world = mortal_world
    begin_afresh(world)

    # The worker has sent its import, Sequin has acted, and its answer is on the way.
    importing = Person(world)
    world.fault("sequin.import", "hang", when="after", seconds=60, times=1)
    importing.connect(world.link("cut-importing"), "stripe")
    stuck(world, "POST", "/sequin/v1/credentials")

    # The exchange is done and its grant committed; whose account it is, is being asked.
    identifying = Person(world)
    world.control("consent", auto="allow", account="solo-sam")
    callback = identifying.come_back(world.link("cut-identifying"), "github")
    world.control("consent", auto="allow")
    world.fault("github.user", "hang", seconds=60, times=1)
    visits = [Visit(identifying, callback)]
    stuck(world, "GET", "/github/api/user")

    # The code is spent, and the token is on its way to us.
    exchanging = Person(world)
    callback = exchanging.come_back(world.link("cut-exchanging"), "stripe")
    world.fault("stripe.token", "hang", when="after", seconds=60, times=1)
    visits.append(Visit(exchanging, callback))
    stuck(world, "POST", "/stripe/oauth/token")

    world.kill("web")
    world.kill("worker")
    assert [visit.end() for visit in visits] == [None, None]
    revive(world)
    return PowerCut(
        world, (exchanging, "cut-exchanging"), (identifying, "cut-identifying"), (importing, "cut-importing")
    )


def test_an_exchange_that_was_cut_off_reads_interrupted(power_cut: PowerCut) -> None:
    world, (person, end_user) = power_cut.world, power_cut.exchanging
    callback = next(one.headers["Location"] for one in person.seen if "/oauth/stripe/callback" in _to(one))

    # Until it is certain that no answer can come any more, a visit shows the flow and sends nothing.
    page = person.follow(person.get(callback))
    assert "Finishing with Stripe" in page.text
    # It is certain after a minute. Rather than waiting, the row is made a minute older; a worker that starts sweeps.
    flows = table(Flow)
    with world.database() as connection:
        aged = connection.execute(
            sa.update(flows)
            .where(flows.c.state == "redeeming", flows.c.grant_sealed.is_(None))
            .values(updated_at=sa.bindparam("then", type_=flows.c.updated_at.type)),
            {"then": _updated_at(connection, page) - timedelta(seconds=61)},
        )
        assert aged.rowcount == 1
    world.stop("worker")
    world.start_worker()

    eventually(lambda: world.flow_state(page.url) == "interrupted")
    page = person.get(page.url)
    assert "The connection was interrupted" in page.text
    assert world.connections(end_user) == []
    codes = [one for one in world.requests_to("POST", "/stripe/oauth/token") if one["fault"]]
    assert len(codes) == 1
    assert "Stripe is connected" in person.follow(person.press(page, "/start/stripe")).text
    world.imported(end_user, within=LEASE_SECONDS)


def _to(answer: requests.Response) -> str:
    return answer.headers.get("Location", "")


def _updated_at(connection: sa.Connection, page: requests.Response) -> datetime:
    flows = table(Flow)
    ref = page.url.partition("/flows/")[2].partition("?")[0]
    found: datetime = connection.execute(sa.select(flows.c.updated_at).where(flows.c.ref == ref)).scalar_one()
    return found


def test_an_account_that_was_being_looked_up_is_connected_after_the_restart(power_cut: PowerCut) -> None:
    world, (person, end_user) = power_cut.world, power_cut.identifying

    connection = world.imported(end_user, within=LEASE_SECONDS)

    assert connection["account"]["name"] == "solo-sam"
    assert [one["id"] for one in _credentials_of(world, end_user)] == [connection["sequin"]["credential_id"]]
    assert len(world.requests_to("POST", "/github/login/oauth/access_token")) == 1
    callback = next(one.headers["Location"] for one in person.seen if "/oauth/github/callback" in _to(one))
    assert "GitHub is connected" in person.follow(person.get(callback)).text


def test_an_import_whose_answer_was_lost_is_made_once_more_and_adds_nothing(power_cut: PowerCut) -> None:
    world, (_, end_user) = power_cut.world, power_cut.importing

    connection = world.imported(end_user, within=LEASE_SECONDS)

    (credential,) = _credentials_of(world, end_user)
    assert credential["id"] == connection["sequin"]["credential_id"]
    assert credential["import_count"] == 2


def _credentials_of(world: World, end_user: str) -> list[dict[str, object]]:
    return [one for one in world.credentials() if one["metadata"]["end_user_id"] == end_user]


# --- many at once -------------------------------------------------------------------------------------


def test_thirty_people_and_two_workers_make_thirty_credentials(world: World) -> None:
    world.start_worker("worker-2", threads=4)
    names = [f"crowd-{number}" for number in range(30)]

    def connect(name: str) -> str:
        return Person(world).connect(world.link(name), "stripe").text

    with ThreadPoolExecutor(10) as pool:
        pages = list(pool.map(connect, names))

    assert all("Stripe is connected" in page for page in pages)
    found = [world.imported(name) for name in names]
    assert len({one["sequin"]["credential_id"] for one in found}) == 30
    credentials = world.credentials()
    assert len(credentials) == 30
    assert {one["import_count"] for one in credentials} == {1}
    assert sorted(str(one["metadata"]["end_user_id"]) for one in credentials) == sorted(names)
    assert len(world.requests_to("POST", "/stripe/oauth/token")) == 30
    assert world.stop("worker-2") == 0


# --- told to stop -------------------------------------------------------------------------------------


def test_a_web_server_that_is_told_to_stop_finishes_what_it_began(world: World, person: Person, end_user: str) -> None:
    callback = person.come_back(world.link(end_user), "stripe")
    world.fault("stripe.token", "drip", when="after", seconds=3, times=1)
    visit = Visit(person, callback)
    eventually(lambda: world.requests_to("POST", "/stripe/oauth/token"))

    assert world.stop("web") == 0

    answer = visit.end()
    assert answer is not None
    assert answer.status_code == 303
    revive(world)
    assert "Stripe is connected" in person.follow(answer).text
    world.imported(end_user)
    assert len(world.requests_to("POST", "/stripe/oauth/token")) == 1


def test_a_worker_that_is_told_to_stop_hands_back_what_it_did_not_begin(world: World, end_user: str) -> None:
    assert world.stop("worker") == 0
    names = [f"{end_user}-{number}" for number in range(4)]
    for name in names:
        Person(world).connect(world.link(name), "stripe")
    world.fault("sequin.import", "drip", when="after", seconds=3, times=1)
    world.start_worker(threads=1)
    eventually(lambda: world.requests_to("POST", "/sequin/v1/credentials"))

    assert world.stop("worker") == 0

    # What was being sent has been recorded; the rest waits for anybody, at once.
    jobs = table(Job)
    with world.database() as connection:
        states = connection.execute(sa.select(jobs.c.state).where(jobs.c.kind == "import")).scalars().all()
    assert JobState.RUNNING not in states
    assert len([name for name in names if world.connections(name)[0]["sequin"]["imported_at"]]) == 1
    assert states.count(JobState.WAITING) == 3
    world.start_worker()
    for name in names:
        world.imported(name, within=25)
    assert [one["import_count"] for one in world.credentials()] == [1, 1, 1, 1]
