"""Hundreds of clients that send slowly, and one that does not: what it waits, with what stands in front and without.

In front is nginx as `docs/operating.md` configures it, without TLS; it is taken from the PATH. Behind it web runs as in
`deploy/`: two processes of 16 threads. Half of the slow clients drip headers, half the body of a form.

Run as a program it is the slow clients: `python -m benchmarks.slow_clients PORT COUNT SECONDS`.
"""

from __future__ import annotations

import re
import select
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import requests

from benchmarks.connect_flows import start_broker
from benchmarks.framework import Benchmark, Report, Setting
from benchmarks.planting import plant_links
from benchmarks.visitors import Met, Visit, visit
from tests.e2e.world import ROOT, World, eventually, free_port

PROCESSES = 2
LOOKS_PER_SECOND = 20.0
DRIP_SECONDS = 1.0
"""How long each slow client waits between two bytes."""
SETTLE_SECONDS = 5.0
LOOK_SECONDS = 10.0
WARM_SECONDS = 2.0
CROWD_SECONDS = SETTLE_SECONDS + LOOK_SECONDS + 2
ENTER_SECONDS = 10.0
"""How long a slow client waits to be let in."""
ARRIVAL_SECONDS = 60.0
STOP_SECONDS = 10.0
HEADERS = b"GET /healthz HTTP/1.1\r\nHost: broker\r\nX-Slow: "
BODY = (
    b"POST /sign-in HTTP/1.1\r\nHost: broker\r\nContent-Type: application/x-www-form-urlencoded\r\n"
    b"Content-Length: 10000\r\n\r\n"
)


def run(setting: Setting) -> Report:
    """Look at a link's page from one healthy client, beside crowds of slow ones."""
    rows: list[list[object]] = []
    for kind in setting.kinds:
        with setting.world(kind, BROKER_LIMITS="off", BROKER_TRUSTED_PROXIES="1") as world:
            start_broker(world, processes=PROCESSES)
            links = plant_links(world, 20)
            # What a process does once, at its first pages, is not what is measured.
            visit(Visit(world.url, links, at_once=2 * PROCESSES, per_second=LOOKS_PER_SECOND, look_for=WARM_SECONDS))
            with _in_front(world) as proxy:
                if proxy is None:
                    setting.say("There is no nginx on the PATH: only the server by itself is measured.")
                for slow in (0, setting.size // 2, setting.size):
                    for name, port in (("nginx in front", proxy), ("nothing in front", world.port)):
                        if port is None or (slow and port == world.port and proxy is not None and slow < setting.size):
                            continue
                        setting.say(f"{kind}: {slow} slow clients, {name} …")
                        met = _beside(slow, port, links)
                        shown = [met.percentile(share, "page") for share in (0.5, 0.99)]
                        rows.append([kind, name, slow, *shown, len(met.took.get("page", [])), len(met.failures)])
    return Report(
        ("database", "server", "slow clients", "page p50", "page p99", "answered", "errors"),
        rows,
        (
            f"Milliseconds of one healthy client, who looks {LOOKS_PER_SECOND:.0f} times a second.",
            f"Each slow client sends a byte every {DRIP_SECONDS:.0f} s; whoever is cut off comes again.",
            f"What took {LOOK_SECONDS:.0f} s or more was answered once they had left, after {CROWD_SECONDS:.0f} s.",
        ),
    )


def _beside(slow: int, port: int, links: list[str]) -> Met:
    crowd = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.slow_clients", str(port), str(slow), str(CROWD_SECONDS)],
        cwd=ROOT, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert crowd.stdout is not None
        # All of them are there, and have been for longer than a server takes to give up waiting for a first byte.
        with crowd.stdout as said:
            came = said.readline().decode().strip() if select.select([said], [], [], 2 * ARRIVAL_SECONDS)[0] else ""
        if came != "here":
            raise SystemExit(f"Not all of {slow} slow clients were let in: {came or 'nothing was heard of them'}.")
        time.sleep(SETTLE_SECONDS if slow else 0)
        return visit(
            Visit(f"http://127.0.0.1:{port}", links, at_once=1, per_second=LOOKS_PER_SECOND, look_for=LOOK_SECONDS)
        )
    finally:
        _end(crowd)


@contextmanager
def _in_front(world: World) -> Iterator[int | None]:
    """Put nginx in front of the broker, as the documentation does; give its port, None where there is no nginx."""
    program = shutil.which("nginx")
    if program is None:
        yield None
        return
    port, folder = free_port(), world.folder / "nginx"
    folder.mkdir(mode=0o755)
    (folder / "nginx.conf").write_text(_configuration(port, world.port, str(folder)))
    nginx = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")],
        stdin=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: nginx.poll() is not None or _answers(port))
        if nginx.poll() is not None:
            raise SystemExit(f"nginx did not start: {(folder / 'error.log').read_text()[-500:]}")
        yield port
    finally:
        _end(nginx)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/healthz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _configuration(port: int, behind: int, folder: str) -> str:
    """Return the site of `docs/operating.md` at these ports, without TLS, and what nginx needs around it."""
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "operating.md").read_text(), re.DOTALL)
    assert found is not None
    site = found[1].replace("listen 443 ssl;", f"listen 127.0.0.1:{port};").replace(":8000", f":{behind}")
    site = site.replace("server_name connect.example.com;", "server_name _;").replace("$host;", "localhost;")
    paths = "".join(
        f"    {kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return (
        f"daemon off;\npid {folder}/pid;\nworker_processes 1;\nevents {{ worker_connections 2048; }}\n"
        f"http {{\n    access_log off;\n{paths}{site}}}\n"
    )


# --- the slow clients -----------------------------------------------------------------------------------


def drip(port: int, count: int, seconds: float) -> None:
    """Be so many slow clients for so long, and say when all of them are there."""
    place, outside = selectors.DefaultSelector(), list(range(count))
    _enter(port, outside, place, time.monotonic() + ARRIVAL_SECONDS)
    print("here" if not outside else f"{len(outside)} are not", flush=True)
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        # Those who were answered or cut off come again.
        for key, _ in place.select(0):
            place.unregister(key.fileobj)
            _socket(key).close()
            outside.append(int(key.data))
        _enter(port, outside, place, ends)
        for key in place.get_map().values():
            with suppress(OSError):
                _socket(key).send(b"x")
        time.sleep(min(left, DRIP_SECONDS))


def _enter(port: int, outside: list[int], place: selectors.BaseSelector, until: float) -> None:
    """Let those who are outside in; who is not let in stays there."""
    for number in list(outside):
        if time.monotonic() > until:
            return
        with suppress(OSError):
            opened = socket.create_connection(("127.0.0.1", port), timeout=ENTER_SECONDS)
            opened.sendall(HEADERS if number % 2 else BODY)
            opened.setblocking(False)
            place.register(opened, selectors.EVENT_READ, number)
            outside.remove(number)


def _socket(key: selectors.SelectorKey) -> socket.socket:
    assert isinstance(key.fileobj, socket.socket)
    return key.fileobj


BENCHMARK = Benchmark("slow-clients", "A healthy client among slow ones", "slow clients at most", 400, run)

if __name__ == "__main__":
    drip(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
