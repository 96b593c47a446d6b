"""Our policy with one of its parts taken out, to see what the part is worth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from msgspec import structs

from controller.cost import memory_cost
from controller.gittins import survival_beyond
from controller.policies import GittinsPolicy
from controller.policy import Assessment, EngineFacts, Policy, RequestFacts
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError
from store.records import IndexTable

PREFIX = "sage-without-"
PARTS = ("cost", "index", "gate", "boost", "preemption", "predictor")
ABLATION_NAMES = tuple(f"{PREFIX}{part}" for part in PARTS)


def without(policy: Policy, name: str) -> Policy:
    """The policy without the part that the name tells; a part that it does not have cannot be taken out.

    ``cost``: the paper's memory cost instead of ours. ``index``: the mean of the remaining cost instead of the
    Gittins index. ``gate``, ``boost``, ``preemption``: none. ``predictor``: the same policy, to which `bench` gives the
    model's global distribution as the belief about every prompt.
    """
    assert isinstance(policy, GittinsPolicy), "ours is a Gittins policy"
    part = name.removeprefix(PREFIX)
    if part == "cost":
        return replace(policy, name=name, cost=memory_cost)
    if part == "index":
        return MeanRemaining(**{**_fields(policy), "name": name})
    if part == "gate":
        _require(name, policy.gate)
        tuning = replace(policy.tuning, gate_exchange=None) if policy.tuning else None
        return replace(policy, name=name, gate=None, tuning=tuning)
    if part == "boost":
        _require(name, policy.boost_per_s)
        tuning = replace(policy.tuning, boost_scale=None, boost_per_s=None) if policy.tuning else None
        return replace(policy, name=name, boost_per_s=None, tuning=tuning)
    if part == "preemption":
        _require(name, policy.preemption)
        return replace(policy, name=name, preemption=None)
    assert part == "predictor", part
    return replace(policy, name=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanRemaining(GittinsPolicy):
    """Shortest expected remaining cost first, in all else as the policy that it is made from."""

    def assess(self, request: RequestFacts, belief: LengthDistribution, engine: EngineFacts) -> Assessment:
        """The same table with another index; where the belief is outlived, the same as before."""
        assessment = GittinsPolicy.assess(self, request, belief, engine)
        return replace(assessment, table=self._reindexed(assessment.table, request, belief, engine))

    def _reindexed(
        self, table: IndexTable, request: RequestFacts, belief: LengthDistribution, engine: EngineFacts
    ) -> IndexTable:
        cost = self.cost(engine)
        ages = np.union1d(table.attained_tokens, belief.lengths)
        mass = np.zeros(ages.size)
        mass[np.searchsorted(ages, belief.lengths)] = belief.mass
        price_s = cost.total_s(request.prompt_tokens, ages)
        alive = survival_beyond(mass)
        mean_s = np.divide(survival_beyond(mass * price_s), alive, out=np.zeros(ages.size), where=alive > 0.0) - price_s
        places = np.searchsorted(ages, table.attained_tokens)
        index_s = np.where(alive[places] > 1e-9, mean_s[places], table.index_s)
        return structs.replace(table, index_s=tuple(index_s.tolist()))


def _require(name: str, part: object) -> None:
    """What is taken out must have been there, or the figures would be those of the whole under another name."""
    if part is None:
        raise ConfigError(f"policy {name!r} takes out what sage does not have now: leave it out, or turn that part on")


def _fields(policy: GittinsPolicy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}
