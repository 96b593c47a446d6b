"""A bound on callers over TCP that have connected and not yet proved who they are.

libzmq drops a caller that says nothing after `HANDSHAKE_IVL`, and bounds their number by nothing but the open files of the
process. Beyond a number of them the system drops what comes for the listening socket, by a filter that lets nothing
through (socket(7), SO_ATTACH_FILTER): connections that are there are not touched, and new callers try again until it is
taken off. Unbinding would end the connected engines too.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import struct
import time
from collections import deque
from collections.abc import Callable

import zmq

log = logging.getLogger(__name__)

MOST_WAITING = 256
"""Callers that may be in the handshake at a time; an eighth of the open files of the process, if that is less."""

MARGIN_S = 1.0
"""Time after which libzmq has dropped a silent caller for certain, beyond the handshake's own."""

FLOODED_S = 30.0
"""Time after the endpoint was last closed for which it is said."""

WATCHED = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED

_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27
_DROP_ALL = struct.pack("HBBI", 0x06, 0, 0, 0)
"""A packet filter of one instruction: return 0, of each packet nothing is kept."""


class ConnectionLimit:
    """Closes a listening socket to new callers while too many are in the handshake.

    Args:
        handshake_s: seconds after which libzmq drops a caller.
        timer: seconds of a clock that never jumps.
    """

    def __init__(self, handshake_s: float, timer: Callable[[], float] = time.monotonic) -> None:
        self._longest_s = handshake_s + MARGIN_S
        self._timer = timer
        self._listener: socket.socket | None = None
        self._accepted: dict[int, float] = {}
        self._succeeded: deque[float] = deque()
        self._closed = False
        self._flooded_until_s = 0.0

    @property
    def most(self) -> int:
        """Callers that may be in the handshake at a time."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return MOST_WAITING if soft < 0 else max(8, min(MOST_WAITING, soft // 8))

    @property
    def waiting(self) -> int:
        """Callers in the handshake: those accepted lately that are still connected, less the handshakes that succeeded."""
        since_s = self._timer() - self._longest_s
        while self._succeeded and self._succeeded[0] < since_s:
            self._succeeded.popleft()
        return max(0, sum(moment_s >= since_s for moment_s in self._accepted.values()) - len(self._succeeded))

    @property
    def is_flooded(self) -> bool:
        """Whether the endpoint is closed, or was a short time ago."""
        return self._timer() < self._flooded_until_s

    def observe(self, event: int, value: int) -> None:
        """Take note of an event of `WATCHED`, as ``socket.monitor`` tells it."""
        match event:
            case zmq.EVENT_LISTENING:
                self._listener = socket.socket(fileno=os.dup(value))
            case zmq.EVENT_ACCEPTED:
                self._accepted[value] = self._timer()
            case zmq.EVENT_DISCONNECTED:
                self._accepted.pop(value, None)
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._succeeded.append(self._timer())

    def enforce(self) -> None:
        """Close the endpoint to new callers, or open it again when half of the room is free."""
        waiting, most = self.waiting, self.most
        if not self._closed and waiting > most:
            if not self.is_flooded:
                log.warning("%d callers do not end their handshake: no new one is let in for a moment", waiting)
            self._close_door(closed=True)
        elif self._closed and waiting <= most // 2:
            self._close_door(closed=False)
        if self._closed:
            self._flooded_until_s = self._timer() + FLOODED_S

    def close(self) -> None:
        """Let go of the listening socket."""
        if self._listener is not None:
            self._listener.close()

    def _close_door(self, *, closed: bool) -> None:
        self._closed = closed
        if self._listener is None:
            return
        try:
            if closed:
                program = ctypes.create_string_buffer(_DROP_ALL)
                packed = struct.pack("HL", 1, ctypes.addressof(program))
                self._listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)
            else:
                self._listener.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
        except OSError as error:
            log.warning("the system does not let the endpoint be closed to new callers: %s", error)
