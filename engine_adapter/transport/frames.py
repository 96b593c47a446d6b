"""Both ends of the engine border over a given socket: sending never blocks, and invalid frames never raise.

`engine_adapter.transport.zmq_sockets` opens ZeroMQ sockets for them; a simulation passes its own sockets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import zmq

from engine_adapter.transport.damaged_batches import readable_part
from engine_adapter.transport.link import Delivery, HubTrouble
from store.errors import ProtocolError
from store.records import (
    ControllerMessage,
    EngineMessage,
    Facts,
    decode_controller_message,
    decode_engine_message,
    encode,
)

log = logging.getLogger(__name__)

MAX_FRAME_BYTES = 8 << 20
"""Largest frame that is read: an engine's batches and snapshots are at most a third as large."""

MESSAGES_PER_RECEIVE = 2000
FACTS_PER_RECEIVE = 4096
"""Facts after which no further message is taken: they are handled in a fraction of a second."""

MAX_CONTROLLER_FRAME_BYTES = 1 << 20
"""Largest frame that an engine reads: the longest index table that it takes is a fifth as large."""

MESSAGES_PER_STEP = 500
BYTES_PER_STEP = 2 << 20
"""Messages that an engine receives between two steps, and bytes after which it takes no further one: decoding them costs
a step milliseconds, and with the longest messages a tenth of a second."""

KINDS_LOGGED = 10
"""Number of different warnings about frames that are logged, each once."""


class EngineSocket(Protocol):
    """The methods of a ZeroMQ DEALER that the engine's end uses."""

    def send(self, data: bytes, flags: int) -> object:
        """Send a frame; raise `zmq.Again` instead of blocking."""
        ...

    def recv(self, flags: int) -> bytes:
        """Return the next frame; raise `zmq.Again` when there is none."""
        ...


class ControllerSocket(Protocol):
    """The methods of a ZeroMQ ROUTER that the controller's end uses."""

    def poll(self, timeout_ms: int) -> int:
        """Wait for a first frame; return 0 when none came."""
        ...

    def send_multipart(self, msg_parts: Sequence[bytes], flags: int) -> object:
        """Send a frame to an address; raise `zmq.Again`, or `zmq.ZMQError` for an address that is gone."""
        ...

    def recv_multipart(self, flags: int) -> list[bytes]:
        """Return the next frame after its address; raise `zmq.Again` when there is none."""
        ...


class FrameLink:
    """The engine's end (`engine_adapter.transport.link.EngineLink`), except for closing the socket."""

    def __init__(self, socket: EngineSocket) -> None:
        self._frames = socket
        self.bad_frames = 0
        self._recent_warnings = _RecentWarnings()

    def send(self, message: EngineMessage) -> bool:
        """Send a message; return False when no controller is connected or the buffer is full."""
        try:
            self._frames.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[ControllerMessage]:
        """Return received messages, as far as a step has time for them; frames that do not decode are counted and skipped."""
        messages: list[ControllerMessage] = []
        left_bytes = BYTES_PER_STEP
        for _ in range(MESSAGES_PER_STEP):
            if left_bytes <= 0:
                break
            try:
                frame = self._frames.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            left_bytes -= len(frame)
            try:
                messages.append(decode_controller_message(frame))
            except ProtocolError as error:
                self.bad_frames += 1
                self._recent_warnings.log("ignoring a message from the controller: %s", error)
        return messages


class FrameHub:
    """The controller's end (`engine_adapter.transport.link.ControllerHub`), except for closing the socket."""

    def __init__(self, socket: ControllerSocket) -> None:
        self._frames = socket
        self.bad_frames = 0
        self._recent_warnings = _RecentWarnings()

    @property
    def troubles(self) -> dict[HubTrouble, str]:
        """What keeps engines from connecting at present."""
        return {}

    def wake(self) -> None:
        """Nothing waits where there is no real socket."""

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        """Return messages with their connection; frames that do not decode are counted in ``bad_frames``.

        The rest waits in the sockets once there are `FACTS_PER_RECEIVE` facts: engines that come back after an outage
        send twenty thousand each, and no turn of the controller may take seconds.
        """
        if not self._frames.poll(int(timeout_s * 1000)):
            return []
        messages: list[tuple[bytes, EngineMessage]] = []
        facts = 0
        for _ in range(MESSAGES_PER_RECEIVE):
            if facts >= FACTS_PER_RECEIVE:
                break
            try:
                parts = self._frames.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                connection, frame = parts
                message = self._read(frame)
            except (ProtocolError, ValueError) as error:
                self.bad_frames += 1
                self._recent_warnings.log("ignoring a message from an engine: %s", error)
                continue
            if self._allows(connection, message):
                messages.append((connection, message))
                facts += len(message.facts) if isinstance(message, Facts) else 0
        return messages

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        """Send a message; ``full``: the engine does not keep up and it is lost; ``gone``: it has disconnected."""
        try:
            self._frames.send_multipart([connection, encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        return "sent"

    def _read(self, frame: bytes) -> EngineMessage:
        """Return a message, of a damaged batch as much as can be read; raise `ProtocolError` for any other frame."""
        if len(frame) > MAX_FRAME_BYTES:
            raise ProtocolError(f"frame has more than {MAX_FRAME_BYTES} bytes: no engine of this release sends such")
        try:
            return decode_engine_message(frame)
        except ProtocolError as error:
            part = readable_part(frame)
            if part is None:
                raise
            self._recent_warnings.log("leaving out or mending facts of an engine: %s", error)
            return part

    def _allows(self, connection: bytes, message: EngineMessage) -> bool:
        """Whether a connection may send this message."""
        return True


class _RecentWarnings:
    """Logs each warning once, and at most `KINDS_LOGGED` of them."""

    def __init__(self) -> None:
        self._logged: set[str] = set()

    def log(self, text: str, error: Exception) -> None:
        """Log the error of a frame."""
        if str(error) not in self._logged and len(self._logged) < KINDS_LOGGED:
            self._logged.add(str(error))
            log.warning(text, error)
