"""Orders from other threads to the control loop, which alone may touch the brain."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from dataclasses import dataclass, field

from store.records import Mode, Settings

WAITING_COMMANDS = 16


@dataclass(frozen=True, slots=True)
class SetMode:
    """Switch all engines to a mode; answered with the settings then in force."""

    mode: Mode
    reason: str
    answer: Future[Settings] = field(default_factory=Future)


class Commands:
    """A bounded queue of commands.

    >>> commands = Commands()
    >>> commands.offer(SetMode("off", "example"))
    True
    >>> [command.mode for command in commands.drain()]
    ['off']
    """

    def __init__(self) -> None:
        self._queue: queue.Queue[SetMode] = queue.Queue(maxsize=WAITING_COMMANDS)

    def offer(self, command: SetMode) -> bool:
        """Hand a command to the loop; False when too many wait already."""
        try:
            self._queue.put_nowait(command)
        except queue.Full:
            return False
        return True

    def drain(self) -> list[SetMode]:
        """What waits, oldest first."""
        commands: list[SetMode] = []
        while not self._queue.empty():
            commands.append(self._queue.get_nowait())
        return commands
