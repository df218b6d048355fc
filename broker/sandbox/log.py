"""What was asked of the stand-ins: every request, from the moment it arrived."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from werkzeug.wrappers import Request

from broker.clock import Clock

LONGEST_TEXT = 100_000
MOST_ENTRIES = 50_000
MOST_CHARACTERS = 64_000_000


@dataclass
class Entry:
    """One request. `status` and `response` stay null until it was answered, for ever if nothing was sent."""

    n: int
    time: str
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: str
    status: int | None = None
    response: str | None = None
    fault: str | None = None


class Log:
    """The newest requests, bounded in number and in size. Safe to share between threads."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque()
        self._next = 1
        self._characters = 0

    def begin(self, request: Request, body: bytes) -> Entry:
        """Write down a request that has just arrived."""
        with self._lock:
            entry = Entry(
                n=self._next,
                time=self._clock.now().isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                method=request.method,
                path=request.path,
                query=request.query_string.decode("utf-8", "replace"),
                headers=dict(request.headers),
                body=body.decode("utf-8", "replace")[:LONGEST_TEXT],
            )
            self._next += 1
            self._entries.append(entry)
            self._make_room(len(entry.body))
        return entry

    def finish(self, entry: Entry, status: int | None, response: str | None) -> None:
        """Add what was answered."""
        with self._lock:
            entry.status = status
            entry.response = None if response is None else response[:LONGEST_TEXT]
            still_kept = self._entries and self._entries[0].n <= entry.n
            self._make_room(len(entry.response or "") if still_kept else 0)

    def since(self, n: int = 0) -> list[dict[str, object]]:
        """Return the entries numbered above `n`, newest last."""
        with self._lock:
            kept = list(self._entries)
        # Copied outside the lock: a long log must not hold up the requests that are writing to it.
        return [dict(vars(entry)) for entry in kept if entry.n > n]

    def clear(self) -> None:
        """Forget everything and number from 1 again."""
        with self._lock:
            self._entries.clear()
            self._next, self._characters = 1, 0

    def _make_room(self, added: int) -> None:
        self._characters += added
        while self._entries and (len(self._entries) > MOST_ENTRIES or self._characters > MOST_CHARACTERS):
            oldest = self._entries.popleft()
            self._characters -= len(oldest.body) + len(oldest.response or "")
