"""Length distributions: the predicted number of tokens of an answer.

A distribution is a probability mass on increasing lengths.
The lengths are the right edges of log-spaced bins, so that a length is never predicted shorter than it may be
(Gast et al. 2026 call this the shifted empirical distribution).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
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


class LengthDistribution(msgspec.Struct, frozen=True, eq=False):
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
        assert abs(float(np.add.reduce(self.mass)) - 1.0) < 1e-6, "the mass must sum to 1"

    @property
    def mean_tokens(self) -> float:
        """Expected length."""
        return float(self.lengths @ self.mass)

    def quantile(self, probability: float) -> int:
        """Smallest length that is not exceeded with at least this probability."""
        return self.quantiles((probability,))[0]

    def quantiles(self, probabilities: Sequence[float]) -> list[int]:
        """Several quantiles; one look at the mass serves all.

        >>> LengthDistribution(np.array([1, 2, 4]), np.array([0.2, 0.3, 0.5])).quantiles((0.1, 0.5, 0.9))
        [1, 2, 4]
        """
        positions = self.mass.cumsum().searchsorted(np.array(probabilities) - 1e-12)
        found: list[int] = self.lengths[np.minimum(positions, self.lengths.size - 1)].tolist()
        return found

    def survival(self, attained_tokens: int) -> float:
        """Probability that the answer is longer than ``attained_tokens``."""
        first = int(self.lengths.searchsorted(attained_tokens, side="right"))
        return float(self.mass[first:].sum())

    def cut(self, max_tokens: int) -> LengthDistribution:
        """The distribution of an answer that is cut at ``max_tokens``."""
        last = int(self.lengths.searchsorted(max_tokens))
        if last >= self.lengths.size:
            return self
        lengths = self.lengths[: last + 1].copy()
        lengths[last] = max_tokens
        mass = self.mass[: last + 1].copy()
        mass[last] = self.mass[last:].sum()
        return LengthDistribution(lengths, mass)

    def given(self, attained_tokens: int) -> LengthDistribution:
        """The distribution once ``attained_tokens`` have been generated and the answer goes on.

        One that outlived every length is predicted to go on for a token: the learner's tail must not let that happen.
        """
        first = int(self.lengths.searchsorted(attained_tokens, side="right"))
        mass = self.mass[first:]
        total = float(mass.sum())
        if total <= 0.0:
            return LengthDistribution(np.array([attained_tokens + 1]), np.array([1.0]))
        return LengthDistribution(self.lengths[first:], mass / total)
