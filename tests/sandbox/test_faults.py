from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from urllib.parse import urlsplit

import pytest
from flask import Flask

from broker.sandbox import RunningSandbox, Secrets, running
from broker.sandbox.faults import KINDS, POINTS
from broker.sandbox.sequin.store import REGISTERED_AT
from broker.sandbox.stand_ins import discover

STAND_INS = discover()
SHORT = 0.2
APPS = "/sequin/v1/oauth-apps"


@pytest.fixture
def connection(sandbox: RunningSandbox) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=5)) as opened:
        yield opened


def calls_of_stand_ins() -> dict[str, tuple[str, str]]:
    """Return a call of each kind of every smaller stand-in, by its fault point."""
    calls = {}
    for name, stand_in in STAND_INS.items():
        own = {stand_in.authorize: "authorize", stand_in.token: "token", stand_in.revoke: "revoke"}
        app = Flask("stand-in")
        app.register_blueprint(stand_in.blueprint)
        for rule in app.url_map.iter_rules():
            if rule.endpoint.startswith(f"{name}."):
                path = re.sub("<[^>]+>", "x", rule.rule)
                method = min((rule.methods or set()) - {"HEAD", "OPTIONS"})
                if (method, own.get(path.removeprefix(f"/{name}"))) != ("POST", "authorize"):
                    calls[f"{name}.{own.get(path.removeprefix(f'/{name}'), 'account')}"] = (method, path)
    return calls


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: object = None) -> tuple[int, bytes]:
    connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def script(connection: http.client.HTTPConnection, **fault: object) -> None:
    status, body = ask(connection, "POST", "/control/faults", {"on": "sequin.oauth_apps", "times": 1, **fault})
    assert status == 200, body


def register(connection: http.client.HTTPConnection, sandbox: RunningSandbox) -> http.client.HTTPResponse:
    """Create an OAuth app at Sequin: a call whose effect shows."""
    body = {"provider": "stripe", "client_id": "c", "client_secret": "s", "name": "n"}
    token = sandbox.secrets.sequin_api_token
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    connection.request("POST", APPS, json.dumps(body), headers)
    return connection.getresponse()


def effects(sandbox: RunningSandbox) -> int:
    """Count the OAuth apps beyond those that are always there."""
    return sum(app.created_at != REGISTERED_AT for app in sandbox.world.sequin.apps.values())


def last(sandbox: RunningSandbox) -> dict[str, object]:
    return sandbox.world.log.since()[-1]


@pytest.fixture(params=["before", "after"])
def when(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class TestKinds:
    def test_status_with_headers(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="status", when=when, status=429, headers={"Retry-After": "2"})
        answer = register(connection, sandbox)
        assert (answer.status, answer.headers["Retry-After"]) == (429, "2")
        assert set(json.loads(answer.read())) == {"summary"}
        assert effects(sandbox) == (when == "after")
        assert (last(sandbox)["fault"], last(sandbox)["status"]) == ("status", 429)

    def test_hang_ends_after_its_seconds_without_an_answer(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="hang", when=when, seconds=SHORT)
        begun = time.monotonic()
        with pytest.raises(http.client.RemoteDisconnected):
            register(connection, sandbox)
        assert SHORT <= time.monotonic() - begun < 3
        assert effects(sandbox) == (when == "after")
        assert (last(sandbox)["fault"], last(sandbox)["status"]) == ("hang", None)

    def test_drip_takes_its_seconds_and_arrives_whole(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="drip", when=when, seconds=SHORT)
        begun = time.monotonic()
        answer = register(connection, sandbox)
        body = json.loads(answer.read())
        assert time.monotonic() - begun >= SHORT
        # Before the effect it must not look like a success that never was.
        assert answer.status == (200 if when == "after" else 503)
        assert ("id" in body) is (when == "after")
        assert effects(sandbox) == (when == "after")

    def test_reset_is_a_tcp_reset(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="reset", when=when)
        with pytest.raises(ConnectionResetError) as caught:
            register(connection, sandbox)
        assert not isinstance(caught.value, http.client.RemoteDisconnected)
        assert effects(sandbox) == (when == "after")

    def test_truncate_promises_more_than_it_sends(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="truncate", when=when)
        answer = register(connection, sandbox)
        with pytest.raises(http.client.IncompleteRead):
            answer.read()
        assert effects(sandbox) == (when == "after")

    def test_break_off_is_half_an_answer_and_a_tcp_reset(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="break_off", when=when)
        with pytest.raises(ConnectionResetError):
            register(connection, sandbox).read()
        assert effects(sandbox) == (when == "after")

    def test_html_is_a_page_instead_of_json(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="html", when=when)
        answer = register(connection, sandbox)
        assert answer.headers["Content-Type"].startswith("text/html")
        assert b"<h1>" in answer.read()
        assert effects(sandbox) == (when == "after")

    def test_wrong_types_keep_the_names_only(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="wrong_types", when=when)
        body = json.loads(register(connection, sandbox).read())
        assert not isinstance(body.get("id", body.get("data")), str | list)
        assert effects(sandbox) == (when == "after")

    def test_huge_is_as_long_as_it_says(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="huge", when=when, bytes=500_000)
        answer = register(connection, sandbox)
        body = answer.read()
        assert len(body) == int(answer.headers["Content-Length"]) == 500_000
        assert "padding" in json.loads(body)
        assert effects(sandbox) == (when == "after")

    def test_flood_is_huge_and_does_not_say_so(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="flood", when=when, bytes=500_000)
        answer = register(connection, sandbox)
        body = answer.read()
        assert (answer.headers["Content-Length"], len(body)) == (None, 500_000)
        assert "padding" in json.loads(body)
        assert effects(sandbox) == (when == "after")

    def test_gzip_bomb_is_small_until_it_is_unfolded(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="gzip_bomb", when=when, bytes=5_000_000)
        answer = register(connection, sandbox)
        packed = answer.read()
        assert answer.headers["Content-Encoding"] == "gzip"
        assert len(packed) < 50_000
        assert len(gzip.decompress(packed)) == 5_000_000
        assert effects(sandbox) == (when == "after")

    def test_three_hundred_megabytes_are_never_whole_in_memory(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection
    ) -> None:
        script(connection, fault="huge", bytes=300_000_000)
        tracemalloc.start()
        try:
            answer = register(connection, sandbox)
            first = answer.read(1_000_000)
            connection.close()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (answer.headers["Content-Length"], len(first)) == ("300000000", 1_000_000)
        assert most < 20_000_000

    def test_redirect_leads_back_here_unless_told_otherwise(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, when: str
    ) -> None:
        script(connection, fault="redirect", when=when, status=307)
        answer = register(connection, sandbox)
        answer.read()
        assert (answer.status, answer.headers["Location"]) == (307, "/elsewhere")
        assert effects(sandbox) == (when == "after")
        ask(connection, "POST", "/elsewhere", {"secret": "given away"})
        assert (last(sandbox)["path"], last(sandbox)["body"]) == ("/elsewhere", '{"secret": "given away"}')
        script(connection, fault="redirect", location="http://127.0.0.1:1/x")
        assert register(connection, sandbox).headers["Location"] == "http://127.0.0.1:1/x"


class TestHanging:
    def hang(self, sandbox: RunningSandbox) -> socket.socket:
        """Begin a request that hangs for a minute; return its connection once the sandbox has it."""
        with closing(http.client.HTTPConnection(urlsplit(sandbox.url).netloc, timeout=5)) as connection:
            script(connection, fault="hang", seconds=60)
        parts = urlsplit(sandbox.url)
        hanging = socket.create_connection((parts.hostname, parts.port), timeout=5)
        hanging.sendall(f"GET {APPS} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        until = time.monotonic() + 5
        while not (entries := sandbox.world.log.since()) or entries[-1]["fault"] != "hang":
            assert time.monotonic() < until
        assert (entries[-1]["path"], entries[-1]["status"]) == (APPS, None)
        return hanging

    def test_a_hanging_request_is_in_the_log_and_blocks_nobody(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection
    ) -> None:
        with self.hang(sandbox):
            assert ask(connection, "GET", "/github/api/user")[0] == 401

    def test_it_ends_when_the_client_goes_away(self, sandbox: RunningSandbox) -> None:
        before = threading.active_count()
        with self.hang(sandbox):
            pass
        until = time.monotonic() + 5
        while threading.active_count() > before:
            assert time.monotonic() < until

    def test_it_ends_when_the_server_stops(self, secrets: Secrets) -> None:
        with running(secrets) as sandbox:
            hanging = self.hang(sandbox)
            begun = time.monotonic()
        with hanging:
            assert hanging.recv(1) == b""
        assert time.monotonic() - begun < 3


class TestScript:
    def statuses(self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, count: int) -> list[int]:
        found = []
        for _ in range(count):
            answer = register(connection, sandbox)
            answer.read()
            found.append(answer.status)
        return found

    def test_counted_faults_happen_in_order_and_then_end(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection
    ) -> None:
        script(connection, fault="status", status=503, times=2)
        script(connection, fault="status", status=429)
        assert self.statuses(sandbox, connection, 4) == [503, 503, 429, 200]

    def test_a_lasting_fault_stays_until_it_is_ended(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection
    ) -> None:
        script(connection, fault="status", status=500, times=None)
        script(connection, fault="status", status=502, times=None)
        script(connection, fault="status", status=429)
        assert self.statuses(sandbox, connection, 3) == [429, 502, 502]
        ask(connection, "DELETE", "/control/faults?on=github.user")
        assert self.statuses(sandbox, connection, 1) == [502]
        ask(connection, "DELETE", "/control/faults")
        assert self.statuses(sandbox, connection, 1) == [200]

    def test_a_reset_ends_it_too(self, sandbox: RunningSandbox, connection: http.client.HTTPConnection) -> None:
        script(connection, fault="status", status=500, times=None)
        ask(connection, "POST", "/control/reset", {})
        assert self.statuses(sandbox, connection, 1) == [200]

    @pytest.mark.parametrize("point", POINTS)
    def test_every_point_can_fail(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, point: str
    ) -> None:
        secrets = sandbox.secrets
        client, slug = secrets.github_client_id, secrets.github_app_slug
        paths = {
            "stripe.authorize": ("GET", "/stripe/oauth/authorize"),
            "stripe.token": ("POST", "/stripe/oauth/token"),
            "stripe.account": ("GET", "/stripe/v1/account"),
            "stripe.deauthorize": ("POST", "/stripe/oauth/deauthorize"),
            "github.authorize": ("GET", "/github/login/oauth/authorize"),
            "github.token": ("POST", "/github/login/oauth/access_token"),
            "github.user": ("GET", "/github/api/user"),
            "github.installations": ("GET", "/github/api/user/installations"),
            "github.memberships": ("GET", "/github/api/user/memberships/orgs/x"),
            "github.app_installation": ("GET", "/github/api/app/installations/1"),
            "github.install": ("GET", f"/github/apps/{slug}/installations/new"),
            "github.check": ("POST", f"/github/api/applications/{client}/token"),
            "github.revoke": ("DELETE", f"/github/api/applications/{client}/grant"),
            "github.uninstall": ("DELETE", "/github/api/app/installations/1"),
            "sequin.import": ("POST", "/sequin/v1/credentials"),
            "sequin.get": ("GET", "/sequin/v1/credentials/x"),
            "sequin.list": ("GET", "/sequin/v1/credentials"),
            "sequin.update": ("PATCH", "/sequin/v1/credentials/x"),
            "sequin.delete": ("DELETE", "/sequin/v1/credentials/x"),
            "sequin.oauth_apps": ("GET", APPS),
            **calls_of_stand_ins(),
        }
        script(connection, on=point, fault="status", status=418, body="short and stout")
        assert ask(connection, *paths[point]) == (418, b"short and stout")

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_kind_works_at_a_consent_page(
        self, sandbox: RunningSandbox, connection: http.client.HTTPConnection, kind: str
    ) -> None:
        script(connection, on="stripe.authorize", fault=kind, seconds=0.05, bytes=1000, when="after")
        try:
            ask(connection, "GET", "/stripe/oauth/authorize")
        except (http.client.HTTPException, OSError):
            assert kind in ("hang", "reset", "break_off", "truncate")
        assert last(sandbox)["fault"] == kind

    @pytest.mark.parametrize(
        ("fault", "word"),
        [
            ({"on": "stripe.nothing", "fault": "hang"}, "stripe.token"),
            ({"on": "stripe.token", "fault": "nothing"}, "wrong_types"),
            ({"on": "stripe.token", "fault": "hang", "when": "during"}, "before"),
            ({"on": "stripe.token", "fault": "status", "status": 99}, "599"),
            ({"on": "stripe.token", "fault": "status", "status": "500"}, "599"),
            ({"on": "stripe.token", "fault": "hang", "seconds": -1}, "seconds"),
            ({"on": "stripe.token", "fault": "hang", "times": 0}, "times"),
            ({"on": "stripe.token", "fault": "hang", "time": 1}, "time"),
            ({"on": "stripe.token", "fault": "status", "headers": []}, None),
            ({"on": "stripe.token", "fault": "status", "headers": "x"}, "headers"),
            ({"on": "stripe.token", "fault": "status", "headers": {"A": "b\r\nC: d"}}, "line breaks"),
            ([], "object"),
        ],
    )
    def test_a_script_that_makes_no_sense_is_refused_with_a_sentence(
        self, connection: http.client.HTTPConnection, fault: object, word: str | None
    ) -> None:
        status, body = ask(connection, "POST", "/control/faults", fault)
        assert status == (400 if word else 200)
        assert (word or "") in str(json.loads(body))
