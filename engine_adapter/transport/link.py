"""The two ends of the border between engine and controller, as protocols, and the in-process pair.

`ZmqLink` and `ZmqHub` in `engine_adapter.transport.zmq_sockets` carry frames between processes.
`DirectLink` joins an engine in virtual time to a controller in the same process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeAlias

from store.records import ControllerMessage, EngineMessage

Delivery: TypeAlias = Literal["sent", "full", "gone"]
"""``full``: the engine does not keep up and the message is lost; ``gone``: the engine has disconnected."""


class EngineLink(Protocol):
    """The engine's end."""

    @property
    def bad_frames(self) -> int:
        """What came in since the start and could not be understood."""
        ...

    def send(self, message: EngineMessage) -> bool:
        """Hand a message over without ever blocking; False when it had to be dropped."""
        ...

    def receive(self) -> list[ControllerMessage]:
        """Everything that has come in since the last call, at most a bounded number; never blocks."""
        ...

    def close(self) -> None:
        """Give up the connection; nothing may be sent afterwards."""
        ...


class ControllerHub(Protocol):
    """The controller's end, shared by all engines; a connection is an opaque address."""

    @property
    def bad_frames(self) -> int:
        """What came in since the start and could not be understood."""
        ...

    def receive(self, timeout_s: float) -> list[tuple[bytes, EngineMessage]]:
        """Wait up to ``timeout_s`` for a first message, then take what is there, at most a bounded number."""
        ...

    def send(self, connection: bytes, message: ControllerMessage) -> Delivery:
        """Hand a message over without ever blocking."""
        ...

    def close(self) -> None:
        """Stop listening."""
        ...


class DirectLink:
    """Joins an engine to a controller in the same process, at once and without loss.

    ``answer`` is the controller: it maps an engine's message to the messages that go back; `deliver` adds others.
    The engine receives them at its next poll, as over a real link.
    """

    bad_frames = 0

    def __init__(self, answer: Callable[[EngineMessage], Iterable[ControllerMessage]]) -> None:
        self._answer = answer
        self._inbox: list[ControllerMessage] = []

    def send(self, message: EngineMessage) -> bool:
        """Let the controller answer at once; always True."""
        self._inbox.extend(self._answer(message))
        return True

    def deliver(self, message: ControllerMessage) -> None:
        """Add a message for the engine."""
        self._inbox.append(message)

    def receive(self) -> list[ControllerMessage]:
        """Return the messages since the last call."""
        inbox, self._inbox = self._inbox, []
        return inbox

    def close(self) -> None:
        """Forget what was not received."""
        self._inbox.clear()


class NoLink:
    """The end of an engine that has no controller: the benchmark's plain first come, first served."""

    bad_frames = 0

    def send(self, message: EngineMessage) -> bool:
        """Swallow the message; True, because nobody misses it."""
        return True

    def receive(self) -> list[ControllerMessage]:
        """Nothing ever comes."""
        return []

    def close(self) -> None:
        """Nothing to close."""
