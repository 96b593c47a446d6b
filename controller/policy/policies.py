"""The scheduling policies by name; each is a pure function from a request and its predicted distribution to an index table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias

import numpy as np
from msgspec import structs

from controller.policy.cost import CostModel, hybrid_cost, memory_cost
from controller.policy.index_table import Priced, expected_cost_s, expected_costs_s, index_table, index_tables
from controller.policy.policy import (
    INDEX_ALONE,
    Assessment,
    Case,
    EngineFacts,
    IndexRule,
    Policy,
    RequestFacts,
    Tuning,
)
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError
from store.records import EngineRules, Gate, IndexTable, Preemption, Victims

PAPER_BUCKET_TOKENS = 200
"""The paper refreshes the index when a request crosses a bucket border; one of its two bucket sizes."""

DEFAULT_GATE = Gate(horizon_tokens=32)
"""Initial gate of `sage`; its margin is tuned to each engine (`controller.core.engine_tuning`)."""

Objective: TypeAlias = Literal["mean", "balanced", "tail"]


OVERTAKING: dict[Objective, float] = {"mean": 140.0, "balanced": 30.0, "tail": 0.7}
"""Mean times from arrival to end by which an answer of half the cost may overtake an older one."""

_VICTIMS: dict[Objective, Victims] = {"mean": "later", "balanced": "later", "tail": "cheapest"}
"""For the mean a long request gives way, which frees memory for many; for the tail the one that loses least."""

GATE_EXCHANGE = 1.0
"""Ratio of recompute tax to idle share of KV memory that the gate's reserve aims at."""

_START_S = 20.0
"""Assumed mean time from arrival to end before any is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The settings of `sage`."""

    objective: Objective = "balanced"
    index: IndexRule = "mean"
    """The mean suits engines that finish what they have started, as vLLM does unless it runs out of memory."""
    gate: Gate | None = DEFAULT_GATE
    """Admission; None leaves it to the engine."""
    tune_gate: bool = True
    """Whether the gate's margin follows the engine's measurements."""
    boost_per_s: float | None = None
    """A fixed γ in 1/s, 0 for no boost; None for the objective's own, which follows the time scale of the answers."""
    preemption: Preemption | None = None
    """None leaves preemption to the engine: preempting running requests for others did not pay in any measurement."""
    overtaking: float | None = None
    """Mean times from arrival to end by which an answer of half the cost may overtake an older one; None for the
    objective's own."""

    def policy(self) -> IndexPolicy:
        """The policy with these settings.

        >>> Schedule(objective="tail").policy().rules.victims
        'cheapest'
        """
        scale = math.log(2.0) / (OVERTAKING[self.objective] if self.overtaking is None else self.overtaking)
        follows = self.boost_per_s is None
        boost_per_s = scale / _START_S if follows else self.boost_per_s or None
        return IndexPolicy(
            name="sage",
            cost=hybrid_cost,
            index=self.index,
            rules=EngineRules(
                gate=self.gate,
                boost_per_s=boost_per_s,
                preemption=self.preemption,
                victims=_VICTIMS[self.objective],
                sessions=True,
            ),
            tuning=Tuning(
                gate_exchange=GATE_EXCHANGE if self.gate and self.tune_gate else None,
                boost_scale=scale if follows else None,
                boost_per_s=boost_per_s if follows else None,
                shapes=True,
                preempts=self.preemption is not None,
            ),
        )


def as_tuned(policy: Policy, rules: EngineRules | None) -> Policy:
    """The policy as it was adapted to an engine under these rules, where it is adapted; from there it adapts further.

    >>> rules = EngineRules(gate=Gate(horizon_tokens=32, margin=0.7), boost_per_s=0.01, preemption=None)
    >>> tuned = as_tuned(policy_named("sage"), rules)
    >>> tuned.rules.gate, tuned.tuning.boost_per_s
    (Gate(horizon_tokens=32, margin=0.7), 0.01)
    """
    if rules is None or not isinstance(policy, IndexPolicy) or policy.tuning is None:
        return policy
    own, tuning = policy.rules, policy.tuning
    if own.gate is not None and rules.gate is not None and tuning.gate_exchange is not None:
        own = structs.replace(own, gate=structs.replace(own.gate, margin=rules.gate.margin))
    if tuning.boost_scale is not None and rules.boost_per_s is not None:
        tuning = replace(tuning, boost_per_s=rules.boost_per_s)
    return replace(policy, rules=own, tuning=tuning)


POLICY_NAMES = ("fcfs", "sagesched-paper", "sage", "srpt-oracle")


class Cost(Protocol):
    """Maps an engine to the prices of its resources."""

    def __call__(self, engine: EngineFacts, /) -> CostModel:
        """The prices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexPolicy:
    """Orders by an index of the remaining cost, lowest first, optionally with a gate and a boost.

    Args:
        name: name in configuration, records and reports.
        cost: prices of the engine's resources, which make the remaining cost in engine-seconds.
        index: functional of the remaining cost.
        rules: gate, boost, preemption and choice of victims that engines apply.
        tuning: parts that are adapted to each engine; None for none.
        refresh_tokens: the index changes only at multiples of this number of attained tokens; None for no restriction.
        orders: False for the engine's own order.
    """

    name: str
    cost: Cost
    index: IndexRule = "gittins"
    rules: EngineRules = INDEX_ALONE
    tuning: Tuning | None = None
    refresh_tokens: int | None = None
    orders: bool = True

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """Index and growth by attained tokens, under this policy's cost."""
        return self.assess_many([(request, predicted, engine)])[0]

    def assess_many(self, cases: Sequence[Case]) -> list[Assessment]:
        """The same for several requests."""
        priced = [Priced(request, predicted, self.cost(engine)) for request, predicted, engine in cases]
        tables = index_tables(
            priced,
            horizon_tokens=self.rules.gate.horizon_tokens if self.rules.gate else 0,
            refresh_tokens=self.refresh_tokens,
            index=self.index,
        )
        costs_s = expected_costs_s(priced)
        return [Assessment(table=table, cost_s=cost_s) for table, cost_s in zip(tables, costs_s, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """The engine's own first come, first served: no decisions, but costs are recorded."""

    name: str = "fcfs"
    orders: bool = False
    rules: EngineRules = INDEX_ALONE
    tuning: Tuning | None = None

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """A table with a constant index, so that requests run in order of arrival."""
        table = IndexTable(request_id=request.request_id, attained_tokens=(0,), index_s=(0.0,), growth_tokens=(0.0,))
        return Assessment(table=table, cost_s=expected_cost_s(request, predicted, hybrid_cost(engine)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OraclePolicy:
    """Shortest remaining memory cost first with the true lengths; for comparison only.

    Requests without a known length, and the prior, use the prediction.

    Args:
        lengths: true output tokens by request id.
        name: name in configuration, records and reports.
        orders: False for the engine's own order.
        rules: gate, boost, preemption and choice of victims that engines apply.
        tuning: parts that are adapted to each engine; None for none.
    """

    lengths: Mapping[str, int]
    name: str = "srpt-oracle"
    orders: bool = True
    rules: EngineRules = INDEX_ALONE
    tuning: Tuning | None = None

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """The remaining cost, which is the Gittins index of a known length, in up to 64 steps of attained tokens."""
        length = self.lengths.get(request.request_id) if request.request_id is not None else None
        cost = memory_cost(engine)
        if length is None:
            table = index_table(request, predicted, cost, horizon_tokens=0)
            return Assessment(table=table, cost_s=expected_cost_s(request, predicted, cost))
        ages = np.unique(np.linspace(0, length, 64, endpoint=False, dtype=np.int64))
        price_s = cost.total_s(request.prompt_tokens, np.append(ages, length))
        table = IndexTable(
            request_id=request.request_id,
            attained_tokens=tuple(ages.tolist()),
            index_s=tuple((price_s[-1] - price_s[:-1]).tolist()),
            growth_tokens=(0.0,) * ages.size,
        )
        return Assessment(table=table, cost_s=float(price_s[-1]))


def policy_named(name: str, *, schedule: Schedule | None = None, lengths: Mapping[str, int] | None = None) -> Policy:
    """The policy of this name.

    `sagesched-paper` follows the paper exactly: its cost, its index refreshed at bucket borders, nothing else.

    Args:
        name: one of `POLICY_NAMES`.
        schedule: settings of `sage`; other policies ignore them.
        lengths: true output tokens by request id, for `srpt-oracle`.

    Raises:
        ConfigError: the name is unknown, or the oracle has no lengths.

    >>> policy_named("sage").rules.gate
    Gate(horizon_tokens=32, margin=1.0)
    >>> policy_named("lifo")
    Traceback (most recent call last):
    store.errors.ConfigError: unknown policy 'lifo': choose one of fcfs, sagesched-paper, sage, srpt-oracle
    """
    match name:
        case "fcfs":
            return EngineOrder()
        case "sagesched-paper":
            return IndexPolicy(name=name, cost=memory_cost, refresh_tokens=PAPER_BUCKET_TOKENS)
        case "sage":
            return (schedule or Schedule()).policy()
        case "srpt-oracle":
            if lengths is None:
                raise ConfigError("policy 'srpt-oracle' knows the lengths: it can run in `bench` only")
            return OraclePolicy(lengths=lengths)
        case _:
            raise ConfigError(f"unknown policy {name!r}: choose one of {', '.join(POLICY_NAMES)}")
