"""A controller and its engines in one process: for measurements in virtual time, replays and tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from controller.core.core import Core
from controller.core.outbox import Outgoing
from controller.core.sessions import Session
from controller.core.settings import CoreConfig
from controller.policy.policy import Policy
from engine_adapter.transport.link import DirectLink
from online_learning.length_learner import LengthLearner
from store.entries import Entry
from store.records import ControllerMessage, EngineMessage

LEASE_S = 1e9
"""Virtual time jumps over idle hours without a heartbeat; a controller in the same process cannot die."""

IN_PROCESS = CoreConfig(
    controller_id="in-process", mode="on", hash_key=b"in-process", lease_s=LEASE_S, acknowledge_at_once=True
)
"""Nothing is lost between a controller and engines in one process, and facts need not wait for a history."""


class InProcessController:
    """A core whose engines are called directly: messages arrive at once, in order and without loss.

    Args:
        learner, policy, config, now_s, durable_batches: as of `Core`.
        on_entries: receives the entries for the history after each message; by default they are dropped.
    """

    def __init__(
        self,
        learner: LengthLearner,
        policy: Policy,
        *,
        config: CoreConfig = IN_PROCESS,
        now_s: float = 0.0,
        durable_batches: dict[str, int] | None = None,
        on_entries: Callable[[list[Entry]], object] = lambda _entries: None,
    ) -> None:
        self.core = Core(
            learner=learner,
            policy=policy,
            config=config,
            now_s=now_s,
            timer=lambda: 0.0,
            durable_batches=durable_batches,
        )
        self._on_entries = on_entries
        self._links: dict[bytes, DirectLink] = {}

    def link(self, clock: Callable[[], float]) -> DirectLink:
        """Return a link for one more engine; ``clock`` gives the engine's time in seconds."""
        connection = str(len(self._links)).encode()
        self._links[connection] = link = DirectLink(partial(self._answer, connection, clock))
        return link

    def handle(self, connection: bytes, message: EngineMessage, now_s: float) -> list[Outgoing]:
        """Handle a message of an engine that has no link here; returns the messages to engines without a link."""
        self.core.handle(connection, message, now_s)
        return self.deliver()

    def deliver(self) -> list[Outgoing]:
        """Deliver the core's messages to the links and its entries; returns the messages to engines without a link."""
        rest = []
        for connection, message in self.core.drain_messages():
            link = self._links.get(connection)
            if link is None:
                rest.append((connection, message))
            else:
                link.deliver(message)
        self._on_entries(self.core.drain_entries())
        return rest

    def session(self, engine_id: str) -> Session:
        """Return the session of a connected engine."""
        (session,) = [s for s in self.core.sessions if s.connected and s.hello.engine_id == engine_id]
        return session

    def _answer(
        self, connection: bytes, clock: Callable[[], float], message: EngineMessage
    ) -> tuple[ControllerMessage, ...]:
        self.handle(connection, message, clock())
        return ()
