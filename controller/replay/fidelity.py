"""Errors of a replay against the recorded run, and confidence intervals of comparisons of two replays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine_adapter.virtual_time.engine import CompletedRequest, Totals
from online_learning.distribution import FloatArray
from store.http_api import Ratio

MEAN_TOLERANCE = 0.1
"""Largest relative error of the mean TTLT of a good reproduction; mean TTFT may be off by this share of the mean TTLT."""
P99_TOLERANCE = 0.2
RESAMPLES = 400
BLOCKS = 20
"""Number of blocks for resampling: requests that arrive together wait together, so they are not independent."""
INTERVAL = (5.0, 95.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitFigure:
    """One figure, recorded and replayed, in seconds."""

    name: str
    recorded_s: float
    replayed_s: float

    @property
    def error(self) -> float:
        """Relative error: replayed over recorded, minus one."""
        if self.recorded_s == self.replayed_s:
            return 0.0
        return self.replayed_s / self.recorded_s - 1.0 if self.recorded_s else float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Recorded and replayed figures of the same requests."""

    mean_ttlt: FitFigure
    p99_ttlt: FitFigure
    mean_ttft: FitFigure
    p99_ttft: FitFigure
    request_error_s: float
    """Mean distance of a request's replayed TTLT from its recorded one."""

    @property
    def figures(self) -> tuple[FitFigure, ...]:
        """All figures, for tables."""
        return self.mean_ttlt, self.p99_ttlt, self.mean_ttft, self.p99_ttft

    @property
    def poor(self) -> tuple[str, ...]:
        """The reasons why the reproduction is poor; empty if it is good."""
        ttft_off_s = abs(self.mean_ttft.replayed_s - self.mean_ttft.recorded_s)
        found = [
            f"{figure.name} is off by {figure.error:+.0%} (tolerated: {tolerance:.0%})"
            for figure, tolerance in ((self.mean_ttlt, MEAN_TOLERANCE), (self.p99_ttlt, P99_TOLERANCE))
            if abs(figure.error) > tolerance
        ]
        if ttft_off_s > MEAN_TOLERANCE * self.mean_ttlt.recorded_s:
            found.append(
                f"{self.mean_ttft.name} is off by {self.mean_ttft.replayed_s - self.mean_ttft.recorded_s:+.2f} s "
                f"(tolerated: {MEAN_TOLERANCE:.0%} of the mean TTLT)"
            )
        return tuple(found)


def fit_of(recorded: Sequence[CompletedRequest], replayed: Sequence[CompletedRequest]) -> Fit:
    """Compare what was recorded with a replay of the same requests, in the same order."""
    assert [request.request_id for request in recorded] == [request.request_id for request in replayed], (
        "the same requests"
    )
    ttlt = [np.array([request.ttlt_s for request in requests]) for requests in (recorded, replayed)]
    ttft = [np.array([request.ttft_s for request in requests]) for requests in (recorded, replayed)]
    return Fit(
        mean_ttlt=_figure("mean TTLT", ttlt, None),
        p99_ttlt=_figure("P99 TTLT", ttlt, 99.0),
        mean_ttft=_figure("mean TTFT", ttft, None),
        p99_ttft=_figure("P99 TTFT", ttft, 99.0),
        request_error_s=float(np.abs(ttlt[1] - ttlt[0]).mean()),
    )


def ratio_of(ours_s: FloatArray, theirs_s: FloatArray, seed: int = 0) -> Ratio:
    """Mean of ours over mean of theirs, with its interval; both are of the same requests, by arrival.

    >>> ratio_of(np.full(100, 3.0), np.full(100, 4.0))
    Ratio(mean=0.75, low=0.75, high=0.75)
    """
    assert ours_s.shape == theirs_s.shape, "the same requests"
    blocks = min(BLOCKS, ours_s.size)
    drawn = np.random.default_rng(seed).integers(0, blocks, (RESAMPLES, blocks))
    sums = [np.array([part.sum() for part in np.array_split(values, blocks)]) for values in (ours_s, theirs_s)]
    ratios = sums[0][drawn].sum(axis=1) / np.maximum(sums[1][drawn].sum(axis=1), 1e-12)
    low, high = np.percentile(ratios, INTERVAL).tolist()
    return Ratio(mean=float(ours_s.sum() / max(float(theirs_s.sum()), 1e-12)), low=low, high=high)


def totals_of(requests: Sequence[CompletedRequest]) -> Totals:
    """Sums over these requests alone."""
    recomputed = sum(request.recomputed_tokens for request in requests)
    return Totals(
        computed_tokens=sum(request.prompt_tokens + request.output_tokens for request in requests) + recomputed,
        recomputed_tokens=recomputed,
        preemptions=sum(request.preemptions for request in requests),
        completed=list(requests),
    )


def _figure(name: str, values_s: Sequence[FloatArray], percentile: float | None) -> FitFigure:
    recorded_s, replayed_s = (
        float(values.mean()) if percentile is None else float(np.percentile(values, percentile)) for values in values_s
    )
    return FitFigure(name=name, recorded_s=recorded_s, replayed_s=replayed_s)
