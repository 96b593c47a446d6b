"""Our policy with one of its parts taken out or exchanged, to see what the part is worth."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from msgspec import structs

from controller.policy.cost import memory_cost
from controller.policy.policies import IndexPolicy
from controller.policy.policy import Assessment, EngineFacts, Policy, RequestFacts
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError

PREFIX = "sage-without-"
PARTS = ("cost", "index", "gate", "boost", "deadline", "preemption", "predictor")
WITH_GITTINS = "sage-with-gittins"
ABLATION_NAMES = (*(f"{PREFIX}{part}" for part in PARTS), WITH_GITTINS)


def without(policy: Policy, name: str) -> Policy:
    """The policy without the part that the name tells; a part that it does not have cannot be taken out.

    ``cost``: the paper's memory cost instead of ours. ``index``: the order of arrival. ``gate``, ``boost``,
    ``deadline``, ``preemption``: none. ``predictor``: the same policy, to which `bench` gives the model's global distribution as the
    prediction for every prompt. `sage-with-gittins` has the Gittins index for the mean of the remaining cost.
    """
    assert isinstance(policy, IndexPolicy), "ours has an index"
    if name == WITH_GITTINS:
        return replace(policy, name=name, index="gittins")
    part = name.removeprefix(PREFIX)
    if part == "cost":
        return replace(policy, name=name, cost=memory_cost)
    if part == "index":
        return ByArrival(**{**_fields(policy), "name": name})
    if part == "predictor":
        return replace(policy, name=name)
    return replace(_less(policy, part, name), name=name)


def _less(policy: IndexPolicy, part: str, name: str) -> IndexPolicy:
    """The policy without a part that is a setting; raises `ConfigError` where it is not there."""
    rules, tuning = policy.rules, policy.tuning
    if part == "gate" and rules.gate is not None:
        untuned = replace(tuning, gate_exchange=None) if tuning else None
        return replace(policy, rules=structs.replace(rules, gate=None), tuning=untuned)
    if part == "boost" and rules.boost_per_s is not None:
        untuned = replace(tuning, boost_scale=None, boost_per_s=None) if tuning else None
        return replace(policy, rules=structs.replace(rules, boost_per_s=None), tuning=untuned)
    if part == "deadline" and policy.deadline is not None:
        return replace(policy, deadline=None)
    if part == "preemption" and rules.preemption is not None:
        return replace(policy, rules=structs.replace(rules, preemption=None))
    raise ConfigError(f"policy {name!r} takes out what sage does not have now: leave it out, or turn that part on")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByArrival(IndexPolicy):
    """The same index for all, so that arrival decides; in all else the policy that it is made from."""

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """The same table without an index."""
        assessment = IndexPolicy.assess(self, request, predicted, engine)
        table = structs.replace(assessment.table, index_s=(1.0,) * len(assessment.table.index_s))
        return replace(assessment, table=table)


def _fields(policy: IndexPolicy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}
