"""One controller's brain for several engines in the same process: what it says to another engine than asked goes there.

For engines in virtual time, whose clocks run apart by a step at most; the benchmark of routers and tests use it.
"""

from __future__ import annotations

from collections.abc import Callable

from controller.core.core import Core
from controller.core.sessions import Session
from store.records import ControllerMessage, EngineMessage


class SharedBrain:
    """Joins engines to one core, in no time and without loss; entries for the history are let go."""

    def __init__(self, core: Core) -> None:
        self.core = core
        self._inboxes: dict[bytes, list[ControllerMessage]] = {}

    def link(self, now_s: Callable[[], float]) -> SharedLink:
        """The end of another engine, whose clock is ``now_s``."""
        connection = str(len(self._inboxes)).encode()
        self._inboxes[connection] = []
        return SharedLink(self, connection, now_s)

    def session(self, engine_id: str) -> Session:
        """What the core remembers of a connected engine."""
        (session,) = [s for s in self.core.sessions if s.connected and s.hello.engine_id == engine_id]
        return session

    def take(self, connection: bytes, message: EngineMessage, now_s: float) -> None:
        """Let the core handle a message, and put its answers where they belong."""
        for receiver, answer in self.core.take(connection, message, now_s):
            self._inboxes[receiver].append(answer)
        self.core.drain_entries()

    def fetch(self, connection: bytes) -> list[ControllerMessage]:
        """What has come for an engine since the last call."""
        inbox, self._inboxes[connection] = self._inboxes[connection], []
        return inbox


class SharedLink:
    """One engine's end (`engine_adapter.transport.link.EngineLink`)."""

    bad_frames = 0

    def __init__(self, brain: SharedBrain, connection: bytes, now_s: Callable[[], float]) -> None:
        self._brain = brain
        self._connection = connection
        self._now_s = now_s

    def send(self, message: EngineMessage) -> bool:
        """Let the core handle it at once; always True."""
        self._brain.take(self._connection, message, self._now_s())
        return True

    def receive(self) -> list[ControllerMessage]:
        """All that has come for this engine."""
        return self._brain.fetch(self._connection)

    def close(self) -> None:
        """Nothing to close."""
