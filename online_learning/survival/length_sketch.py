"""An online length distribution that learns from unfinished answers too and forgets what no longer holds.

Lengths are kept as life-table counts on the log grid: how many answers ended in a bin, and how many were at risk
of ending there. An answer known only in part (right-censored) was at risk in every bin that it outlived, no more.
The ratio is the hazard of the Kaplan-Meier estimator (1958); predictions shrink it towards a prior hazard by evidence.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from river._river_rust.drift import AdaptiveWindowing

from online_learning.distribution import FloatArray, IntArray
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_hazard, posterior_hazard

_SURE_ERRORS = 4.0
"""Standard errors by which surprises must have changed for a suspected drift to be one."""

_FEWEST_SURPRISES = 8
"""Answers on either side of a suspected change whose surprises are compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SketchSettings:
    """How a sketch forgets."""

    memory_answers: float = 5_000.0
    """Later answers after which an answer's weight has fallen by a factor e: the bound on the evidence."""
    recent_answers: int = 256
    """Answers kept one by one, from which the sketch starts again after a drift."""
    drift_confidence: float = 0.002
    """ADWIN's δ: the chance that a stationary stream is taken for a drifting one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forgetting:
    """A drift that a sketch found, and what it gave up."""

    before_mean_tokens: float
    """Geometric mean of the lengths given up."""
    after_mean_tokens: float
    """Geometric mean of the lengths kept."""
    forgotten: float
    """Effective number of answers forgotten."""


class _Recent(NamedTuple):
    """One of the answers that are kept one by one."""

    observation: Observation
    log_tokens: float
    surprise: float | None = None


class LengthSketch:
    """Life-table counts of one stream of answers, exponentially forgetting, cut back by ADWIN at a drift.

    Wrong where the stream's lengths depend on something that the stream does not show: it knows no prompts.
    ADWIN (Bifet and Gavaldà 2007, in River) watches the logarithm of the length; an unfinished answer enters it
    with the value that the sketch expects of it, so that many cut answers do not look like short ones.
    Where it is known by how much answers were longer than predicted, ADWIN only raises a suspicion: lengths in the order
    in which answers end change with the order too, so that it is a drift once predictions err otherwise since the change
    than before it, by `_SURE_ERRORS` standard errors.
    At a drift only the answers since the change are kept, among the recent ones that are held one by one.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: memory in answers, and the confidence of the drift test.
        rows: zeros of shape (2, bins) to count events and exposure in, so that one array can hold many sketches.

    >>> sketch = LengthSketch(np.array([1, 2, 4, 8]), SketchSettings())
    >>> for tokens in (2, 4, 8):
    ...     _ = sketch.learn_one(Observation(tokens, censored=False))
    >>> _ = sketch.learn_one(Observation(4, censored=True))
    >>> round(sketch.evidence, 2), sketch.events.round(1).tolist(), sketch.exposure.round(1).tolist()
    (4.0, [0.0, 1.0, 1.0, 1.0], [4.0, 4.0, 2.5, 1.0])
    """

    def __init__(self, lengths: IntArray, settings: SketchSettings, rows: FloatArray | None = None) -> None:
        self.events, self.exposure = np.zeros((2, lengths.size)) if rows is None else rows
        self.evidence = 0.0
        self._lengths = lengths
        self._log_lengths = np.log(lengths)
        self._settings = settings
        self._keep = 1.0 - 1.0 / settings.memory_answers
        self._recent: deque[_Recent] = deque(maxlen=settings.recent_answers)
        self._adwin = self._new_adwin()
        self._suspected = 0
        """Answers since a suspected change, which is among the recent ones; 0 where there is none."""

    def learn_one(self, observation: Observation, surprise: float | None = None) -> Forgetting | None:
        """Count an answer; returns what was forgotten when it reveals a drift.

        Args:
            observation: the answer.
            surprise: by how much answers were longer than predicted, as `Observation.surprises` says it of this stream.
        """
        log_tokens = self._expected_log_tokens(observation)
        self._count(observation)
        self._recent.append(_Recent(observation, log_tokens, surprise))
        if self._adwin.update(log_tokens):
            self._suspected = len(self._recent) - _change_point(self._recent_log_tokens())
            self._adwin = self._new_adwin()
        elif self._suspected:
            self._suspected = (self._suspected + 1) % len(self._recent)
        return self._forget() if self._suspected and self._is_drift() else None

    def recall(self, observations: list[Observation]) -> None:
        """Count answers of before, the oldest first, without looking for a drift among them."""
        for observation in observations:
            self._recent.append(_Recent(observation, self._expected_log_tokens(observation)))
            self._count(observation)

    def inherit(self, counts: FloatArray, evidence: float, answers: float) -> None:
        """Begin with what another sketch knew, its events and exposure in two rows, at the weight of ``answers``."""
        if evidence <= 0.0:
            return
        self.events += counts[0] * (answers / evidence)
        self.exposure += counts[1] * (answers / evidence)
        self.evidence += answers

    def absorb(self, other: LengthSketch) -> None:
        """Take over all that another sketch knew, as if its answers had come before; the drift test goes on as it was."""
        self.events += other.events
        self.exposure += other.exposure
        self.evidence += other.evidence
        room = self._settings.recent_answers - len(self._recent)
        self._recent.extendleft(reversed(list(other._recent)[-room:] if room else []))

    def _new_adwin(self) -> AdaptiveWindowing:
        """River's ADWIN, by itself: the package around it loads SciPy and pandas, a second and 100 MB of every start."""
        return AdaptiveWindowing(delta=self._settings.drift_confidence, clock=8)

    def _count(self, observation: Observation) -> None:
        position = self._bin(observation.output_tokens)
        share = self._share_outlived(position, observation.output_tokens) if observation.censored else 1.0
        self.events *= self._keep
        self.exposure *= self._keep
        self.evidence = self.evidence * self._keep + 1.0
        self.exposure[:position] += 1.0
        self.exposure[position] += share
        if not observation.censored:
            self.events[position] += 1.0

    def _bin(self, tokens: int) -> int:
        return min(int(self._lengths.searchsorted(tokens)), self._lengths.size - 1)

    def _share_outlived(self, position: int, tokens: int) -> float:
        """The part of its last bin that an unfinished answer is known to have outlived (actuarial exposure)."""
        left = int(self._lengths[position - 1]) if position > 0 else 0
        width = int(self._lengths[position]) - left
        return min(max(tokens - 1 - left, 0) / width, 1.0)

    def _expected_log_tokens(self, observation: Observation) -> float:
        if not observation.censored:
            return math.log(max(1, observation.output_tokens))
        position = self._bin(observation.output_tokens)
        hazard = posterior_hazard(self.events, self.exposure, np.full(self.events.size, 0.1), 1.0)
        beyond = mass_from_hazard(hazard[position:])
        return float(beyond @ self._log_lengths[position:])

    def _is_drift(self) -> bool:
        """Whether predictions err otherwise since the suspected change than before it, as far as that is known."""
        surprises = [answer.surprise for answer in self._recent]
        after = [surprise for surprise in surprises[-self._suspected :] if surprise is not None]
        if len(after) < self._suspected:
            return True
        before = [surprise for surprise in surprises[: -self._suspected] if surprise is not None]
        return _differ(np.array(before), np.array(after))

    def _recent_log_tokens(self) -> FloatArray:
        return np.array([answer.log_tokens for answer in self._recent])

    def _forget(self) -> Forgetting:
        """Start again from the answers since the change, as the drift test does from the one that it is found with."""
        log_tokens = self._recent_log_tokens()
        change = len(self._recent) - self._suspected
        kept = list(self._recent)[change:]
        anew = LengthSketch(self._lengths, self._settings)
        for answer in kept:
            anew._count(answer.observation)
        forgetting = Forgetting(
            before_mean_tokens=float(np.exp(log_tokens[:change].mean())),
            after_mean_tokens=float(np.exp(log_tokens[change:].mean())),
            forgotten=max(0.0, self.evidence - anew.evidence),
        )
        self.events[:], self.exposure[:], self.evidence = anew.events, anew.exposure, anew.evidence
        self._recent.clear()
        self._recent.extend(kept)
        self._suspected = 0
        return forgetting


def _differ(before: FloatArray, after: FloatArray) -> bool:
    """Whether two samples have clearly different means (Welch); with too few before, whether the later's is not zero."""
    if after.size < _FEWEST_SURPRISES:
        return False
    difference, variance = float(after.mean()), float(after.var(ddof=1)) / after.size
    if before.size >= _FEWEST_SURPRISES:
        difference -= float(before.mean())
        variance += float(before.var(ddof=1)) / before.size
    return abs(difference) > _SURE_ERRORS * math.sqrt(variance)


def _change_point(values: FloatArray) -> int:
    """Where one step of the mean explains a series best: the split with the least squared error.

    ADWIN says that a window holds a change, and that coarsely; this says after which value.

    >>> _change_point(np.array([1.0, 1.2, 0.9, 5.0, 5.1]))
    3
    """
    assert values.size > 1, "one value has no change"
    before = np.arange(1, values.size)
    after = values.size - before
    sums = np.cumsum(values)[:-1]
    difference = sums / before - (values.sum() - sums) / after
    return int(before[np.argmax(difference**2 * before * after)])
