"""The command line as people and scripts use it: its own process, its own environment, its exit codes."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from broker import __version__
from tests.conftest import DATABASES
from tests.e2e.world import ROOT, Person, World, command, eventually

NEEDED = (
    "BROKER_PUBLIC_URL",
    "BROKER_SECRET_KEY",
    "BROKER_ENCRYPTION_KEYS",
    "SEQUIN_API_TOKEN",
)

on_one_database = pytest.mark.parametrize("running_world", DATABASES[:1], indirect=True, scope="package")
"""For what is the same on every database."""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment without a single setting, in which no `.env` is found."""
    return {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def run_bare(bare: dict[str, str], tmp_path: Path) -> Run:
    """Run `broker ARGUMENTS` in an empty folder with an empty environment."""

    def run(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "broker", *arguments],
            env=bare | settings, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    return run


# --- without settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [("web",), ("links", "list")])
def test_an_empty_environment_is_told_everything_that_is_missing_at_once(
    run_bare: Run, arguments: tuple[str, ...]
) -> None:
    done = run_bare(*arguments)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    problems = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    for name in NEEDED:
        (problem,) = [line for line in problems if line.startswith(f"  - {name} ")]
        # Each says what to do about it, not only that it is missing.
        assert len(problem.partition(": ")[2]) > 20
    assert f"({len(problems)} problems)" in done.stderr


def test_what_needs_no_settings_works_without_any(run_bare: Run, tmp_path: Path) -> None:
    helped = run_bare("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    for name in (
        "web",
        "worker",
        "demo",
        "sandbox",
        "apikey",
        "operator",
        "links",
        "connections",
        "keys",
        "jobs",
        "db",
    ):
        assert re.search(rf"^  {name} ", helped.stdout, re.MULTILINE), name

    version = run_bare("--version")
    assert (version.returncode, version.stdout.split()[-1]) == (0, __version__)

    made = run_bare("keys", "generate")
    kid, _, key = made.stdout.strip().partition(":")
    assert (made.returncode, made.stderr) == (0, "")
    assert kid
    assert len(base64.b64decode(key, validate=True)) == 32

    printed = run_bare("sandbox", "--print-env", "--port", "8123", "--data-dir", str(tmp_path / "data"))
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "SEQUIN_API_URL=http://127.0.0.1:8123/sequin\n" in printed.stdout
    again = run_bare("sandbox", "--print-env", "--port", "8123", "--data-dir", str(tmp_path / "data"))
    assert again.stdout == printed.stdout
    # One setting a line: the private key too.
    assert all("=" in line for line in printed.stdout.splitlines())


# --- the database -------------------------------------------------------------------------------------


def test_nothing_serves_tables_it_does_not_know_and_upgrading_twice_is_safe(
    empty_database_url: str, tmp_path: Path
) -> None:
    world = World(tmp_path, empty_database_url)
    serving: list[tuple[str, ...]] = [("web", "--bind", f"127.0.0.1:{world.port}"), ("worker",)]
    for arguments in serving:
        refused = command(*arguments, environment=world.environment)
        assert refused.returncode == 1
        assert "broker db upgrade" in refused.stderr
        assert "Traceback" not in refused.stderr + refused.stdout

    first, second = world.run("db", "upgrade"), world.run("db", "upgrade")

    assert first == second
    assert "revision" in first
    # The key ring leaves a canary with the first start; another key of the same name is then refused.
    assert "opens" in world.run("keys", "check")
    other = {"BROKER_ENCRYPTION_KEYS": "test:" + base64.b64encode(b"another key, 32 bytes long, yes!").decode()}
    for arguments in serving:
        refused = command(*arguments, environment=world.environment | other)
        assert refused.returncode == 1
        assert "BROKER_ENCRYPTION_KEYS" in refused.stderr
        assert "Traceback" not in refused.stderr + refused.stdout
        assert other["BROKER_ENCRYPTION_KEYS"].partition(":")[2] not in refused.stderr + refused.stdout


# --- on a running broker ------------------------------------------------------------------------------


def test_an_api_key_works_from_creation_to_revocation(world: World, end_user: str) -> None:
    made = json.loads(world.run("apikey", "create", "--name", "for a moment", "--scope", "links:write", "--json"))
    headers = {"Authorization": f"Bearer {made['key']}"}
    address, body = f"{world.url}/api/v1/connect-links", {"end_user": {"id": end_user}}

    created = requests.post(address, json=body, headers=headers, timeout=60)
    assert created.status_code == 201
    assert set(created.json()) == {"id", "url", "expires_at"}
    assert Person(world).get(created.json()["url"]).status_code == 200
    assert requests.get(f"{world.url}/api/v1/connections", headers=headers, timeout=60).status_code == 403
    listed = world.run("apikey", "list")
    assert made["id"] in listed
    assert made["key"] not in listed

    world.run("apikey", "revoke", made["id"])

    refused = requests.post(address, json=body, headers=headers, timeout=60)
    assert refused.status_code == 401
    assert refused.headers["Content-Type"].startswith("application/problem+json")


def test_an_operator_made_here_signs_in_there(world: World, person: Person, end_user: str) -> None:
    password = "correct horse battery staple, twice"
    email = f"{end_user}@example.com"
    person.connect(world.link(end_user), "stripe")
    connection = world.imported(end_user)

    made = world.run("operator", "create", "--email", email, "--role", "viewer", "--json", given=f"{password}\n")
    assert json.loads(made) == {"email": email, "role": "viewer"}

    staff = Person(world)
    page = staff.follow(staff.get("/ops/"))
    assert "Sign in" in page.text
    wrong = staff.press(page, "/ops/sign-in", email=email, password="not this one, surely")
    assert wrong.status_code in (401, 422, 400)
    shown = staff.follow(staff.press(wrong, "/ops/sign-in", email=email, password=password))
    assert shown.status_code == 200
    assert connection["ref"] in staff.get("/ops/connections").text
    assert Person(world).get("/ops/connections").status_code in (302, 303, 401)

    world.run("operator", "disable", "--email", email)
    assert connection["ref"] not in staff.get("/ops/connections").text


def test_lists_are_tables_for_people_and_json_for_machines(world: World, person: Person, end_user: str) -> None:
    world.fault("sequin.import", "status", status=422, times=1)
    person.connect(world.link(end_user), "stripe")
    eventually(lambda: world.connections(end_user)[0]["status"] == "import_failed")
    (connection,) = world.connections(end_user)

    links = json.loads(world.run("links", "list", "--json"))["data"]
    assert {"id", "state", "end_user", "expires_at"} <= set(links[0])
    assert (links[0]["end_user"], links[0]["state"]) == (end_user, "used")
    assert json.loads(world.run("connections", "list", "--end-user", end_user, "--json")) == {"data": [connection]}
    assert json.loads(world.run("connections", "show", connection["ref"], "--json")) == connection
    jobs = json.loads(world.run("jobs", "list", "--json"))["data"]
    assert ("import", "parked", "sequin_refused") in [(one["kind"], one["state"], one["error"]) for one in jobs]
    table = world.run("connections", "list", "--end-user", end_user).splitlines()
    assert table[0].startswith("REF")
    assert table[1].startswith(connection["ref"])
    assert "import_failed" in table[1]
    assert "Traceback" not in command("connections", "show", "no-such", environment=world.environment).stderr

    world.run("connections", "retry", connection["ref"])
    world.imported(end_user)


def test_a_link_made_on_the_command_line_works(world: World, person: Person, end_user: str) -> None:
    made = world.run(
        "links", "create", "--end-user", end_user, "--email", "jo@example.com", "--app", "stripe",
        "--return-url", "https://host.example/done", "--json",
    )  # fmt: skip
    link = json.loads(made)
    assert set(link) == {"id", "url", "expires_at"}

    page = person.connect(link["url"], "stripe")

    assert "Stripe is connected" in page.text
    assert "https://host.example/done?" in page.text
    world.run("links", "revoke", link["id"])


@on_one_database
def test_every_way_to_call_it_is_the_same_program(world: World) -> None:
    script = Path(sys.executable).with_name("broker")
    ways = (
        (sys.executable, "-m", "broker"),
        (str(script),),
        (sys.executable, "-m", "flask", "--app", "wsgi"),
    )
    said = [
        subprocess.run(
            [*way, "links", "list", "--json"],
            env=world.environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
        ).stdout
        for way in ways
    ]  # fmt: skip

    assert "data" in json.loads(said[0])
    assert said[1] == said[0]
    assert json.loads(said[2][said[2].index("{\n") :]) == json.loads(said[0])


@on_one_database
def test_a_port_that_is_taken_is_a_sentence(world: World) -> None:
    refused = command(
        "sandbox", "--port", str(world.sandbox_port), "--data-dir", str(world.folder), environment=world.environment
    )

    assert refused.returncode == 1
    assert str(world.sandbox_port) in refused.stderr
    assert "Traceback" not in refused.stderr
