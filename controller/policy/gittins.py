"""The Gittins index and the mean of a discrete remaining cost, for all ages at once.

For a remaining cost X the index is

    G = inf over Δ > 0 of E[min(X, Δ)] / P(X ≤ Δ)

the lowest ratio of expected cost invested to probability of finishing (Gittins 1979; SageSched, arXiv 2603.07917).
Lowest first minimises the mean completion time on a single server that may switch jobs at any moment, if only the
distributions of lengths are known. A server that finishes each started job cannot stop after Δ: Δ is infinite, and the
index is the mean E[X].
"""

from __future__ import annotations

import math

import numpy as np

from online_learning.distribution import FloatArray

_END: FloatArray = np.zeros(1)


def gittins_index(cost: FloatArray, mass: FloatArray) -> FloatArray:
    """Index of the remaining cost at every age ``cost[i]``, given that the request has reached it; takes O(n).

    With A(c) = E[min(X, c)] and F(c) = P(X ≤ c) the index at age i is the least slope from point i of the curve
    (F, A) to a point j > i: the first edge of the lower convex hull of the points from i on, which grows to the left.
    Slopes are computed from sums over the tail, so that a thin tail keeps its precision.

    Args:
        cost: ages of shape (n,), strictly increasing from 0.
        mass: probabilities of shape (n,) of finishing exactly at each age, with ``mass[0] == 0``; other zeros add
            ages at which the index is wanted.

    Returns:
        Indices of shape (n,) in the unit of ``cost``; infinite where no mass is left beyond the age.

    >>> gittins_index(np.array([0.0, 1.0, 10.0]), np.array([0.0, 0.5, 0.5])).tolist()
    [2.0, 9.0, inf]
    """
    assert cost[0] == 0.0, "ages start at 0"
    assert mass[0] == 0.0, "nothing finishes at age 0"
    survival = survival_beyond(mass)
    slices = (cost[1:] - cost[:-1]) * survival[:-1]
    to_invest = np.concatenate((slices[::-1].cumsum()[::-1], _END))
    return np.array(_first_hull_edges(survival.tolist(), to_invest.tolist()))


def _first_hull_edges(survival: list[float], to_invest: list[float]) -> list[float]:
    """Slope of the hull's first edge at each point; both coordinates are sums over the tail and decrease."""
    index = [math.inf] * len(survival)
    hull: list[tuple[float, float, float]] = []
    for point in range(len(survival) - 1, -1, -1):
        left, invest = survival[point], to_invest[point]
        slope = math.inf
        while hull:
            next_left, next_invest, next_slope = hull[-1]
            slope = (invest - next_invest) / (left - next_left) if left > next_left else math.inf
            if slope < next_slope:
                break
            hull.pop()
            slope = math.inf
        index[point] = slope
        hull.append((left, invest, slope))
    return index


def mean_remaining(cost: FloatArray, mass: FloatArray) -> FloatArray:
    """Mean of the remaining cost at every age (last axis), for points as of `gittins_index`; infinite where no mass is left.

    >>> mean_remaining(np.array([0.0, 1.0, 10.0]), np.array([0.0, 0.5, 0.5])).tolist()
    [5.5, 9.0, inf]
    """
    survival = survival_beyond(mass)
    slices = (cost[..., 1:] - cost[..., :-1]) * survival[..., :-1]
    to_invest = np.zeros(cost.shape)
    to_invest[..., :-1] = slices[..., ::-1].cumsum(axis=-1)[..., ::-1]
    mean: FloatArray = np.divide(to_invest, survival, out=np.full(cost.shape, math.inf), where=survival > 0.0)
    return mean


def survival_beyond(mass: FloatArray) -> FloatArray:
    """Probability of lying strictly beyond each point (last axis), exact to the last digit in the tail."""
    beyond = np.zeros(mass.shape)
    beyond[..., :-1] = mass[..., :0:-1].cumsum(axis=-1)[..., ::-1]
    return beyond
