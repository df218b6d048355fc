"""How a process ends: when it is told to, however often, and when its parent is gone, however that went."""

from __future__ import annotations

import os
import signal
import sys
import threading
from queue import SimpleQueue


class StopSignal:
    """SIGINT or SIGTERM: noted from now on, instead of ending this process. For the main thread."""

    def __init__(self) -> None:
        # A handler runs in the middle of whatever the main thread does, often in `wait` itself as the second signal of
        # two. `threading.Event` takes a lock there that the interrupted code may hold, and hangs; this queue does not.
        self._came: SimpleQueue[None] = SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self._came.put(None))

    def wait(self) -> None:
        """Return once one has come."""
        self._came.get()


def stop_at_end_of_input() -> None:
    """Send this process SIGTERM once standard input ends.

    A parent that holds the other end of the pipe takes the child with it even when it is killed outright.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
