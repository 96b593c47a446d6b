"""The calibration guard: whether predictions may be acted upon, judged by how the last ones turned out.

Trust is lost on strong evidence only and comes back on ordinary evidence, gathered afresh: a calibrated learner keeps
it over any number of answers, and one that went wrong gets it back once it has been right for a while.
Answers that still run are evidence too, as `online_learning.calibration.evidence` counts it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from online_learning.calibration.evidence import ADVANTAGE, COVERAGES, NOMINAL, VARIANCE_50, Row, whole
from online_learning.calibration.scoring import Score
from online_learning.distribution import FloatArray

_CENTRAL = tuple((coverage, f"{100 * coverage:.0f}%") for coverage in COVERAGES)


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardSettings:
    """When trust goes and when it returns."""

    enabled: bool = True
    window_answers: int = 200
    """Answers that count; older ones are forgotten."""
    fewest_answers: int = 40
    """Answers before anything is held against a prediction."""
    coverage_slack: tuple[float, float] = (0.2, 0.12)
    """Shortfall of the 50% and of the 90% interval's coverage that is tolerated at any evidence, for as much as whole
    answers bring."""
    standard_errors: float = 5.5
    """Shortfall that may be chance, in standard errors: about one window in fifty million."""
    worse_nats: float = 0.1
    """Mean log score below the prior's that is tolerated at any evidence."""
    evidence_nats: float = 20.0
    """Log likelihood ratio for the prior that is demanded; were the prediction right, its chance is below e^-20."""
    better_nats: float = 0.1
    """Mean log score above the prior's with which missed coverage does no harm to one that would fall back to it."""
    recovery_answers: int = 100
    """Answers since trust was lost before it may return."""
    worst_nats: float = 5.0
    """Most that one answer counts for or against."""


class Guard:
    """Trust in the predictions for one model or one cluster.

    ``needs_coverage`` tells what the fallback is. Without the prediction a cluster has the prior, and a prediction
    that misses its coverage but is better than the prior is kept; a model has no order at all, and is not.

    Args:
        settings: when trust goes and when it returns.
        needs_coverage: whether missed coverage counts against predictions that are better than the prior.
    """

    def __init__(self, settings: GuardSettings, *, needs_coverage: bool) -> None:
        self._settings = settings
        self._needs_coverage = needs_coverage
        self._rows: FloatArray = np.empty((settings.window_answers, NOMINAL.size))
        self._seen = 0
        self.trusted = True
        self.reason: str | None = None
        """Why there is no trust; None while there is."""

    def observe(self, score: Score, prior_log_score: float) -> bool:
        """Count an answer that is judged as a whole, and review; returns whether trust changed."""
        limit = self._settings.worst_nats
        advantage = min(limit, max(-limit, score.log_score - prior_log_score))
        self.count(whole(score, advantage))
        return self.review()

    def count(self, row: Row) -> None:
        """Count what came to light with an answer's end, of all answers since the one that ended before it."""
        self._rows[self._seen % len(self._rows)] = NOMINAL + row
        self._seen += 1

    def review(self) -> bool:
        """Decide by what was counted; returns whether trust changed."""
        if not self._settings.enabled:
            return False
        return self._maybe_lose() if self.trusted else self._maybe_regain()

    def _maybe_lose(self) -> bool:
        if self._seen < self._settings.fewest_answers:
            return False
        self.reason = why_not(self._window(), self._settings, needs_coverage=self._needs_coverage)
        if self.reason is None:
            return False
        self.trusted, self._seen = False, 0
        return True

    def _maybe_regain(self) -> bool:
        if self._seen < self._settings.recovery_answers or not is_well(self._window(), self._settings):
            return False
        self.trusted, self.reason, self._seen = True, None, 0
        return True

    def _window(self) -> FloatArray:
        return self._rows[: min(self._seen, len(self._rows))]


def why_not(window: FloatArray, settings: GuardSettings, *, needs_coverage: bool) -> str | None:
    """Why predictions are not to be trusted; None when nothing speaks clearly against them.

    Args:
        window: one row for each answer that ended: inside the 50% interval, inside the 90% interval, and by how many
            nats the log score was above the prior's; then, where answers that still run count too, the columns of
            `online_learning.calibration.evidence`, which say how large a chance deviation of the first two may be.
        settings: what counts as clear.
        needs_coverage: whether missed coverage counts against predictions that are better than the prior.
    """
    answers = len(window)
    means = window.mean(axis=0)
    advantage = float(means[ADVANTAGE])
    if -advantage * answers >= max(settings.evidence_nats, settings.worse_nats * answers):
        return f"log score {-advantage:.2f} nats below the prior's over {answers} answers"
    if not needs_coverage and advantage > settings.better_nats:
        return None
    variances = means[VARIANCE_50:] if window.shape[1] > VARIANCE_50 else np.zeros(len(COVERAGES))
    for (nominal, name), coverage, variance, slack in zip(
        _CENTRAL, means[: len(COVERAGES)].tolist(), variances.tolist(), settings.coverage_slack, strict=True
    ):
        # A window of the ends of long answers holds more evidence than as many whole answers, and as much more of the
        # same fault.
        whole_variance = nominal * (1.0 - nominal)
        much = max(1.0, variance / whole_variance)
        chance = settings.standard_errors * math.sqrt(much * whole_variance / answers)
        if coverage < nominal - max(slack * much, chance):
            return f"{name} intervals held {max(0.0, 100 * coverage):.0f}% of {answers} answers"
    return None


def is_well(window: FloatArray, settings: GuardSettings) -> bool:
    """Whether coverage misses by less than half of what is tolerated and the log score is not below the prior's."""
    *coverages, advantage = (float(mean) for mean in window.mean(axis=0)[: ADVANTAGE + 1])
    return advantage > -settings.worse_nats / 4 and all(
        coverage >= nominal - slack / 2
        for (nominal, _), coverage, slack in zip(_CENTRAL, coverages, settings.coverage_slack, strict=True)
    )
