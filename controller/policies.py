"""The scheduling policies by name; each is a pure function from request and belief to an index table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np

from controller.cost import CostModel, hybrid_cost, memory_cost
from controller.policy import Assessment, EngineFacts, Policy, RequestFacts
from controller.tables import expected_cost_s, index_table
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError
from store.records import Gate, IndexTable, Preemption, Promotion

PAPER_BUCKET_TOKENS = 200
"""The paper refreshes the index when a request crosses a bucket border; one of its two bucket sizes."""

DEFAULT_GATE = Gate(horizon_tokens=32)
"""Admission of `sage`: measured on seeds other than those that are reported (docs/method.md)."""

Objective: TypeAlias = Literal["mean", "balanced", "tail"]

BOOSTS_PER_S: dict[Objective, float | None] = {"mean": None, "balanced": 0.01, "tail": 0.03}
"""γ of the boost of `sage` by what it is to favour; measured as the gate was.

Against no boost, 0.01 gives up 3 % of mean TTLT for half of the longest.
"""

POLICY_NAMES = ("fcfs", "sagesched-paper", "sage", "srpt-oracle")


class Cost(Protocol):
    """Prices on a given engine."""

    def __call__(self, engine: EngineFacts, /) -> CostModel:
        """The prices."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GittinsPolicy:
    """Gittins index of the remaining cost, with a gate and a boost or without."""

    name: str
    cost: Cost
    gate: Gate | None = None
    boost_per_s: float | None = None
    preemption: Preemption | None = None
    promotion: Promotion | None = None
    refresh_tokens: int | None = None
    orders: bool = True

    def assess(self, request: RequestFacts, belief: LengthDistribution, engine: EngineFacts) -> Assessment:
        """Index and growth by attained tokens, under this policy's cost."""
        cost = self.cost(engine)
        table = index_table(
            request,
            belief,
            cost,
            horizon_tokens=self.gate.horizon_tokens if self.gate else 0,
            refresh_tokens=self.refresh_tokens,
        )
        return Assessment(table=table, cost_s=expected_cost_s(request, belief, cost))


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOrder:
    """The engine's own first come, first served: nothing is decided, costs are recorded all the same."""

    name: str = "fcfs"
    orders: bool = False
    gate: Gate | None = None
    boost_per_s: float | None = None
    preemption: Preemption | None = None
    promotion: Promotion | None = None

    def assess(self, request: RequestFacts, belief: LengthDistribution, engine: EngineFacts) -> Assessment:
        """A flat table, under which arrival alone decides."""
        table = IndexTable(request_id=request.request_id, attained_tokens=(0,), index_s=(0.0,), growth_tokens=(0.0,))
        return Assessment(table=table, cost_s=expected_cost_s(request, belief, hybrid_cost(engine)))


@dataclass(frozen=True, slots=True, kw_only=True)
class OraclePolicy:
    """Shortest remaining memory cost first, knowing every true length; for comparison only.

    A request that it does not know is judged by its belief, as the prior must be.
    """

    lengths: Mapping[str, int]
    """Output tokens by request id."""
    name: str = "srpt-oracle"
    orders: bool = True
    gate: Gate | None = None
    boost_per_s: float | None = None
    preemption: Preemption | None = None
    promotion: Promotion | None = None

    def assess(self, request: RequestFacts, belief: LengthDistribution, engine: EngineFacts) -> Assessment:
        """The Gittins index of a length that is certain is the remaining cost, here in 64 steps of attained tokens."""
        length = self.lengths.get(request.request_id) if request.request_id is not None else None
        cost = memory_cost(engine)
        if length is None:
            table = index_table(request, belief, cost, horizon_tokens=0)
            return Assessment(table=table, cost_s=expected_cost_s(request, belief, cost))
        ages = np.unique(np.linspace(0, length, 64, endpoint=False, dtype=np.int64))
        price_s = cost.total_s(request.prompt_tokens, np.append(ages, length))
        table = IndexTable(
            request_id=request.request_id,
            attained_tokens=tuple(ages.tolist()),
            index_s=tuple((price_s[-1] - price_s[:-1]).tolist()),
            growth_tokens=(0.0,) * ages.size,
        )
        return Assessment(table=table, cost_s=float(price_s[-1]))


def policy_named(
    name: str,
    *,
    gate: Gate | None = DEFAULT_GATE,
    boost_per_s: float | None = BOOSTS_PER_S["balanced"],
    lengths: Mapping[str, int] | None = None,
) -> Policy:
    """The policy of this name; raises `ConfigError` that lists the known ones.

    ``gate`` and ``boost_per_s`` concern `sage` alone, ``lengths`` (output tokens by request id) the oracle.
    `sagesched-paper` is the paper to the letter: its cost, its index refreshed at bucket borders, nothing else.

    >>> policy_named("sage").gate
    Gate(horizon_tokens=32, margin=1.0)
    >>> policy_named("lifo")
    Traceback (most recent call last):
    store.errors.ConfigError: unknown policy 'lifo': choose one of fcfs, sagesched-paper, sage, srpt-oracle
    """
    match name:
        case "fcfs":
            return EngineOrder()
        case "sagesched-paper":
            return GittinsPolicy(name=name, cost=memory_cost, refresh_tokens=PAPER_BUCKET_TOKENS)
        case "sage":
            return GittinsPolicy(name=name, cost=hybrid_cost, gate=gate, boost_per_s=boost_per_s)
        case "srpt-oracle":
            if lengths is None:
                raise ConfigError("policy 'srpt-oracle' knows the lengths: it can run in `bench` only")
            return OraclePolicy(lengths=lengths)
        case _:
            raise ConfigError(f"unknown policy {name!r}: choose one of {', '.join(POLICY_NAMES)}")
