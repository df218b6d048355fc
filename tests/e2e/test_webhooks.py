"""Webhooks between real processes: the host's endpoint misbehaves, a worker is killed, and every event arrives."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.conftest import DATABASES
from tests.databases import Databases
from tests.e2e.world import Person, World, eventually


class Host:
    """The host's own server: verifies what it is sent with the public library, and misbehaves when told to."""

    def __init__(self) -> None:
        self.mood = "well"
        self.secret = ""
        self.taken: list[dict[str, Any]] = []
        self.tried = 0
        self.slow = threading.Event()
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                host.tried += 1
                host.answer(self, body)

            def log_message(self, *_args: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if self.mood == "resetting":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
            return
        if self.mood == "slow":
            self.slow.wait(60)
        status = {"well": 204, "redirecting": 307, "gone": 410}.get(self.mood, 500)
        if status == 204:
            self.taken.append(Webhook(self.secret).verify(body, dict(handler.headers)))
        handler.send_response(status)
        if status == 307:
            handler.send_header("Location", self.url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    @property
    def types(self) -> list[str]:
        return [event["type"] for event in self.taken]

    def close(self) -> None:
        self.slow.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module", params=DATABASES)
def own_world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world of this module's own, whose worker may be killed."""
    databases: Databases = request.getfixturevalue(f"{request.param}_databases")
    with databases.migrated() as url:
        world = World(tmp_path_factory.mktemp("webhooks"), url)
        try:
            world.start_sandbox()
            world.start_web()
            world.start_worker(threads=1)
            yield world
        finally:
            world.stop_all()


@pytest.fixture
def world(own_world: World) -> World:
    own_world.control("consent", auto="allow")
    return own_world


@pytest.fixture
def host(world: World) -> Iterator[Host]:
    opened = Host()
    try:
        yield opened
    finally:
        for endpoint in world.api("GET", "webhook-endpoints").json()["data"]:
            world.api("DELETE", f"webhook-endpoints/{endpoint['id']}")
        opened.close()


def register(world: World, host: Host) -> str:
    """Register the host's address and return the endpoint's place in the API."""
    made = world.api("POST", "webhook-endpoints", json={"url": host.url})
    assert made.status_code == 201, made.text
    host.secret = made.json()["secret"]
    return f"webhook-endpoints/{made.json()['id']}"


def listed(world: World, end_user: str) -> list[str]:
    """Return the ids of what happened to a person, in its order."""
    answer = world.api("GET", "events", params={"end_user": end_user})
    return [event["id"] for event in reversed(answer.json()["data"])]


def all_taken(world: World, host: Host, end_user: str) -> None:
    """Wait until everything has arrived, and check its order."""
    ids = eventually(lambda: len(host.taken) >= 2 and listed(world, end_user))
    eventually(lambda: len(host.taken) >= len(listed(world, end_user)))
    assert [event["id"] for event in host.taken] == ids == listed(world, end_user)


def test_what_happens_is_told_signed_and_in_order(world: World, host: Host, person: Person, end_user: str) -> None:
    register(world, host)
    person.connect(world.link(end_user), "stripe")
    ref = world.verified(end_user)["ref"]
    world.api("DELETE", f"connections/{ref}")
    eventually(lambda: len(host.taken) >= 3)
    assert host.types == ["connection.connected", "connection.imported", "connection.disconnected"]
    assert {event["data"]["ref"] for event in host.taken} == {ref}
    all_taken(world, host, end_user)


@pytest.mark.parametrize("mood", ["resetting", "redirecting", "failing"])
def test_everything_arrives_once_the_endpoint_is_well_again(
    world: World, host: Host, person: Person, end_user: str, mood: str
) -> None:
    place = register(world, host)
    host.mood = mood
    person.connect(world.link(end_user), "stripe")
    world.verified(end_user)
    eventually(lambda: world.api("GET", place).json()["failing_since"])
    host.mood = "well"
    all_taken(world, host, end_user)
    assert world.api("GET", place).json()["failing_since"] is None


def test_an_endpoint_that_is_gone_is_disabled_until_it_is_enabled(
    world: World, host: Host, person: Person, end_user: str
) -> None:
    place = register(world, host)
    host.mood = "gone"
    person.connect(world.link(end_user), "stripe")
    eventually(lambda: world.api("GET", place).json()["disabled_reason"] == "gone")
    world.verified(end_user)
    host.mood = "well"
    assert host.tried == 1
    assert world.api("PATCH", place, json={"enabled": True}).json()["enabled"]
    all_taken(world, host, end_user)


def test_a_slow_endpoint_keeps_neither_imports_nor_other_endpoints_waiting(
    world: World, host: Host, person: Person, end_user: str
) -> None:
    register(world, host)
    other = Host()
    try:
        register(world, other)
        host.mood = "slow"
        person.connect(world.link(end_user), "stripe")
        # One worker thread: were it waiting for the endpoint, nothing would be imported.
        world.verified(end_user)
        all_taken(world, other, end_user)
        assert host.taken == []
        assert not host.slow.is_set()
    finally:
        other.close()


def test_a_worker_killed_while_sending_loses_nothing(world: World, host: Host, person: Person, end_user: str) -> None:
    register(world, host)
    host.mood = "slow"
    person.connect(world.link(end_user), "stripe")
    eventually(lambda: host.tried)
    world.kill("worker")
    host.mood = "well"
    world.start_worker(threads=1)
    world.verified(end_user)
    all_taken(world, host, end_user)


def test_private_addresses_are_refused(world: World) -> None:
    answer = world.api("POST", "webhook-endpoints", json={"url": "https://169.254.169.254/latest/meta-data"})
    assert answer.status_code == 422
    assert "not on the public internet" in answer.json()["errors"]["url"][0]
