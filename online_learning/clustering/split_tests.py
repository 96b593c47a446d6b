"""Whether a prompt cluster is one or two, and whether two are one: decided by answers and by features. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from online_learning.distribution import FloatArray, IntArray
from online_learning.survival.model_prior import Prior

_PRIOR_ANSWERS = 10.0
"""Weight of the model's distribution in the likelihood of answers, in answers."""

_LEAST_COUNT = 1e-9
_POWER_STEPS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Members:
    """Prompts of one cluster with their answers, in the order of arrival."""

    points: NDArray[np.float32]
    """Shape (prompts, dimensions)."""
    bins: IntArray
    """The bin that each answer ended in, or that an unfinished one has reached."""
    censored: NDArray[np.bool_]
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitSettings:
    """What makes two of a cluster."""

    fewest: int
    """Prompts on either side of the border."""
    nats: float
    """Log likelihood ratio for two length distributions, on answers that the border was not drawn by."""
    share: float
    """Share of the scatter across the border that it explains, on prompts that it was not drawn by."""


def log_evidence(events: FloatArray, exposure: FloatArray, prior: Prior) -> float:
    """Log marginal likelihood of life-table counts under a beta-Stacy prior (Walker and Muliere 1997).

    With α = m·S₀·h₀ and β = m·S₀·(1 - h₀) in each bin: Σ ln B(α + e, β + r - e) - ln B(α, β), for e events among r
    at risk. Unfinished answers count by what they outlived.
    """
    at_risk = _PRIOR_ANSWERS * prior.survival
    alpha = np.maximum(at_risk * prior.hazard, _LEAST_COUNT)
    beta = np.maximum(at_risk * (1.0 - prior.hazard), _LEAST_COUNT)
    outlived = np.maximum(exposure - events, 0.0)
    return float((betaln(alpha + events, beta + outlived) - betaln(alpha, beta)).sum())


def nats_for_two(one: tuple[FloatArray, FloatArray], other: tuple[FloatArray, FloatArray], prior: Prior) -> float:
    """Log likelihood ratio for two length distributions against one, from the events and exposure of each."""
    together = log_evidence(one[0] + other[0], one[1] + other[1], prior)
    return log_evidence(*one, prior) + log_evidence(*other, prior) - together


def life_table(bins: IntArray, censored: NDArray[np.bool_], size: int) -> tuple[FloatArray, FloatArray]:
    """Events and exposure by bin; an unfinished answer was at risk in the bins before its last.

    >>> events, exposure = life_table(np.array([0, 2, 2]), np.array([False, False, True]), 3)
    >>> events.tolist(), exposure.tolist()
    ([1.0, 0.0, 1.0], [3.0, 2.0, 1.0])
    """
    events = np.bincount(bins[~censored], minlength=size).astype(np.float64)
    reached = events + np.bincount(np.maximum(bins[censored] - 1, 0), minlength=size)
    unexposed = np.zeros(size)
    unexposed[0] = float((bins[censored] == 0).sum())
    return events, np.cumsum(reached[::-1])[::-1] - unexposed


def two_halves(members: Members, priors: dict[str, Prior], settings: SplitSettings) -> NDArray[np.bool_] | None:
    """Which members make a cluster of their own, the fewer of them; None where the cluster is one.

    A border is drawn by a half of the members, once where answers differ most and once where features do, and holds if
    it says the same of the rest: the answers on its sides come from two length distributions, or the prompts from two
    heaps. The cost is bounded by the number of members.
    """
    drawn = np.random.default_rng(0).permutation(len(members.points)) % 2 == 0
    lengths = _relative_bins(members)
    for direction, by_answers in (
        (_direction_of_answers(members.points[drawn], lengths[drawn]), True),
        (_direction_of_scatter(members.points[drawn]), False),
    ):
        along = (members.points @ direction).astype(np.float64)
        beyond = along > _border(along[drawn], (lengths if by_answers else along)[drawn], settings.fewest // 2)
        if min(beyond.sum(), (~beyond).sum()) < settings.fewest:
            continue
        held_out = ~drawn
        if by_answers:
            holds = _nats(members, beyond, held_out, priors) >= settings.nats
        else:
            holds = share_explained(along[held_out], beyond[held_out]) >= settings.share
        if holds:
            return beyond if beyond.sum() <= len(beyond) / 2 else ~beyond
    return None


def share_explained(values: FloatArray, beyond: NDArray[np.bool_]) -> float:
    """Share of the variance that two groups' means explain; 2/π for the halves of a normal distribution.

    >>> share_explained(np.array([0.0, 0.0, 1.0, 1.0]), np.array([False, False, True, True]))
    1.0
    """
    total = float(((values - values.mean()) ** 2).sum())
    if total <= 0.0 or beyond.all() or not beyond.any():
        return 0.0
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in (values[beyond], values[~beyond]))
    return 1.0 - within / total


def _nats(members: Members, beyond: NDArray[np.bool_], chosen: NDArray[np.bool_], priors: dict[str, Prior]) -> float:
    """Log likelihood ratio for two, summed over the models that answered."""
    models = np.array(members.models)
    nats = 0.0
    for model in sorted(set(members.models)):
        tables = [
            life_table(members.bins[side], members.censored[side], priors[model].mass.size)
            for side in (chosen & (models == model) & half for half in (beyond, ~beyond))
        ]
        nats += nats_for_two(tables[0], tables[1], priors[model])
    return nats


def _relative_bins(members: Members) -> FloatArray:
    """Bins less the mean of the model's: that models differ says nothing of prompts."""
    models = np.array(members.models)
    relative = members.bins.astype(np.float64)
    for model in set(members.models):
        relative[models == model] -= relative[models == model].mean()
    return relative


def _direction_of_answers(points: NDArray[np.float32], lengths: FloatArray) -> NDArray[np.float32]:
    """The direction in which features and lengths vary together most: the first one of partial least squares."""
    return np.asarray((lengths - lengths.mean()).astype(np.float32) @ (points - points.mean(axis=0)))


def _direction_of_scatter(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """The first principal direction, by some steps of the power method from the farthest point."""
    centred = points - points.mean(axis=0)
    direction = centred[np.argmax((centred**2).sum(axis=1))]
    for _ in range(_POWER_STEPS):
        direction = (centred @ direction) @ centred
        direction = direction / max(float(np.linalg.norm(direction)), _LEAST_COUNT)
    return np.asarray(direction, dtype=np.float32)


def _border(along: FloatArray, values: FloatArray, fewest: int) -> float:
    """Where along a direction values fall into two groups with the least scatter within them, none smaller than ``fewest``.

    >>> _border(np.array([3.0, 1.0, 2.0, 4.0]), np.array([9.0, 1.0, 1.0, 9.0]), 1)
    2.5
    """
    order = np.argsort(along, kind="stable")
    ordered = values[order] - values.mean()
    before = np.arange(1, ordered.size)
    between = np.cumsum(ordered)[:-1] ** 2 * (1.0 / before + 1.0 / (ordered.size - before))
    allowed = slice(fewest - 1, ordered.size - fewest)
    last = fewest - 1 + int(np.argmax(between[allowed]))
    return float(along[order[last]] + along[order[last + 1]]) / 2.0
