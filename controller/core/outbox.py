"""Messages to engines, in order, until the control loop drains them."""

from __future__ import annotations

from typing import TypeAlias

from store.records import ControllerMessage

Outgoing: TypeAlias = tuple[bytes, ControllerMessage]
"""A message and the connection that it goes to."""


class Outbox:
    """A queue of messages to all engines.

    It keeps messages that were sent before an exception, so that a failure loses no earlier message.
    """

    def __init__(self) -> None:
        self._messages: list[Outgoing] = []

    def send(self, connection: bytes, message: ControllerMessage) -> None:
        """Append a message."""
        self._messages.append((connection, message))

    def drain(self) -> list[Outgoing]:
        """Return the messages since the last call, and forget them."""
        messages, self._messages = self._messages, []
        return messages
