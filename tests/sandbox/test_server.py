from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from broker.sandbox import RunningSandbox, load_secrets, running, serve

PROGRAM = "import sys, pathlib; from broker.sandbox import serve; serve(int(sys.argv[1]), pathlib.Path(sys.argv[2]))"


def connect(url: str) -> closing[http.client.HTTPConnection]:
    return closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=5))


def get(connection: http.client.HTTPConnection, path: str = "/control/state") -> int:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status


def test_a_connection_stays_open_for_the_next_request(sandbox: RunningSandbox) -> None:
    with connect(sandbox.url) as connection:
        get(connection)
        first = connection.sock
        # A body nobody asked for must not be taken for the next request.
        connection.request("GET", "/github/api/user", b"unasked", {"Content-Length": "7"})
        connection.getresponse().read()
        assert get(connection) == 200
        assert connection.sock is first


def test_pipelined_requests_are_answered_in_turn(sandbox: RunningSandbox) -> None:
    parts = urlsplit(sandbox.url)
    one = f"GET /github/api/user HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as raw:
        raw.sendall(one + one.replace(b"Host", b"Connection: close\r\nHost"))
        received = b""
        while chunk := raw.recv(65536):
            received += chunk
    assert received.count(b"HTTP/1.1 401") == 2


def test_chunked_bodies_arrive_whole(sandbox: RunningSandbox) -> None:
    with connect(sandbox.url) as connection:
        connection.request("POST", "/anything", iter([b"one", b"two"]), encode_chunked=True)
        connection.getresponse().read()
        assert get(connection) == 200
    assert sandbox.world.log.since()[-1]["body"] == "onetwo"


def test_a_body_without_end_is_refused(sandbox: RunningSandbox) -> None:
    with connect(sandbox.url) as connection:
        connection.putrequest("POST", "/anything")
        connection.putheader("Content-Length", str(1 << 40))
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, answer.headers["Connection"]) == (413, "close")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_both_names_of_this_machine_reach_it(sandbox: RunningSandbox, host: str) -> None:
    with connect(sandbox.url.replace("127.0.0.1", host)) as connection:
        assert get(connection) == 200


def test_many_at_once_are_served(sandbox: RunningSandbox) -> None:
    def hundred(_: int) -> set[int]:
        with connect(sandbox.url) as connection:
            return {get(connection, "/github/api/user") for _ in range(100)}

    with ThreadPoolExecutor(8) as pool:
        assert set.union(*pool.map(hundred, range(8))) == {401}
    numbers = [entry["n"] for entry in sandbox.world.log.since()]
    assert numbers == list(range(1, 801))


def test_a_data_directory_will_do_and_two_sandboxes_do_not_share_state(tmp_path: Path) -> None:
    with running(tmp_path) as one, running(tmp_path) as other:
        assert one.url != other.url
        assert one.secrets.stripe_client_id == other.secrets.stripe_client_id
        assert one.environment["SEQUIN_API_URL"] == f"{one.url}/sequin"
        with connect(one.url) as connection:
            get(connection, "/")
        assert (len(one.world.log.since()), len(other.world.log.since())) == (1, 0)


def test_a_taken_port_is_said_in_a_sentence(sandbox: RunningSandbox, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot use port"):
        serve(urlsplit(sandbox.url).port or 0, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_at_once_and_quietly(tmp_path: Path, number: signal.Signals) -> None:
    load_secrets(tmp_path)
    command = [sys.executable, "-c", PROGRAM, "0", str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[2].rstrip(":")
        with connect(url) as connection:
            body = json.dumps({"on": "github.user", "fault": "hang", "seconds": 60})
            connection.request("POST", "/control/faults", body)
            connection.getresponse().read()
            connection.request("GET", "/github/api/user")
            begun = time.monotonic()
            process.send_signal(number)
            out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
    assert time.monotonic() - begun < 3
