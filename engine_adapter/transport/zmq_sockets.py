"""The border between processes: ZeroMQ sockets that never block and never queue without bound.

The engine's end is a DEALER socket, the controller's a ROUTER, over ``ipc://`` in a private directory, or over ``tcp://``
with CURVE keys: encrypted and mutually authenticated (`engine_adapter.transport.keys`).
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path

import zmq

from engine_adapter.transport.authenticator import HANDSHAKE_MS, Authenticator, Refusal, watch
from engine_adapter.transport.endpoint_owner import EndpointOwner
from engine_adapter.transport.frames import MAX_CONTROLLER_FRAME_BYTES, MAX_FRAME_BYTES, FrameHub, FrameLink
from engine_adapter.transport.keys import EngineKey, load_controller_keys
from engine_adapter.transport.link import HubTrouble
from engine_adapter.transport.socket_folder import prepare_folder, share_with
from engine_adapter.transport.waker import Waker
from store.errors import ConfigError
from store.records import EngineMessage

log = logging.getLogger(__name__)

LONGEST_FRAME_BYTES = 2 * MAX_FRAME_BYTES
"""Beyond it libzmq ends the connection; up to it a frame that is too long is refused and counted."""
HIGH_WATER_MARK = 2000

HEARTBEAT_MS = 2000
"""Interval of ZeroMQ heartbeats over TCP; three missing ones end the connection."""
_TCP = re.compile(r"tcp://(\[[0-9A-Fa-f:.%]+\]|[^:/\s]+):\d{1,5}")


def default_endpoint() -> str:
    """Return the endpoint that both sides use by default: a socket in the user's runtime directory."""
    base = os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir(), f"sagesched-{os.getuid()}")
    return f"ipc://{base}/sagesched/engine.sock"


def checked_endpoint(endpoint: str) -> str:
    """Return the endpoint; raise `ConfigError` if it is neither ``ipc:///PATH`` nor ``tcp://HOST:PORT``.

    >>> checked_endpoint("tcp://10.0.0.5:8701")
    'tcp://10.0.0.5:8701'
    """
    if endpoint.startswith("ipc:///") or _TCP.fullmatch(endpoint):
        return endpoint
    raise ConfigError(f"endpoint {endpoint!r:.200} is no address: use ipc:///path/to/socket or tcp://HOST:PORT")


def is_tcp(endpoint: str) -> bool:
    """Whether other machines can reach an endpoint, so that it needs keys."""
    return endpoint.startswith("tcp://")


def prepare_endpoint(endpoint: str, keys: Path | None = None, group: int | None = None) -> None:
    """Create the private directory of an ``ipc://`` endpoint; check that there are keys for ``tcp://``.

    Raises `ConfigError` for other transports, for a directory that users outside the trusted group can change, and for
    missing keys.
    """
    if is_tcp(checked_endpoint(endpoint)):
        if keys is None:
            raise ConfigError(f"endpoint {endpoint!r} is open to the network: name the folder of keys (engine.keys)")
        load_controller_keys(keys)
        return
    prepare_folder(Path(endpoint.removeprefix("ipc://")).parent, group)


class ZmqLink(FrameLink):
    """The engine's end (`engine_adapter.transport.link.EngineLink`); reconnects by itself.

    Args:
        endpoint: The controller's endpoint.
        key: The engine's credentials, for ``tcp://``.
        group: A group that may write to the directory of an ``ipc://`` endpoint too; None for the user alone.

    Raises:
        ConfigError: The endpoint is invalid, is ``tcp://`` and there is no key, or is a socket in a directory that other
            users can change, who could listen there in the controller's place.
    """

    def __init__(self, endpoint: str, key: EngineKey | None = None, group: int | None = None) -> None:
        """Start connecting; create the directory of an ``ipc://`` endpoint, so that nobody else does."""
        if not is_tcp(checked_endpoint(endpoint)):
            prepare_endpoint(endpoint, group=group)
        elif key is None:
            raise ConfigError(f"endpoint {endpoint!r} is open to the network: name this engine's key file (key_file)")
        self._endpoint = endpoint
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, 4 * HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.IMMEDIATE, 1)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROLLER_FRAME_BYTES)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._broken: zmq.Socket[bytes] | None = None
        self._told_broken = False
        if is_tcp(endpoint) and key is not None:
            self._prove(key)
        self._socket.connect(endpoint)
        super().__init__(self._socket)

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The socket, to be polled for received messages beside other sockets; for nothing else."""
        return self._socket

    def send(self, message: EngineMessage) -> bool:
        """Send a message; return False when no controller is connected or the buffer is full."""
        sent = super().send(message)
        if not sent:
            self._report_broken()
        return sent

    def close(self) -> None:
        """Close the socket; buffered messages have half a second to be sent."""
        if self._broken is not None:
            self._socket.disable_monitor()
            self._broken.close(linger=0)
        self._socket.close()
        self._context.term()

    def _prove(self, key: EngineKey) -> None:
        """Encrypt, authenticate this engine, and accept only the key's controller."""
        _set_for_tcp(self._socket, self._endpoint)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._socket.setsockopt(zmq.CURVE_SERVERKEY, key.controller.encode("ascii"))
        self._socket.setsockopt(zmq.CURVE_PUBLICKEY, key.pair.public.encode("ascii"))
        self._socket.setsockopt(zmq.CURVE_SECRETKEY, key.pair.secret.encode("ascii"))
        self._broken = watch(self._context, self._socket)

    def _report_broken(self) -> None:
        """Log once that nothing can be sent because the controller refuses this engine."""
        if self._broken is None or self._told_broken or not self._broken.poll(0):
            return
        self._told_broken = True
        log.warning(
            "the controller at %s ends the handshake: this engine's key is not authorized there, or the key file names "
            "another controller's public key",
            self._endpoint,
        )


class ZmqHub(FrameHub):
    """The controller's end (`engine_adapter.transport.link.ControllerHub`).

    Args:
        endpoint: The endpoint to listen on.
        keys: Folder of the controller's keys, for ``tcp://``.
        group: A group whose members may use the socket of an ``ipc://`` endpoint and write to its directory.

    Raises:
        ConfigError: The endpoint cannot be listened on, or is ``tcp://`` and there are no keys.
    """

    def __init__(self, endpoint: str, keys: Path | None = None, group: int | None = None) -> None:
        """Start listening."""
        prepare_endpoint(endpoint, keys, group)
        self._group = group
        self._waker = Waker()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.RCVHWM, 4 * HIGH_WATER_MARK)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.LINGER, 500)
        self._socket.setsockopt(zmq.MAXMSGSIZE, LONGEST_FRAME_BYTES)
        self._gate: Authenticator | None = None
        if is_tcp(endpoint) and keys is not None:
            _set_for_tcp(self._socket, endpoint)
            self._gate = Authenticator(self._context, self._socket, keys)
        try:
            self._owner = self._listen(endpoint, keys)
        except ConfigError:
            self._owner = None
            self.close()
            raise
        self._poller = zmq.Poller()
        for polled in (self._waker, *(self._gate.sockets if self._gate else (self._socket,))):
            self._poller.register(polled, zmq.POLLIN)
        self.endpoint = bytes(self._socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
        super().__init__(self._gate or self._socket)

    @property
    def refused(self) -> dict[Refusal, int]:
        """Numbers of refused handshakes and messages by reason; empty over ``ipc://``, which has no keys."""
        return dict(self._gate.refused) if self._gate else {}

    def close(self) -> None:
        """Close the socket without removing its file: the next controller binds the same address."""
        self._waker.close()
        if self._gate is not None:
            self._gate.close()
        self._socket.close()
        self._context.term()
        if self._owner is not None:
            self._owner.release()

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        """Return messages with their connection, and see that the endpoint is still this controller's."""
        if self._owner is not None:
            self._owner.look()
        if timeout_s > 0.0:
            self._poller.poll(int(1000 * timeout_s))
            self._waker.calm()
        return super().receive(0.0)

    def wake(self) -> None:
        """Let the call of `receive` that waits, or else the next one that would, return; from any thread."""
        self._waker.wake()

    @property
    def troubles(self) -> dict[HubTrouble, str]:
        """What keeps engines from connecting at present."""
        found: dict[HubTrouble, str] = {}
        if self._owner is not None and self._owner.deaf is not None:
            found["deaf_endpoint"] = self._owner.deaf
        if self._gate is not None and self._gate.limit.is_flooded:
            found["connection_flood"] = (
                f"More than {self._gate.limit.most} callers at a time connected and did not prove who they are. Connected "
                "engines are served; new ones get in between two waves. Keep strangers from the port by a firewall."
            )
        return found

    def _listen(self, endpoint: str, keys: Path | None) -> EndpointOwner | None:
        """Bind the endpoint; over ``ipc://`` with its lock, which is returned."""

        def bind() -> None:
            prepare_endpoint(endpoint, keys, self._group)
            self._bind(endpoint)

        if is_tcp(endpoint):
            self._bind(endpoint)
            return None
        owner = EndpointOwner(Path(endpoint.removeprefix("ipc://")), bind)
        try:
            owner.bind()
        except ConfigError:
            owner.release()
            raise
        return owner

    def _allows(self, connection: bytes, message: EngineMessage) -> bool:
        return self._gate is None or self._gate.allows(connection, message)

    def _bind(self, endpoint: str) -> None:
        """Listen, over ``ipc://`` with access for the owner and the trusted group only."""
        try:
            self._socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(
                f"endpoint {endpoint!r} cannot be listened on ({error.strerror}): choose another (engine.endpoint)"
            ) from None
        if not is_tcp(endpoint):
            share_with(Path(endpoint.removeprefix("ipc://")), self._group)


def _set_for_tcp(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Detect within seconds that the other machine is gone."""
    socket.setsockopt(zmq.IPV6, int("[" in endpoint))
    socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
