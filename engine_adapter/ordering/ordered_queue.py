"""A queue that stays in order from step to step at the price of what has changed.

An engine takes requests from its head, adds some at either end and removes others; meanwhile a few keys change.
Sorting a thousand requests in every step means to touch each of them; here only those are touched
that came or moved, and the few that a binary search meets.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, TypeVar

Key = tuple[int, float, float, int]
"""Strict class, ordering value, arrival, serial number; the lowest key is served first and no two are equal."""


class Identified(Protocol):
    """A request, of which the queue reads the name alone."""

    request_id: str


R = TypeVar("R", bound=Identified)

SORT_SHARE = 8
"""When more than one in this number has come or moved, sorting all is cheaper than moving each."""


class OrderedQueue(deque[R]):
    """A deque whose middle is in order, with what was added at its ends since it was last settled.

    Every change that an engine makes keeps account of the ends by itself.

    >>> from types import SimpleNamespace as Request
    >>> queue = OrderedQueue([Request(request_id="b", key=2), Request(request_id="d", key=4)])
    >>> queue.append(Request(request_id="c", key=3))
    >>> queue.settle(lambda request: request.key, {})
    >>> [request.request_id for request in queue]
    ['b', 'c', 'd']
    """

    def __init__(self, requests: Iterable[R] = ()) -> None:
        super().__init__(requests)
        self._new_left = 0
        self._new_right = len(self)
        self._keys: list[Key] = []
        """Of those between the new ones, in their order."""

    def settle(self, key: Callable[[R], Key], stood: Mapping[str, Key]) -> None:
        """Put everything where its key says; ``stood`` has the former keys of those whose key has changed since.

        When ``key`` raises, the queue is as it was.
        """
        changed = self._new_left + self._new_right + len(stood)
        if changed * SORT_SHARE > len(self):
            self._sort(key)
        elif changed:
            self._move(key, stood)
        self._new_left = self._new_right = 0

    def _sort(self, key: Callable[[R], Key]) -> None:
        requests = sorted(self, key=key)
        self._keys = [key(request) for request in requests]
        super().clear()
        super().extend(requests)

    def _move(self, key: Callable[[R], Key], stood: Mapping[str, Key]) -> None:
        """Take out what came or moved, and put each into its place."""
        left, right = self._new_left, self._new_right
        moved = self._moved_places(stood)
        new = [*range(left), *range(len(self) - right, len(self))]
        placed = [(key(self[place]), self[place]) for place in (*new, *(left + place for place in moved))]
        for place in moved:
            del self._keys[place], self[left + place]
        for _ in range(left):
            super().popleft()
        for _ in range(right):
            super().pop()
        for its_key, request in placed:
            place = bisect_left(self._keys, its_key)
            self._keys.insert(place, its_key)
            self.insert(place, request)

    def _moved_places(self, stood: Mapping[str, Key]) -> list[int]:
        """Where those with a new key stand in the middle, the last first; some may not be in this queue."""
        keys = self._keys
        places = []
        for former in stood.values():
            place = bisect_left(keys, former)
            if place < len(keys) and keys[place] == former:
                places.append(place)
        places.sort(reverse=True)
        return places

    # --- what an engine does ------------------------------------------------------------------------

    def append(self, request: R) -> None:
        """A request comes to the end."""
        super().append(request)
        self._new_right += 1

    def appendleft(self, request: R) -> None:
        """A request comes to the head."""
        super().appendleft(request)
        self._new_left += 1

    def extend(self, requests: Iterable[R]) -> None:
        """Requests come to the end."""
        before = len(self)
        super().extend(requests)
        self._new_right += len(self) - before

    def extendleft(self, requests: Iterable[R]) -> None:
        """Requests come to the head, one after another."""
        before = len(self)
        super().extendleft(requests)
        self._new_left += len(self) - before

    def popleft(self) -> R:
        """The head leaves."""
        request = super().popleft()
        if self._new_left:
            self._new_left -= 1
        elif self._keys:
            del self._keys[0]
        else:
            self._new_right -= 1
        return request

    def pop(self) -> R:  # type: ignore[override]  # a deque takes no index
        """The last leaves."""
        request = super().pop()
        if self._new_right:
            self._new_right -= 1
        elif self._keys:
            del self._keys[-1]
        else:
            self._new_left -= 1
        return request

    def remove(self, request: Any) -> None:  # noqa: ANN401 - as the base class has it
        """A request leaves from wherever it stands; who stands next to it may be new, so that all counts as new."""
        super().remove(request)
        self._forget_order()

    def clear(self) -> None:
        """All leave."""
        super().clear()
        self._forget_order()

    def _forget_order(self) -> None:
        self._keys.clear()
        self._new_left, self._new_right = 0, len(self)
