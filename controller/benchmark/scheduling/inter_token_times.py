"""Times between output tokens of requests with a TPOT target, seen from an engine's steps."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from engine_adapter.virtual_time.engine import Step


@dataclass(slots=True)
class _Paced:
    tpot_s: float
    token_s: float | None = None
    """When its last token came."""
    prefill_end_s: float | None = None
    """End of the last step that computed several of its tokens since then, which gave a token if it was the last of them."""


class InterTokenTimes:
    """Collects them from all steps, each over its request's target.

    A step that computes one token of a request gives it an output token; of steps that compute several, prompt or
    recomputed ones, the last does. A token after which its request is preempted at once is not seen: two times count as
    one.
    """

    def __init__(self, tpot_s: Mapping[str, float]) -> None:
        """``tpot_s`` has the targets by request id."""
        self._paced = {request_id: _Paced(target_s) for request_id, target_s in tpot_s.items()}
        self._over_target = array("f")

    def add(self, step: Step) -> None:
        """Add a step."""
        end_s = step.start_s + step.duration_s
        for request_id, tokens in step.scheduled_tokens.items():
            request = self._paced.get(request_id)
            if request is None:
                continue
            if tokens > 1:
                request.prefill_end_s = end_s
                continue
            self._after_prefill(request)
            self._token(request, end_s)
        for ended in step.finished:
            request = self._paced.pop(ended.request_id, None)
            if request is not None and ended.reason != "abort":
                self._after_prefill(request)

    @property
    def count(self) -> int:
        """Number of times."""
        return len(self._over_target)

    @property
    def mean_over_target(self) -> float | None:
        """Their mean; None before the first."""
        return float(np.mean(self._over_target)) if self._over_target else None

    @property
    def p99_over_target(self) -> float | None:
        """Their 99% quantile; None before the first."""
        return float(np.percentile(self._over_target, 99)) if self._over_target else None

    def _after_prefill(self, request: _Paced) -> None:
        if request.prefill_end_s is not None:
            self._token(request, request.prefill_end_s)
            request.prefill_end_s = None

    def _token(self, request: _Paced, time_s: float) -> None:
        if request.token_s is not None:
            self._over_target.append((time_s - request.token_s) / request.tpot_s)
        request.token_s = time_s
