"""The cost of a request in engine-seconds.

An engine-second is the whole engine for a second: all its KV memory, all its slots, all its compute.
A request that holds a tenth of the KV cache for ten steps of 0.03 s has used 0.03 engine-seconds of memory.

With I prompt and O output tokens the KV tokens held, summed over the steps of the answer, are

    C = O²/2 + I·O        (SageSched, arXiv 2603.07917: memory cost)

and what remains when ``a`` tokens have been generated is C(O) - C(a).
The paper leaves out prefill, the constant time per step and the slots; `hybrid_cost` adds them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from controller.policy.policy import EngineFacts
from online_learning.distribution import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """Prices of the resources that a request uses; its cost is the sum over resources, and a price may be 0.

    For the requests of several engines prices are columns, of shape (requests, 1), as are the arguments of `total_s`.

    >>> model = CostModel(kv_token_step_s=0.25, slot_step_s=0.5)
    >>> model.total_s(10, np.array([0, 2, 4])).tolist()
    [0.0, 6.5, 14.0]
    """

    kv_token_step_s: float | FloatArray
    """Engine-seconds for one KV token held during one step."""
    slot_step_s: float | FloatArray = 0.0
    """Engine-seconds for one running sequence during one step."""
    prefill_token_s: float | FloatArray = 0.0
    """Engine-seconds for computing one prompt token, which precedes the first output token."""

    def total_s(
        self,
        prompt_tokens: float | FloatArray,
        output_tokens: IntArray | FloatArray,
        *,
        cached_tokens: float | FloatArray = 0,
    ) -> FloatArray:
        """Cost in engine-seconds of generating each number of output tokens: 0 for none, else prefill and decode.

        The difference of two values is the cost between them, so that the cost remaining after a > 0 has no prefill.

        Args:
            prompt_tokens: length of the prompt.
            output_tokens: numbers of output tokens, of shape (n,), increasing.
            cached_tokens: prompt tokens in the prefix cache, which are held and not computed.

        Returns:
            Costs of shape (n,), increasing.
        """
        tokens = output_tokens.astype(np.float64)
        held = tokens * (0.5 * tokens + prompt_tokens)
        prefill_s = self.prefill_token_s * (prompt_tokens - cached_tokens) * (tokens > 0)
        total_s: FloatArray = self.kv_token_step_s * held + self.slot_step_s * tokens + prefill_s
        return total_s


def memory_cost(engine: EngineFacts) -> CostModel:
    """The paper's cost: the share of the KV cache held, times the time of a step."""
    return CostModel(kv_token_step_s=engine.base_s / engine.kv_tokens)


def hybrid_cost(engine: EngineFacts) -> CostModel:
    """The scarce resources that a request holds, and the time that it adds to each of its steps.

    The shares of the KV cache and of the slots that it holds are weighted by their scarcity, which is learned from
    the engine's snapshots, and multiplied by the time of a step.
    Prefill, and the time that a sequence and its KV tokens add to a step, occupy the whole engine.
    With only the weight of KV memory and no added time this is the paper's cost.
    """
    return CostModel(
        kv_token_step_s=engine.kv_weight * engine.base_s / engine.kv_tokens + engine.kv_token_s,
        slot_step_s=engine.slot_weight * engine.base_s / engine.max_num_seqs + engine.decode_seq_s,
        prefill_token_s=engine.prefill_token_s,
    )
