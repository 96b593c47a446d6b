"""What a request will take from the engine, in engine-seconds.

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
    """Prices of what a request uses; the cost is their sum, so that a resource that never binds can be priced 0.

    >>> model = CostModel(kv_token_step_s=0.25, slot_step_s=0.5)
    >>> model.total_s(10, np.array([0, 2, 4])).tolist()
    [0.0, 6.5, 14.0]
    """

    kv_token_step_s: float
    """Engine-seconds for one KV token held during one step."""
    slot_step_s: float = 0.0
    """Engine-seconds for one running sequence during one step."""
    prefill_token_s: float = 0.0
    """Engine-seconds for computing one prompt token; paid before the first output token."""

    def total_s(self, prompt_tokens: int, output_tokens: IntArray | FloatArray) -> FloatArray:
        """Cost up to each of ``output_tokens``, which increases with them: nothing for none, then prefill and decode.

        Differences are the remaining cost: between a > 0 and the end there is no prefill any more.
        """
        tokens = output_tokens.astype(np.float64)
        held = tokens * (0.5 * tokens + prompt_tokens)
        prefill_s = self.prefill_token_s * prompt_tokens * (tokens > 0)
        total_s: FloatArray = self.kv_token_step_s * held + self.slot_step_s * tokens + prefill_s
        return total_s


def memory_cost(engine: EngineFacts) -> CostModel:
    """The paper's cost: the share of the KV cache held, times the time of a step."""
    return CostModel(kv_token_step_s=engine.base_s / engine.kv_tokens)


def hybrid_cost(engine: EngineFacts) -> CostModel:
    """What a request takes of what is scarce, and what it adds to the time of every step that it is in.

    The share of the KV cache held and the share of the slots held are each priced by how much they bind,
    which is learned from the engine's snapshots, times the time of a step.
    Prefill, and what a sequence and its KV tokens add to a step, are the whole engine's time:
    nobody else decodes the faster for them.
    With one kind of prices and no additions this is the paper's cost.
    """
    return CostModel(
        kv_token_step_s=engine.kv_weight * engine.base_s / engine.kv_tokens + engine.kv_token_s,
        slot_step_s=engine.slot_weight * engine.base_s / engine.max_num_seqs + engine.decode_seq_s,
        prefill_token_s=engine.prefill_token_s,
    )
