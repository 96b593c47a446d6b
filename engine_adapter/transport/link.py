"""The two ends of the border between engine and controller as protocols, and an in-process pair.

`ZmqLink` and `ZmqHub` in `engine_adapter.transport.zmq_sockets` carry frames between processes.
`DirectLink` joins an engine in virtual time to a controller in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeAlias

from store.records import ControllerMessage, EngineMessage

Delivery: TypeAlias = Literal["sent", "full", "gone"]
"""``full``: the engine does not keep up and the message is lost; ``gone``: the engine has disconnected."""


HubTrouble: TypeAlias = Literal["deaf_endpoint", "connection_flood"]
"""``deaf_endpoint``: the socket file is not this controller's any more; ``connection_flood``: too many callers who do not
prove who they are."""


class EngineLink(Protocol):
    """The engine's end of the connection."""

    @property
    def bad_frames(self) -> int:
        """Frames received since the start that did not decode."""
        ...

    def send(self, message: EngineMessage) -> bool:
        """Send a message without blocking; return False when it was dropped."""
        ...

    def receive(self) -> list[ControllerMessage]:
        """Return the messages received since the last call, at most a bounded number; never blocks."""
        ...

    def close(self) -> None:
        """Close the connection; nothing may be sent afterwards."""
        ...


class ControllerHub(Protocol):
    """The controller's end, shared by all engines; a connection is an opaque address."""

    @property
    def troubles(self) -> dict[HubTrouble, str]:
        """What keeps engines from connecting at present."""
        ...

    @property
    def bad_frames(self) -> int:
        """Frames received since the start that did not decode."""
        ...

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        """Wait up to ``timeout_s`` for a first message; return all received ones, at most a bounded number."""
        ...

    def wake(self) -> None:
        """Let a `receive` that waits return now; for any thread and for signal handlers."""
        ...

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        """Send a message without blocking."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class DirectLink:
    """Connects an engine to a controller in the same process, without delay or loss.

    The engine receives messages at its next poll, as over a real link.

    Args:
        answer: The controller: maps an engine's message to the messages sent back; `deliver` adds others.
    """

    bad_frames = 0

    def __init__(self, answer: Callable[[EngineMessage], Iterable[ControllerMessage]]) -> None:
        self._answer = answer
        self._inbox: list[ControllerMessage] = []

    def send(self, message: EngineMessage) -> bool:
        """Let the controller answer at once; return True."""
        self._inbox.extend(self._answer(message))
        return True

    def deliver(self, message: ControllerMessage) -> None:
        """Queue a message for the engine."""
        self._inbox.append(message)

    def receive(self) -> list[ControllerMessage]:
        """Return the messages since the last call."""
        inbox, self._inbox = self._inbox, []
        return inbox

    def close(self) -> None:
        """Discard the messages not received."""
        self._inbox.clear()


class NoLink:
    """The end of an engine without a controller, as for the benchmark's FCFS baseline."""

    bad_frames = 0

    def send(self, message: EngineMessage) -> bool:
        """Discard the message; return True."""
        return True

    def receive(self) -> list[ControllerMessage]:
        """Return no messages."""
        return []

    def close(self) -> None:
        """Do nothing."""
