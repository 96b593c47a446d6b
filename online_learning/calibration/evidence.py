"""What is known of a prediction while its answer still runs, so that a judgement does not wait for the long ones.

Answers are judged in the order in which they end, and that order depends on their lengths: a queue that is served
shortest first, or that drains, ends with long answers only. Each score g of an answer (inside the 50% interval, the
logarithm of its length, ...) is therefore counted as it becomes known: with T the length and a the age reached,

    E[g(T) | T > a]  under the prediction

begins at the mean of g and ends at g(T), and if the prediction is right it is a martingale (Doob 1953) as a function of
a. A scheduler that does not know T may let ages grow in any order, and stop: the increments have mean zero all the same,
over all requests together. So does their sum over any stretch of time, whichever answers ended in it.
The log likelihood ratio to the prior is counted in the same way, log P(T > a)/Q(T > a) while the answer runs; e to the
minus of it has mean 1 if the prediction is right.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TypeAlias

import numpy as np

from online_learning.calibration.scoring import CHANCE_FLOOR, Score
from online_learning.distribution import FloatArray, LengthDistribution, log_grid

Row: TypeAlias = FloatArray
"""Changes of the six columns below, shape (6,)."""

WITHIN_50, WITHIN_90, ADVANTAGE, LOG_TOKENS, VARIANCE_50, VARIANCE_90 = range(6)
"""Chance to lie in the 50 and 90% interval, log likelihood ratio to the prior in nats, mean logarithm of the length,
and the variance that the first two have gathered if the prediction is right."""

COVERAGES = (0.5, 0.9)
NOMINAL: Row = np.array([0.5, 0.9, 0.0, 0.0, 0.0, 0.0])
"""What a row holds beyond its changes: before anything is known an answer lies in its intervals with these chances."""

_GRID = log_grid()
_EDGES: list[int] = _GRID.tolist()
_LOG_TOKENS = np.log(_GRID)
_LEAST_CHANCE = 1e-12


def nothing() -> Row:
    """No change."""
    return np.zeros(NOMINAL.size)


def bins_outlived(tokens: int) -> int:
    """Bins of the common grid that an answer of at least this many tokens has outlived.

    >>> bins_outlived(1), bins_outlived(2), bins_outlived(10**9) == len(_EDGES)
    (0, 1, True)
    """
    return bisect_left(_EDGES, tokens)


class Course:
    """The scores of one answer as they are expected at each age, and as they are once it has ended.

    Args:
        predicted: the distribution that is judged.
        prior: the one that it is compared with.
        worst_nats: most that one answer counts for or against.
    """

    def __init__(self, predicted: LengthDistribution, prior: LengthDistribution, *, worst_nats: float) -> None:
        mass, beyond = _on_grid(predicted)
        other_mass, other_beyond = _on_grid(prior)
        below = np.concatenate(([0.0], mass.cumsum()))
        outlived, ended = np.zeros((beyond.size, NOMINAL.size)), np.zeros((mass.size, NOMINAL.size))
        hazard = mass / np.maximum(beyond[:-1], _LEAST_CHANCE)
        for column, coverage in zip((WITHIN_50, WITHIN_90), COVERAGES, strict=True):
            inside = np.minimum(np.maximum(below - (1.0 - coverage) / 2.0, 0.0), coverage)
            ended[:, column] = np.where(
                mass > _LEAST_CHANCE,
                (inside[1:] - inside[:-1]) / np.maximum(mass, _LEAST_CHANCE),
                np.abs(below[:-1] - 0.5) <= coverage / 2.0,
            )
            outlived[:, column] = np.where(
                beyond > _LEAST_CHANCE, (coverage - inside) / np.maximum(beyond, _LEAST_CHANCE), 0.0
            )
            jumps = ended[:, column] - outlived[1:, column]
            gathered = (hazard * (1.0 - hazard) * jumps**2).cumsum()
            ended[:, column + VARIANCE_50] = gathered
            outlived[1:, column + VARIANCE_50] = gathered
        outlived[:, ADVANTAGE] = _log_ratio(beyond, other_beyond).clip(-worst_nats, worst_nats)
        ended[:, ADVANTAGE] = _log_ratio(mass, other_mass).clip(-worst_nats, worst_nats)
        rest = (mass * _LOG_TOKENS)[::-1].cumsum()[::-1]
        outlived[:-1, LOG_TOKENS] = np.where(
            beyond[:-1] > _LEAST_CHANCE, rest / np.maximum(beyond[:-1], _LEAST_CHANCE), _LOG_TOKENS
        )
        outlived[-1, LOG_TOKENS] = _LOG_TOKENS[-1]
        ended[:, LOG_TOKENS] = _LOG_TOKENS
        self._outlived, self._ended = outlived, ended

    def outlived(self, bins: int) -> Row:
        """The scores expected once this number of bins is outlived."""
        return np.asarray(self._outlived[bins])

    def ended(self, bins: int) -> Row:
        """The scores of an answer that outlived this number of bins and ended in the next."""
        return np.asarray(self._ended[min(bins, len(self._ended) - 1)])


class Watch:
    """One unfinished answer under what was predicted for it, from an age on: each change is counted once.

    Args:
        served: course of the distribution that decisions rest on.
        own: course of the learner's own prediction.
        bins: bins that the answer had outlived when it was predicted; what came before says nothing of the prediction.
    """

    def __init__(self, served: Course, own: Course, bins: int) -> None:
        self._served = served
        self._own = own
        self._bins = bins

    def reach(self, tokens: int) -> tuple[Row, Row] | None:
        """Changes for the served and for the own distribution since the last call; None where there is none."""
        bins = bins_outlived(tokens)
        if bins <= self._bins:
            return None
        before, self._bins = self._bins, bins
        return (
            self._served.outlived(bins) - self._served.outlived(before),
            self._own.outlived(bins) - self._own.outlived(before),
        )

    def end(self, tokens: int) -> tuple[Row, Row]:
        """Changes by the end of the answer at this length, since the last call of `reach`."""
        before, bins = self._bins, max(self._bins, bins_outlived(tokens))
        return (
            self._served.ended(bins) - self._served.outlived(before),
            self._own.ended(bins) - self._own.outlived(before),
        )


def whole(score: Score, advantage: float) -> Row:
    """The row of an answer that is judged as a whole, from its prediction to its end."""
    variances = (coverage * (1.0 - coverage) for coverage in COVERAGES)
    return np.array([score.within_50, score.within_90, advantage, 0.0, *variances]) - NOMINAL


def _on_grid(distribution: LengthDistribution) -> tuple[FloatArray, FloatArray]:
    """Mass of each bin of the common grid, and the chance to outlive the first 0, 1, 2, ... bins."""
    mass: FloatArray = distribution.mass
    if not np.array_equal(distribution.lengths, _GRID):
        where = np.minimum(_GRID.searchsorted(distribution.lengths), _GRID.size - 1)
        mass = np.bincount(where, weights=mass, minlength=_GRID.size).astype(np.float64)
    beyond = np.concatenate((mass[::-1].cumsum()[::-1], [0.0]))
    return mass, beyond


def _log_ratio(one: FloatArray, other: FloatArray) -> FloatArray:
    return np.asarray(np.log(np.maximum(one, CHANCE_FLOOR) / np.maximum(other, CHANCE_FLOOR)))
