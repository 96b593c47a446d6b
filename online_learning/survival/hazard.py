"""Hazards on the length grid: the chance to end in a bin once it is reached. Pure functions.

Predictions are made of hazards, because a hazard can be learned from answers that are known only in part.
"""

from __future__ import annotations

import numpy as np

from online_learning.distribution import FloatArray, IntArray

SLOWEST_TAIL = 1.2
FASTEST_TAIL = 3.0
"""Bounds of the tail's exponent α: past the data an answer's expected rest is attained/(α-1), a half of it at least."""

_TAIL_SHARE = 0.05
_TAIL_PRIOR_ANSWERS = 5.0
_TAIL_PRIOR_EXPONENT = 2.0
_TAIL_TRUST_ANSWERS = 20.0


def mass_from_hazard(hazard: FloatArray) -> FloatArray:
    """Probability mass of each bin (last axis); the last bin takes what is left, so that the mass sums to 1.

    >>> mass_from_hazard(np.array([0.5, 0.5, 0.1])).tolist()
    [0.5, 0.25, 0.25]
    """
    return mass_from_survival(survival_from_hazard(hazard))


def mass_from_survival(survival: FloatArray) -> FloatArray:
    """Probability mass of each bin (last axis) from the probability to reach it.

    >>> mass_from_survival(np.array([1.0, 0.5, 0.25])).tolist()
    [0.5, 0.25, 0.25]
    """
    mass = survival.copy()
    mass[..., :-1] -= survival[..., 1:]
    return mass


def survival_from_hazard(hazard: FloatArray) -> FloatArray:
    """Probability to reach each bin (last axis), 1 for the first.

    >>> survival_from_hazard(np.array([0.5, 0.5, 0.1])).tolist()
    [1.0, 0.5, 0.25]
    """
    survival = np.empty(hazard.shape)
    survival[..., 0] = 1.0
    (1.0 - hazard[..., :-1]).cumprod(axis=-1, out=survival[..., 1:])
    return survival


def posterior_hazard(
    events: FloatArray, exposure: FloatArray, prior: FloatArray, strength: float | FloatArray
) -> FloatArray:
    """Posterior hazard after ``events`` among ``exposure`` answers at risk.

    ``strength`` is the prior's weight in answers, per bin or for all. With the weight m·S₀ (S₀ the prior's survival)
    this is the beta-Stacy posterior (Walker and Muliere 1997): without censoring a Dirichlet process, with it the
    estimator of Susarla and Van Ryzin (1976).

    >>> posterior_hazard(np.array([1.0]), np.array([4.0]), np.array([0.5]), 2.0).round(4).tolist()
    [0.3333]
    """
    return np.asarray((events + strength * prior) / (exposure + strength))


def vague_hazard(lengths: IntArray) -> FloatArray:
    """The hazard before any answer was seen: log-logistic with median 200 tokens and shape 1.5.

    Broad and heavy-tailed: a young system must not be sure.
    """
    edges = np.concatenate(([0.0], lengths.astype(np.float64)))
    survival = 1.0 / (1.0 + (edges / 200.0) ** 1.5)
    return np.asarray(1.0 - survival[1:] / survival[:-1])


def power_tail_hazard(lengths: IntArray, events: FloatArray, exposure: FloatArray) -> FloatArray:
    """Hazard of a power law P(L > x) ~ x^-α fitted to the longest twentieth of the answers.

    α is the maximum-likelihood estimate under right-censoring (Hill's estimator, as events per log-length at risk),
    drawn to 2 by five answers' worth of prior and kept within `SLOWEST_TAIL` and `FASTEST_TAIL`.
    """
    edges = np.concatenate(([1.0], lengths.astype(np.float64)))
    log_width = np.log(edges[1:] / edges[:-1])
    first = _tail_start(exposure)
    ended = float(events[first:].sum()) + _TAIL_PRIOR_ANSWERS
    outlived = exposure[first:] - 0.5 * events[first:]  # One that ended in a bin outlived half of it, about.
    at_risk = float(outlived @ log_width[first:]) + _TAIL_PRIOR_ANSWERS / _TAIL_PRIOR_EXPONENT
    alpha = min(max(ended / at_risk, SLOWEST_TAIL), FASTEST_TAIL)
    return np.asarray(1.0 - np.exp(-alpha * log_width))


def prior_with_tail(lengths: IntArray, events: FloatArray, exposure: FloatArray) -> FloatArray:
    """The vague hazard, with the data's own power law where few answers reached or none.

    The power law has weight by evidence: past the end of three short answers lies no tail, but the unknown.
    """
    hazard = vague_hazard(lengths)
    first = _tail_start(exposure)
    trust = exposure[0] / (exposure[0] + _TAIL_TRUST_ANSWERS)
    tail = power_tail_hazard(lengths, events, exposure)
    hazard[first:] += trust * (tail[first:] - hazard[first:])
    return hazard


def _tail_start(exposure: FloatArray) -> int:
    """First bin that fewer than a twentieth of the answers were at risk in; exposure falls along the grid."""
    return int((-exposure).searchsorted(-_TAIL_SHARE * exposure[0]))
