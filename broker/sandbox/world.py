"""Everything the stand-ins know, behind one lock."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from flask import current_app

from broker.clock import Clock
from broker.sandbox.authorization import AuthorizationServer
from broker.sandbox.consent import Consent
from broker.sandbox.faults import Faults
from broker.sandbox.github.hub import Hub
from broker.sandbox.log import Log
from broker.sandbox.options import Options
from broker.sandbox.redirects import Seen
from broker.sandbox.rotation import Rotations
from broker.sandbox.secrets import Secrets
from broker.sandbox.sequin.store import Store
from broker.sandbox.stripe.platform import Platform

if TYPE_CHECKING:
    from broker.sandbox.stand_in import StandIn

EXTENSION = "sandbox"


class World:
    """One sandbox's state. Views hold `lock` while they work (see points.py); log and faults have their own."""

    def __init__(self, secrets: Secrets, clock: Clock, stand_ins: Iterable[StandIn] = ()) -> None:
        self.stand_ins = tuple(stand_ins)
        self.secrets = secrets
        self.clock = clock
        self.lock = threading.RLock()
        self.log = Log(clock)
        self.faults = Faults()
        self.consent = Consent()
        self.options = Options()
        # Survives a reset: it is where the broker is, not what happened.
        self.seen = Seen()
        self._begin()

    def reset(self) -> None:
        """Back to the state after start. Client ids, secrets and the ids of Sequin's OAuth apps stay."""
        with self.lock:
            self.log.clear()
            self.faults.clear()
            self.consent = Consent()
            self.options = Options()
            self._begin()

    def _begin(self) -> None:
        self.rotations = Rotations(self.clock)
        self.stripe = Platform(self.secrets, self.clock, self.rotations)
        self.github = Hub(self.secrets, self.clock, self.rotations)
        self.sequin = Store(self.secrets, self.clock)
        self.servers: dict[str, AuthorizationServer] = {}
        for one in self.stand_ins:
            client = one.client(self.secrets)
            self.servers[one.name] = AuthorizationServer(one.name, one.rules, client, self.clock, self.rotations)
            self.sequin.kinds |= one.kinds
            app_id = str(uuid.UUID(self.secrets.derived(f"{one.name} at sequin", 32)))
            self.sequin.preregister(app_id, one.sequin_provider, one.title, client.id, client.secret)


def current_world() -> World:
    """Return the state of the sandbox that is answering this request."""
    return cast(World, current_app.extensions[EXTENSION])
