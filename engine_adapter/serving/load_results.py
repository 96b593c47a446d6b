"""How a server answered a load: one record for each request, and their summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Ending = Literal["stop", "length", "abort"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request as its client saw it; all moments in seconds since the load began."""

    request_id: str
    arrival_s: float
    """When it was meant to be sent: latencies count from here, so that a slow client hides nothing."""
    sent_s: float
    first_token_s: float | None
    finished_s: float
    output_tokens: int
    ending: Ending | None
    """``abort`` when the client went away on purpose; None when the request failed."""
    error: str | None = None

    @property
    def ttft_s(self) -> float | None:
        """Time to first token; None when none came."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def ttlt_s(self) -> float:
        """Time to last token: the request's latency."""
        return self.finished_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for answers of less than two."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.finished_s - self.first_token_s) / (self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Mean and percentiles of some seconds."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """A load in figures; latencies are over answers that were completed, None where there is none."""

    requests: int
    completed: int
    aborted: int
    failed: int
    ttlt: Spread | None
    ttft: Spread | None
    tpot: Spread | None
    output_tokens: int
    throughput_tokens_per_s: float
    throughput_rps: float
    makespan_s: float
    """From the start of the load to the last end of a request."""
    late_s: float
    """Longest time by which a request was sent after its arrival time: large when the client was the bottleneck."""
    first_error: str | None


def summarise(served: Sequence[Served]) -> LoadSummary:
    """Sum up a load."""
    completed = [one for one in served if one.ending in {"stop", "length"}]
    makespan_s = max((one.finished_s for one in served), default=0.0)
    output_tokens = sum(one.output_tokens for one in served)
    return LoadSummary(
        requests=len(served),
        completed=len(completed),
        aborted=sum(one.ending == "abort" for one in served),
        failed=sum(one.ending is None for one in served),
        ttlt=_spread([one.ttlt_s for one in completed]),
        ttft=_spread([one.ttft_s for one in completed]),
        tpot=_spread([one.tpot_s for one in completed]),
        output_tokens=output_tokens,
        throughput_tokens_per_s=output_tokens / makespan_s if makespan_s else 0.0,
        throughput_rps=len(completed) / makespan_s if makespan_s else 0.0,
        makespan_s=makespan_s,
        late_s=max((one.sent_s - one.arrival_s for one in served), default=0.0),
        first_error=next((one.error for one in served if one.error is not None), None),
    )


def _spread(seconds: Sequence[float | None]) -> Spread | None:
    known_s = [value for value in seconds if value is not None]
    if not known_s:
        return None
    p50_s, p90_s, p99_s = np.percentile(known_s, [50, 90, 99]).tolist()
    return Spread(mean_s=float(np.mean(known_s)), p50_s=p50_s, p90_s=p90_s, p99_s=p99_s, max_s=max(known_s))
