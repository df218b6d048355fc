"""The first ten minutes, as docs/quick-start.md tells them: its very lines, on other ports, and a person's clicks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import pytest
import requests

from tests.e2e.world import ROOT, START_SECONDS, Form, Person, eventually, free_port

PAGE = ROOT / "docs" / "quick-start.md"
SET_UP = ("make setup\n", ". .venv/bin/activate\n")
"""What the tests themselves run in."""


@dataclass
class Newcomer:
    """A terminal in which somebody types what the page says, one block after the other."""

    folder: Path
    broker: int
    sandbox: int
    host: int

    def __post_init__(self) -> None:
        self.url = f"http://localhost:{self.broker}"
        # Both programs read PORT; on their own ports, as the page has them, neither is told.
        on_ports = {
            "localhost:8000": f"localhost:{self.broker}",
            "localhost:5000": f"localhost:{self.host}",
            "broker web &": f"PORT={self.broker} broker web &",
            "python examples": f"PORT={self.host} BROKER_URL={self.url} python examples",
        }
        text = PAGE.read_text()
        for page, here in on_ports.items():
            assert page in text
            text = text.replace(page, here)
        first = text.partition("## For real")[0]
        self.blocks = re.findall(r"^```sh\n(.*?)^```", first, re.DOTALL | re.MULTILINE)
        environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "SANDBOX_PORT": str(self.sandbox),
            "PYTHONUNBUFFERED": "1",
        }
        with (self.folder / "said").open("wb") as said:
            self.terminal = subprocess.Popen(
                ["bash"], stdin=subprocess.PIPE, stdout=said, stderr=said, cwd=self.folder, start_new_session=True,
                text=True, env=environment,
            )  # fmt: skip

    def types(self, block: str) -> None:
        assert self.terminal.stdin is not None
        for line in SET_UP:
            block = block.replace(line, "")
        self.terminal.stdin.write(block)
        self.terminal.stdin.flush()

    def reads(self, words: str) -> bool:
        assert self.terminal.poll() is None, self.said
        return words in self.said

    @property
    def said(self) -> str:
        return (self.folder / "said").read_text()

    def ends(self) -> None:
        os.killpg(self.terminal.pid, signal.SIGTERM)
        with self.terminal:
            self.terminal.wait(timeout=60)


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    made = Newcomer(tmp_path, free_port(), free_port(), free_port())
    yield made
    made.ends()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=60).ok
    except requests.ConnectionError:
        return False


def test_from_nothing_to_an_account_and_a_webhook(newcomer: Newcomer) -> None:
    demo, pieces, host, ask_for_a_test = newcomer.blocks
    assert demo == "make demo\n"
    newcomer.types(pieces)
    eventually(lambda: answers(f"{newcomer.url}/readyz"), within=3 * START_SECONDS)
    newcomer.types(host)
    products = f"http://localhost:{newcomer.host}"
    eventually(lambda: answers(f"{products}/"), within=3 * START_SECONDS)

    person = Person(newcomer)
    explained = person.follow(person.post(f"{products}/connect", {}))
    consent = person.follow(person.press(explained, "/start/stripe"))
    ((action, fields),) = Form(consent.text).forms
    done = person.follow(person.post(urljoin(consent.url, action), fields | {"decision": "allow"}))
    assert "Stripe is connected" in done.text
    assert f'href="{products}/?status=' in done.text

    eventually(lambda: newcomer.reads("connection.connected") and newcomer.reads("connection.imported"))
    assert "<li>" in requests.get(f"{products}/", timeout=60).text
    newcomer.types(ask_for_a_test)
    eventually(lambda: newcomer.reads("\nwebhook.test\n"))
