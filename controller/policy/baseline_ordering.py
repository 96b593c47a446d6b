"""Orderings of the baselines: preemption at no price, and promotion of starving requests.

No live engine has these rules; benchmarks and replays pass them to engines in virtual time.
"""

from __future__ import annotations

import math
from collections.abc import Collection

from engine_adapter.ordering.admission import Admission
from engine_adapter.ordering.kv_memory import KvMemory
from engine_adapter.ordering.ordering import Ordering, Plan, R
from engine_adapter.ordering.running_order import Tracked

FIRST = -math.inf
"""Ordering value of a promoted request."""


class PreemptiveOrdering(Ordering):
    """Lets waiting requests preempt running ones behind them in the order at every step, whatever these lose."""

    preempts = True

    def _yields(self, victim: R, request: R) -> bool:
        return self.key(request.request_id) < self.key(victim.request_id)


class PromotingOrdering(PreemptiveOrdering):
    """Preempts likewise, and lets a starving request go first until it has run for ``promoted_steps``.

    Source: Fu et al., "Efficient LLM Scheduling by Learning to Rank" (NeurIPS 2024, arXiv 2408.15792), algorithm 1.

    Args:
        block_size_tokens: tokens in a KV block.
        max_num_seqs: requests that the engine runs at once at most.
        idle_steps: number of steps without running after which a request is promoted.
        promoted_steps: number of steps that it runs before the promotion ends.
    """

    def __init__(self, block_size_tokens: int, max_num_seqs: int, *, idle_steps: int, promoted_steps: int) -> None:
        super().__init__(block_size_tokens, max_num_seqs)
        self.idle_steps = idle_steps
        self.promoted_steps = promoted_steps
        self._step = 0
        self._ran_in_step: dict[str, int] = {}
        """Step in which each request last ran, or was first seen waiting."""
        self._promoted: dict[str, int] = {}
        """Remaining steps of each promoted request."""

    def plan(
        self,
        now_s: float,
        *,
        waiting: Collection[R],
        running: Collection[R],
        memory: KvMemory,
        admission: Admission | None = None,
        steps_in_flight: int = 0,
    ) -> Plan[R]:
        """Promote starving requests, then order."""
        self._step += 1
        for request in running:
            self._count_run(request.request_id)
        for request in waiting:
            self._count_wait(request.request_id)
        return super().plan(
            now_s, waiting=waiting, running=running, memory=memory, admission=admission, steps_in_flight=steps_in_flight
        )

    def forget(self, request_id: str) -> None:
        """Forget a request that left the engine."""
        super().forget(request_id)
        self._ran_in_step.pop(request_id, None)
        self._promoted.pop(request_id, None)

    def _count_run(self, request_id: str) -> None:
        self._ran_in_step[request_id] = self._step
        if request_id not in self._promoted:
            return
        self._promoted[request_id] -= 1
        if not self._promoted[request_id]:
            del self._promoted[request_id]
            self._look_up(self._tracked[request_id])

    def _count_wait(self, request_id: str) -> None:
        ran_in_step = self._ran_in_step.setdefault(request_id, self._step)
        if request_id not in self._promoted and self._step - ran_in_step >= self.idle_steps:
            self._promoted[request_id] = self.promoted_steps
            self._look_up(self._tracked[request_id])

    def _value(self, tracked: Tracked) -> float:
        return FIRST if tracked.request_id in self._promoted else super()._value(tracked)
