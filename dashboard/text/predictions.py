"""The quality of predictions in words for people; nothing here knows Streamlit."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from dashboard.data.predictions_archive import Event
from dashboard.text.words import Notice, plain
from store.formatting import DASH, count, percent
from store.http_api import CalibrationView
from store.http_requests import FinishedPoint

FEWEST = 50
"""Smallest number of answers that are judged."""
TOLERATED_90, TOLERATED_50 = 0.05, 0.08
"""How far the coverage of the 90% and of the 50% range may be off before predictions are called wrong."""
CLUSTERS_NAMED = 6


@dataclass(frozen=True)
class Accuracy:
    """How predictions of some requests compare with their answers; None where nothing is known."""

    compared: int
    truncated: int
    within_50: float | None
    within_90: float | None
    ratios: tuple[float, ...]
    """Actual length over the predicted median, of answers that ended."""


def accuracy(points: Iterable[FinishedPoint]) -> Accuracy:
    """Compare predictions with outcomes.

    >>> found = accuracy([FinishedPoint("a", 0.0, output_tokens=30, p50_tokens=20.0, reason="stop", pit=0.7)])
    >>> found.compared, found.within_50, found.ratios
    (1, 1.0, (1.5,))
    """
    predicted = [point for point in points if point.p50_tokens and point.output_tokens]
    ended = [point for point in predicted if point.reason == "stop"]
    pits = [point.pit for point in ended if point.pit is not None]
    return Accuracy(
        compared=len(predicted),
        truncated=len(predicted) - len(ended),
        within_50=_within(pits, 0.25),
        within_90=_within(pits, 0.05),
        ratios=tuple((point.output_tokens or 0) / (point.p50_tokens or 1.0) for point in ended),
    )


def _within(pits: Sequence[float], edge: float) -> float | None:
    return sum(edge <= pit <= 1.0 - edge for pit in pits) / len(pits) if pits else None


def verdict(found: Accuracy) -> Notice:
    """Say in one sentence whether predictions can be relied on."""
    if len(found.ratios) < FEWEST or found.within_50 is None or found.within_90 is None:
        text = f"Only {count(len(found.ratios))} answers ended in this range; {FEWEST} are needed for a verdict."
        return Notice("info", "Too few answers to judge the predictions", text)
    inside = (
        f"{percent(found.within_90)} of answers are inside the predicted 90% range (ideal: 90%), "
        f"and half are within {typical_error(found)} of the predicted median."
    )
    if found.within_90 < 0.9 - TOLERATED_90 or found.within_50 < 0.5 - TOLERATED_50:
        cure = "They learn from every answer; where this lasts, the guard stops using them and engines serve first come, first served."
        return Notice("warning", "Predictions are too confident", f"{inside} {cure}")
    if found.within_90 > 0.9 + TOLERATED_90 or found.within_50 > 0.5 + TOLERATED_50:
        return Notice(
            "info", "Predictions are more cautious than need be", f"{inside} The order is safe, and could be better."
        )
    return Notice("info", "Predictions are good", inside)


def typical_error(found: Accuracy) -> str:
    """Write within which share of the predicted median half of the answers lie.

    >>> typical_error(Accuracy(3, 0, None, None, (0.5, 0.75, 2.0)))
    '±50%'
    """
    if not found.ratios:
        return DASH
    return f"±{100 * statistics.median(abs(ratio - 1) for ratio in found.ratios):.0f}%"


def distrusted_notice(models: Sequence[CalibrationView]) -> Notice:
    """Say for which models predictions are not used, and what happens instead."""
    names = ", ".join(f"{plain(model.model)} ({plain(model.reason)})" for model in models)
    return Notice(
        "warning",
        "Predictions are not used at present",
        f"For {names}: their engines serve first come, first served until predictions are right again.",
    )


def grouped(events: Sequence[Event]) -> list[list[Event]]:
    """Put together events that follow each other and differ in the cluster only."""
    return [list(members) for _, members in groupby(events, key=lambda event: (event.kind, event.model, event.what))]


def clusters(events: Sequence[Event]) -> str | None:
    """Write the clusters of some events.

    >>> clusters([Event(0.0, "drift", None, 3, ""), Event(1.0, "drift", None, 5, "")])
    '3, 5'
    """
    numbers = [str(event.cluster) for event in events if event.cluster is not None]
    more = f" and {len(numbers) - CLUSTERS_NAMED} more" if len(numbers) > CLUSTERS_NAMED else ""
    return f"{', '.join(numbers[:CLUSTERS_NAMED])}{more}" or None
