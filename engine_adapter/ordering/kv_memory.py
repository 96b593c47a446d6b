"""What ordering and admission need to know about an engine's KV memory, one interface for every engine.

Blocks of a cached prompt prefix that running requests hold are not needed again, and preempting one of their holders
does not free them. Cached blocks that nobody holds stay counted as needed: using them takes them from the free ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class PrefixHit:
    """What a waiting request would find in the prefix cache if it were admitted now.

    >>> PrefixHit(tokens=8192, held_blocks=500).held_blocks
    500
    """

    tokens: int = 0
    """Tokens whose KV is cached, which are not computed again."""
    held_blocks: float = 0.0
    """Blocks of these that running requests hold, in the unit of `KvMemory.free_blocks`."""
    searched_blocks: int = 0
    """Blocks that the look-up went through, where these are not those of the hit."""


NO_HIT = PrefixHit()


class KvMemory(Protocol):
    """The KV memory of an engine at the start of a step."""

    @property
    def free_blocks(self) -> int:
        """Blocks that a waiting request may take: the free ones without the engine's watermark."""
        ...

    def hit(self, request: Any) -> PrefixHit:  # noqa: ANN401 - the engine's own request
        """Look a waiting request up in the prefix cache; its price grows with the length of the hit, or what it says."""
        ...

    def freed_blocks(self, request: Any) -> float | None:  # noqa: ANN401 - as above
        """Return the blocks that become free when a running request is preempted: those that no other holds.

        None when they cannot be freed now, for example while a step in flight still writes to them.
        """
        ...

    def blocks(self, tokens: float) -> float:
        """Return the blocks that a request of this many tokens holds, the last one perhaps in part."""
        ...


@dataclass(frozen=True, slots=True)
class PlainMemory:
    """KV memory without a prefix cache, of a model whose layers all keep every token.

    >>> memory = PlainMemory(free_blocks=10, block_size_tokens=16)
    >>> memory.blocks(40), memory.hit(None).tokens
    (2.5, 0)
    """

    free_blocks: int
    block_size_tokens: int

    def hit(self, request: Any) -> PrefixHit:  # noqa: ANN401 - as in `KvMemory`
        """Nothing is cached."""
        return NO_HIT

    def freed_blocks(self, request: Any) -> float:  # noqa: ANN401 - as in `KvMemory`
        """Return all blocks of a running request."""
        return float(-(-request.num_computed_tokens // self.block_size_tokens))

    def blocks(self, tokens: float) -> float:
        """Return the tokens over the tokens of a block."""
        return tokens / self.block_size_tokens
