"""Pure functions from the load of engines and finished requests to the series of charts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from store.http_requests import FinishedPoint, LoadPoint, LoadView


def horizon_s(load: LoadView, horizon_tokens: int) -> float | None:
    """Time in which a running request generates ``horizon_tokens`` tokens at the mean step time; None without steps.

    >>> horizon_s(LoadView(points=(), steps=10, step_s=0.5), 40)
    2.0
    """
    return horizon_tokens * load.step_s / load.steps if load.steps else None


def predicted_peaks(moments: Sequence[LoadPoint], lead: int) -> list[float | None]:
    """For each moment the peak of KV memory that was predicted ``lead`` moments before; None without a prediction."""
    assert lead >= 1, lead
    said = [moment.predicted_peak_blocks for moment in moments]
    return [None if place < lead else said[place - lead] for place in range(len(moments))]


def peak_error(moments: Sequence[LoadPoint], lead: int) -> float | None:
    """Relative error of the predicted peaks against the actual ones within ``lead`` moments; None if unknown."""
    pairs = []
    for place, moment in enumerate(moments[: len(moments) - lead]):
        came = [later.peak_blocks for later in moments[place + 1 : place + 1 + lead] if later.peak_blocks is not None]
        if moment.predicted_peak_blocks is not None and came:
            pairs.append((moment.predicted_peak_blocks, max(came)))
    total = sum(came for _, came in pairs)
    return sum(said for said, _ in pairs) / total - 1.0 if total else None


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
