"""Arrival times in seconds since the start, as pure functions of a seeded generator.

All functions return a float array in which times never decrease.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from store.errors import BadInputError

Seconds = NDArray[np.float64]

_GREATEST_CV = 100.0
_BEND_STEPS = 200
"""Number of fixed-slope iterations, which never overshoot; each leaves at most 2·depth / (1 + depth) of the error."""


def gamma_arrivals(generator: np.random.Generator, *, count: int, rate_rps: float, cv: float) -> Seconds:
    """Draw arrivals with gamma-distributed gaps of a given coefficient of variation.

    ``cv`` 0 (below a millionth) is a metronome, 1 is Poisson, 3 and more is bursty (ServeGen finds such clients in production).

    >>> gamma_arrivals(np.random.default_rng(0), count=3, rate_rps=2.0, cv=0.0).tolist()
    [0.5, 1.0, 1.5]
    """
    _require_positive("arrival rate in requests/s", rate_rps)
    if not 0.0 <= cv <= _GREATEST_CV:
        raise BadInputError(f"coefficient of variation of the arrivals is {cv}: give 0 to 100 (1 is Poisson)")
    if cv < 1e-6:
        return np.arange(1, count + 1, dtype=np.float64) / rate_rps
    shape = cv**-2
    return np.cumsum(generator.gamma(shape, 1.0 / (rate_rps * shape), size=count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Wave:
    """A rate that oscillates around its mean, as over a day: a queue builds up, and drains again.

    At time t the rate is the mean times 1 + depth·sin(2πt/period); the mean over whole periods is unchanged.
    """

    period_s: float
    depth: float

    def __post_init__(self) -> None:
        _require_positive("period of the wave in seconds", self.period_s)
        if not 0.0 <= self.depth < 1.0:
            raise BadInputError(f"depth of the wave is {self.depth}: give 0 to below 1")

    def bend(self, times_s: Seconds) -> Seconds:
        """Transform arrivals of a constant rate to those of the wave.

        >>> Wave(period_s=100.0, depth=0.5).bend(np.array([0.0, 25.0, 50.0, 100.0])).round(1).tolist()
        [0.0, 19.7, 36.7, 100.0]
        """
        turn = 2.0 * math.pi / self.period_s
        bent = times_s.astype(np.float64)
        for _ in range(_BEND_STEPS):
            steady = bent + self.depth * (1.0 - np.cos(turn * bent)) / turn
            bent = bent - (steady - times_s) / (1.0 + self.depth)
        return bent


def trace_arrivals(times_s: Sequence[float] | Seconds, *, rate_rps: float | None = None) -> Seconds:
    """Return a trace's arrivals in order, counted from the first; with ``rate_rps`` scaled to that mean rate.

    >>> trace_arrivals([7.0, 5.0, 9.0], rate_rps=1.0).tolist()
    [0.0, 1.0, 2.0]
    """
    times = np.sort(np.asarray(times_s, dtype=np.float64))
    if not np.isfinite(times).all():
        raise BadInputError("a trace has an arrival time that is no number: remove those rows or give them a time")
    if len(times) == 0:
        return times
    times -= times[0]
    if rate_rps is None:
        return times
    _require_positive("arrival rate in requests/s", rate_rps)
    if times[-1] == 0.0:
        raise BadInputError(
            f"all {len(times)} arrivals of the trace are at one moment and have no rate to scale to {rate_rps}: "
            "draw the arrivals instead"
        )
    times *= (len(times) - 1) / rate_rps / times[-1]
    return times


@dataclass(frozen=True, slots=True)
class ArrivalPlan:
    """How measured requests arrive at a given mean rate; `arrival_plan` parses it."""

    kind: Literal["own", "gamma", "trace", "at-once", "unscaled"] = "own"
    """``own``: the workload's own times scaled to the rate, if it has any, else Poisson; ``trace`` requires them;
    ``unscaled``: the workload's own times as they are, ``at-once``: all at the start, both at any rate."""
    cv: float = 1.0
    """Coefficient of variation of gamma-distributed gaps; 1 is Poisson."""

    def times_s(self, own_s: Sequence[float] | Seconds, *, rate_rps: float, generator: np.random.Generator) -> Seconds:
        """Return arrival times of requests that arrived at ``own_s``, all equal when the source has no times."""
        if self.kind == "at-once":
            return all_at_zero(len(own_s))
        timed = len(own_s) > 0 and max(own_s) > min(own_s)
        if self.kind in {"trace", "unscaled"} and not timed:
            raise BadInputError(
                f"arrivals are {self.kind!r} and the workload has no times of its own: give poisson or gamma:CV"
            )
        if self.kind == "unscaled":
            return trace_arrivals(own_s)
        if self.kind == "trace" or (self.kind == "own" and timed):
            return trace_arrivals(own_s, rate_rps=rate_rps)
        return gamma_arrivals(generator, count=len(own_s), rate_rps=rate_rps, cv=self.cv)


def arrival_plan(text: str) -> ArrivalPlan:
    """Parse ``own``, ``poisson``, ``trace``, ``unscaled``, ``at-once`` or ``gamma:CV``; raise `BadInputError` for anything else.

    >>> arrival_plan("gamma:3")
    ArrivalPlan(kind='gamma', cv=3.0)
    >>> arrival_plan("weekly")
    Traceback (most recent call last):
    store.errors.BadInputError: arrivals are 'weekly': give own, poisson, trace, unscaled, at-once or gamma:CV such as gamma:3
    """
    for fixed in ("own", "trace", "unscaled", "at-once"):
        if text == fixed:
            return ArrivalPlan(fixed)
    kind, _, cv = text.partition(":")
    if text == "poisson" or (kind == "gamma" and re.fullmatch(r"\d+(\.\d+)?", cv) and float(cv) <= _GREATEST_CV):
        return ArrivalPlan("gamma", float(cv or 1.0))
    raise BadInputError(
        f"arrivals are {text!r}: give own, poisson, trace, unscaled, at-once or gamma:CV such as gamma:3"
    )


def all_at_zero(count: int) -> Seconds:
    """Return arrivals that are all at the start, to measure an engine's capacity."""
    return np.zeros(count)


def _require_positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0.0):
        raise BadInputError(f"{name} is {value}: give a positive number")
