"""How a process ends: when it is told to, however often, and when its parent is gone, however that went."""

from __future__ import annotations

import os
import signal
import sys
import threading

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """SIGINT or SIGTERM: noted from now on, instead of ending this process. For the main thread."""

    def __init__(self) -> None:
        # Python runs handlers in the main thread alone, and the system may give the signal to any other: to one that is
        # busy while the main thread still wakes from a SIGSTOP. Nothing wakes a main thread then that waits for a lock,
        # so it waits for the byte that Python writes in whichever thread the signal meets. (A handler that takes locks,
        # as `threading.Event` does, hangs when it interrupts the code that holds them.)
        self._numbers, tell = os.pipe()
        os.set_blocking(tell, False)
        signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, lambda *_: None)

    def wait(self) -> None:
        """Return once one has come."""
        while os.read(self._numbers, 1)[0] not in STOP_SIGNALS:
            pass


def stop_at_end_of_input() -> None:
    """Send this process SIGTERM once standard input ends.

    A parent that holds the other end of the pipe takes the child with it even when it is killed outright.
    """

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()
