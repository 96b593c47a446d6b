"""The figures of a policy over the completed requests of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine_adapter.virtual_time.engine import CompletedRequest, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """One policy on one workload; the fields are those of the JSON report."""

    mean_ttlt_s: float
    p50_ttlt_s: float
    p90_ttlt_s: float
    p99_ttlt_s: float
    max_ttlt_s: float
    mean_ttft_s: float
    p99_ttft_s: float
    mean_tpot_s: float
    throughput_tokens_per_s: float
    """Output tokens over the makespan."""
    makespan_s: float
    """From the first arrival to the last answer's end."""
    preemptions: float
    """Number of preemptions; with several seeds the mean."""
    recompute_tax: float
    """Tokens computed again after preemption / all tokens computed."""
    prefix_hit_share: float
    """Prompt tokens that were found in the prefix cache when their request first started / all prompt tokens."""
    watermark: float
    """vLLM's static watermark under which the policy ran."""
    wall_s: float
    """Real seconds that the run took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFigures:
    """Some of the requests of a run, such as those of one class."""

    requests: int
    mean_ttlt_s: float
    p99_ttlt_s: float
    mean_ttft_s: float
    p99_ttft_s: float
    max_ttft_s: float
    mean_tpot_s: float
    makespan_s: float
    """From the first arrival to the last answer's end."""
    tokens_per_s: float
    """Output tokens over that."""


def part_figures(requests: Sequence[CompletedRequest]) -> PartFigures:
    """Sum some requests up."""
    assert requests, "a part has at least one request"
    ttlt_s = np.array([request.ttlt_s for request in requests])
    ttft_s = np.array([request.ttft_s for request in requests])
    makespan_s = max(request.finished_s for request in requests) - min(request.arrival_s for request in requests)
    return PartFigures(
        requests=len(requests),
        mean_ttlt_s=float(ttlt_s.mean()),
        p99_ttlt_s=float(np.percentile(ttlt_s, 99)),
        mean_ttft_s=float(ttft_s.mean()),
        p99_ttft_s=float(np.percentile(ttft_s, 99)),
        max_ttft_s=float(ttft_s.max()),
        mean_tpot_s=float(np.mean([request.tpot_s for request in requests])),
        makespan_s=makespan_s,
        tokens_per_s=sum(request.output_tokens for request in requests) / makespan_s if makespan_s else 0.0,
    )


def figures(totals: Totals, *, watermark: float = 0.0, wall_s: float = 0.0) -> PolicyFigures:
    """Sum a run up."""
    requests = totals.completed
    assert requests, "a run serves at least one request"
    ttlt_s = np.array([request.ttlt_s for request in requests])
    ttft_s = np.array([request.ttft_s for request in requests])
    makespan_s = max(request.finished_s for request in requests) - min(request.arrival_s for request in requests)
    p50, p90, p99 = (float(value) for value in np.percentile(ttlt_s, (50, 90, 99)))
    return PolicyFigures(
        mean_ttlt_s=float(ttlt_s.mean()),
        p50_ttlt_s=p50,
        p90_ttlt_s=p90,
        p99_ttlt_s=p99,
        max_ttlt_s=float(ttlt_s.max()),
        mean_ttft_s=float(ttft_s.mean()),
        p99_ttft_s=float(np.percentile(ttft_s, 99)),
        mean_tpot_s=float(np.mean([request.tpot_s for request in requests])),
        throughput_tokens_per_s=sum(request.output_tokens for request in requests) / makespan_s if makespan_s else 0.0,
        makespan_s=makespan_s,
        preemptions=totals.preemptions,
        recompute_tax=totals.recomputed_tokens / max(1, totals.computed_tokens),
        prefix_hit_share=sum(request.cached_prompt_tokens for request in requests)
        / sum(request.prompt_tokens for request in requests),
        watermark=watermark,
        wall_s=wall_s,
    )
