"""The socket under a request: what a fault needs to misbehave the way networks do."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import NoReturn

ENVIRON_KEY = "sandbox.connection"

# Where the system can tell "the other side has closed" from "there is something to read", ask only for the first.
_GONE = getattr(select, "POLLRDHUP", select.POLLIN)


class Connection:
    """One client's connection. `close_after` tells the server not to keep it for another request."""

    def __init__(self, sock: socket.socket, close_after: Callable[[], None]) -> None:
        self._socket = sock
        self.close_after = close_after

    def wait(self, seconds: float) -> bool:
        """Wait; return False as soon as the client has gone away or the server stops."""
        watch = select.poll()
        watch.register(self._socket, _GONE)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if watch.poll(left * 1000):
                return False
        return True

    def abandon(self) -> NoReturn:
        """End the connection without another byte."""
        self.close_after()
        raise ConnectionAbortedError("a fault ended this connection")

    def reset(self) -> NoReturn:
        """End the connection with a TCP reset instead of a farewell."""
        self.close_after()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Closing the descriptor itself: the socket object would say goodbye properly first.
        os.close(self._socket.detach())
        raise ConnectionResetError("a fault reset this connection")


class NoConnection(Connection):
    """What Flask's test client has instead: faults raise, waiting waits."""

    def __init__(self) -> None:
        pass

    def wait(self, seconds: float) -> bool:
        """Wait the whole time: there is nobody who could go away."""
        threading.Event().wait(seconds)
        return True

    def abandon(self) -> NoReturn:
        """Raise what a client would see."""
        raise ConnectionAbortedError("a fault ended this connection")

    def reset(self) -> NoReturn:
        """Raise what a client would see."""
        raise ConnectionResetError("a fault reset this connection")
