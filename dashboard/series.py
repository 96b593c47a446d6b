"""From snapshots and finished requests to what charts draw: bins, rates and percentiles; all pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dashboard.views import FinishedPoint, SnapshotPoint

MAX_BINS = 2000
"""No chart shows more; a clock that jumped must not make endless empty bins."""

CARRIED_S = 3.0
"""The level of an engine is taken to hold for so long after its last snapshot."""


@dataclass(frozen=True)
class Moment:
    """State and work of all engines in one bin; None where no engine said anything."""

    time_s: float
    """End of the bin."""
    waiting: float | None
    running: float | None
    used_blocks: float | None
    reserved_blocks: float | None
    total_blocks: float | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    recomputed_tokens_per_s: float | None


def moments(points: Iterable[SnapshotPoint], bin_s: float) -> list[Moment]:
    """Put snapshots into bins of ``bin_s`` seconds: levels are the last of each engine, work is a rate.

    The first and the last bin are left out, because they are seen in part only and would show a rate too low.
    """
    assert bin_s > 0.0, bin_s
    by_bin: dict[int, list[SnapshotPoint]] = {}
    for point in points:
        if math.isfinite(point.time_s):
            by_bin.setdefault(math.floor(point.time_s / bin_s), []).append(point)
    if len(by_bin) < 3:
        return []
    last = max(by_bin) - 1
    first = max(min(by_bin) + 1, last - MAX_BINS + 1)
    levels: dict[str, SnapshotPoint] = {}
    result = []
    for number in range(first, last + 1):
        here = sorted(by_bin.get(number, ()), key=lambda point: point.time_s)
        levels.update({point.engine_id: point for point in here})
        current = [level for level in levels.values() if level.time_s >= number * bin_s - CARRIED_S]
        result.append(_moment((number + 1) * bin_s, current, here, bin_s))
    return result


def _moment(time_s: float, levels: list[SnapshotPoint], work: list[SnapshotPoint], bin_s: float) -> Moment:
    return Moment(
        time_s=time_s,
        waiting=_total(level.waiting for level in levels),
        running=_total(level.running for level in levels),
        used_blocks=_total(level.kv_blocks_used for level in levels),
        reserved_blocks=_total(level.reserved_blocks for level in levels),
        total_blocks=_total(level.kv_blocks for level in levels),
        decode_tokens_per_s=_rate((point.decode_tokens for point in work), bin_s),
        prefill_tokens_per_s=_rate((point.prefill_tokens for point in work), bin_s),
        recomputed_tokens_per_s=_rate((point.recomputed_tokens for point in work), bin_s),
    )


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _rate(values: Iterable[float | None], bin_s: float) -> float | None:
    total = _total(values)
    return None if total is None else total / bin_s


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of one latency over the requests that ended in one bin."""

    time_s: float
    """End of the bin."""
    requests: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


def ttft(points: Iterable[FinishedPoint], bin_s: float) -> list[Percentiles]:
    """Percentiles of the time to first token by the time at which the requests ended."""
    return _percentiles(points, bin_s, lambda point: point.ttft_s)


def ttlt(points: Iterable[FinishedPoint], bin_s: float) -> list[Percentiles]:
    """Percentiles of the time to last token; aborted and failed requests have none."""
    return _percentiles(points, bin_s, lambda point: point.ttlt_s if complete(point) else None)


def tpot(points: Iterable[FinishedPoint], bin_s: float) -> list[Percentiles]:
    """Percentiles of the time per output token after the first; an answer of one token has none."""
    return _percentiles(points, bin_s, _tpot_s)


def _tpot_s(point: FinishedPoint) -> float | None:
    tokens = point.output_tokens or 0
    if point.ttlt_s is None or point.ttft_s is None or tokens < 2 or not complete(point):
        return None
    return (point.ttlt_s - point.ttft_s) / (tokens - 1)


def complete(point: FinishedPoint) -> bool:
    """Whether the request ran to its own end or to its max_tokens."""
    return point.reason in {"stop", "length", None}


def _percentiles(
    points: Iterable[FinishedPoint], bin_s: float, value_of: Callable[[FinishedPoint], float | None]
) -> list[Percentiles]:
    assert bin_s > 0.0, bin_s
    by_bin: dict[int, list[float]] = {}
    for point in points:
        value = value_of(point)
        if value is not None and math.isfinite(value) and math.isfinite(point.time_s):
            by_bin.setdefault(math.floor(point.time_s / bin_s), []).append(value)
    if not by_bin:
        return []
    last = max(by_bin)
    first = max(min(by_bin), last - MAX_BINS + 1)
    return [_summary((number + 1) * bin_s, by_bin.get(number, [])) for number in range(first, last + 1)]


def _summary(time_s: float, values: list[float]) -> Percentiles:
    if not values:
        return Percentiles(time_s, 0, None, None, None)
    p50, p90, p99 = (float(value) for value in np.quantile(values, (0.5, 0.9, 0.99)))
    return Percentiles(time_s, len(values), p50, p90, p99)


def mean_ttlt_s(points: Sequence[FinishedPoint]) -> float | None:
    """Give the mean time to last token of the requests that ran to their end; None when there is none."""
    values = [point.ttlt_s for point in points if complete(point) and point.ttlt_s is not None]
    return float(np.mean(values)) if values else None


def pit_shares(points: Iterable[FinishedPoint], bins: int) -> tuple[list[float], int]:
    """Share of the outcomes in each equal part of [0, 1] of their prediction, and how many outcomes there are.

    Well-calibrated predictions put the same share into each.

    >>> pit_shares([FinishedPoint(request_id="a", time_s=0, pit=0.2), FinishedPoint(request_id="b", time_s=0, pit=1.0)], 2)
    ([0.5, 0.5], 2)
    """
    values = [point.pit for point in points if point.pit is not None and 0.0 <= point.pit <= 1.0]
    counts = [0] * bins
    for value in values:
        counts[min(int(value * bins), bins - 1)] += 1
    return [number / len(values) if values else 0.0 for number in counts], len(values)
