"""How long requests took: one picture, whether of the last minutes (`of_points`) or of the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from dashboard.data import series
from dashboard.data.archive import PART_KINDS, Part
from dashboard.data.series import Cell, Percentiles, Phases
from store.http_api import FinishedPoint

PARTS_SHOWN = 20
"""Of each kind the largest."""


@dataclass(frozen=True)
class PartLatency:
    """Latency of the requests of one class, tenant, model or cluster."""

    by: str
    name: str
    requests: int
    p50_ttft_s: float | None
    mean_ttlt_s: float | None
    p50_ttlt_s: float | None
    p99_ttlt_s: float | None
    mean_output_tokens: float | None


@dataclass(frozen=True)
class Latencies:
    """How long requests took, over time."""

    newest_s: float | None
    """When the last request ended; None when none did."""
    bucket_s: float = 60.0
    ttft: tuple[Percentiles, ...] = ()
    ttlt: tuple[Percentiles, ...] = ()
    tpot: tuple[Percentiles, ...] = ()
    ttft_heat: tuple[Cell, ...] = ()
    ttlt_heat: tuple[Cell, ...] = ()
    tpot_heat: tuple[Cell, ...] = ()
    phases: tuple[Phases, ...] = ()
    parts: tuple[PartLatency, ...] = ()
    """Of all requests, whatever part of them the rest is about."""
    whole: int = 0
    """Requests that ran to their end."""
    cut: int = 0
    """Requests that were aborted or failed."""


def of_points(
    points: Sequence[FinishedPoint], bin_s: float, part: Part | None, model_of: Callable[[str], str | None]
) -> Latencies:
    """The latencies of requests of the last minutes; ``model_of`` gives an engine's model."""
    shown = [point for point in points if part is None or _names(point, model_of).get(part.by) == part.name]
    whole = sum(series.complete(point) for point in shown)
    return Latencies(
        newest_s=max((point.time_s for point in points), default=None),
        bucket_s=bin_s,
        ttft=tuple(series.ttft(shown, bin_s)),
        ttlt=tuple(series.ttlt(shown, bin_s)),
        tpot=tuple(series.tpot(shown, bin_s)),
        ttft_heat=tuple(series.heat(shown, bin_s, lambda point: point.ttft_s)),
        ttlt_heat=tuple(series.heat(shown, bin_s, series.ttlt_s)),
        tpot_heat=tuple(series.heat(shown, bin_s, series.tpot_s)),
        phases=tuple(series.phases(shown, bin_s)),
        parts=tuple(_parts(points, model_of)),
        whole=whole,
        cut=len(shown) - whole,
    )


def _names(point: FinishedPoint, model_of: Callable[[str], str | None]) -> dict[str, str | None]:
    """Which part of each kind a request belongs to; an older controller does not tell its class."""
    return {
        "class": None if point.priority is None else str(point.priority),
        "tenant": point.tenant or "none",
        "model": model_of(point.engine_id),
        "cluster": None if point.cluster is None else str(point.cluster),
    }


def _parts(points: Iterable[FinishedPoint], model_of: Callable[[str], str | None]) -> list[PartLatency]:
    groups: dict[str, dict[str, list[FinishedPoint]]] = {kind: {} for kind in PART_KINDS}
    for point in points:
        if series.complete(point):
            for kind, name in _names(point, model_of).items():
                if name is not None:
                    groups[kind].setdefault(name, []).append(point)
    return [
        _part(kind, name, members)
        for kind, named in groups.items()
        for name, members in sorted(named.items(), key=lambda item: (-len(item[1]), item[0]))[:PARTS_SHOWN]
    ]


def _part(by: str, name: str, points: Sequence[FinishedPoint]) -> PartLatency:
    ttft_s = [point.ttft_s for point in points if point.ttft_s is not None]
    ttlt_s = [point.ttlt_s for point in points if point.ttlt_s is not None]
    tokens = [point.output_tokens for point in points if point.output_tokens is not None]
    return PartLatency(
        by=by,
        name=name,
        requests=len(points),
        p50_ttft_s=_quantile(ttft_s, 0.5),
        mean_ttlt_s=float(np.mean(ttlt_s)) if ttlt_s else None,
        p50_ttlt_s=_quantile(ttlt_s, 0.5),
        p99_ttlt_s=_quantile(ttlt_s, 0.99),
        mean_output_tokens=float(np.mean(tokens)) if tokens else None,
    )


def _quantile(values: Sequence[float], probability: float) -> float | None:
    return float(np.quantile(values, probability)) if values else None
