"""What operators have when something is wrong: the doctor, the match of OAuth apps, and circuits that hammer nobody."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, command, eventually

IMPORT = ("POST", "/sequin/v1/credentials")
_numbers = itertools.count(1)


@pytest.fixture(scope="module", params=DATABASES)
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of our own: the doctor looks at everything, what other tests have left behind too."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("doctor"), url)
        try:
            world.start_sandbox()
            world.start_web()
            world.start_worker()
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def world(standing: World) -> World:
    standing.control("reset")
    if standing.close_circuits():
        # Until nobody goes by what was read before.
        time.sleep(1.1)
    standing.control("consent", auto="allow")
    return standing


@pytest.fixture
def end_user() -> str:
    return f"somebody-{next(_numbers)}"


def doctor(world: World, **settings: str) -> tuple[int, dict[str, Any]]:
    done = command("doctor", "--json", environment=world.environment | settings)
    for name in ("SEQUIN_API_TOKEN", "STRIPE_CLIENT_SECRET", "GITHUB_CLIENT_SECRET", "BROKER_SECRET_KEY"):
        assert world.environment[name] not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def wrong(report: dict[str, Any]) -> set[tuple[str, str | None]]:
    """Return what does not pass, but for what the doctor always says: Sequin documents no kind for these tokens."""
    found = {(check["name"], check["app"]) for check in report["checks"] if check["state"] in ("fail", "warn")}
    assert ("kind", "github_oauth") in found
    return found - {("kind", "github_oauth")}


def forget_stripe(world: World) -> None:
    """Delete the Stripe OAuth app in Sequin."""
    answer = requests.delete(
        f"{world.sandbox_url}/sequin/v1/oauth-apps/{world.sequin_app('stripe')}",
        headers={"Authorization": f"Bearer {world.environment['SEQUIN_API_TOKEN']}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def test_all_is_well_in_a_healthy_world(world: World) -> None:
    code, report = doctor(world)

    assert (code, report["ok"], wrong(report)) == (0, True, set())
    assert {check["name"] for check in report["checks"] if check["state"] != "pass"} <= {"settings", "kind"}
    addresses = {(one["app"], one["what"]): one["address"] for one in report["register"]}
    assert addresses["github", "setup"] == f"{world.url}/oauth/github/setup"
    printed = world.run("doctor")
    assert addresses["stripe", "callback"] in printed
    assert "PASS  sequin_token" in printed


@pytest.mark.parametrize(
    ("settings", "failing"),
    [
        ({"SEQUIN_API_TOKEN": "wrong-token-0123456789"}, {("sequin_token", None)}),
        ({"STRIPE_CLIENT_SECRET": "sk_test_wrong0123456789"}, {("credentials", "stripe")}),
        ({"GITHUB_APP_ID": "1"}, {("registration", "github")}),
        ({"GITHUB_CLIENT_ID": "Iv23liwrong"}, {("registration", "github"), ("oauth_app", "github")}),
        ({"STRIPE_SEQUIN_OAUTH_APP_ID": "0b7b7d0e-55f7-4a8c-8d63-7b1f0a3f2c11"}, {("oauth_app", "stripe")}),
    ],
)
def test_each_wrong_setting_fails_its_check(
    world: World, settings: dict[str, str], failing: set[tuple[str, str | None]]
) -> None:
    code, report = doctor(world, **settings)
    assert (code, wrong(report)) == (1, failing)
    assert {(check["name"], check["app"]) for check in report["checks"][: len(failing)]} == failing


def test_a_sequin_that_hangs_costs_no_other_check(world: World) -> None:
    world.fault("sequin.oauth_apps", "hang", seconds=600)
    code, report = doctor(world)
    assert (code, wrong(report)) == (1, {("sequin_token", None)})


def test_a_missing_oauth_app_holds_imports_until_it_is_registered(world: World, end_user: str) -> None:
    forget_stripe(world)
    listed = json.loads(world.run("apps", "list", "--json"))["data"]
    states = {one["key"]: one["state"] for one in listed}
    assert states.pop("stripe") == "missing"
    assert set(states.values()) == {"matched"}
    Person(world).connect(world.link(end_user), "stripe")
    eventually(lambda: world.connections(end_user)[0]["status"] == "import_failed")
    assert world.credentials() == []
    left = command("apps", "sync", environment=world.environment)
    assert left.returncode == 1
    assert "broker apps sync --create" in left.stdout

    synced = json.loads(world.run("apps", "sync", "--create", "--json"))["data"]

    (made,) = [one for one in synced if one["key"] == "stripe"]
    assert (made["state"], made["created"]) == ("matched", True)
    connection = world.imported(end_user, within=25)
    assert connection["sequin"]["oauth_app_id"] == made["sequin_id"] == world.sequin_app("stripe")
    assert len(world.credentials()) == 1
    world.run("apps", "sync", "--create")
    assert len(world.requests_to("POST", "/sequin/v1/oauth-apps")) == 1


def test_a_token_that_is_not_accepted_is_one_alert_and_no_hammering(world: World) -> None:
    log = world.folder / "worker.log"
    before = len(log.read_text())
    world.fault("sequin.import", "status", status=401)
    people = [f"waiting-{next(_numbers)}" for _ in range(10)]
    for someone in people:
        Person(world).connect(world.link(someone), "stripe")
    eventually(lambda: world.requests_to(*IMPORT))
    began = time.monotonic()

    def alerts() -> list[tuple[str, str]]:
        events = [json.loads(line) for line in log.read_text()[before:].splitlines() if line.startswith("{")]
        return [(event["event"], event["error"]) for event in events if event.get("level") == "error"]

    eventually(alerts)
    assert ("circuits", None) in wrong(doctor(world)[1])
    # All the while others were due. That one goes and sees every 12 s is held by the tests of circuits.
    assert len(world.requests_to(*IMPORT)) <= 2 + (time.monotonic() - began + 5) / 10
    assert alerts() == [("circuit.opened", "sequin_unauthorized")]

    world.end_outage()

    for someone in people:
        assert world.imported(someone)["sequin"]["credential_id"]
    assert len(world.credentials()) == 10


def test_a_registration_the_provider_does_not_accept_stops_people_before_they_leave(
    world: World, end_user: str
) -> None:
    world.fault("stripe.token", "status", status=401, body='{"error": "invalid_client"}', times=1)
    page = Person(world).connect(world.link(end_user), "stripe")
    assert "needs to fix a setting" in page.text
    other, late = Person(world), f"{end_user}-late"
    link = world.link(late)

    refused = other.press(other.get(link), "/start/stripe")

    assert refused.status_code == 503
    assert "needs to fix a setting" in refused.text
    assert ("circuits", "stripe") in wrong(doctor(world)[1])
    # The next try is let through, and shows that it was mended.

    def start() -> requests.Response | None:
        answer = other.press(other.get(link), "/start/stripe")
        return answer if answer.is_redirect else None

    answer = eventually(start)
    assert "Stripe is connected" in other.follow(answer).text
    assert world.imported(late)
