"""How good a prediction was, once the answer is known: pure functions, and their mean over a rolling window."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
from numpy.typing import ArrayLike

from online_learning.distribution import FloatArray, IntArray, LengthDistribution, log_grid
from online_learning.length_learner import Observation

CHANCE_FLOOR = 1e-6
"""Least chance that the log score takes for true, so that a distribution without a tail has a finite score."""

PIT_BINS = 10

PINBALL_PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Quantiles whose losses `mean_pinball_tokens` averages."""

_PINBALL = np.array(PINBALL_PROBABILITIES)
_PINBALL_OVER = np.subtract(PINBALL_PROBABILITIES, 1.0)
_PINBALL_REACHED = np.subtract(PINBALL_PROBABILITIES, 1e-12)
_GRID = log_grid()


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One predicted distribution against one outcome; for a censored outcome against what is known of it."""

    pit: float
    crps_tokens: float
    log_score: float
    within_50: bool
    within_90: bool


def score(distribution: LengthDistribution, observation: Observation, uniform: float) -> Score:
    """All scores of one distribution; ``uniform`` is a draw from [0, 1) that randomises the PIT within its bin."""
    transform = pit(distribution, observation, uniform)
    return Score(
        pit=transform,
        crps_tokens=crps_tokens(distribution, observation),
        log_score=log_score(distribution, observation),
        within_50=within(transform, 0.5),
        within_90=within(transform, 0.9),
    )


def pit(distribution: LengthDistribution, observation: Observation, uniform: float) -> float:
    """Probability integral transform, uniform on [0, 1] when the prediction is calibrated.

    Randomised within the atom that the outcome falls on (Czado, Gneiting and Held 2009); for a censored outcome
    within all that may still come.

    >>> predicted = LengthDistribution(np.array([1, 2, 4]), np.array([0.25, 0.25, 0.5]))
    >>> pit(predicted, Observation(2, censored=False), 0.5), pit(predicted, Observation(2, censored=True), 0.0)
    (0.375, 0.25)
    """
    position = int(distribution.lengths.searchsorted(observation.output_tokens))
    below = float(np.add.reduce(distribution.mass[:position]))
    if observation.censored or position >= distribution.lengths.size:
        above = 1.0
    else:
        above = below + float(distribution.mass[position])
    return min(below + uniform * (above - below), 1.0)


def within(transform: float, coverage: float) -> bool:
    """Whether an outcome with this PIT lies in the central interval of this coverage."""
    return abs(transform - 0.5) <= coverage / 2.0


def crps_tokens(distribution: LengthDistribution, observation: Observation) -> float:
    """Continuous ranked probability score ∫ (F(x) - 1[x ≥ y])² dx, exactly; lower is better (Gneiting, Raftery 2007).

    For a censored outcome the integral ends where it was cut: no more can be judged.

    >>> predicted = LengthDistribution(np.array([10, 20]), np.array([0.5, 0.5]))
    >>> crps_tokens(predicted, Observation(10, censored=False)), crps_tokens(predicted, Observation(30, censored=False))
    (2.5, 12.5)
    """
    outcome = float(observation.output_tokens)
    cumulative = distribution.mass.cumsum()
    left = distribution.lengths.astype(np.float64)
    right = np.concatenate((left[1:], (max(left[-1], outcome),)))
    below = np.maximum(np.minimum(right, outcome) - left, 0.0)
    missed = float(below @ cumulative**2)
    if observation.censored:
        return missed
    above = np.maximum(right - np.maximum(left, outcome), 0.0)
    early = max(0.0, left[0] - outcome)
    return float(missed + above @ (1.0 - cumulative) ** 2 + early)


def log_score(distribution: LengthDistribution, observation: Observation) -> float:
    """Logarithm of the probability of what was observed, in nats, at least log `CHANCE_FLOOR`; higher is better.

    Probabilities are those of the bins of the common log grid, so that distributions on other lengths compare.
    """
    position = min(int(_GRID.searchsorted(observation.output_tokens)), _GRID.size - 1)
    first = int(distribution.lengths.searchsorted(_left(position), side="right"))
    last = int(distribution.lengths.searchsorted(_GRID[position], side="right"))
    if observation.censored or position == _GRID.size - 1:
        last = distribution.lengths.size
    return float(np.log(max(float(np.add.reduce(distribution.mass[first:last])), CHANCE_FLOOR)))


def _left(position: int) -> int:
    return int(_GRID[position - 1]) if position > 0 else 0


def mean_pinball_tokens(distribution: LengthDistribution, observation: Observation) -> float:
    """Mean of the quantile losses at `PINBALL_PROBABILITIES`; each has its least mean at the true quantile.

    A censored outcome counts by what is known: a quantile above the cut is not judged.
    """
    cumulative = distribution.mass.cumsum()
    positions = cumulative.searchsorted(_PINBALL_REACHED)
    errors = observation.output_tokens - distribution.lengths[np.minimum(positions, distribution.lengths.size - 1)]
    over = 0.0 if observation.censored else _PINBALL_OVER * errors
    return float(np.where(errors >= 0, _PINBALL * errors, over).mean())


def kendall_tau(medians: ArrayLike, lengths: ArrayLike, censored: ArrayLike) -> float:
    """Kendall's τ-b of predicted medians with lengths, of some of which only a lower bound is known.

    A pair whose order of lengths is not known, because the shorter one was cut, counts as tied (Brown, Hollander and
    Korwar 1974). Needs memory for all pairs; 0 where one side is all tied.

    >>> kendall_tau([1, 2, 3], [10, 20, 30], [False, False, False]), kendall_tau([1, 2], [10, 20], [True, False])
    (1.0, 0.0)
    """
    predicted, reached, cut = np.asarray(medians), np.asarray(lengths), np.asarray(censored, dtype=bool)
    order = np.sign(predicted[:, None] - predicted[None, :])
    longer = reached[:, None] > reached[None, :]
    known_longer = (longer & ~cut[None, :]) | ((reached[:, None] == reached[None, :]) & cut[:, None] & ~cut[None, :])
    outcome = known_longer.astype(np.int8) - known_longer.T.astype(np.int8)
    scale = float(np.count_nonzero(order)) * float(np.count_nonzero(outcome))
    return float((order * outcome).sum()) / math.sqrt(scale) if scale else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Means over a window of scores; what the operator is shown of the predictions."""

    count: int
    crps_tokens: float
    log_score: float
    coverage_50: float
    coverage_90: float
    pit_histogram: tuple[float, ...]
    """Share of the outcomes in each tenth of the PIT; a tenth each when calibrated."""


def summarise(scores: Iterable[Score]) -> Calibration | None:
    """Means of scores; None when there are none."""
    return _means(np.array([_row(item) for item in scores]))


class RollingScores:
    """The last ``window`` scores, summarised on demand."""

    def __init__(self, window: int = 1_000) -> None:
        assert window > 0, "the window must hold a score"
        self._rows = np.empty((window, len(_FIELDS)))
        self._added = 0

    def add(self, item: Score) -> None:
        """Take the newest score in, and the oldest out when the window is full."""
        self._rows[self._added % len(self._rows)] = _row(item)
        self._added += 1

    def summary(self) -> Calibration | None:
        """Means over the window; None while it is empty."""
        return _means(self._rows[: self._added])


_FIELDS = ("crps_tokens", "log_score", "within_50", "within_90", "pit")
_row = attrgetter(*_FIELDS)


def _means(rows: FloatArray) -> Calibration | None:
    """Means of scores, a row of `_FIELDS` for each."""
    count = len(rows)
    if not count:
        return None
    crps_tokens, log_score, within_50, within_90 = (float(column.mean()) for column in rows.T[:-1])
    transforms: IntArray = np.histogram(rows[:, -1], bins=PIT_BINS, range=(0.0, 1.0))[0]
    return Calibration(
        count=count,
        crps_tokens=crps_tokens,
        log_score=log_score,
        coverage_50=within_50,
        coverage_90=within_90,
        pit_histogram=tuple(float(number) / count for number in transforms),
    )
