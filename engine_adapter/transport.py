"""The border between processes: ZeroMQ frames that never block and never queue without bound.

The engine's end is a DEALER socket, the controller's a ROUTER, over ``ipc://`` in a private directory.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

import zmq

from engine_adapter.link import Delivery
from store.errors import ConfigError, ProtocolError
from store.records import (
    ControllerMessage,
    EngineMessage,
    decode_controller_message,
    decode_engine_message,
    encode,
)

log = logging.getLogger(__name__)

MESSAGES_PER_RECEIVE = 2000
MAX_FRAME_BYTES = 64 << 20
HIGH_WATER_MARK = 2000


def default_endpoint() -> str:
    """The endpoint that both sides use when none is configured: a socket in the user's runtime directory."""
    base = os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir(), f"sagesched-{os.getuid()}")
    return f"ipc://{base}/sagesched/engine.sock"


def prepare_endpoint(endpoint: str) -> None:
    """Make the private directory of an ``ipc://`` endpoint; refuse one that others could write to.

    Raises `ConfigError` for other transports and for a directory of somebody else.
    """
    if not endpoint.startswith("ipc://"):
        raise ConfigError(f"endpoint {endpoint!r} is not ipc://: use ipc:///path/to/socket")
    directory = Path(endpoint.removeprefix("ipc://")).parent
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = directory.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o022:
        raise ConfigError(
            f"directory {directory} of endpoint {endpoint!r} can be written by others: "
            f"choose one that belongs to you alone (chmod 700 {directory})"
        )


class ZmqLink:
    """The engine's end (`engine_adapter.link.EngineLink`); connects by itself whenever the controller is there."""

    def __init__(self, endpoint: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, 4 * HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.connect(endpoint)
        self._bad_frames = 0

    def send(self, message: EngineMessage) -> bool:
        """Hand a message to the socket; False when nobody is connected or its buffer is full."""
        try:
            self._socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[ControllerMessage]:
        """What has come in, at most `MESSAGES_PER_RECEIVE`; frames that do not decode are counted and skipped."""
        messages: list[ControllerMessage] = []
        for _ in range(MESSAGES_PER_RECEIVE):
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                messages.append(decode_controller_message(frame))
            except ProtocolError as error:
                self._bad_frames += 1
                if self._bad_frames == 1:
                    log.warning("ignoring a message from the controller: %s", error)
        return messages

    def close(self) -> None:
        """Close the socket; what is buffered gets half a second to leave."""
        self._socket.close()
        self._context.term()


class ZmqHub:
    """The controller's end (`engine_adapter.link.ControllerHub`)."""

    def __init__(self, endpoint: str) -> None:
        prepare_endpoint(endpoint)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, 4 * HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
        self._socket.bind(endpoint)
        self.bad_frames = 0

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        """Messages with their connection; frames that do not decode are counted in ``bad_frames``."""
        if not self._socket.poll(int(timeout_s * 1000)):
            return []
        messages: list[tuple[bytes, EngineMessage]] = []
        for _ in range(MESSAGES_PER_RECEIVE):
            try:
                parts = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            try:
                connection, frame = parts
                messages.append((connection, decode_engine_message(frame)))
            except (ProtocolError, ValueError) as error:
                self.bad_frames += 1
                if self.bad_frames == 1:
                    log.warning("ignoring a message from an engine: %s", error)
        return messages

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        """``full``: the engine does not keep up and the message is lost; ``gone``: it has disconnected."""
        try:
            self._socket.send_multipart([connection, encode(message)], zmq.NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return "gone"
        return "sent"

    def close(self) -> None:
        """Close the socket and remove nothing: the next controller binds the same address."""
        self._socket.close()
        self._context.term()
