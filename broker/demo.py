"""`broker demo`: sandbox, broker and worker in one go, for a look without any outside account."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from broker.errors import NetworkError
from broker.http import Http
from broker.sandbox.environment import dotenv, environment
from broker.sandbox.secrets import load_secrets
from broker.settings import generate_key

READY_SECONDS = 30.0
STOP_SECONDS = 10.0
OPERATOR = "operator@example.com"
HOST_NAME = "Acme Analytics"
OWN_NAMES = ("BROKER_", "STRIPE_", "GITHUB_", "SEQUIN_", "DATABASE_URL")


class Demo:
    """The demo's three processes. They end with this one, even if it is killed."""

    def __init__(self, *, port: int, sandbox_port: int, data_dir: Path) -> None:
        self._port = port
        self._sandbox_port = sandbox_port
        self._data_dir = data_dir.resolve()
        self._children: list[subprocess.Popen[bytes]] = []
        self._stop = threading.Event()

    @property
    def env_file(self) -> Path:
        """Where the demo's settings are kept, for `broker --env-file … connections list` and the like."""
        return self._data_dir / "demo.env"

    def run(self, announce: Callable[[str], None]) -> int:
        """Start everything, say where it is, and wait for a signal or for a process to end. Returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        password = self._prepare()
        try:
            self._start("sandbox", "--port", str(self._sandbox_port), "--data-dir", str(self._data_dir))
            self._start("worker", "--threads", "2")
            self._start("web", "--demo", "--bind", f"127.0.0.1:{self._port}", "--threads", "8")
            if self._ready():
                announce(self._banner(password))
                self._wait()
            return 0 if self._stop.is_set() else 1
        finally:
            self._end()

    def _prepare(self) -> str:
        """Write the settings, bring the database up to date, make an operator; return the operator's password."""
        from broker.app import create_app, read_settings
        from broker.db import upgrade
        from broker.secret import Secret

        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self._kept()
        self._write_settings(kept)
        for name in [name for name in os.environ if name.startswith(OWN_NAMES)]:
            del os.environ[name]
        settings = read_settings(self.env_file)
        upgrade(settings.database_url)
        operators = create_app(settings).extensions["broker"].operators
        if not operators.exist():
            operators.create(OPERATOR, Secret(kept["operator_password"]), "admin")
        return kept["operator_password"]

    def _kept(self) -> dict[str, str]:
        """Return the demo's own secrets, made on the first run and kept: links and grants outlive a restart."""
        path = self._data_dir / "demo.json"
        if path.exists():
            return dict(json.loads(path.read_text()))
        made = {
            "secret_key": secrets.token_urlsafe(48),
            "encryption_keys": generate_key(),
            "operator_password": secrets.token_urlsafe(12),
        }
        _write_private(path, json.dumps(made))
        return made

    def _write_settings(self, kept: Mapping[str, str]) -> None:
        address = f"http://localhost:{self._port}"
        config = self._data_dir / "demo.toml"
        _write_private(config, f'[branding]\nname = "{HOST_NAME}"\n')
        sandbox = environment(load_secrets(self._data_dir), f"http://localhost:{self._sandbox_port}")
        ours = {
            "BROKER_ENV": "development",
            "BROKER_PUBLIC_URL": address,
            "BROKER_SECRET_KEY": kept["secret_key"],
            "BROKER_ENCRYPTION_KEYS": kept["encryption_keys"],
            "BROKER_RETURN_ORIGINS": address,
            "BROKER_CONFIG": str(config),
            # The worker has a process of its own.
            "BROKER_WORKERS": "0",
            "BROKER_LOG_LEVEL": "ERROR",
            "DATA_DIR": str(self._data_dir),
            "PORT": str(self._port),
            "STRIPE_WHY": "So that Acme Analytics can show your revenue next to your traffic.",
            "GITHUB_WHY": "So that Acme Analytics can show what your team ships.",
        }
        _write_private(self.env_file, dotenv(ours | sandbox))

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "broker", "--env-file", str(self.env_file), *arguments, "--until-eof"]
        # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
        self._children.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))  # noqa: S603 - our own program

    def _ready(self) -> bool:
        http = Http(allow_plain_loopback=True, user_agent="broker-demo")
        ends = time.monotonic() + READY_SECONDS
        waiting = [f"http://localhost:{self._port}/readyz", f"http://localhost:{self._sandbox_port}/control/state"]
        while waiting and time.monotonic() < ends and not self._stop.is_set() and self._alive():
            try:
                if http.request("GET", waiting[0], deadline=1.0).status == 200:
                    waiting.pop(0)
                    continue
            except NetworkError:
                pass
            self._stop.wait(0.1)
        return not waiting

    def _alive(self) -> bool:
        return all(child.poll() is None for child in self._children)

    def _wait(self) -> None:
        while self._alive() and not self._stop.wait(0.5):
            pass

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _end(self) -> None:
        for child in reversed(self._children):
            if child.poll() is None:
                child.terminate()
        ends = time.monotonic() + STOP_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.1, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _banner(self, password: str) -> str:
        address, sandbox = f"http://localhost:{self._port}", f"http://localhost:{self._sandbox_port}"
        return "\n".join(
            (
                "",
                "  The OAuth broker's demo is running. Stripe, GitHub and Sequin are pretended by a sandbox",
                "  on this machine; the broker in between is the real one. Nothing leaves this machine.",
                "",
                f"  Start here          {address}/demo/",
                f"  Operators' list     {address}/ops/        {OPERATOR} / {password}",
                f"  The sandbox         {sandbox}/            what it received: {sandbox}/control/log",
                f"  Data and keys       {self._data_dir}",
                "",
                "  Press Ctrl-C to stop.",
                "",
            )
        )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)
