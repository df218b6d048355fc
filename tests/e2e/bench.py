"""A broker inside the test's own process, over real sockets, whose worker does one turn when it is told to."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
from werkzeug.serving import WSGIRequestHandler, make_server

from broker.app import create_app
from broker.links import LinkRequest
from broker.providers import discover
from broker.sandbox import RunningSandbox, running
from broker.sandbox.consent import Consent
from broker.sandbox.faults import parse_fault
from broker.services import Services
from broker.settings import load_settings
from broker.worker import Worker
from tests.e2e.handoff_checker import Violation, gather, violations
from tests.e2e.relay import Relay
from tests.e2e.world import Witness, forget_everything, free_port, let_pass

KEYS = "test:GtSUI3a7Aq6SBuwEeGRIhhPsPnSgmVFxYFbYTxOYT6U="
TURNS = 60


@dataclass
class Bench:
    """Sandbox, relay, broker and its worker; whoever asks for one begins with nobody in it."""

    url: str
    services: Services
    worker: Worker
    sandbox: RunningSandbox
    relay: Relay
    diary: Path
    database_url: str
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def afresh(self) -> None:
        """Empty everything, and let what was allowed be allowed by itself."""
        self.sandbox.world.reset()
        self.sandbox.world.consent = Consent(auto="allow")
        self.diary.write_text("")
        with self.services.database.write() as connection:
            forget_everything(connection)
        for circuit in self.services.circuits.open():
            self.services.circuits.succeeded(circuit.name)

    # --- people ------------------------------------------------------------------------------------------

    def person(self) -> Witness:
        """Return somebody nobody has seen before."""
        return Witness(self, f"person-{next(self._numbers)}", self.diary)

    def link(self, person: Witness) -> str:
        """Return a connect link for somebody."""
        asked = LinkRequest(end_user_id=person.name, metadata={"plan": "gold"})
        return self.services.links.create(asked, created_by="cli").url

    # --- the worker --------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let the worker do what is due, once."""
        self.worker.run_once()

    def rest(self) -> None:
        """Let time pass and the worker work until nothing is under way."""
        for _ in range(TURNS):
            self.worker.run_once()
            with self.services.database.write() as connection:
                under_way = let_pass(connection)
            if not under_way:
                return
        raise AssertionError(f"never at rest: {self.services.jobs.unfinished()}")

    # --- looking -----------------------------------------------------------------------------------------

    def rows(self, query: str, **values: object) -> list[sa.Row[Any]]:
        """Return what a query finds."""
        with self.services.database.read() as connection:
            return list(connection.execute(sa.text(query), values).all())

    def requests_to(self, method: str, path: str) -> list[Any]:
        """Return what was asked of the stand-ins."""
        found = self.sandbox.world.log.since()
        return [entry for entry in found if entry["method"] == method and str(entry["path"]).startswith(path)]

    def contradictions(self) -> list[Violation]:
        """Return what the checker finds."""
        return violations(gather(sandbox=self.sandbox.url, database=self.database_url, clients=self.diary, keys=KEYS))

    # --- faults ------------------------------------------------------------------------------------------

    @contextmanager
    def failing(self, on: str, **fault: object) -> Iterator[None]:
        """Let every call to one endpoint fail for a while."""
        parsed, times = parse_fault({"on": on, **fault})
        self.sandbox.world.faults.add(parsed, times)
        try:
            yield
        finally:
            self.sandbox.world.faults.clear()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def running_bench(database_url: str, folder: Path) -> Iterator[Bench]:
    """Lend a bench on a migrated database."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(running(folder))
        relay = Relay(urlsplit(sandbox.url).port or 0)
        stack.callback(relay.close)
        port = free_port()
        environment = {name: value.replace(sandbox.url, f"http://127.0.0.1:{relay.port}")
                       for name, value in sandbox.environment.items()}  # fmt: skip
        environment |= {
            "BROKER_ENV": "development",
            "BROKER_PUBLIC_URL": f"http://localhost:{port}",
            "BROKER_SECRET_KEY": "a-secret-key-for-tests-that-is-long-enough-0123",
            "BROKER_ENCRYPTION_KEYS": KEYS,
            "BROKER_WORKERS": "0",
            "BROKER_LOG_FORMAT": "json",
            "DATA_DIR": str(folder),
            "DATABASE_URL": database_url,
        }
        options = {name: provider.options for name, provider in discover().items()}
        app = create_app(load_settings(environment, options), log_to=io.StringIO())
        server = make_server("127.0.0.1", port, app, threaded=True, request_handler=_Quiet)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        services: Services = app.extensions["broker"]
        try:
            yield Bench(
                environment["BROKER_PUBLIC_URL"], services, Worker(services, threads=1), sandbox, relay,
                folder / "clients.jsonl", database_url,
            )  # fmt: skip
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
            services.database.engine.dispose()
