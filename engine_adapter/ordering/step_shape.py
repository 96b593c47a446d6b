"""Shape of a step: how much of a long prompt one step computes while others are there to be delayed by it.

A step computes the prompts of its requests together, and nobody's next token comes before it ends. With a fixed time
``base`` per step and ``p`` seconds for a prompt token, chunks of ``c`` tokens cost each of the ``k`` requests whose
prompts are not computed a further ``base`` for every ``c`` tokens, and an arrival waits for half a chunk on average,
``λ`` times a second. The sum of both delays, per prompt token ``k·base/c + λ·p·(p·c)/2``, is least at

    c = sqrt(2 · base · k / λ) / p

but not below the chunk whose fixed time is `LARGEST_OVERHEAD` of its prefill: that bounds what a long prompt itself pays.
With a deep queue ``k`` is large and ``c`` exceeds the engine's own budget: throughput then comes first and nothing is shaped.
Short prompts, those that together fill at most half of a step, are computed whole; a long one gets what they leave.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from store.records import StepCost

LEAST_CHUNK_TOKENS = 512
"""Smallest chunk of a long prompt; it also exceeds the block sizes of all KV layouts, so that a chunk makes progress."""

FREE_TOKEN_S = 1e-12
"""A prompt token that takes no longer than this costs nothing: a fit that found no cost leaves as little."""

LARGEST_OVERHEAD = 0.125
"""Largest ratio of the fixed time of a step to the time of its chunk."""

RATE_ARRIVALS = 64
"""Latest arrivals of which the rate is computed."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """Bounds of the next step; None leaves the engine's own."""

    step_tokens: int | None = None
    chunk_tokens: int | None = None

    def within(self, step_tokens: int | None) -> StepShape:
        """Return this shape with at most so many tokens in the step; None leaves it as it is."""
        if step_tokens is None or (self.step_tokens is not None and self.step_tokens <= step_tokens):
            return self
        return StepShape(step_tokens, self.chunk_tokens)


OWN_SHAPE = StepShape()


class ArrivalRate:
    """Arrivals per second, of the latest ones until now.

    >>> rate = ArrivalRate()
    >>> for second in range(5):
    ...     rate.observe(float(second))
    >>> rate.per_s(4.0), rate.per_s(8.0)
    (1.0, 0.5)
    """

    def __init__(self) -> None:
        self._latest_s: deque[float] = deque(maxlen=RATE_ARRIVALS)

    def observe(self, arrival_s: float) -> None:
        """Record an arrival."""
        self._latest_s.append(arrival_s)

    def per_s(self, now_s: float) -> float:
        """Return the rate; 0 before the second arrival."""
        if len(self._latest_s) < 2:
            return 0.0
        return (len(self._latest_s) - 1) / max(now_s - min(self._latest_s), 1e-3)


def shape_step(
    prompts: Sequence[int],
    *,
    unplaced: int,
    decode_tokens: int,
    cost: StepCost,
    arrivals_per_s: float,
) -> StepShape:
    """Return the bounds of a step that computes these prompts beside decoding requests.

    Args:
        prompts: Tokens that the prompts in the step lack, those of requests that the step admits among them.
        unplaced: Waiting requests that the step does not admit.
        decode_tokens: Tokens of the requests that decode, with those of a speculation.
        cost: The engine's step times and budget.
        arrivals_per_s: Requests that arrive in a second.

    Returns:
        Bounds that never exceed the engine's own; those of `OWN_SHAPE` when nobody would gain.

    >>> cost = StepCost(base_s=0.033, prefill_token_s=1.4e-4, budget_tokens=8192)
    >>> shape_step([100_000, 300], unplaced=0, decode_tokens=4, cost=cost, arrivals_per_s=1.0)
    StepShape(step_tokens=2599, chunk_tokens=2295)
    >>> shape_step([300, 300], unplaced=0, decode_tokens=4, cost=cost, arrivals_per_s=1.0)
    StepShape(step_tokens=None, chunk_tokens=None)
    """
    room_tokens = cost.budget_tokens - decode_tokens
    if not prompts or cost.prefill_token_s <= FREE_TOKEN_S or room_tokens <= LEAST_CHUNK_TOKENS:
        return OWN_SHAPE
    delayed = len(prompts) + unplaced
    best_tokens = math.inf
    if arrivals_per_s > 0.0:
        best_tokens = math.sqrt(2.0 * cost.base_s * delayed / arrivals_per_s) / cost.prefill_token_s
    least_tokens = max(LEAST_CHUNK_TOKENS, cost.base_s / (LARGEST_OVERHEAD * cost.prefill_token_s))
    prefill_tokens = int(min(room_tokens, max(best_tokens, least_tokens)))
    if sum(prompts) <= prefill_tokens:
        return OWN_SHAPE
    short_tokens, long_prompts = _split(prompts, prefill_tokens)
    if prefill_tokens == room_tokens and not short_tokens:
        return OWN_SHAPE
    prefill_tokens = min(room_tokens, max(prefill_tokens, short_tokens + LEAST_CHUNK_TOKENS))
    chunk_tokens = max(LEAST_CHUNK_TOKENS, (prefill_tokens - short_tokens) // long_prompts)
    return StepShape(step_tokens=decode_tokens + prefill_tokens, chunk_tokens=chunk_tokens)


def _split(prompts: Sequence[int], prefill_tokens: int) -> tuple[int, int]:
    """Return the tokens of the short prompts, and the number of the others, at least 1."""
    short_tokens = short = 0
    for tokens in sorted(prompts)[:-1]:
        if 2 * (short_tokens + tokens) > prefill_tokens:
            break
        short_tokens += tokens
        short += 1
    return short_tokens, len(prompts) - short
