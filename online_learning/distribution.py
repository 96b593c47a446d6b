"""Length distributions: the belief about how many tokens an answer will have.

A distribution is a probability mass on increasing lengths.
The lengths are the right edges of log-spaced bins, so that a length is never believed shorter than it may be
(Gast et al. 2026 call this the shifted empirical distribution).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def log_grid(longest_tokens: int = 131_072, exact_tokens: int = 16, ratio: float = 1.12) -> IntArray:
    """Right edges of the bins: every length up to ``exact_tokens``, then geometric up to ``longest_tokens``.

    >>> log_grid(100, 4, 1.5).tolist()
    [1, 2, 3, 4, 6, 9, 14, 21, 32, 48, 72, 100]
    """
    edges = list(range(1, exact_tokens + 1))
    while edges[-1] < longest_tokens:
        edges.append(min(longest_tokens, max(edges[-1] + 1, round(edges[-1] * ratio + 1e-9))))
    return np.asarray(edges, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class LengthDistribution:
    """Probability ``mass[i]`` that the answer has ``lengths[i]`` tokens; the mass sums to 1.

    >>> d = LengthDistribution(np.array([1, 2, 4, 8]), np.array([0.1, 0.2, 0.3, 0.4]))
    >>> round(d.mean_tokens, 3), d.quantile(0.5), d.cut(4).mass.tolist()
    (4.9, 4, [0.1, 0.2, 0.7])
    >>> d.survival(2), d.given(2).lengths.tolist()
    (0.7, [4, 8])
    """

    lengths: IntArray
    mass: FloatArray

    def __post_init__(self) -> None:
        assert self.lengths.size > 0, "there must be a length"
        assert self.lengths.shape == self.mass.shape, "lengths and mass must match"
        assert abs(float(self.mass.sum()) - 1.0) < 1e-6, "the mass must sum to 1"

    @property
    def mean_tokens(self) -> float:
        """Expected length."""
        return float(self.lengths @ self.mass)

    def quantile(self, probability: float) -> int:
        """Smallest length that is not exceeded with at least this probability."""
        position = int(np.searchsorted(np.cumsum(self.mass), probability - 1e-12))
        return int(self.lengths[min(position, self.lengths.size - 1)])

    def survival(self, attained_tokens: int) -> float:
        """Probability that the answer is longer than ``attained_tokens``."""
        first = int(np.searchsorted(self.lengths, attained_tokens, side="right"))
        return float(self.mass[first:].sum())

    def cut(self, max_tokens: int) -> LengthDistribution:
        """The same belief about an answer that is cut at ``max_tokens``."""
        last = int(np.searchsorted(self.lengths, max_tokens))
        if last >= self.lengths.size:
            return self
        lengths = self.lengths[: last + 1].copy()
        lengths[last] = max_tokens
        mass = self.mass[: last + 1].copy()
        mass[last] = self.mass[last:].sum()
        return LengthDistribution(lengths, mass)

    def given(self, attained_tokens: int) -> LengthDistribution:
        """The belief once ``attained_tokens`` have been generated and the answer goes on.

        One that outlived every length is believed to go on for a token: the learner's tail must not let that happen.
        """
        first = int(np.searchsorted(self.lengths, attained_tokens, side="right"))
        mass = self.mass[first:]
        total = float(mass.sum())
        if total <= 0.0:
            return LengthDistribution(np.array([attained_tokens + 1]), np.array([1.0]))
        return LengthDistribution(self.lengths[first:], mass / total)
