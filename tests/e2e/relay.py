"""A wire between the broker and the stand-ins that can be unplugged, and that counts what comes back over it."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIECE = 64 * 1024
RESET = struct.pack("ii", 1, 0)


class Relay:
    """Passes every connection to its port on to another port of this machine, resets included."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.returned = 0
        """How many bytes have come back."""
        self.port = 0
        self._listen()

    @contextmanager
    def unplugged(self) -> Iterator[None]:
        """Refuse every connection for a while, and break those that are open."""
        self.close()
        try:
            yield
        finally:
            self._listen()

    def close(self) -> None:
        """Stop listening and break every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            with self._lock:
                self._open |= {near, far}
            for source, target, counts in ((near, far, False), (far, near, True)):
                threading.Thread(target=self._pump, args=(source, target, counts), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while piece := source.recv(PIECE):
                if counts:
                    self.returned += len(piece)
                target.sendall(piece)
        except ConnectionResetError:
            with suppress(OSError):
                target.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {source, target}
            # Whichever side ended it ends it for both; the other pump notices by that.
            for sock in (target, source):
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()
