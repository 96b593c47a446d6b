"""What of the brain's work can wait until no message does, in the order in which it came up.

An arrival waits for its index table, and a prediction takes less than a millisecond; so learning from the answer that
ended before it, or forming hundreds of beliefs anew after a drift, must not stand in its way.
Where more comes up than is ever done, what does not fit is left undone and counted: a controller that is too slow for
its engines learns from as many answers as it can, and still orders every request.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from controller.sessions import ServedRequest, Session
from store.records import Finished


@dataclass(frozen=True, slots=True, eq=False)
class Ended:
    """A request has ended, and its answer is to be learnt from."""

    session: Session
    request: ServedRequest | None
    finished: Finished


@dataclass(frozen=True, slots=True, eq=False)
class Stale:
    """An unfinished request's belief is to be formed anew."""

    connection: bytes
    request: ServedRequest


Piece: TypeAlias = Ended | Stale


class Backlog:
    """Pieces of work in order, as many as there is room for.

    >>> backlog = Backlog(0)
    >>> backlog.takes(), len(backlog)
    (False, 0)
    """

    def __init__(self, room: int) -> None:
        self.room = room
        """0 where each piece is to be done where it comes up."""
        self._pieces: deque[Piece] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def takes(self) -> bool:
        """Whether one more piece may wait."""
        return len(self._pieces) < self.room

    def put(self, piece: Piece) -> None:
        """Let a piece wait; there must be room."""
        assert self.takes(), "the backlog is bounded"
        self._pieces.append(piece)

    def next(self) -> Piece:
        """Take the piece that has waited for longest; there must be one."""
        return self._pieces.popleft()
