"""What Sequin holds changes behind our back: one sweep finds all of it, and each is cured by one action."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
import sqlalchemy as sa

from broker.db import table
from broker.models import Job, JobState
from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, eventually

PASSWORD = "correct horse battery staple"
SWEPT = ("verify", "reconcile")
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=DATABASES)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of our own: a sweep looks at everything, what other tests have left behind too."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("drift"), url)
        try:
            world.start_sandbox()
            world.start_web()
            world.start_worker()
            world.control("consent", auto="allow")
            world.run("operator", "create", "--email", "sam@example.com", "--role", "operator", given=f"{PASSWORD}\n")
            yield world
        finally:
            world.stop_all()


def sequin(world: World, method: str, path: str, **body: object) -> requests.Response:
    """Do something in Sequin as somebody else would."""
    answer = requests.request(
        method,
        f"{world.sandbox_url}/sequin/v1/{path}",
        headers={"Authorization": f"Bearer {world.environment['SEQUIN_API_TOKEN']}"},
        json=body or None,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    return answer


@dataclass
class Drifted:
    """A connection, what was done to its credential, and what is to be told about it."""

    person: Person
    end_user: str
    connection: dict[str, Any]
    code: str = ""

    @property
    def ref(self) -> str:
        return str(self.connection["ref"])

    @property
    def credential(self) -> str:
        return str(self.connection["sequin"]["credential_id"])


def connected(world: World, app: str) -> Drifted:
    """Connect somebody new and wait until it is proven."""
    end_user = f"drifting-{next(_numbers)}"
    person = Person(world)
    person.connect(world.link(end_user), app)
    return Drifted(person, end_user, world.verified(end_user))


def plant(world: World) -> tuple[dict[str, Drifted], str]:
    """Let four credentials drift, each in its own way, and leave one that nobody owns; return all of it."""
    found = {name: connected(world, "github") for name in ("deleted", "moved")}
    found |= {name: connected(world, "stripe") for name in ("changed", "unhealthy")}
    sequin(world, "DELETE", f"credentials/{found['deleted'].credential}")
    other = sequin(
        world, "POST", "oauth-apps", provider="github", name="Another", client_id="Iv1.other", client_secret="secret"
    ).json()["id"]
    world.control("drift", credential=found["moved"].credential, oauth_app_id=other)
    world.control("drift", credential=found["changed"].credential, properties={"stripe_user_id": "acct_1Else"})
    world.control("health", credential=found["unhealthy"].credential, status="error", notes=["401"])
    for name, code in {
        "deleted": "missing", "moved": "moved", "changed": "changed", "unhealthy": "unhealthy",
    }.items():  # fmt: skip
        found[name].code = f"credential_{code}"
    stray = sequin(
        world, "POST", "credentials", oauth_app_id=world.sequin_app("stripe"),
        properties={"kind": "stripe_oauth2", "secret": "sk_test_stray", "test": True, "stripe_user_id": "acct_1Stray"},
        metadata={"broker_connection_id": "NOBO-DYOW-NSIT"},
    ).json()["id"]  # fmt: skip
    return found, str(stray)


def by_command(world: World, found: dict[str, Drifted], stray: str) -> None:
    """Sweep by hand."""
    report = json.loads(world.run("connections", "check", "--all", "--json"))
    told = {one["ref"]: one["found"] for one in report["data"] if one["state"] != "ok"}
    assert told == {each.ref: each.code for each in found.values()}
    assert [one["credential_id"] for one in report["orphans"]] == [stray]


def by_schedule(world: World, found: dict[str, Drifted], stray: str) -> None:
    """Let the hours pass after which a worker looks by itself."""
    jobs = table(Job)
    with world.database() as connection:
        waiting = sa.update(jobs).where(jobs.c.kind.in_(SWEPT), jobs.c.state == JobState.WAITING)
        connection.execute(waiting.values(due_at=datetime.now(UTC) - timedelta(seconds=1)))
    query = sa.text("SELECT credential_id FROM orphans")

    def look() -> bool:
        with world.database() as connection:
            orphans = connection.execute(query).scalars().all()
        drifts = {each.ref: now(world, each)["status"] for each in found.values()}
        return stray in orphans and set(drifts.values()) == {"error"}

    eventually(look)


def now(world: World, one: Drifted) -> dict[str, Any]:
    """Return the connection as the API shows it now."""
    answer = world.api("GET", f"connections/{one.ref}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def operator(world: World) -> Person:
    """Return somebody signed in to the console."""
    staff = Person(world)
    page = staff.get("/ops/sign-in")
    answer = staff.press(page, "/ops/sign-in", email="sam@example.com", password=PASSWORD)
    assert answer.is_redirect, answer.text
    return staff


@pytest.mark.parametrize("sweep", [by_command, by_schedule])
def test_one_sweep_finds_all_drift_and_one_action_cures_each(
    world: World, sweep: Callable[[World, dict[str, Drifted], str], None]
) -> None:
    found, stray = plant(world)
    staff = operator(world)

    sweep(world, found, stray)

    for each in found.values():
        told = now(world, each)
        cure = "Import it again." if each.connection["app"] == "github" else "The person has to reconnect."
        assert told["status"] == "error"
        assert cure in told["health"]["notes"][0]
        console = staff.get(f"/ops/connections/{each.ref}").text
        assert told["health"]["notes"][0] in console
        assert ("Retry import" in console) == (each.connection["app"] == "github")
        assert "Reconnect it to go on" in each.person.get(f"/connections/{each.ref}").text

    # Import again: an operator's button, and the host's call.
    page = staff.get(f"/ops/connections/{found['deleted'].ref}")
    staff.press(page, f"/ops/connections/{found['deleted'].ref}/retry")
    assert world.api("POST", f"connections/{found['moved'].ref}/retry").status_code == 202
    # Reconnect: nothing else would help, and saying so is all that a retry does.
    for name in ("changed", "unhealthy"):
        refused = world.api("POST", f"connections/{found[name].ref}/retry")
        assert (refused.status_code, refused.json()["code"]) == (409, "token_erased")
        world.control("consent", auto="allow", account=found[name].connection["account"]["id"])
        assert "Stripe is connected" in Person(world).connect(world.link(found[name].end_user), "stripe").text
    world.control("consent", auto="allow")
    # Forget.
    world.run("connections", "forget", stray)

    eventually(lambda: {now(world, each)["status"] for each in found.values()} == {"ok"})
    world.settle()
    report = json.loads(world.run("connections", "check", "--all", "--json"))
    assert {one["state"] for one in report["data"]} == {"ok"}
    assert report["orphans"] == []
    credentials = {one["id"]: one for one in world.credentials()}
    for each in found.values():
        told = now(world, each)
        credential = credentials[told["sequin"]["credential_id"]]
        assert credential["metadata"]["broker_connection_id"] == each.ref
        assert [one for one in credentials.values() if one["metadata"].get("broker_connection_id") == each.ref] == [
            credential
        ]
