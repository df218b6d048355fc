"""Which OAuth app of Sequin's stands for which of ours: found by provider and exact client id, never typed in."""

from __future__ import annotations

import threading

from broker.apps import OfferedApp
from broker.clock import Clock
from broker.errors import BrokerError, Verdict
from broker.sequin import Sequin, SequinOAuthApp

TRUSTED_SECONDS = 60.0
"""How long an answer is used before Sequin is asked again."""


class OAuthAppUnmatched(BrokerError):
    """Sequin has no OAuth app, or several, with this provider and client id: imports are held until it is mended."""

    code = "oauth_app_unmatched"
    verdict = Verdict.CONFIGURATION
    cure = (
        "Register the OAuth app in Sequin with exactly this client id and secret, or pin one with "
        "<PROVIDER>_SEQUIN_OAUTH_APP_ID; the imports then go out by themselves."
    )


class OAuthAppMatch:
    """Looks the match up, and remembers Sequin's list for a minute."""

    def __init__(self, sequin: Sequin, clock: Clock) -> None:
        self._sequin = sequin
        self._clock = clock
        self._lock = threading.Lock()
        self._known: tuple[float, list[SequinOAuthApp]] | None = None

    def sequin_id(self, app: OfferedApp) -> str:
        """Return the id of Sequin's OAuth app for `app`, the pinned one if configuration names one.

        Raises OAuthAppUnmatched, SequinError or NetworkError.
        """
        if app.config.sequin_oauth_app_id:
            return app.config.sequin_oauth_app_id
        wanted = (app.provider.sequin_provider, app.config.client_id)
        found = [each.id for each in self._list() if (each.provider, each.client_id) == wanted]
        if len(found) != 1:
            self.forget()
            count = "no OAuth app" if not found else f"{len(found)} OAuth apps"
            raise OAuthAppUnmatched(f"Sequin has {count} for {wanted[0]} with the client id of {app.key!r}")
        return found[0]

    def forget(self) -> None:
        """Ask Sequin again next time."""
        with self._lock:
            self._known = None

    def _list(self) -> list[SequinOAuthApp]:
        # One question at a time: the threads that wait here would all ask the same.
        with self._lock:
            now = self._clock.monotonic()
            if self._known is None or now - self._known[0] > TRUSTED_SECONDS:
                self._known = (now, self._sequin.oauth_apps())
            return self._known[1]
