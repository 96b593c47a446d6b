"""Figures of the groups that requests belong to: how fairly tenants were served, and how long sessions took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from controller.policy.cost import CostModel, hybrid_cost
from controller.policy.policy import EngineFacts
from engine_adapter.virtual_time.engine import CompletedRequest, Step
from engine_adapter.virtual_time.profiles import Profile
from online_learning.distribution import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """Tenants and sessions of a run; None where there are none."""

    jain_index: float | None = None
    """Jain's index of the engine-seconds that tenants were served while all of them waited: 1 if equal, 1 / n if one had all."""
    session_mean_s: float | None = None
    """Mean seconds from a session's first arrival to the end of its last answer."""
    session_p95_s: float | None = None


def session_figures(completed: Sequence[CompletedRequest], sessions: Mapping[str, str]) -> tuple[float, float] | None:
    """Mean and 95% quantile of the sessions' times; ``sessions`` has each request's session, None if it is empty."""
    spans: dict[str, tuple[float, float]] = {}
    for request in completed:
        if (session := sessions.get(request.request_id)) is not None:
            start_s, end_s = spans.get(session, (request.arrival_s, request.finished_s))
            spans[session] = min(start_s, request.arrival_s), max(end_s, request.finished_s)
    if not spans:
        return None
    lasted_s = np.array([end_s - start_s for start_s, end_s in spans.values()])
    return float(lasted_s.mean()), float(np.percentile(lasted_s, 95))


def jain_index(served: FloatArray) -> float:
    """Jain's index of fairness.

    >>> jain_index(np.array([3.0, 3.0])), jain_index(np.array([2.0, 0.0]))
    (1.0, 0.5)
    """
    return float(served.sum() ** 2 / (served.size * (served**2).sum()))


@dataclass(slots=True)
class TenantService:
    """What each tenant's requests were computed and held, step by step.

    Args:
        profile: the engine's.
        tenants: each request's tenant.
    """

    profile: Profile
    tenants: Mapping[str, str]
    _names: list[str] = field(init=False)
    _numbers: dict[str, int] = field(init=False)
    _starts_s: list[float] = field(default_factory=list)
    _used: list[FloatArray] = field(default_factory=list)
    """For each step and tenant: prompt tokens computed, answers decoded, KV tokens held by these."""
    _computed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    _lasted_s: float = 0.0

    def __post_init__(self) -> None:
        self._names = sorted(set(self.tenants.values()))
        numbers = {name: number for number, name in enumerate(self._names)}
        self._numbers = {request_id: numbers[name] for request_id, name in self.tenants.items()}

    def add(self, step: Step) -> None:
        """Add a step."""
        for request_id in step.preempted:
            self._computed[request_id] = 0
        used = np.zeros((len(self._names), 3))
        for request_id, tokens in step.scheduled_tokens.items():
            self._computed[request_id] += tokens
            row = used[self._numbers[request_id]]
            if tokens > 1:
                row[0] += tokens
            else:
                row[1] += 1.0
                row[2] += self._computed[request_id]
        self._starts_s.append(step.start_s)
        self._used.append(used)
        self._lasted_s += step.duration_s

    def jain_index(self, completed: Sequence[CompletedRequest]) -> float | None:
        """Jain's index of the engine-seconds served while every tenant had a request that waited; None if never."""
        waiting = np.ones(len(self._starts_s), dtype=bool)
        for name in self._names:
            waiting &= self._waits([one for one in completed if self.tenants[one.request_id] == name])
        if not waiting.any():
            return None
        prices = self._prices()
        used = np.array(self._used)[waiting].sum(axis=0)
        return jain_index(used @ np.array([prices.prefill_token_s, prices.slot_step_s, prices.kv_token_step_s]))

    def _waits(self, requests: Sequence[CompletedRequest]) -> np.ndarray:
        """Whether one of these waited for its first place when each step began."""
        arrived, scheduled = (
            np.searchsorted(np.sort([getattr(one, name) for one in requests]), self._starts_s, side="right")
            for name in ("arrival_s", "scheduled_s")
        )
        return arrived > scheduled

    def _prices(self) -> CostModel:
        profile = self.profile
        engine = EngineFacts(
            kv_tokens=profile.kv_tokens,
            block_size_tokens=profile.block_size_tokens,
            max_num_seqs=profile.max_num_seqs,
            base_s=self._lasted_s / len(self._starts_s),
            prefill_token_s=profile.prefill_token_s,
            decode_seq_s=profile.decode_seq_s,
            kv_token_s=profile.kv_token_s,
        )
        return hybrid_cost(engine)
