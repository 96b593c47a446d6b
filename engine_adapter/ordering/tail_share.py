"""The tail rule: a share of the engine serves whoever has waited longest for its length, the index orders the rest.

The index alone serves short answers first, and a long one may wait for as long as an overload lasts. Under the boost
order (`boost_s`) nobody is passed for ever, but when waits are long against the answers it becomes the order of arrival,
and the mean is lost. This rule serves both: at most one request at a time is taken out of its turn, the first of the
boost order, and only while those that were taken have held less than a share α of the KV memory that was held, token by
token and step by step, while requests waited. So

- the others have at least the share 1 - α of the memory, whatever the load and the tail, which bounds what the rule costs,
- in a finite overload every wait ends: the oldest of the longest answers comes first in the boost order sooner or later,
- where little is held out of turn anyway, as in a short queue, the order is that of the boost.

Sums fade, so that a quiet time saves no unbounded share for a later overload.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Any, TypeAlias

from engine_adapter.ordering.running_order import Tracked

INTERVAL_STEPS = 4
"""Steps between two looks; a look reads every running request."""

SPARE_PLACES = 64
"""Obsolete places kept before a clean-up, beside one for each waiting request."""

FADE_STEPS = 16_384
"""Steps with a queue after which what was held counts 1/e: ten minutes of typical steps."""

_FADE = math.exp(-INTERVAL_STEPS / FADE_STEPS)


_Place: TypeAlias = tuple[int, float, int, int, Tracked]
"""Class, arrival less boost, serial number, number of the place, and the request."""


def boost_s(index_s: float, boost_per_s: float) -> float:
    """Return the time by which a request of this index may overtake an older one: b(s) = -(1/γ)·ln(1 - e^(-γ·s)).

    Source: Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1" (2024), γ-Boost.

    >>> boost_s(0.0, 0.01)
    inf
    >>> round(boost_s(1.0, 0.01), 1), round(boost_s(1000.0, 0.01), 4)
    (461.0, 0.0045)
    """
    exponent = boost_per_s * index_s
    return math.inf if exponent <= 0.0 else -math.log(-math.expm1(-exponent)) / boost_per_s


class TailShare:
    """Chooses the request that is served out of its turn, and measures what such requests hold."""

    def __init__(self) -> None:
        self.promoted = 0
        """Number of requests that were taken out of their turn, since the start."""
        self._held = 0.0
        self._held_promoted = 0.0
        self._next: Tracked | None = None
        """The promoted request that still waits."""
        self._chosen: list[Tracked] = []
        """The unfinished requests that were promoted."""
        self._order: list[_Place] = []
        """A heap of the waiting requests in the boost order; places that have changed since are obsolete."""
        self._places = 0
        self._most_places = SPARE_PLACES
        self._steps = 0

    @property
    def used_share(self) -> float:
        """Share of the KV memory held, over the latest steps with a queue, that promoted requests held."""
        return self._held_promoted / self._held if self._held else 0.0

    def due(self) -> bool:
        """Count a step with a queue; return whether it is time to look."""
        self._steps += 1
        return self._steps % INTERVAL_STEPS == 0

    def place(self, tracked: Tracked) -> None:
        """Record the place in the boost order of a request that waits, whenever it begins to wait or its place changes."""
        self._places += 1
        heappush(self._order, (tracked.key[0], tracked.boosted_s, tracked.serial, self._places, tracked))
        if len(self._order) > self._most_places:
            self._order = list({place[2]: place for place in self._order if _is_valid(place)}.values())
            heapify(self._order)
            self._most_places = 2 * len(self._order) + SPARE_PLACES

    def choose(self, share: float, *, first: Tracked, running: Iterable[Any]) -> Tracked | None:
        """Return the request to promote now; None for none.

        Args:
            share: α.
            first: The head of the queue.
            running: The engine's running requests.
        """
        self._measure(running)
        if self._next is not None and self._next.running is None and not self._next.impossible:
            return None
        self._next = None
        if self._held_promoted > share * self._held:
            return None
        while self._order and not _is_valid(self._order[0]):
            heappop(self._order)
        chosen = self._order[0][-1] if self._order else first
        if chosen is first or chosen.promoted or chosen.impossible:
            return None
        chosen.promoted = True
        self._chosen.append(chosen)
        self._next = chosen
        self.promoted += 1
        return chosen

    def forget(self, tracked: Tracked | None) -> None:
        """Let another request be promoted when the promoted one leaves the engine."""
        if tracked is self._next:
            self._next = None
        if tracked is not None:
            tracked.boosted_s = math.nan
            if tracked.promoted:
                self._chosen.remove(tracked)

    def _measure(self, running: Iterable[Any]) -> None:
        held = sum(map(_computed_tokens, running))
        promoted = sum(_computed_tokens(entry.running) for entry in self._chosen if entry.running is not None)
        self._held = _FADE * self._held + held
        self._held_promoted = _FADE * self._held_promoted + promoted


_computed_tokens = attrgetter("num_computed_tokens")


def _is_valid(place: _Place) -> bool:
    """Whether a request still waits at this place; that of one that has left the engine is NaN."""
    priority, boosted_s, _, _, tracked = place
    return tracked.running is None and tracked.boosted_s == boosted_s and tracked.key[0] == priority
