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

from broker.providers import discover
from broker.sandbox.environment import dotenv, environment
from broker.sandbox.secrets import load_secrets
from broker.settings import generate_key

STOP_SECONDS = 10.0
OPERATOR = "operator@example.com"
HOST_NAME = "Acme Analytics"
OWN_NAMES = ("BROKER_", "SEQUIN_", "DATABASE_URL", *(f"{name.upper()}_" for name in discover()))


class Demo:
    """The demo: this process serves, with a sandbox and a worker beside it that end with it, even if it is killed."""

    def __init__(self, *, port: int, sandbox_port: int, data_dir: Path) -> None:
        self._port = port
        self._sandbox_port = sandbox_port
        self._data_dir = data_dir.resolve()
        self._children: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._pid = os.getpid()

    @property
    def env_file(self) -> Path:
        """Where the demo's settings are kept, for `broker --env-file … connections list` and the like."""
        return self._data_dir / "demo.env"

    def run(self, announce: Callable[[str], None]) -> None:
        """Start everything, say where it is, and serve until a signal comes or one of the others ends."""
        for number in (signal.SIGTERM, signal.SIGHUP):
            # Until the server takes over: leave through `finally`.
            signal.signal(number, lambda *_: sys.exit(0))
        self._data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = self._kept()
        self._write_settings(kept)
        try:
            self._start("sandbox", "--port", str(self._sandbox_port), "--data-dir", str(self._data_dir))
            self._serve(kept["operator_password"], announce)
        finally:
            # The server's own child process leaves through here too.
            if os.getpid() == self._pid:
                self._over.set()
                self._end()

    def _serve(self, password: str, announce: Callable[[str], None]) -> None:
        # While this loads, the sandbox does too.
        from broker.app import add_demo, create_app, read_settings
        from broker.db import upgrade
        from broker.secret import Secret
        from broker.server import Server

        for name in [name for name in os.environ if name.startswith(OWN_NAMES)]:
            del os.environ[name]
        settings = read_settings(self.env_file)
        upgrade(settings.database_url)
        self._start("worker", "--threads", "2")
        app = create_app(settings)
        operators = app.extensions["broker"].operators
        if not operators.exist():
            operators.create(OPERATOR, Secret(password), "admin")
        add_demo(app, settings)
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        bind = f"127.0.0.1:{self._port}"
        Server(app, bind=bind, processes=1, threads=8, on_ready=lambda: announce(self._banner(password))).run()

    def _watch(self) -> None:
        """Stop serving when the sandbox or the worker has ended: half a demo misleads."""
        while not self._over.wait(0.5):
            if any(child.poll() is not None for child in self._children):
                os.kill(os.getpid(), signal.SIGTERM)
                return

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
            "STRIPE_APP_WHY": "The same through a Stripe App, whose tokens the broker refreshes every hour.",
            "GITHUB_OAUTH_WHY": "So that Acme Analytics can greet you and list your organisations.",
            "GITHUB_WHY": "So that Acme Analytics can show what your team ships.",
        }
        _write_private(self.env_file, dotenv(ours | sandbox))

    def _start(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "broker", "--env-file", str(self.env_file), *arguments, "--until-eof"]
        # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
        self._children.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))  # noqa: S603 - our own program

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
                "  The OAuth broker's demo is running. The providers and Sequin are pretended by a sandbox",
                "  on this machine; the broker in between is the real one. Nothing leaves this machine.",
                "",
                f"  Start here          {address}/demo/",
                f"  Operators' console  {address}/ops/        {OPERATOR} / {password}",
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
