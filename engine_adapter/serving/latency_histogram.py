"""A latency histogram of bounded size."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

SHORTEST_S = 1e-5
RATIO = 1.02
"""Growth factor of the bins: a quantile is accurate within 2%."""

BINS = 1 + math.ceil(math.log(1e3 / SHORTEST_S) / math.log(RATIO))
"""The last bin holds all latencies beyond a thousand seconds."""


@dataclass(slots=True)
class Latencies:
    """A histogram with logarithmic bins.

    >>> latencies = Latencies()
    >>> for milliseconds in range(1, 101):
    ...     latencies.add(milliseconds / 1e3)
    >>> latencies.count, round(latencies.quantile_s(0.5), 2), round(latencies.quantile_s(0.99), 2), latencies.longest_s
    (100, 0.05, 0.1, 0.1)
    """

    counts: dict[int, int] = field(default_factory=dict)
    longest_s: float = 0.0

    def add(self, latency_s: float) -> None:
        """Count a latency; a negative one counts as the shortest."""
        place = 0 if latency_s <= SHORTEST_S else math.ceil(math.log(latency_s / SHORTEST_S) / math.log(RATIO))
        place = min(place, BINS - 1)
        self.counts[place] = self.counts.get(place, 0) + 1
        self.longest_s = max(self.longest_s, latency_s)

    def merge(self, counts: Mapping[int, int], longest_s: float) -> None:
        """Add the counts of another histogram."""
        for place, count in counts.items():
            self.counts[place] = self.counts.get(place, 0) + count
        self.longest_s = max(self.longest_s, longest_s)

    def clear(self) -> None:
        """Reset all counts."""
        self.counts.clear()
        self.longest_s = 0.0

    @property
    def count(self) -> int:
        """Number of latencies counted."""
        return sum(self.counts.values())

    def quantile_s(self, probability: float) -> float | None:
        """Return a quantile; None when nothing was counted."""
        wanted, seen = probability * self.count, 0
        for place in sorted(self.counts):
            seen += self.counts[place]
            if seen >= wanted:
                return min(self.longest_s, SHORTEST_S * RATIO**place)
        return None
