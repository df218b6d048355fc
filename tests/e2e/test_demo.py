"""`broker demo`, as somebody meets it who has just cloned the project."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import requests

from tests.e2e.world import ROOT, Form, Person, eventually, free_port


class Demo:
    """A running `broker demo` in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.sandbox_port = free_port(), free_port()
        self.url = f"http://localhost:{self.port}"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> subprocess.Popen[str]:
        """Start it and wait until its first page answers."""
        environment = {
            "PATH": os.environ["PATH"], "PORT": str(self.port), "SANDBOX_PORT": str(self.sandbox_port),
            "DATA_DIR": str(self.folder),
        }  # fmt: skip
        with (self.folder.parent / "demo.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "broker", "demo"],
                env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
        eventually(self._answers)
        return self.process

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.said()
        with suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/demo/", timeout=60).status_code == 200
        return False

    def said(self) -> str:
        """Return what it printed so far."""
        return (self.folder.parent / "demo.log").read_text()

    def relatives(self) -> list[int]:
        """Return the processes that were started for this folder, however they are related by now."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
                mine = str(self.folder).encode()
                if mine in line or mine in environment:
                    found.append(int(entry.name))
        return found

    def state(self) -> Any:
        """Return what the sandbox holds."""
        return requests.get(f"http://localhost:{self.sandbox_port}/control/state", timeout=60).json()

    def end(self) -> None:
        """Leave nothing behind, whatever a test has done."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(timeout=60)
        for pid in self.relatives():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    """A demo that has not been started."""
    folder = tmp_path / "data"
    folder.mkdir()
    found = Demo(folder)
    yield found
    found.end()


class Visitor(Person):
    """Somebody who counts their clicks."""

    clicks = 0

    def press(self, page: requests.Response, leads_to: str, /, **fields: str) -> requests.Response:
        """Press a button and see where it leads."""
        self.clicks += 1
        return self.follow(super().press(page, leads_to, **fields))

    def connect_everything(self, page: requests.Response) -> requests.Response:
        """Press the button for one link that offers every app: its form names none."""
        self.clicks += 1
        ((address, values),) = [
            form for form in Form(page.text).forms if "/demo/connect" in form[0] and "app" not in form[1]
        ]
        return self.follow(self.post(urljoin(page.url, address), values))

    def click(self, page: requests.Response, words: str) -> requests.Response:
        """Follow the link with these words."""
        self.clicks += 1
        (address,) = re.findall(rf'<a [^>]*href="([^"]+)"[^>]*>{re.escape(words)}</a>', page.text)
        return self.follow(self.get(urljoin(page.url, address.replace("&amp;", "&"))))


def test_a_visitor_connects_both_and_everything_ends_and_begins_again(demo: Demo) -> None:
    process = demo.start()
    said = eventually(lambda: demo.said() if "Ctrl-C" in demo.said() else None)
    assert f"{demo.url}/demo/" in said
    assert f"http://localhost:{demo.sandbox_port}/" in said
    visitor = Visitor(demo)

    # Three clicks: connect, choose Stripe, allow.
    page = visitor.press(visitor.get("/demo/"), "/demo/connect", app="stripe")
    page = visitor.press(page, "/start/stripe")
    page = visitor.press(page, "/stripe/oauth/", decision="allow")
    assert "Stripe is connected" in page.text
    assert visitor.clicks <= 3

    # Four more: back, connect, choose GitHub, authorize (as somebody who has the App already).
    page = visitor.click(page, "Back to Acme Analytics")
    assert "You are back from the broker" in page.text
    page = visitor.press(page, "/demo/connect", app="github")
    page = visitor.press(page, "/start/github")
    page = visitor.press(page, "/github/login/oauth/authorize", login="solo-sam", decision="authorize")
    assert "GitHub is connected" in page.text
    assert visitor.clicks <= 3 + 4

    def both() -> list[Any]:
        found = list(demo.state()["credentials"])
        return found if len(found) == 2 else []

    secrets = json.loads((demo.folder / "sandbox.json").read_text())
    held = {(one["kind"], one["oauth_app_id"]) for one in eventually(both)}
    assert held == {
        ("stripe_oauth2", secrets["sequin_stripe_app_id"]),
        ("github_app", secrets["sequin_github_app_id"]),
    }
    eventually(lambda: "finishing set-up" not in visitor.get("/demo/").text)
    connected = visitor.get("/demo/").text
    assert "solo-sam" in connected
    page = visitor.press(visitor.get("/demo/"), "/demo/manage")
    page = visitor.press(page, "/open")
    assert "solo-sam" in page.text

    # Told to stop, it stops, with everything it started.
    assert len(demo.relatives()) >= 4
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert demo.relatives() == []

    # The second start finds what the first left, the operator's password too.
    kept = (demo.folder / "demo.json").read_bytes()
    process = demo.start()
    assert "solo-sam" in Visitor(demo).get("/demo/").text
    assert (demo.folder / "demo.json").read_bytes() == kept

    # Killed outright, it takes its children along.
    process.kill()
    process.wait(timeout=60)
    eventually(lambda: not demo.relatives(), within=60)


def test_one_link_for_both_takes_six_clicks(demo: Demo) -> None:
    process = demo.start()
    visitor = Visitor(demo)

    page = visitor.connect_everything(visitor.get("/demo/"))
    page = visitor.press(page, "/start/stripe")
    page = visitor.press(page, "/stripe/oauth/", decision="allow")
    assert "Stripe is connected" in page.text
    assert visitor.clicks <= 3
    page = visitor.press(page, "/start/github")
    page = visitor.press(page, "/github/login/oauth/authorize", decision="authorize", login="octo-jo")
    page = visitor.press(page, "/installations/new", account="octo-jo", action="install")
    assert "GitHub is connected" in page.text
    assert visitor.clicks <= 3 + 4

    # Ctrl-C.
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert demo.relatives() == []
