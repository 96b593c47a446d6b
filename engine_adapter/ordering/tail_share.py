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
from collections.abc import Iterable, Sequence
from typing import Any

from engine_adapter.ordering.running_order import Tracked

INTERVAL_STEPS = 4
"""Steps between two looks; a look reads every running and every waiting request."""

FADE_STEPS = 16_384
"""Steps with a queue after which what was held counts 1/e: ten minutes of typical steps."""

_FADE = math.exp(-INTERVAL_STEPS / FADE_STEPS)


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
        self._steps = 0

    @property
    def used_share(self) -> float:
        """Share of the KV memory held, over the latest steps with a queue, that promoted requests held."""
        return self._held_promoted / self._held if self._held else 0.0

    def due(self) -> bool:
        """Count a step with a queue; return whether it is time to look."""
        self._steps += 1
        return self._steps % INTERVAL_STEPS == 0

    def choose(self, share: float, *, waiting: Sequence[Tracked], running: Iterable[Tracked]) -> Tracked | None:
        """Return the request to promote now; None for none.

        Args:
            share: α.
            waiting: The queue in order, not empty.
            running: The running requests.
        """
        self._measure(running)
        if self._next is not None and self._next.running is None:
            return None
        self._next = None
        if self._held_promoted > share * self._held:
            return None
        chosen = min(waiting, key=_boost_order)
        if chosen is waiting[0] or chosen.promoted:
            return None
        chosen.promoted = True
        self._next = chosen
        self.promoted += 1
        return chosen

    def forget(self, tracked: Tracked | None) -> None:
        """Let another request be promoted when the promoted one leaves the engine."""
        if tracked is self._next:
            self._next = None

    def _measure(self, running: Iterable[Tracked]) -> None:
        held = promoted = 0
        for entry in running:
            tokens = entry.running.num_computed_tokens
            held += tokens
            if entry.promoted:
                promoted += tokens
        self._held = _FADE * self._held + held
        self._held_promoted = _FADE * self._held_promoted + promoted


def _boost_order(tracked: Tracked) -> Any:  # noqa: ANN401 - a key for min
    return tracked.key[0], tracked.boosted_s, tracked.serial
