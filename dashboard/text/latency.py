"""Latencies in words for people; nothing here knows Streamlit."""

from __future__ import annotations

from collections.abc import Sequence

from store.formatting import percent, span
from store.http_requests import LatenciesView, PartLatency

KINDS = {"engine": "Engine", "class": "Priority", "tenant": "Tenant", "model": "Model", "cluster": "Cluster"}
"""Properties by which requests are compared; the class of vLLM's own strict order is its priority."""
_NOTABLE = 1.2
"""Engines within this factor of each other are called alike."""


def verdict(found: LatenciesView) -> str:
    """Say how long requests take and where their time goes."""
    ttft, ttlt = found.totals.get("ttft"), found.totals.get("ttlt")
    if ttft is None or ttlt is None or ttft.p50_s is None or ttlt.p50_s is None:
        return "No request of these ran to its end."
    return (
        f"Half of the requests have their first token within **{span(ttft.p50_s)}** and all of their answer within "
        f"**{span(ttlt.p50_s)}**; 99% within {span(ttft.p99_s)} and {span(ttlt.p99_s)}.{_phases(found)}"
    )


def _phases(found: LatenciesView) -> str:
    """The shares of queue, prompt and answer in the mean time of the requests."""
    sums = [0.0, 0.0, 0.0]
    for phase, row in zip(found.phases, found.ttlt, strict=True):
        for at, mean_s in enumerate((phase.queue_s, phase.prefill_s, phase.decode_s)):
            sums[at] += row.requests * (mean_s or 0.0)
    total = sum(sums)
    if not total:
        return ""
    queue, prefill, decode = (percent(part / total) for part in sums)
    return f" Of this time {queue} is spent in the queue, {prefill} on the prompt and {decode} on generating."


def engines_compared(parts: Sequence[PartLatency]) -> str:
    """Say which engine is the slowest and how far it is from the fastest; empty with fewer than two.

    >>> engines_compared([PartLatency("engine", "a", 9, 1, 2, 1, 9, 10), PartLatency("engine", "b", 9, 1, 8, 1, 9, 10)])
    'Requests on b take 4.0 times as long as on a (mean 8 s against 2 s).'
    """
    means = sorted((part.mean_ttlt_s, part.name) for part in parts if part.by == "engine" and part.mean_ttlt_s)
    if len(means) < 2:
        return ""
    (low_s, fast), (high_s, slow) = means[0], means[-1]
    if high_s <= _NOTABLE * low_s:
        return f"All engines are alike: mean {span(low_s)} to {span(high_s)}."
    return f"Requests on {slow} take {high_s / low_s:.1f} times as long as on {fast} (mean {span(high_s)} against {span(low_s)})."
