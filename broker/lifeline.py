"""Ending together: a child process that stops when its parent is gone, however that went."""

from __future__ import annotations

import os
import signal
import sys
import threading


def stop_at_end_of_input() -> None:
    """Send this process SIGTERM once standard input ends.

    A parent that holds the other end of the pipe takes the child with it even when it is killed outright.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
