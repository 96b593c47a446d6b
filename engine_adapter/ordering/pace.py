"""Pace: how many tokens a step may have so that those who decode keep their time per output token.

A request that decodes has a credit: the time until its next token is due, if its tokens come at the pace of its target
from the first one on. A step may take as long as the least credit; what is left of that time beside decoding is spent
on prompts. A request that is ahead of its pace thus lets a long prompt through, and one that is behind slows prompts
down to a floor, so that they never starve. Who cannot get back to its pace before its answer ends, or could not hold it
in a step without any prompt, is not waited for.

A target is about the mean of all tokens, so that a request may also fall behind for a while: by half of what it wins
back until its answer ends, at the 10% quantile of its length, if prompts take as much of the time as lately, and at
least what those take that are there now. That is done only where a prompt meets its target of time to first token by it
and would miss it otherwise: what is spent on others is lacking when it could save one.

All who decode gain a token in each step, so that the due times of those with the same target keep their order from step
to step, and only the first of each target is looked at. Targets that hardly differ count as the same one, so that there
are few of them whatever clients ask for. Sources: FairBatching (slack of decoding requests), QoServe.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from heapq import heapify, heappop, heappush, heapreplace
from itertools import count
from typing import Literal, NamedTuple

from engine_adapter.ordering.running_order import Tracked
from engine_adapter.ordering.step_shape import FREE_TOKEN_S
from store.records import StepCost

AIM = 0.95
"""Share of the target that is aimed at, for what the step model does not know."""

SPENT = 0.5
"""Share of what a request may win back that is spent: answers may be shorter, and steps longer, than is known now."""

SHARE_MEMORY_S = 30.0
"""Time over which the share of prompts in the steps is known."""

LEAST_PACED_TOKENS = 128
"""Prompt tokens that a step computes at least, however late those are who decode."""

TARGETS_PER_DOUBLING = 32
"""Targets that are told apart between one and its double: they differ by 2%."""

FEWEST_SWEPT = 256
"""Requests that are followed before those that are no longer paced are dropped."""

MOST_PROMPTS = 64
"""Waiting requests among which prompts that can be saved are looked for; where more wait, nobody falls behind."""


class PacedStep(NamedTuple):
    """How long a step may take, in seconds; infinite when nobody is paced."""

    in_time_s: float
    """So that all keep their pace."""
    late_s: float
    """So that all can win it back."""
    usual_s: float
    """What the tightest pace leaves to each step in the mean."""


class PromptToCompute(NamedTuple):
    """A prompt in the order in which they are computed."""

    tokens: int
    """What it and those before it lack."""
    lost_s: float
    """When its target of time to first token is missed; infinite without one."""


class Pace:
    """The decoding requests that have a target of time per output token."""

    def __init__(self) -> None:
        self._due: dict[float, list[tuple[float, int, Tracked]]] = {}
        """By target, the requests in order of the time at which their tokens are due at step 0."""
        self._targets: dict[int, float] = {}
        """By place on a logarithmic scale, the first target that was there; it stands for all that come there."""
        self._until_sweep = FEWEST_SWEPT
        """Requests to follow until the next sweep."""
        self._prompts_share = 1.0
        """Share of the steps' time that prompts took lately; as long as nothing is known, nobody falls behind."""
        self._step = 0
        self._number = count()

    def follow(self, tracked: Tracked) -> None:
        """Pace a request that has its first token and runs."""
        target_s = self._target_s(tracked)
        if target_s is None or tracked.first_token_s is None:
            return
        self._until_sweep -= 1
        if self._until_sweep <= 0:
            self._sweep()
        tracked.paced = True
        heap = self._due.setdefault(target_s, [])
        heappush(heap, (self._origin_s(tracked, target_s), next(self._number), tracked))

    def advance(self, steps: int) -> None:
        """Count a step in which each decoding request generated so many tokens."""
        self._step += steps

    def observe_step(self, step_s: float, prompts_s: float) -> None:
        """Record how long a step takes, and its prompts in it."""
        if step_s > 0.0:
            self._prompts_share -= math.expm1(-step_s / SHARE_MEMORY_S) * (prompts_s / step_s - self._prompts_share)

    @property
    def is_idle(self) -> bool:
        """Whether nobody is paced."""
        return not self._due

    def longest_step(
        self, starts_s: float, decode_s: float, *, tokens_in_flight: int = 0, prompts_s: float = math.inf
    ) -> PacedStep:
        """Return how long a step may take.

        Args:
            starts_s: When the step begins, by the engine's clock.
            decode_s: Seconds of a step without prompts.
            tokens_in_flight: Tokens of each request that steps under way will generate.
            prompts_s: Seconds that all prompts that are there take.
        """
        in_time_s = late_s = usual_s = math.inf
        for target_s in list(self._due):
            aim_s = AIM * target_s
            if aim_s <= decode_s:
                continue
            for tracked, next_s in self._latest(target_s):
                credit_s = next_s + aim_s * tokens_in_flight - starts_s
                if _left_tokens(tracked, "late") * (target_s - decode_s) >= decode_s - credit_s:  # It can get back.
                    left_s = _left_tokens(tracked, "early") * aim_s
                    taken_s = max(prompts_s, self._prompts_share * left_s)
                    won_s = SPENT * max(0.0, left_s * (1.0 - decode_s / aim_s) - taken_s)
                    in_time_s, late_s = min(in_time_s, credit_s), min(late_s, credit_s + won_s)
                    usual_s = min(usual_s, aim_s)
                    break
                self._drop(target_s)
        return PacedStep(in_time_s, late_s, usual_s)

    def _latest(self, target_s: float) -> Iterator[tuple[Tracked, float]]:
        """Yield the request with the least credit, again after it has been dropped, and when its next token is due."""
        heap = self._due[target_s]
        while heap:
            noted_s, _, tracked = heap[0]
            if not tracked.paced:
                heappop(heap)
                continue
            origin_s = self._origin_s(tracked, target_s)
            if origin_s > noted_s:
                heapreplace(heap, (origin_s, next(self._number), tracked))
                continue
            yield tracked, origin_s + AIM * target_s * self._step
        del self._due[target_s]

    def _sweep(self) -> None:
        """Drop the requests that are no longer paced, also those of targets that no step looks at."""
        paced = {target_s: [entry for entry in heap if entry[2].paced] for target_s, heap in self._due.items()}
        self._due = {target_s: heap for target_s, heap in paced.items() if heap}
        for heap in self._due.values():
            heapify(heap)
        self._until_sweep = max(FEWEST_SWEPT, sum(map(len, self._due.values())))

    def _target_s(self, tracked: Tracked) -> float | None:
        """Return a request's target, or the one that stands for it."""
        table = tracked.table
        if table is None or table.targets is None or table.targets.tpot_s is None:
            return None
        target_s = table.targets.tpot_s
        place = round(TARGETS_PER_DOUBLING * math.log2(target_s))
        return self._targets.setdefault(place, target_s)

    def _drop(self, target_s: float) -> None:
        _, _, tracked = heappop(self._due[target_s])
        tracked.paced = False

    def _origin_s(self, tracked: Tracked, target_s: float) -> float:
        """Return when its next token would be due if no step had been counted yet."""
        assert tracked.first_token_s is not None
        return tracked.first_token_s + AIM * target_s * (tracked.count() - self._step)


def saves_prompt(
    prompts: Iterable[PromptToCompute], step: PacedStep, starts_s: float, decode_s: float, cost: StepCost
) -> bool:
    """Whether one of the prompts meets its target if all steps are full of them, and misses it at the usual pace."""
    slow_s, fast_s = (1.0 / _prompt_tokens_per_s(longest_s, decode_s, cost) for longest_s in (step.usual_s, math.inf))
    return any(prompt.tokens * fast_s <= prompt.lost_s - starts_s < prompt.tokens * slow_s for prompt in prompts)


def _prompt_tokens_per_s(longest_s: float, decode_s: float, cost: StepCost) -> float:
    tokens = min(max(LEAST_PACED_TOKENS, (longest_s - decode_s) / cost.prefill_token_s), max(1, cost.budget_tokens))
    return tokens / (decode_s + tokens * cost.prefill_token_s)


def _left_tokens(tracked: Tracked, quantile: Literal["early", "late"]) -> int:
    """Return the tokens that a request still generates, at the 10% or 90% quantile of its length; 0 if that is unknown."""
    table = tracked.table
    lengths = () if table is None else table.early_tokens if quantile == "early" else table.late_tokens
    tokens = tracked.count()
    return max(0, lengths[table.entry(tokens)] - tokens) if table is not None and lengths else 0


def paced_tokens(longest_s: float, decode_s: float, decode_tokens: int, cost: StepCost) -> int | None:
    """Return the largest number of tokens of a step that may take ``longest_s``; None for the engine's own budget.

    >>> cost = StepCost(base_s=0.03, prefill_token_s=1e-4, budget_tokens=8192)
    >>> paced_tokens(0.08, 0.04, 10, cost), paced_tokens(0.0, 0.04, 10, cost), paced_tokens(math.inf, 0.04, 10, cost)
    (410, 138, None)
    """
    if longest_s == math.inf or cost.prefill_token_s <= FREE_TOKEN_S:
        return None
    prefill_tokens = max(LEAST_PACED_TOKENS, (longest_s - decode_s) / cost.prefill_token_s)
    tokens = decode_tokens + prefill_tokens
    return int(tokens) if tokens < cost.budget_tokens else None
