"""The KV cache of the simulated engine: blocks counted by request, as vLLM's block pool counts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from engine_adapter.virtual_time.block_hashes import BlockHashes


class Cacheable(Protocol):
    """The attributes of a waiting request that the cache reads."""

    request_id: str
    block_hashes: BlockHashes | None

    @property
    def num_tokens(self) -> int:
        """Prompt tokens plus output tokens generated."""
        ...


@dataclass(frozen=True, slots=True)
class CachedPrefix:
    """The cached blocks at the start of a waiting request's tokens."""

    tokens: int
    blocks: Sequence[int]
    idle_blocks: int
    """Those of ``blocks`` that no request holds: using them takes them from the free ones."""


NOTHING_CACHED = CachedPrefix(0, (), 0)


class KvCache:
    """Number of KV blocks that each request holds; without prefix caching blocks are interchangeable.

    Args:
        blocks: Blocks that requests can use. vLLM's pool has one more, the null block, which no request ever holds.
        block_size_tokens: Tokens in a block.
        watermark: Share of the pool, null block included, that `watermark_blocks` keeps free.

    >>> cache = KvCache(blocks=4, block_size_tokens=16, watermark=0.2)
    >>> cache.allocate("a", tokens=33), cache.free_blocks
    (True, 1)
    >>> cache.allocate("b", tokens=16, keep_free_blocks=cache.watermark_blocks)
    False
    >>> cache.release("a"), cache.used_blocks
    (3, 0)
    """

    def __init__(self, *, blocks: int, block_size_tokens: int, watermark: float = 0.0) -> None:
        assert blocks > 0
        assert block_size_tokens > 0
        assert 0.0 <= watermark < 1.0
        self.blocks = blocks
        self.block_size_tokens = block_size_tokens
        self.watermark_blocks = int(watermark * (blocks + 1))
        self.free_blocks = blocks
        self._held: dict[str, int] = {}

    @property
    def used_blocks(self) -> int:
        """Blocks that requests hold."""
        return self.blocks - self.free_blocks

    def held_blocks(self, request_id: str) -> int:
        """Blocks that one request holds."""
        return self._held.get(request_id, 0)

    def own_blocks(self, request_id: str) -> int:
        """Blocks that become free when this request is preempted."""
        return self.held_blocks(request_id)

    def find_prefix(self, request: Cacheable) -> CachedPrefix:
        """Find the cached blocks of a waiting request's prefix: none here."""
        return NOTHING_CACHED

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks that ``tokens`` occupy, the last one perhaps in part."""
        return -(-tokens // self.block_size_tokens)

    def can_allocate(self, request_id: str, *, tokens: int, keep_free_blocks: int = 0) -> bool:
        """Whether a request could hold ``tokens`` in total and leave ``keep_free_blocks`` blocks free."""
        wanted = max(0, self.blocks_for(tokens) - self.held_blocks(request_id))
        return wanted + keep_free_blocks <= self.free_blocks

    def admit(
        self, request: Cacheable, prefix: CachedPrefix, *, tokens: int, must_fit_tokens: int, keep_free_blocks: int
    ) -> bool:
        """Let a waiting request hold ``tokens``; False, without any change, when ``must_fit_tokens`` do not fit.

        Args:
            request: The request, which holds nothing.
            prefix: What `find_prefix` found for it.
            tokens: Tokens in total, those of the prefix included.
            must_fit_tokens: Tokens in total that must find room, at least ``tokens``.
            keep_free_blocks: Blocks that must stay free.
        """
        if not self.can_allocate(request.request_id, tokens=must_fit_tokens, keep_free_blocks=keep_free_blocks):
            return False
        return self.allocate(request.request_id, tokens=tokens)

    def allocate(self, request_id: str, *, tokens: int, keep_free_blocks: int = 0) -> bool:
        """Let a request hold ``tokens`` in total; False, without any change, when too few blocks are free."""
        held = self._held.get(request_id, 0)
        wanted = -(-tokens // self.block_size_tokens) - held
        if wanted <= 0 and not keep_free_blocks:
            return True
        if max(0, wanted) + keep_free_blocks > self.free_blocks:
            return False
        self.free_blocks -= max(0, wanted)
        self._held[request_id] = held + max(0, wanted)
        return True

    def release(self, request_id: str) -> int:
        """Free all blocks of a request; return their number."""
        blocks = self._held.pop(request_id, 0)
        self.free_blocks += blocks
        assert self.free_blocks <= self.blocks
        return blocks
