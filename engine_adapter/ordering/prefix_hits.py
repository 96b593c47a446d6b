"""Looks waiting requests up in the engine's prefix cache, at a bounded price per step.

A look-up costs one comparison for each block of the hit, and in some models of the whole prompt, which may have ten
thousand blocks. Each step earns
`HASHES_PER_STEP` comparisons; a look-up that costs more is paid for by later steps. New requests are looked up as soon
as there is credit, those at the head of the queue again from time to time: blocks that they would hit may be freed,
taken by others, or computed by a request with the same prefix.
"""

from __future__ import annotations

from typing import Any

from engine_adapter.ordering.kv_memory import KvMemory
from engine_adapter.ordering.running_order import Tracked

HASHES_PER_STEP = 128
"""Comparisons of block hashes that a step earns."""

SAVED_STEPS = 16
"""Steps whose comparisons an idle look-up may save for a burst of arrivals."""

REFRESH_STEPS = 8
"""Fewest steps between two look-ups of the same request; a long hit is looked up again later by its own price."""

HEAD = 4
"""Requests at the head of the queue that are looked up again."""


class PrefixHits:
    """The latest look-up of each waiting request.

    Args:
        block_size_tokens: Tokens in a block of the prefix cache.
    """

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._step = 0
        self._credit = HASHES_PER_STEP * SAVED_STEPS

    def begin_step(self) -> None:
        """Earn the comparisons of a step."""
        self._step += 1
        self._credit = min(self._credit + HASHES_PER_STEP, HASHES_PER_STEP * SAVED_STEPS)

    @property
    def affordable(self) -> bool:
        """Whether a look-up may be done now."""
        return self._credit > 0

    def refresh(self, tracked: Tracked, request: Any, memory: KvMemory) -> bool:  # noqa: ANN401 - the engine's request
        """Look a request up if that is due and affordable; return whether its hit is new."""
        if self._step < tracked.hit_due_step or self._credit <= 0:
            return False
        first, former = not tracked.hit_due_step, tracked.hit
        tracked.hit = memory.hit(request)
        price = 1 + max(tracked.hit.searched_blocks, tracked.hit.tokens // self._block_size_tokens)
        self._credit -= price
        tracked.hit_due_step = self._step + REFRESH_STEPS + price // HASHES_PER_STEP
        return first or tracked.hit != former
