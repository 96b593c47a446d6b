"""A queue kept in order from step to step, at a cost proportional to what has changed.

An engine takes requests from the head, adds some at either end and removes others; meanwhile a few keys change.
Sorting a thousand requests in every step would touch each of them; this queue touches only those that were added or
whose key changed, and the few that a binary search compares.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import compress, islice
from typing import Any, Protocol, TypeVar

Key = tuple[int, int, float, float, int]
"""Strict class, round of the tenant, ordering value, arrival time, serial number; the lowest is served first, and all
are distinct."""


class Identified(Protocol):
    """A request; the queue reads its id only."""

    request_id: str


R = TypeVar("R", bound=Identified)

SORT_SHARE = 8
"""When more than one request in ``SORT_SHARE`` is new or moved, sorting all is cheaper than moving each."""

MOST_MOVED = 512
"""The same for more requests than this, because each takes longer in a longer queue."""


class OrderedQueue(deque[R]):
    """A deque whose middle is in order and whose ends hold the requests added since the last `settle`.

    Every mutating method updates the number of new requests at either end.
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
        """Keys of the requests in the ordered middle, ascending."""

    def settle(self, key: Callable[[R], Key], stood: Mapping[str, Key]) -> None:
        """Put the whole queue in order; when ``key`` raises, the queue is unchanged.

        Args:
            key: Returns a request's current key.
            stood: By request id, the key at the last `settle` of each request whose key has changed since.
        """
        changed = self._new_left + self._new_right + len(stood)
        if changed > min(len(self) / SORT_SHARE, MOST_MOVED):
            self._sort(key)
        elif changed:
            self._move(key, stood)
        self._new_left = self._new_right = 0

    def new_requests(self) -> Iterator[R]:
        """Yield the requests added since the last `settle`."""
        yield from islice(self, self._new_left)
        yield from islice(reversed(self), self._new_right)

    def _sort(self, key: Callable[[R], Key]) -> None:
        requests = sorted(self, key=key)
        self._keys = [key(request) for request in requests]
        super().clear()
        super().extend(requests)

    def _move(self, key: Callable[[R], Key], stood: Mapping[str, Key]) -> None:
        """Take out the new and the moved requests, and insert each at its place."""
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
        """Return the places in the middle of requests with a new key, descending; some may not be in this queue."""
        keys = self._keys
        places = []
        for former in stood.values():
            place = bisect_left(keys, former)
            if place < len(keys) and keys[place] == former:
                places.append(place)
        places.sort(reverse=True)
        return places

    # --- the deque's methods that an engine calls ---------------------------------------------------

    def append(self, request: R) -> None:
        """Add a request at the end."""
        super().append(request)
        self._new_right += 1

    def appendleft(self, request: R) -> None:
        """Add a request at the head."""
        super().appendleft(request)
        self._new_left += 1

    def extend(self, requests: Iterable[R]) -> None:
        """Add requests at the end."""
        before = len(self)
        super().extend(requests)
        self._new_right += len(self) - before

    def extendleft(self, requests: Iterable[R]) -> None:
        """Add requests at the head, one after another."""
        before = len(self)
        super().extendleft(requests)
        self._new_left += len(self) - before

    def popleft(self) -> R:
        """Remove and return the head."""
        request = super().popleft()
        if self._new_left:
            self._new_left -= 1
        elif self._keys:
            del self._keys[0]
        else:
            self._new_right -= 1
        return request

    def pop(self) -> R:  # type: ignore[override]  # a deque takes no index
        """Remove and return the last request."""
        request = super().pop()
        if self._new_right:
            self._new_right -= 1
        elif self._keys:
            del self._keys[-1]
        else:
            self._new_left -= 1
        return request

    def remove(self, request: Any) -> None:  # noqa: ANN401 - as the base class has it
        """Remove a request from any place; raise `ValueError` if it is not there."""
        if request not in self:
            raise ValueError("the request is not in the queue")
        self.remove_all([request])

    def remove_all(self, requests: Iterable[Any]) -> None:
        """Remove requests from any place, those that are there; the others stay in order."""
        left, keys, gone = self._new_left, self._keys, set(map(id, requests))
        stays = [id(request) not in gone for request in self]
        kept = list(compress(self, stays))
        middle = stays[left : left + len(keys)]
        self._new_left = sum(stays[:left])
        self._new_right = sum(stays[left + len(keys) :])
        self._keys = list(compress(keys, middle))
        super().clear()
        super().extend(kept)

    def clear(self) -> None:
        """Remove all requests."""
        super().clear()
        self._forget_order()

    def _forget_order(self) -> None:
        self._keys.clear()
        self._new_left, self._new_right = 0, len(self)
