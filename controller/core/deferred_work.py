"""What of the brain's work can wait until no message does, in the order in which it came up.

An arrival waits for its index table, and a prediction takes less than a millisecond; so learning from the answer that
ended before it, or forming hundreds of beliefs anew after a drift, must not stand in its way.
Where more comes up than is ever done, what does not fit is left undone and counted: a controller that is too slow for
its engines learns from as many answers as it can, and still orders every request. Where arrivals alone are too many,
some are put off as well, and until there is time for them their engines go by the prior.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from controller.core.sessions import ServedRequest, Session
from store.records import Arrived, Finished


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


@dataclass(frozen=True, slots=True, eq=False)
class Unseen:
    """A request has arrived of which nothing is believed yet."""

    session_id: str
    arrived: Arrived


Piece: TypeAlias = Ended | Stale | Unseen


class Backlog:
    """Pieces of work in order, as many as there is room for; and before them the arrivals that were put off, in theirs.

    >>> backlog = Backlog(0)
    >>> backlog.takes(), len(backlog)
    (False, 0)
    """

    def __init__(self, room: int) -> None:
        self.room = room
        """0 where each piece is to be done where it comes up."""
        self._pieces: deque[Ended | Stale] = deque()
        self._unseen: dict[tuple[str, str], Unseen] = {}

    def __len__(self) -> int:
        return len(self._pieces) + len(self._unseen)

    @property
    def unseen(self) -> int:
        """Arrivals that were put off."""
        return len(self._unseen)

    def takes(self) -> bool:
        """Whether one more piece may wait."""
        return len(self._pieces) < self.room

    def put(self, piece: Ended | Stale) -> None:
        """Let a piece wait; there must be room."""
        assert self.takes(), "the backlog is bounded"
        self._pieces.append(piece)

    def next(self) -> Piece:
        """Take the arrival that has waited for longest, or else the piece that has; there must be one."""
        return self._unseen.pop(next(iter(self._unseen))) if self._unseen else self._pieces.popleft()

    def put_off(self, unseen: Unseen) -> None:
        """Let an arrival wait for its belief."""
        self._unseen[unseen.session_id, unseen.arrived.request_id] = unseen

    def withdraw(self, session_id: str, request_id: str) -> bool:
        """Let an arrival wait no longer, because its request has ended; whether it did."""
        return self._unseen.pop((session_id, request_id), None) is not None

    def withdraw_all(self, session_id: str | None = None) -> int:
        """Let the arrivals of a session, or all, wait no longer; how many did."""
        gone = [key for key in self._unseen if session_id in {None, key[0]}]
        for key in gone:
            del self._unseen[key]
        return len(gone)
