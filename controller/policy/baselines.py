"""The baselines' schedules, each as its source describes it, and the variants of ours that a benchmark compares.

Each order is a pure function from a request and its predicted distribution to an index table; the lowest index runs first.
Rules beyond ordering (preemption at every step, promotion of starving requests) are separate `Ordering` classes.
The baselines have no admission of their own: they admit as vLLM does, in a tuned benchmark at their best static watermark.
Baselines that need a prediction use our mixture's, so that only schedules differ; the paper's policies use its predictor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
from msgspec import structs

from controller.policy.ablations import ABLATION_NAMES, without
from controller.policy.baseline_ordering import PreemptiveOrdering, PromotingOrdering
from controller.policy.cost import memory_cost
from controller.policy.gittins import survival_beyond
from controller.policy.index_table import expected_cost_s, index_table
from controller.policy.policies import POLICY_NAMES, Objective, Schedule, policy_named
from controller.policy.policy import (
    DEFAULT_PREFILL_TOKEN_S,
    INDEX_ALONE,
    Assessment,
    EngineFacts,
    Policy,
    RequestFacts,
    Tuning,
)
from engine_adapter.ordering.ordering import Ordering, OrderingFactory
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from online_learning.distribution import LengthDistribution
from store.errors import ConfigError
from store.records import EngineRules, IndexTable, Preemption

PAPER = "sagesched-paper"
PAPER_VARIANTS = tuple(
    f"{PAPER}/{buckets}{preemptive}" for preemptive in ("", "/preemptive") for buckets in ("200-tokens", "10-buckets")
)
"""The paper names two refreshes of the index, in buckets of 200 tokens and in 10 buckets, and is preemptive without
naming a price. All four variants run, and the best by mean TTLT is reported."""

PRIORITY = "priority"
"""vLLM's own order by the requests' classes, then by arrival (``--scheduling-policy priority``)."""

ENGINE_ORDERS = ("fcfs", PRIORITY)
"""Policies that leave the order to the engine."""

OBJECTIVES: dict[str, Objective] = {"sage-mean": "mean", "sage-balanced": "balanced", "sage-tail": "tail"}
"""Names of `sage` with each objective, for one table; `sage` itself has the configured objective."""

PREEMPTIVE = "sage-with-preemption"
"""`sage` with waiting requests that preempt running ones of at least twice their index, if that pays for the lost tokens."""

WITHOUT_TARGETS = "sage-without-targets"
"""`sage` that is not told targets and shares."""

GATED = {"fcfs-gated": "fcfs", "srpt-oracle-gated": "srpt-oracle"}
"""Our admission with other orders, which separates the gain of admission from that of ordering."""

BENCH_POLICY_NAMES = tuple(
    dict.fromkeys(
        ("fcfs", PRIORITY, "fastserve", "ssjf", "ltr", "trail", *POLICY_NAMES, *OBJECTIVES, PREEMPTIVE, *GATED)
    )
)

Order: TypeAlias = Callable[[RequestFacts, LengthDistribution, EngineFacts], IndexTable]


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """A policy with an order of its own.

    Args:
        name: name in the benchmark's tables.
        order: function from a request, its predicted distribution and the engine to an index table.
        make_ordering: makes the engine's ordering, which applies the tables.
        rules: by default vLLM's own admission, and vLLM's own victim when memory runs out.
        tuning: parts that are adapted to each engine; None for none.
        orders: False for the engine's own order.
        scheduling: the engine's own order.
    """

    name: str
    order: Order
    make_ordering: OrderingFactory = Ordering
    rules: EngineRules = INDEX_ALONE
    tuning: Tuning | None = None
    orders: bool = True
    scheduling: Scheduling = "fcfs"

    def assess(self, request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> Assessment:
        """The baseline's table; the cost is the paper's and is only recorded."""
        cost_s = expected_cost_s(request, predicted, memory_cost(engine))
        return Assessment(table=self.order(request, predicted, engine), cost_s=cost_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchContext:
    """Inputs for policies in a benchmark.

    Args:
        schedule: settings of `sage`; policies with our gate use its gate.
        lengths: true output tokens by request id, for oracles.
    """

    schedule: Schedule
    lengths: Mapping[str, int]


def is_ours(name: str) -> bool:
    """Whether a policy has our admission; benchmarks never tune the watermark of such policies."""
    return name in {"sage", PREEMPTIVE} or name in OBJECTIVES or name in GATED or name in ABLATION_NAMES


def knows_service(name: str) -> bool:
    """Whether a policy is told targets and tenants' shares and keeps them: ours, and no other's order under our gate."""
    return is_ours(name) and name not in GATED and name != WITHOUT_TARGETS


def variants_of(name: str) -> tuple[str, ...]:
    """The variants of a policy that are run; the best one represents it."""
    return PAPER_VARIANTS if name == PAPER else (name,)


def bench_policy(name: str, context: BenchContext) -> Policy:
    """The policy or variant of this name; raises `ConfigError` for an unknown one."""
    if name in PAPER_VARIANTS:
        order = paper_200_tokens if "200" in name else paper_10_buckets
        preemptive = name.endswith("/preemptive")
        return Baseline(name=name, order=order, make_ordering=PreemptiveOrdering if preemptive else Ordering)
    if name in ABLATION_NAMES:
        return without(bench_policy("sage", context), name)
    if name in GATED:
        return _gated(name, context)
    baselines: dict[str, Policy] = {
        PRIORITY: Baseline(name=PRIORITY, order=by_arrival, orders=False, scheduling="priority"),
        "fastserve": Baseline(name="fastserve", order=skip_join_levels, make_ordering=PreemptiveOrdering),
        "ssjf": Baseline(name="ssjf", order=shortest_mean_first),
        "ltr": Baseline(
            name="ltr",
            order=median_rank,
            make_ordering=partial(PromotingOrdering, idle_steps=200, promoted_steps=10),
        ),
        "trail": Baseline(name="trail", order=expected_remaining, make_ordering=PreemptiveOrdering),
    }
    if name in baselines:
        return baselines[name]
    return _form(name, context)


def _form(name: str, context: BenchContext) -> Policy:
    """A variant of ours, or a policy that also runs live."""
    if name in OBJECTIVES:
        return replace(context.schedule, objective=OBJECTIVES[name]).policy()
    if name == PREEMPTIVE:
        price = Preemption(token_s=DEFAULT_PREFILL_TOKEN_S, hysteresis=0.5)
        return replace(context.schedule, preemption=price).policy()
    return policy_named(name, schedule=context.schedule, lengths=context.lengths)


def ordering_of(policy: Policy) -> OrderingFactory:
    """The ordering with which an engine in virtual time applies a policy's tables; ours is that of live engines."""
    return policy.make_ordering if isinstance(policy, Baseline) else Ordering


def scheduling_of(policy: Policy) -> Scheduling:
    """The engine's own order under a policy, which holds where the policy does not order."""
    return policy.scheduling if isinstance(policy, Baseline) else "fcfs"


# --- orders ---------------------------------------------------------------------------------------


def by_arrival(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """A constant index: the order of arrival."""
    return _table(request, [0], [0.0])


def skip_join_levels(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """FastServe's skip-join multi-level feedback queue: the less service attained, the earlier; no prediction.

    Level i may use a quantum of 2^i of the shortest iteration. A request joins the first level whose quantum covers
    its first iteration, which is known from the prompt's length, skips those above, and falls a level
    with every quantum that it uses up; within a level, and when it comes back, first come is first served.
    Left out: the promotion of starving requests, whose limit the source leaves to the operator and which increases
    the mean, and the swapping of KV to the host, which vLLM no longer has; preempted requests are recomputed.
    Source: Wu et al., "Fast Distributed Inference Serving for Large Language Models" (arXiv 2305.05920), section 4.1.
    """
    first_s = engine.base_s + engine.prefill_token_s * request.prompt_tokens
    level = max(0, math.ceil(math.log2(first_s / engine.base_s)))
    attained, levels = [0], [float(level)]
    left_s = engine.base_s * 2**level - first_s
    while (tokens := 1 + math.floor(left_s / engine.base_s + 1e-9)) < request.max_tokens:
        level += 1
        attained.append(tokens)
        levels.append(float(level))
        left_s += engine.base_s * 2**level
    return _table(request, attained, levels)


def shortest_mean_first(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """SSJF: waiting requests by their predicted mean length; started ones keep their place, in order of arrival.

    Source: Qiu et al., "Efficient Interactive LLM Serving with Proxy Model-based Sequence Length Prediction"
    (arXiv 2404.08509), speculative shortest job first.
    """
    return _table(request, [0, 1], [predicted.mean_tokens, 0.0])


def median_rank(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """LTR: all requests, waiting and running, by the rank of their predicted length, which age does not change.

    The median replaces the learned rank. `PromotingOrdering` adds preemption at every step, and the promotion of
    requests that did not run for 200 steps until they have run for 10.
    Source: Fu et al., "Efficient LLM Scheduling by Learning to Rank" (NeurIPS 2024, arXiv 2408.15792), algorithm 1.
    """
    return _table(request, [0], [float(predicted.quantile(0.5))])


def expected_remaining(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """TRAIL: shortest predicted remaining length first, refreshed with age; no preemption beyond 80%.

    The conditional mean at an age replaces the refreshed prediction of the source's classifier, which reads the
    model's hidden state. From 0.8 of the first prediction on, a request goes before all others.
    Source: Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for LLMs" (arXiv 2410.01035),
    SPRPT with limited preemption, C = 0.8.
    """
    safe_from = max(1, math.ceil(_SAFE_SHARE * predicted.mean_tokens))
    ages = np.union1d([0], predicted.lengths)
    mass = np.zeros(ages.size)
    mass[np.searchsorted(ages, predicted.lengths)] = predicted.mass
    alive = survival_beyond(mass)
    remaining = survival_beyond(mass * ages) / np.where(alive > 0.0, alive, 1.0) - ages
    young = ages < safe_from
    return _table(request, [*ages[young].tolist(), safe_from], [*remaining[young].tolist(), 0.0])


def paper_200_tokens(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """SageSched's Gittins index of the memory cost, refreshed every 200 tokens.

    Source: arXiv 2603.07917; memory cost O²/2 + I·O, the index at bucket borders, nothing else.
    """
    return index_table(request, predicted, memory_cost(engine), horizon_tokens=0, refresh_tokens=200)


def paper_10_buckets(request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts) -> IndexTable:
    """The same, refreshed at the borders of ten equal buckets up to the longest predicted length."""
    longest = min(int(predicted.lengths[-1]), request.max_tokens)
    refresh_tokens = max(1, math.ceil(longest / 10))
    return index_table(request, predicted, memory_cost(engine), horizon_tokens=0, refresh_tokens=refresh_tokens)


_SAFE_SHARE = 0.8


def _table(request: RequestFacts, attained: list[int], index: list[float]) -> IndexTable:
    return IndexTable(
        request_id=request.request_id,
        attained_tokens=tuple(attained),
        index_s=tuple(index),
        growth_tokens=(0.0,) * len(attained),
    )


# --- our admission, their order ---------------------------------------------------------------------


def _gated(name: str, context: BenchContext) -> Policy:
    """Another order with our gate, which uses our predictions even if the order uses the true lengths."""
    ours = context.schedule.policy()
    gate = ours.rules.gate
    if gate is None:
        raise ConfigError(f"policy {name!r} is our gate with another's order, and the gate is off: turn it on")
    theirs = policy_named(GATED[name], lengths=context.lengths)
    order = partial(_with_growth, theirs=theirs, horizon_tokens=gate.horizon_tokens)
    tuning = replace(ours.tuning, boost_scale=None, boost_per_s=None) if ours.tuning else None
    rules = EngineRules(gate=gate, victims=ours.rules.victims)
    return Baseline(name=name, order=order, rules=rules, tuning=tuning)


def _with_growth(
    request: RequestFacts, predicted: LengthDistribution, engine: EngineFacts, *, theirs: Policy, horizon_tokens: int
) -> IndexTable:
    """Another policy's index and our expected growth, in one table."""
    index = theirs.assess(request, predicted, engine).table
    growth = index_table(request, predicted, memory_cost(engine), horizon_tokens=horizon_tokens)
    attained = sorted({*index.attained_tokens, *growth.attained_tokens})
    return structs.replace(
        growth,
        attained_tokens=tuple(attained),
        index_s=_held(index.attained_tokens, index.index_s, attained),
        growth_tokens=_held(growth.attained_tokens, growth.growth_tokens, attained),
    )


def _held(steps: tuple[int, ...], values: tuple[float, ...], attained: list[int]) -> tuple[float, ...]:
    """A step function at each of these."""
    places = np.searchsorted(steps, attained, side="right") - 1
    return tuple(np.asarray(values)[places].tolist())
