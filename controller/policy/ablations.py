"""Our policy with one of its parts removed or exchanged, to measure the part's contribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from msgspec import structs

from controller.policy.cost import memory_cost
from controller.policy.policies import IndexPolicy
from controller.policy.policy import Assessment, Case, Policy
from store.errors import ConfigError

PREFIX = "sage-without-"
PARTS = ("cost", "index", "gate", "boost", "victims", "shape", "preemption", "predictor", "targets")
WITH_GITTINS = "sage-with-gittins"
MISLED: dict[str, float | None] = {
    "sage-with-lengths-x5": 5.0,
    "sage-with-lengths-x0.2": 0.2,
    "sage-with-lengths-shuffled": None,
}
"""Our policy with wrong predictions: lengths times this factor, or for None those of another request."""
ABLATION_NAMES = (*(f"{PREFIX}{part}" for part in PARTS), WITH_GITTINS, *MISLED)


def without(policy: Policy, name: str) -> Policy:
    """The policy without the part that is named.

    ``cost`` uses the paper's memory cost in place of ours, ``index`` the order of arrival, ``victims`` the last of the
    order; ``gate``, ``boost``, ``shape`` and ``preemption`` turn the part off. ``predictor`` is the same policy, for
    which `bench` predicts the model's global distribution for every prompt; ``targets`` is the same policy, which `bench`
    does not tell the requests' targets. `sage-with-gittins` uses the Gittins index
    in place of the mean.

    Args:
        policy: the complete policy.
        name: one of `ABLATION_NAMES`.

    Raises:
        ConfigError: the policy does not have the part.
    """
    assert isinstance(policy, IndexPolicy), "ours has an index"
    if name == WITH_GITTINS:
        return replace(policy, name=name, index="gittins")
    part = name.removeprefix(PREFIX)
    if part == "cost":
        return replace(policy, name=name, cost=memory_cost)
    if part == "index":
        return ByArrival(**{**_fields(policy), "name": name})
    if part in {"predictor", "targets"} or name in MISLED:
        return replace(policy, name=name)
    return replace(_less(policy, part, name), name=name)


def _less(policy: IndexPolicy, part: str, name: str) -> IndexPolicy:
    """The policy without a part that is a setting; raises `ConfigError` if it does not have the part."""
    rules, tuning = policy.rules, policy.tuning
    if part == "gate" and rules.gate is not None:
        untuned = replace(tuning, gate_exchange=None) if tuning else None
        return replace(policy, rules=structs.replace(rules, gate=None), tuning=untuned)
    if part == "boost" and rules.boost_per_s is not None:
        untuned = replace(tuning, boost_scale=None, boost_per_s=None) if tuning else None
        return replace(policy, rules=structs.replace(rules, boost_per_s=None), tuning=untuned)
    if part == "victims" and rules.victims != "last":
        return replace(policy, rules=structs.replace(rules, victims="last"))
    if part == "shape" and tuning is not None and tuning.shapes:
        return replace(policy, tuning=replace(tuning, shapes=False))
    if part == "preemption" and rules.preemption is not None:
        return replace(policy, rules=structs.replace(rules, preemption=None))
    raise ConfigError(f"policy {name!r} removes a part that is turned off in sage: leave it out, or turn that part on")


@dataclass(frozen=True, slots=True, kw_only=True)
class ByArrival(IndexPolicy):
    """Orders by arrival, with the gate and the other rules of the policy that it is made from."""

    def assess_many(self, cases: Sequence[Case]) -> list[Assessment]:
        """The policy's tables with a constant index."""
        return [
            replace(found, table=structs.replace(found.table, index_s=(1.0,) * len(found.table.index_s)))
            for found in IndexPolicy.assess_many(self, cases)
        ]


def _fields(policy: IndexPolicy) -> dict[str, Any]:
    return {field.name: getattr(policy, field.name) for field in fields(policy)}
