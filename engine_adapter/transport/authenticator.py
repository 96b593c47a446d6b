"""Authentication of engines over TCP: CURVE keys, checked in the handshake and again with every message.

The handshake asks this module whether the engine's key is authorized (ZAP, https://rfc.zeromq.org/spec/27/), in the
receiving thread.
ZeroMQ labels each message with the authenticated key of its connection. A key may send for its own engine only, and
messages of a revoked key are refused.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeAlias

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from engine_adapter.transport.authorized_engines import AuthorizedEngines
from engine_adapter.transport.connection_limit import WATCHED, ConnectionLimit
from engine_adapter.transport.keys import KEY_CHARACTERS, load_controller_keys
from store.records import EngineMessage, Hello

log = logging.getLogger(__name__)

Refusal: TypeAlias = Literal["handshake", "key", "engine_id"]
"""``handshake``: no CURVE, or another controller's key; ``key``: not authorized, or revoked; ``engine_id``: another
engine's."""

HANDSHAKE_MS = 3000
"""Time after which an engine whose key is not authorized tries again."""
_ZAP = "inproc://zeromq.zap.01"
_DOMAIN = b"sagesched"
_ASKED_PER_ROUND = 64
_EVENTS_PER_ROUND = 2_000
_LOGGED = 100
_BROKEN = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL


class Authenticator:
    """An authenticating ROUTER socket (`engine_adapter.transport.frames.ControllerSocket`); not thread-safe.

    A connection's address begins with its key, so no engine can take over another's connection.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], folder: Path) -> None:
        """Guard a socket that is not bound yet; raise `ConfigError` when the controller has no keys."""
        pair = load_controller_keys(folder)
        self._engines = AuthorizedEngines(folder)
        self._asked = context.socket(zmq.REP)
        self._asked.bind(_ZAP)
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode("ascii"))
        socket.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN)
        # Without it a socket without a ZAP handler would admit every connection.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self._socket = socket
        self.limit = ConnectionLimit(HANDSHAKE_MS / 1000)
        """Of callers that have not proved yet who they are."""
        self._broken = watch(context, socket, _BROKEN | WATCHED)
        self._poller = zmq.Poller()
        self.sockets = (socket, self._asked, self._broken)
        """What to poll for messages and handshakes."""
        for watched in self.sockets:
            self._poller.register(watched, zmq.POLLIN)
        self._logged: set[tuple[str, ...]] = set()
        self.refused: dict[Refusal, int] = {"handshake": 0, "key": 0, "engine_id": 0}

    def poll(self, timeout_ms: int) -> int:
        """Wait for messages and answer handshakes; return 0 when there are no messages."""
        ready = dict(self._poller.poll(timeout_ms))
        self._engines.refresh()
        if self._asked in ready:
            self._answer()
        if self._broken in ready:
            self._observe()
        self.limit.enforce()
        return int(self._socket in ready)

    def recv_multipart(self, flags: int) -> list[bytes]:
        """Return the next frame after its address; raise `zmq.Again` when there is none."""
        frames = self._socket.recv_multipart(flags, copy=False)
        public = str(frames[-1].get("User-Id")).encode("ascii")
        return [public + frames[0].bytes, *(frame.bytes for frame in frames[1:])]

    def send_multipart(self, msg_parts: Sequence[bytes], flags: int) -> object:
        """Send like the socket itself; a connection with a revoked key counts as gone."""
        address, *frames = msg_parts
        if not self._engines.knows(_key_of(address)):
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        return self._socket.send_multipart([address[KEY_CHARACTERS:], *frames], flags)

    def allows(self, connection: bytes, message: EngineMessage) -> bool:
        """Whether a message is accepted; a refusal is counted, and logged once."""
        public = _key_of(connection)
        if not self._engines.knows(public):
            self._refuse("key", f"an engine that is connected: its key {public} is not authorized any more", public)
            return False
        if isinstance(message, Hello) and not self._engines.speaks_for(public, message.engine_id):
            what = f"an engine that calls itself {message.engine_id!r:.140}, which its key {public} may not"
            self._refuse("engine_id", what, public, message.engine_id[:140])
            return False
        return True

    def close(self) -> None:
        """Close all but the guarded socket."""
        self._socket.disable_monitor()
        self._broken.close(linger=0)
        self.limit.close()
        self._asked.close(linger=0)

    def _answer(self) -> None:
        """Answer handshakes: 200 accepts; 300 closes the connection, after which the engine tries again by itself."""
        for _ in range(_ASKED_PER_ROUND):
            try:
                version, number, _domain, address, _identity, mechanism, *credentials = self._asked.recv_multipart(
                    zmq.NOBLOCK
                )
            except zmq.Again:
                return
            public = z85.encode(credentials[0]).decode("ascii") if mechanism == b"CURVE" and credentials else ""
            known = self._engines.knows(public)
            status, user = (b"200", public.encode("ascii")) if known else (b"300", b"")
            self._asked.send_multipart([version, number, status, b"", user, b""])
            if not known:
                where = address.decode("ascii", "replace")
                remedy = "sagesched keys authorize ENGINE_ID 'KEY' lets it in"
                self._refuse("key", f"engine at {where}: its key {public} is not authorized ({remedy})", public)

    def _observe(self) -> None:
        for _ in range(_EVENTS_PER_ROUND):
            try:
                event = parse_monitor_message(self._broken.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            self.limit.observe(event["event"], event["value"])
            if event["event"] in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                what = "a caller without a CURVE key, or with another controller's public key"
                self._refuse("handshake", what)

    def _refuse(self, reason: Refusal, what: str, *whom: str) -> None:
        self.refused[reason] += 1
        if (reason, *whom) not in self._logged and len(self._logged) < _LOGGED:
            self._logged.add((reason, *whom))
            log.warning("refused %s", what)


def _key_of(connection: bytes) -> str:
    return connection[:KEY_CHARACTERS].decode("ascii", "replace")


def watch(
    context: zmq.Context[zmq.Socket[bytes]], socket: zmq.Socket[bytes], events: int = _BROKEN
) -> zmq.Socket[bytes]:
    """Monitor a socket's failed handshakes, or other events; unbounded, because ZeroMQ's own thread would block at a bound."""
    address = f"inproc://sagesched.monitor.{id(socket)}"
    socket.monitor(address, events)
    watching = context.socket(zmq.PAIR)
    watching.setsockopt(zmq.RCVHWM, 0)
    watching.connect(address)
    return watching
