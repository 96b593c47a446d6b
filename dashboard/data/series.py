"""From snapshots and finished requests to what charts draw: bins, rates and percentiles; all pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from store.http_api import FinishedPoint, SnapshotPoint

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
    peak_blocks: float | None
    """The most that was used within the bin."""
    reserved_blocks: float | None
    total_blocks: float | None
    decode_tokens_per_s: float | None
    prefill_tokens_per_s: float | None
    recomputed_tokens_per_s: float | None

    @property
    def foretold_blocks(self) -> float | None:
        """The peak of KV memory that is expected within the gate's horizon: what is used, and the growth reserve."""
        if self.used_blocks is None or self.reserved_blocks is None:
            return None
        held = self.used_blocks + self.reserved_blocks
        return held if self.total_blocks is None else min(held, self.total_blocks)


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
        peak_blocks=_peak(work),
        reserved_blocks=_total(level.reserved_blocks for level in levels),
        total_blocks=_total(level.kv_blocks for level in levels),
        decode_tokens_per_s=_rate((point.decode_tokens for point in work), bin_s),
        prefill_tokens_per_s=_rate((point.prefill_tokens for point in work), bin_s),
        recomputed_tokens_per_s=_rate((point.recomputed_tokens for point in work), bin_s),
    )


def _peak(points: list[SnapshotPoint]) -> float | None:
    highest: dict[str, int] = {}
    for point in points:
        if point.kv_blocks_used is not None:
            highest[point.engine_id] = max(point.kv_blocks_used, highest.get(point.engine_id, 0))
    return _total(highest.values())


def _total(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def horizon_s(points: Iterable[SnapshotPoint], horizon_tokens: int) -> float | None:
    """Time in which a running request grows by so many tokens, at the steps' mean duration; None without steps.

    >>> horizon_s([SnapshotPoint(time_s=0, steps=10, step_s=0.5)], 40)
    2.0
    """
    known = [(point.steps, point.step_s) for point in points if point.steps and point.step_s is not None]
    steps = sum(count for count, _ in known)
    return horizon_tokens * sum(spent_s for _, spent_s in known) / steps if steps else None


def foretold(moments: Sequence[Moment], lead: int) -> list[float | None]:
    """For each moment the peak of KV memory that was foretold ``lead`` moments before; None where nothing was."""
    assert lead >= 1, lead
    said = [moment.foretold_blocks for moment in moments]
    return [None if place < lead else said[place - lead] for place in range(len(moments))]


def foretelling_error(moments: Sequence[Moment], lead: int) -> float | None:
    """How much higher the foretold peaks were than what came within ``lead`` moments, as a share; None if unknown."""
    pairs = []
    for place, moment in enumerate(moments[: len(moments) - lead]):
        came = [later.peak_blocks for later in moments[place + 1 : place + 1 + lead] if later.peak_blocks is not None]
        if moment.foretold_blocks is not None and came:
            pairs.append((moment.foretold_blocks, max(came)))
    total = sum(came for _, came in pairs)
    return sum(said for said, _ in pairs) / total - 1.0 if total else None


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
    return _percentiles(points, bin_s, ttlt_s)


def tpot(points: Iterable[FinishedPoint], bin_s: float) -> list[Percentiles]:
    """Percentiles of the time per output token after the first; an answer of one token has none."""
    return _percentiles(points, bin_s, tpot_s)


def ttlt_s(point: FinishedPoint) -> float | None:
    """Time to last token of a request that ran to its end."""
    return point.ttlt_s if complete(point) else None


def tpot_s(point: FinishedPoint) -> float | None:
    """Time per output token after the first, of a request that ran to its end."""
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


BANDS_PER_DECADE = 8
"""Bands of a heatmap: each reaches 1.33 times as high as the one below."""


@dataclass(frozen=True)
class Cell:
    """How many requests of one bin had a value within one band."""

    time_s: float
    """Start of the bin."""
    band: int
    """The values from ``10 ** (band / BANDS_PER_DECADE)`` up to the next band's."""
    requests: int


def heat(
    points: Iterable[FinishedPoint], bin_s: float, value_of: Callable[[FinishedPoint], float | None]
) -> list[Cell]:
    """Count requests by the time at which they ended and by the band of a value; values that are not positive have none.

    >>> heat([FinishedPoint(request_id="a", time_s=61, ttft_s=1.0)], 60.0, lambda point: point.ttft_s)
    [Cell(time_s=60.0, band=0, requests=1)]
    """
    assert bin_s > 0.0, bin_s
    counts: Counter[tuple[float, int]] = Counter()
    for point in points:
        value = value_of(point)
        if value is not None and math.isfinite(value) and value > 0.0 and math.isfinite(point.time_s):
            counts[math.floor(point.time_s / bin_s) * bin_s, band_of(value)] += 1
    return [Cell(time_s, band, requests) for (time_s, band), requests in sorted(counts.items())]


def band_of(value: float) -> int:
    """The band that a positive value falls into."""
    return math.floor(BANDS_PER_DECADE * math.log10(value))


@dataclass(frozen=True)
class Phases:
    """Mean times of the requests that ended in one bin; None where none did."""

    time_s: float
    queue_s: float | None
    """From arrival to the first place in a step."""
    prefill_s: float | None
    """From there to the first token."""
    decode_s: float | None
    """From there to the last one."""


def phases(points: Iterable[FinishedPoint], bin_s: float) -> list[Phases]:
    """Where the time of requests that ran to their end went."""
    by_bin: dict[int, list[tuple[float, float, float]]] = {}
    for point in points:
        if complete(point) and None not in {point.queue_s, point.ttft_s, point.ttlt_s}:
            assert point.queue_s is not None
            assert point.ttft_s is not None
            assert point.ttlt_s is not None
            parts = (point.queue_s, point.ttft_s - point.queue_s, point.ttlt_s - point.ttft_s)
            by_bin.setdefault(math.floor(point.time_s / bin_s), []).append(parts)
    if not by_bin:
        return []
    last = max(by_bin)
    numbers = range(max(min(by_bin), last - MAX_BINS + 1), last + 1)
    return [Phases((number + 1) * bin_s, *_means(by_bin.get(number, []))) for number in numbers]


def _means(rows: Sequence[tuple[float, ...]]) -> tuple[float | None, float | None, float | None]:
    if not rows:
        return None, None, None
    queue_s, prefill_s, decode_s = (float(value) for value in np.mean(rows, axis=0))
    return queue_s, prefill_s, decode_s
