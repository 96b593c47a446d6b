"""Settings that are adapted to each engine while it serves: the gate's reserve, the boost, and the prices of steps.

`EngineTuning` observes an engine's snapshots and completed requests and, on a slow tick, returns what changed and why.
Reserve and boost move in small steps, between bounds, and only on evidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from msgspec import structs

from controller.core.step_time import StepPrices
from controller.policy.policy import Tuning
from store.records import Finished, Gate, Preempted, Settings, Snapshot, StepCost


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningLimits:
    """How fast and how far settings may move; measured on seeds other than the reported ones."""

    interval_s: float = 10.0
    window_s: float = 300.0
    """Seconds after which the weight of a snapshot is 1/e."""
    steps: int = 1500
    """Smallest number of steps with a queue for which the margin moves."""
    tolerance: float = 3.0
    """Factor by which the ratio of tax to idle share may differ from ``exchange`` before the margin moves."""
    doubt: float = 2.0
    """Standard errors of the number of preemptions by which the ratio must exceed that factor."""
    gain: float = 0.25
    largest_step: float = 1.15
    lowest_margin: float = 0.25
    highest_margin: float = 4.0
    time_scale_answers: float = 200.0
    """Number of answers after which the weight of an answer in the time scale is 1/e."""
    fewest_answers: int = 100
    time_scale_change: float = 1.25
    """Factor by which the time scale must move before the boost follows."""


@dataclass(slots=True)
class _GateEvidence:
    """Fading sums over the steps with a queue: the costs of too small and of too large a reserve."""

    steps: float = 0.0
    idle_steps: float = 0.0
    computed_tokens: float = 0.0
    recomputed_tokens: float = 0.0
    preemptions: float = 0.0

    def add(self, snapshot: Snapshot, fading: float) -> None:
        self.steps = fading * self.steps + snapshot.steps
        idle_share = 1.0 - snapshot.kv_blocks_used / snapshot.kv_blocks
        self.idle_steps = fading * self.idle_steps + snapshot.steps * idle_share
        computed_tokens = snapshot.prefill_tokens + snapshot.decode_tokens
        self.computed_tokens = fading * self.computed_tokens + computed_tokens
        self.recomputed_tokens = fading * self.recomputed_tokens + snapshot.recomputed_tokens
        self.preemptions = fading * self.preemptions + snapshot.preemptions

    @property
    def tax(self) -> float:
        """Tokens computed again / all tokens computed."""
        return self.recomputed_tokens / max(1.0, self.computed_tokens)

    @property
    def idle_share(self) -> float:
        """Share of KV memory that was idle while requests waited."""
        return self.idle_steps / max(1.0, self.steps)


class GateTuner:
    """Weighs the recompute tax against idle KV memory and moves the reserve until they are balanced.

    The reserve for a running request is the gate's ``horizon_tokens`` times its ``margin``; the margin is what moves.
    At the best reserve the tax is about ``exchange`` times the idle share, and around it little changes. Preemptions
    come in bursts, so that the margin moves only if the two differ by more than `TuningLimits` allows.

    >>> tuner = GateTuner(exchange=1.0)
    >>> tuner.margin
    1.0
    """

    def __init__(self, *, exchange: float, margin: float = 1.0, limits: TuningLimits | None = None) -> None:
        self.margin = margin
        self._exchange = exchange
        self._limits = limits or TuningLimits()
        self._evidence = _GateEvidence()
        self._seen_s: float | None = None

    def observe(self, snapshot: Snapshot) -> None:
        """Add a snapshot to the evidence, if requests waited."""
        before_s, self._seen_s = self._seen_s, snapshot.time_s
        if before_s is None or not snapshot.waiting or not snapshot.steps:
            return
        elapsed_s = max(0.0, snapshot.time_s - before_s)
        self._evidence.add(snapshot, math.exp(-elapsed_s / self._limits.window_s))

    def move(self) -> str | None:
        """Move the margin if the evidence is strong enough; returns the reason."""
        limits, evidence = self._limits, self._evidence
        if evidence.steps < limits.steps:
            return None
        ratio = (evidence.tax + _LEAST) / (self._exchange * evidence.idle_share + _LEAST)
        certain = math.log(limits.tolerance) + limits.doubt / math.sqrt(evidence.preemptions + 1.0)
        if abs(math.log(ratio)) < certain:
            return None
        step = min(max(ratio**limits.gain, 1.0 / limits.largest_step), limits.largest_step)
        margin = min(max(self.margin * step, limits.lowest_margin), limits.highest_margin)
        if margin == self.margin:
            return None
        why = "more" if margin > self.margin else "less"
        self.margin = margin
        return (
            f"reserve {why} for growth (margin {margin:.2f}): recompute tax {evidence.tax:.1%}, "
            f"{evidence.idle_share:.1%} of the KV cache idle while requests wait"
        )


_LEAST = 0.002
"""Smallest tax and idle share that count as more than none."""


class BoostTuner:
    """Makes γ follow the time scale of the traffic: the boost's ``scale`` over the mean time from arrival to end.

    γ has the unit 1/s: an engine twice as fast, or a queue half as deep, needs twice the γ for the same order. The time
    that answers run would not do: in overload waits are many times as long, and the order would become that of arrival.
    """

    def __init__(self, *, scale: float, boost_per_s: float, limits: TuningLimits | None = None) -> None:
        self.boost_per_s = boost_per_s
        self._scale = scale
        self._limits = limits or TuningLimits()
        self._answers = 0
        self._mean_s = 0.0

    @property
    def response_s(self) -> float | None:
        """Mean seconds from arrival to end; None while too few answers are known."""
        return self._mean_s if self._answers >= self._limits.fewest_answers else None

    def record(self, finished: Finished) -> None:
        """Record a completed request."""
        if finished.reason not in {"stop", "length"}:
            return
        self._answers += 1
        weight = max(1.0 / self._answers, 1.0 / self._limits.time_scale_answers)
        self._mean_s += weight * (max(0.0, finished.time_s - finished.arrival_s) - self._mean_s)

    def move(self) -> str | None:
        """Let γ follow the time scale if that has moved enough; returns the reason."""
        response_s = self.response_s
        if not response_s:
            return None
        wanted_per_s = self._scale / response_s
        change = max(wanted_per_s / self.boost_per_s, self.boost_per_s / wanted_per_s)
        if change < self._limits.time_scale_change:
            return None
        self.boost_per_s = wanted_per_s
        return f"boost {wanted_per_s:.3g}/s: answers end {response_s:.1f} s after their arrival"


class RecomputePrice:
    """Expected cost of a lost computed token: the time of prefilling it, unless the prefix cache still has it.

    >>> price = RecomputePrice()
    >>> price.move(1e-4), price.token_s
    ('a lost token costs 0.1 ms', 0.0001)
    """

    def __init__(self) -> None:
        self.token_s: float | None = None
        """The price in force; None before it is known."""
        self._lost_tokens = 0.0
        self._recomputed_tokens = 0.0

    def record(self, preempted: Preempted) -> None:
        """Record the tokens that a preempted request lost."""
        self._lost_tokens = _REMEMBERED * self._lost_tokens + preempted.lost_tokens
        self._recomputed_tokens *= _REMEMBERED

    def observe(self, snapshot: Snapshot) -> None:
        """Record the tokens that were computed again."""
        self._recomputed_tokens += snapshot.recomputed_tokens

    def move(self, prefill_token_s: float) -> str | None:
        """Follow the step model and the prefix cache, if they have moved enough; returns the reason."""
        again = min(1.0, self._recomputed_tokens / self._lost_tokens) if self._lost_tokens else 1.0
        wanted_s = again * prefill_token_s
        if self.token_s is not None and abs(wanted_s - self.token_s) <= 0.25 * self.token_s:
            return None
        self.token_s = wanted_s
        return f"a lost token costs {1000 * wanted_s:.3g} ms"


class StepCostWatch:
    """The step times that engines bound prefill by; they follow the step model when it has moved enough.

    Args:
        budget_tokens: Largest number of tokens that the engine computes in a step.
    """

    def __init__(self, budget_tokens: int) -> None:
        self.cost: StepCost | None = None
        """None before the first fit."""
        self._budget_tokens = budget_tokens

    def move(self, prices: StepPrices) -> str | None:
        """Follow the fitted model; returns the reason of a change."""
        model = prices.model
        if model is None or model.prefill_token_s <= 0.0:
            return None
        if self.cost is not None and not (
            _moved(self.cost.base_s, model.base_s) or _moved(self.cost.prefill_token_s, model.prefill_token_s)
        ):
            return None
        self.cost = StepCost(
            base_s=model.base_s,
            prefill_token_s=model.prefill_token_s,
            budget_tokens=self._budget_tokens,
            decode_seq_s=model.decode_seq_s,
            kv_token_s=model.kv_token_s,
        )
        return f"a step takes {1000 * model.base_s:.3g} ms and a prompt token {1000 * model.prefill_token_s:.3g} ms"


def _moved(former: float, new: float) -> bool:
    return abs(new - former) > STEP_COST_CHANGE * former


STEP_COST_CHANGE = 0.25
"""Share by which a step time must differ from the one in force before engines are told."""

_REMEMBERED = 0.99
"""Factor by which each further preemption fades the tokens lost and computed again before."""


@dataclass(slots=True)
class EngineTuning:
    """Everything that is adapted to one engine."""

    tuning: Tuning | None
    budget_tokens: int = 0
    """The engine's largest number of tokens in a step; 0 where steps are not shaped."""
    limits: TuningLimits = field(default_factory=TuningLimits)
    prices: StepPrices = field(default_factory=StepPrices)
    boost: BoostTuner = field(init=False)
    recompute: RecomputePrice = field(default_factory=RecomputePrice)
    _gate: GateTuner | None = field(init=False, default=None)
    _step: StepCostWatch | None = field(init=False, default=None)
    _next_s: float = field(init=False, default=-math.inf)

    def __post_init__(self) -> None:
        tuning = self.tuning
        scale = tuning.boost_scale if tuning and tuning.boost_scale else 1.0
        start_per_s = tuning.boost_per_s if tuning and tuning.boost_per_s else scale
        self.boost = BoostTuner(scale=scale, boost_per_s=start_per_s, limits=self.limits)
        if tuning is not None and tuning.gate_exchange is not None:
            self._gate = GateTuner(exchange=tuning.gate_exchange, limits=self.limits)
        if tuning is not None and tuning.shapes and self.budget_tokens > 0:
            self._step = StepCostWatch(self.budget_tokens)

    def observe(self, snapshot: Snapshot) -> None:
        """Observe a snapshot."""
        self.prices.observe(snapshot)
        self.recompute.observe(snapshot)
        if self._gate is not None and snapshot.mode == "on":
            self._gate.observe(snapshot)

    def record(self, finished: Finished) -> None:
        """Record a completed request."""
        self.boost.record(finished)

    def due(self, now_s: float) -> list[str]:
        """Move the settings that the evidence supports; returns the reasons, none if nothing moved.

        All of them on the slow tick; only a new engine's step times sooner, since without them no step keeps a pace.
        """
        slow = now_s >= self._next_s
        if not slow and not self.prices.has_news:
            return []
        self.prices.fit()
        reasons = [self._step.move(self.prices) if self._step else None]
        if slow:
            self._next_s = now_s + self.limits.interval_s
            reasons += self._moved()
        return [reason for reason in reasons if reason is not None]

    def _moved(self) -> list[str | None]:
        reasons = [self._gate.move() if self._gate else None]
        if self.tuning is not None and self.tuning.boost_scale is not None:
            reasons.append(self.boost.move())
        if self.tuning is not None and self.tuning.preempts:
            reasons.append(self.recompute.move(self.prices.prefill_token_s))
        return reasons

    def applied(self, settings: Settings) -> Settings:
        """The operator's settings with this engine's own reserve, boost and price of preemption."""
        rules = settings.rules
        gate = rules.gate
        if gate is not None and self._gate is not None:
            gate = Gate(horizon_tokens=gate.horizon_tokens, margin=gate.margin * self._gate.margin)
        boost_per_s = rules.boost_per_s
        if self.tuning is not None and self.tuning.boost_scale is not None:
            boost_per_s = self.boost.boost_per_s
        preemption = rules.preemption
        if preemption is not None and self.recompute.token_s is not None:
            preemption = structs.replace(preemption, token_s=self.recompute.token_s)
        step = self._step.cost if self._step else rules.step
        tuned = structs.replace(rules, gate=gate, boost_per_s=boost_per_s, preemption=preemption, step=step)
        return structs.replace(settings, rules=tuned)
