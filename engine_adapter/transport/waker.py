"""Ends a wait for messages from another thread."""

from __future__ import annotations

import socket

_READ_BYTES = 4096


class Waker:
    """A pair of sockets of this process: what is written to the one can be polled for at the other.

    >>> waker = Waker()
    >>> waker.wake()
    >>> waker.calm()
    >>> waker.close()
    """

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to poll for input."""
        return self._reader.fileno()

    def wake(self) -> None:
        """Let whoever polls return; from any thread, and without effect once it is closed."""
        try:
            self._writer.send(b"\0")
        except OSError:  # It is full, so that nobody sleeps, or closed, so that nobody waits.
            return

    def calm(self) -> None:
        """Forget all calls so far."""
        try:
            self._reader.recv(_READ_BYTES)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Release both sockets."""
        self._reader.close()
        self._writer.close()
