"""The Gittins index of a discrete remaining cost, at every age at once.

For a remaining cost X the index is

    G = inf over Δ > 0 of E[min(X, Δ)] / P(X ≤ Δ)

the best ratio of time invested to chance of finishing (Gittins 1979; SageSched, arXiv 2603.07917).
Lowest first is optimal for the mean of a single server when lengths are only known in distribution.
"""

from __future__ import annotations

import numpy as np

from online_learning.distribution import FloatArray


def gittins_index(cost: FloatArray, mass: FloatArray) -> FloatArray:
    """Index of the remaining cost at every age ``cost[i]``, given that the request has outlived it.

    ``cost`` increases strictly and starts with the age 0; ``mass[i]`` is the probability of finishing exactly at
    ``cost[i]``, with ``mass[0] == 0``. Points without mass may be there, so that ages between can be asked for.
    The result has the unit of ``cost``, is infinite where no mass is left beyond the age, and takes O(n²).

    With A(c) = E[min(X, c)] and F(c) = P(X ≤ c) the index at age i is the least slope from point i of the curve
    (F, A) to a point j > i. Both differences are summed from the far end, so that a thin tail keeps its digits.

    >>> gittins_index(np.array([0.0, 1.0, 10.0]), np.array([0.0, 0.5, 0.5])).tolist()
    [2.0, 9.0, inf]
    """
    assert cost[0] == 0.0, "ages start at 0"
    assert mass[0] == 0.0, "nothing finishes at age 0"
    survival = survival_beyond(mass)
    left = np.append(np.cumsum((np.diff(cost) * survival[:-1])[::-1])[::-1], 0.0)
    invested = left[:, None] - left[None, :]
    finished = survival[:, None] - survival[None, :]
    useful = (finished > 0.0) & _later(cost.size)
    slopes = np.full(invested.shape, np.inf)
    np.divide(invested, finished, out=slopes, where=useful)
    index: FloatArray = slopes.min(axis=1)
    return index


def survival_beyond(mass: FloatArray) -> FloatArray:
    """Probability of lying strictly beyond each point, exact to the last digit in the tail."""
    return np.append(np.cumsum(mass[:0:-1])[::-1], 0.0)


def _later(size: int) -> np.ndarray[tuple[int, int], np.dtype[np.bool_]]:
    return np.tri(size, k=-1, dtype=np.bool_).T
