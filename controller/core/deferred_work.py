"""Work that can wait until no message does, in the order in which it came up.

An arrival waits for its index table, and a prediction takes less than a millisecond; learning from the answer that ended
before it, or predicting hundreds of requests again after a drift, must not delay it.
Work beyond the bound is dropped and counted: a controller that is too slow for its engines learns from as many answers
as it can, and still orders every request. If arrivals alone are too many, some of them are deferred as well, and their
engines use the prior until they are predicted.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import msgspec

from controller.core.sessions import ServedRequest, Session
from store.records import Arrived, Finished


class EndedRequest(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request has ended, and the learner has not seen its answer yet."""

    session: Session
    request: ServedRequest | None
    finished: Finished


class StalePrediction(msgspec.Struct, frozen=True, eq=False, gc=False):
    """An unfinished request is to be predicted again."""

    connection: bytes
    request: ServedRequest


class DeferredArrival(msgspec.Struct, frozen=True, eq=False, gc=False):
    """A request has arrived and has no prediction yet."""

    session_id: str
    arrived: Arrived


class DeferredWork:
    """Deferred arrivals first, then at most ``capacity`` other items, each in their order.

    >>> work = DeferredWork(0)
    >>> work.has_room, len(work)
    (False, 0)
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        """0 if no work is deferred."""
        self._items: deque[EndedRequest | StalePrediction] = deque()
        self._held: deque[EndedRequest] = deque()
        self._holding = False
        self._arrivals: dict[tuple[str, str], DeferredArrival] = {}

    def __len__(self) -> int:
        return len(self._items) + len(self._arrivals)

    @property
    def arrivals(self) -> int:
        """Number of deferred arrivals."""
        return len(self._arrivals)

    @property
    def has_room(self) -> bool:
        """Whether one more item may wait."""
        return len(self._items) + len(self._held) < self.capacity

    def put(self, item: EndedRequest | StalePrediction) -> None:
        """Append an item; there must be room."""
        assert self.has_room, "deferred work is bounded"
        if self._holding and isinstance(item, EndedRequest):
            self._held.append(item)
        else:
            self._items.append(item)

    def hold(self) -> None:
        """Set aside the requests that end from now on: they count as no work until `release`."""
        self._holding = True

    def release(self) -> None:
        """Let the requests that were set aside be next, in their order."""
        self._holding = False
        self._items.extend(self._held)
        self._held.clear()

    def next_arrivals(self, most: int) -> list[DeferredArrival]:
        """Remove and return the oldest deferred arrivals, at most ``most``."""
        return [self._arrivals.pop(key) for key in list(islice(self._arrivals, most))]

    def next_stale(self, most: int) -> list[StalePrediction]:
        """Remove and return the oldest items as long as they are stale predictions of one engine, at most ``most``."""
        stale: list[StalePrediction] = []
        while len(stale) < most and self._items and isinstance(item := self._items[0], StalePrediction):
            if stale and item.connection != stale[0].connection:
                break
            self._items.popleft()
            stale.append(item)
        return stale

    def next_ended(self) -> EndedRequest | None:
        """Remove and return the request that has ended, where the oldest item is one."""
        if not self._items or not isinstance(item := self._items[0], EndedRequest):
            return None
        self._items.popleft()
        return item

    def defer(self, arrival: DeferredArrival) -> None:
        """Append an arrival."""
        self._arrivals[arrival.session_id, arrival.arrived.request_id] = arrival

    def withdraw(self, session_id: str, request_id: str) -> bool:
        """Remove an arrival, because its request has ended or is predicted now; returns whether it was there."""
        return self._arrivals.pop((session_id, request_id), None) is not None

    def withdraw_all(self, session_id: str | None = None) -> int:
        """Remove the arrivals of a session, or of all; returns their number."""
        gone = [key for key in self._arrivals if session_id in {None, key[0]}]
        for key in gone:
            del self._arrivals[key]
        return len(gone)
