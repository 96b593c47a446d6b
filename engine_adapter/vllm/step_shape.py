"""Bounds a vLLM scheduler's step: its token budget, and how much of one prompt a step computes.

vLLM reads both in every step. Nothing of ours is above what the operator configured.
"""

from __future__ import annotations

from vllm.v1.core.sched.async_scheduler import AsyncScheduler


class StepShape:
    """The token budget of a vLLM scheduler's step and the limit on one prompt's share of it.

    A step that is too small would leave prompts without a token for ever: the floors are a KV block, Mamba's alignment,
    and in the budget a token of each running request beside it. Without chunked prefill nothing is bounded, since
    a prompt is then computed in one step or never.

    Args:
        scheduler: The scheduler to bound.
    """

    def __init__(self, scheduler: AsyncScheduler) -> None:
        config = scheduler.scheduler_config
        self._scheduler = scheduler
        self._own_step_tokens = int(scheduler.max_num_scheduled_tokens)
        self._own_chunk_tokens = int(config.long_prefill_token_threshold)
        self._chunked = bool(config.enable_chunked_prefill) and not config.disable_chunked_mm_input
        self._decode_tokens = 1 + int(scheduler.num_spec_tokens)
        self._floor_tokens = max(
            scheduler.block_size,
            scheduler.cache_config.block_size or 0,
            getattr(scheduler, "mamba_prefill_checkpoint_alignment", None) or 0,
            getattr(scheduler, "num_prefill_lookahead", 0) + 1,
            self._decode_tokens,
        )
        self.step_tokens: int | None = None
        """The budget in force; None while it is the operator's own."""
        self.chunk_tokens: int | None = None
        """The limit on one prompt in force; None while it is the operator's own."""

    def apply(self, step_tokens: int | None, chunk_tokens: int | None) -> None:
        """Set both bounds, or return to the operator's own where they are None or no tighter than these."""
        step = self._step(step_tokens)
        chunk = self._chunk(chunk_tokens)
        if step != self.step_tokens:
            self.step_tokens = step
            self._scheduler.max_num_scheduled_tokens = self._own_step_tokens if step is None else step
        if chunk != self.chunk_tokens:
            self.chunk_tokens = chunk
            config = self._scheduler.scheduler_config
            config.long_prefill_token_threshold = self._own_chunk_tokens if chunk is None else chunk

    def give_back(self) -> None:
        """Return to the operator's own bounds."""
        self.apply(None, None)

    def _step(self, step_tokens: int | None) -> int | None:
        if step_tokens is None or not self._chunked:
            return None
        floor = self._floor_tokens + self._decode_tokens * len(self._scheduler.running)
        tokens = max(step_tokens, floor)
        return tokens if tokens < self._own_step_tokens else None

    def _chunk(self, chunk_tokens: int | None) -> int | None:
        if chunk_tokens is None or not self._chunked:
            return None
        tokens = max(chunk_tokens, self._floor_tokens)
        return tokens if tokens < (self._own_chunk_tokens or self._own_step_tokens) else None
