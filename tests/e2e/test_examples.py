"""The examples, run as their README says: a real broker, the sandbox, and a person in between."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from standardwebhooks.webhooks import Webhook

from broker.client import ApiRefused, Client
from tests.databases import SqliteDatabases
from tests.e2e.world import ROOT, Person, World, eventually, free_port

EXAMPLES = ROOT / "examples"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw2b"


@pytest.fixture(scope="module")
def host_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def world(
    sqlite_databases: SqliteDatabases, tmp_path_factory: pytest.TempPathFactory, host_port: int
) -> Iterator[World]:
    """A broker in one process, as somebody who tries it would run it."""
    with sqlite_databases.migrated() as url:
        origin = f"http://localhost:{host_port}"
        world = World(tmp_path_factory.mktemp("example"), url, BROKER_RETURN_ORIGINS=origin)
        try:
            world.start_sandbox()
            world.start_web(workers=2)
            world.control("consent", auto="allow")
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def client(world: World) -> Client:
    return Client(world.url, world.api_key)


def environment(world: World, port: int) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "BROKER_URL": world.url,
        "BROKER_API_KEY": world.api_key,
        "WEBHOOK_SECRET": SECRET,
        "PORT": str(port),
    }


@contextmanager
def running(world: World, port: int, folder: Path, *command: str) -> Iterator[str]:
    """Run an example that serves, and yield its address."""
    log = folder / "host.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment(world, port), stdout=output, stderr=output, cwd=ROOT)
    url = f"http://localhost:{port}/"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(url, timeout=60).status_code == 200
        except requests.ConnectionError:
            return False

    try:
        eventually(answers)
        yield url
    finally:
        process.kill()
        process.wait()


def told(url: str, *, secret: str = SECRET) -> int:
    """Send a webhook as the broker does and return how it was answered."""
    body = json.dumps({"type": "connection.connected", "timestamp": "2026-11-22T10:00:00Z", "data": {}})
    now = datetime.now(UTC)
    signature = Webhook(secret).sign("evt_1", now, body)
    headers = {
        "Content-Type": "application/json",
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    return requests.post(f"{url}webhooks", data=body, headers=headers, timeout=60).status_code


def walked(world: World, url: str) -> None:
    """Go the way of somebody who tries the example: connect, come back, see it; then a webhook arrives."""
    person = Person(world)
    page = person.follow(person.press(person.get(url), "/connect"), until=f"{world.url}/connect/")
    done = person.connect(page.headers["Location"], "stripe")
    assert "Stripe is connected" in done.text
    assert f'href="{url}?status=' in done.text.replace("&amp;", "&")

    eventually(lambda: ": unknown," in person.get(url).text or ": ok," in person.get(url).text)
    assert told(url) == 204
    assert told(url, secret="whsec_c29tZWJvZHkgZWxzZSdzIHNlY3JldA==") == 400


def test_the_flask_host_connects_an_account_and_verifies_a_webhook(
    world: World, host_port: int, tmp_path: Path
) -> None:
    with running(world, host_port, tmp_path, sys.executable, str(EXAMPLES / "host-flask/app.py")) as url:
        walked(world, url)


def test_the_node_host_connects_an_account_and_verifies_a_webhook(world: World, host_port: int, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no node on this machine")
    with running(world, host_port, tmp_path, node, str(EXAMPLES / "host-node/host.mjs")) as url:
        walked(world, url)


def test_the_shell_host_makes_a_link_once_and_shows_what_it_connected(world: World) -> None:
    def run(*arguments: str) -> Any:
        command = ["sh", str(EXAMPLES / "host-curl/host.sh"), *arguments]
        settings = environment(world, 0) | {"IDEMPOTENCY_KEY": "only-once"}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    if shutil.which("curl") is None:
        pytest.skip("there is no curl on this machine")
    link = run("link", "shell-user")
    assert run("link", "shell-user") == link
    Person(world).connect(str(link["url"]), "stripe")

    (connection,) = run("status", "shell-user")["data"]
    assert connection["end_user"]["id"] == "shell-user"


# --- the Python client --------------------------------------------------------------------------------


def test_the_client_goes_the_whole_way(world: World, client: Client) -> None:
    assert "stripe" in {app.key for app in client.apps()}
    link = client.create_link("client-user", email="ada@example.com", metadata={"plan": "pro"}, idempotency_key="one")
    assert (
        client.create_link("client-user", email="ada@example.com", metadata={"plan": "pro"}, idempotency_key="one")
        == link
    )
    assert client.link(link.id).state == "unopened"
    Person(world).connect(link.url, "stripe")
    assert client.link(link.id).state == "used"

    (connection,) = client.connections(end_user="client-user", metadata={"plan": "pro"})
    assert client.connection(connection.ref).account == connection.account
    assert client.check(connection.ref).ref == connection.ref
    reconnect = client.create_link("client-user", connection=connection.ref)
    assert client.link(reconnect.id).connection == connection.ref
    assert client.revoke_link(reconnect.id).state == "revoked"
    assert client.disconnect(connection.ref).ref == connection.ref
    assert client.erase_end_user("client-user").state == "erasing"


def test_the_client_confirms_who_came_back(world: World, client: Client) -> None:
    link = client.create_link("confirmed-user", apps=["stripe"], confirm=True)
    page = Person(world).connect(link.url, "stripe")
    assert "Waiting for" in page.text
    flow = page.url.rpartition("/")[2]

    view = client.confirm(flow, "confirmed-user")

    assert (view.state, view.end_user.id) == ("done", "confirmed-user")
    assert client.connection(str(view.connection)).end_user.id == "confirmed-user"


def test_the_client_says_why_it_was_refused(client: Client) -> None:
    with pytest.raises(ApiRefused) as refusal:
        client.connection("0000-0000-0000")

    assert refusal.value.problem.code == "connection_unknown"
    assert client.__dict__["_key"].reveal() not in str(refusal.value)
