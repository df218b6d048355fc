"""The demo as somebody has just started it, and the way from nothing to two connected accounts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from dotenv import dotenv_values
from playwright.sync_api import Page, expect

from tests.browser.watch import Clicks
from tests.e2e.world import eventually, free_port


@dataclass(frozen=True)
class RunningDemo:
    """A demo somebody has just started on a machine that never ran it."""

    url: str
    sandbox_url: str
    folder: Path

    def state(self) -> dict[str, list[dict[str, Any]]]:
        """Return what the sandbox knows."""
        return dict(requests.get(f"{self.sandbox_url}/control/state", timeout=60).json())

    def sequin_apps(self) -> dict[str, str]:
        """Return the ids of Sequin's OAuth apps by client id."""
        token = self.settings()["SEQUIN_API_TOKEN"]
        answer = requests.get(
            f"{self.sandbox_url}/sequin/v1/oauth-apps", headers={"Authorization": f"Bearer {token}"}, timeout=60
        )
        return {str(app["client_id"]): str(app["id"]) for app in answer.json()["data"]}

    @property
    def operator_password(self) -> str:
        """The password it made for its operator."""
        return str(json.loads((self.folder / "demo.json").read_text())["operator_password"])

    def settings(self) -> dict[str, str | None]:
        """Return the settings it made for itself."""
        return dotenv_values(self.folder / "demo.env", interpolate=False)


@contextmanager
def running_demo(folder: Path) -> Iterator[RunningDemo]:
    """`python -m broker demo` on free ports, with a data folder that does not exist yet."""
    port, sandbox_port = free_port(), free_port()
    log = folder / "demo.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "broker", "demo", "--port", str(port), "--sandbox-port", str(sandbox_port),
             "--data-dir", str(folder / "data")],
            env={"PATH": os.environ["PATH"]}, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, stdout=output,
            stderr=output,
        )  # fmt: skip
    demo = RunningDemo(f"http://localhost:{port}", f"http://localhost:{sandbox_port}", folder / "data")

    def announced() -> bool:
        assert process.poll() is None, log.read_text()
        return f"{demo.url}/demo/" in log.read_text()

    try:
        eventually(announced)
        yield demo
    finally:
        process.terminate()
        process.wait(timeout=60)


def connect_both(demo: RunningDemo, page: Page) -> tuple[int, int]:
    """Connect Stripe, then GitHub with its installation page; return how many clicks each took."""
    clicks = Clicks(page)
    page.goto(f"{demo.url}/demo/")
    expect(page.get_by_role("heading", name="Integrations")).to_be_visible()
    clicks.button("Connect accounts")
    expect(page.get_by_role("heading", name="Connect your accounts")).to_be_visible()
    clicks.button("Connect Stripe")
    expect(page.get_by_role("heading", name="Connect your Stripe account")).to_be_visible()
    clicks.button("Connect")
    expect(page.get_by_role("heading", name="Stripe is connected")).to_be_visible()
    expect(page.get_by_role("heading", name="Northwind Coffee")).to_be_visible()
    first = clicks.count

    clicks.button("Connect GitHub")
    expect(page.get_by_role("heading", name="Authorize the app")).to_be_visible()
    clicks.button("Authorize")
    expect(page.get_by_role("heading", name="Install", exact=False)).to_be_visible()
    clicks.button("Install")
    expect(page.get_by_role("heading", name="GitHub is connected")).to_be_visible()
    return first, clicks.count - first
