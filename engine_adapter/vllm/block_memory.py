"""What vLLM's KV manager says about its blocks, as `engine_adapter.ordering.kv_memory.KvMemory` asks.

A block is one of vLLM's pool, whichever group of layers it serves: a token of a model with several groups takes one in
each. Layers of full attention keep every token, those of a sliding window the window, Mamba layers their state.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from dataclasses import replace

from vllm.v1 import kv_cache_interface
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager, SingleTypeKVCacheManager
from vllm.v1.kv_cache_interface import ChunkedLocalAttentionSpec, CrossAttentionSpec, MambaSpec, SlidingWindowSpec
from vllm.v1.request import Request

from engine_adapter.ordering.kv_memory import NO_HIT, PrefixHit
from engine_adapter.vllm.releases import admission_cap, blocks_can_be_freed, looks_up_prefix

_OF_FIXED_SIZE = tuple(
    spec
    for spec in (MambaSpec, CrossAttentionSpec, getattr(kv_cache_interface, "CircularBufferSpec", None))
    if spec is not None
)

FULL = (0,)
"""Groups of a model with one."""


class BlockMemory:
    """The blocks of a vLLM scheduler; nothing here changes them.

    Args:
        scheduler: The scheduler whose blocks are asked about.
    """

    def __init__(self, scheduler: AsyncScheduler) -> None:
        self._scheduler = scheduler
        self._manager = scheduler.kv_cache_manager
        self._pool = scheduler.kv_cache_manager.block_pool
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        self._ahead_tokens = int(scheduler.num_lookahead_tokens) + int(scheduler.num_spec_tokens)
        self._shapes = Counter((manager.block_size, _kept_blocks(manager, scheduler)) for manager in managers)
        self._admission_shapes = Counter(
            (manager.block_size, _asked_blocks(manager, scheduler)) for manager in managers
        )
        alone = managers[0] if len(managers) == 1 else None
        self._keep_all = [_kept_blocks(manager, scheduler) == math.inf for manager in managers]
        self._even_tokens: int | None = alone.block_size if alone is not None and self._keep_all[0] else None
        self._chained_tokens = self._even_tokens if alone is not None and _is_chained(alone) else None
        """Tokens of a block where a cached block's predecessors are all cached: vLLM evicts a prefix last."""
        self._expected_tokens: dict[str, int] = {}

    @property
    def all_blocks(self) -> int:
        """Blocks that requests can use."""
        return int(self._pool.num_gpu_blocks) - 1

    @property
    def block_tokens(self) -> int:
        """Tokens of a block in a request as long as the model's context: times `all_blocks`, the engine's KV tokens.

        Shorter requests of a model with sliding windows take more blocks for each token.
        """
        longest = self._scheduler.max_model_len
        blocks = sum(count * min(longest / size, most) for (size, most), count in self._shapes.items())
        return max(1, round(longest / blocks)) if blocks else int(self._scheduler.block_size)

    @property
    def unused_blocks(self) -> int:
        """Blocks that no request holds; some are cached."""
        return int(self._pool.get_num_free_blocks())

    @property
    def free_blocks(self) -> int:
        """Blocks that a waiting request may take: vLLM keeps its watermark while any request runs."""
        return self.unused_blocks - (int(self._manager.watermark_blocks) if self._scheduler.running else 0)

    def blocks(self, tokens: float) -> float:
        """Return the blocks that a request of this many tokens holds, with those for speculative tokens.

        They are whole blocks where the model has several groups or recycles its blocks.
        """
        tokens += self._ahead_tokens
        if self._even_tokens is not None:
            return tokens / self._even_tokens
        return _blocks(tokens, self._shapes)

    def held_blocks(self, tokens: int) -> int:
        """Return the whole blocks of a request of this many computed tokens; shared ones count for each."""
        if self._even_tokens is not None:
            return -(-tokens // self._even_tokens)
        return math.ceil(_blocks(tokens, self._shapes))

    def fits(self, tokens: int) -> bool:
        """Whether vLLM can ever admit a request of this many tokens, were it the only one."""
        asked = self._admission_shapes if self._scheduler.scheduler_reserve_full_isl else self._shapes
        return _blocks(tokens, asked) <= self.all_blocks

    def hit(self, request: Request) -> PrefixHit:
        """Look a waiting request up in the prefix cache, without a trace in vLLM's statistics and order of eviction.

        In a model of full attention the price grows with the logarithm of the prompt's length.
        """
        if request.num_computed_tokens or not looks_up_prefix(self._manager, request):
            return NO_HIT
        if self._chained_tokens is None:
            hit = replace(self._longest_hit(request), searched_blocks=len(request.block_hashes))
        else:
            hit = self._chained_hit(request, self._chained_tokens)
        self._expected_tokens[request.request_id] = hit.tokens
        return hit

    def expected_tokens(self, request_id: str) -> int | None:
        """Remove and return the tokens of a request's last look-up; None if it had none since."""
        return self._expected_tokens.pop(request_id, None)

    def freed_blocks(self, request: Request) -> float | None:
        """Return the blocks that become free when a running request is preempted: those that no other holds.

        None when a step in flight still writes to them, so that vLLM would free them later.
        """
        if not blocks_can_be_freed(self._scheduler, request):
            return None
        groups = self._manager.coordinator.get_blocks(request.request_id)
        return float(
            sum(
                _own_tail(blocks) if keep_all else sum(map(_is_own, blocks))
                for blocks, keep_all in zip(groups, self._keep_all, strict=True)
            )
        )

    def _chained_hit(self, request: Request, size_tokens: int) -> PrefixHit:
        """Search by halves: behind the first block that is not cached, or not held, none is."""
        hashes, cached_block = request.block_hashes, self._pool.get_cached_block
        longest = min(len(hashes), (request.num_tokens - 1) // size_tokens)
        if not longest or cached_block(hashes[0], FULL) is None:
            return NO_HIT
        cached = bisect_left(range(1, longest), True, key=lambda place: cached_block(hashes[place], FULL) is None) + 1
        if cached_block(hashes[cached - 1], FULL)[0].ref_cnt:
            return PrefixHit(cached * size_tokens, float(cached))
        held = bisect_left(range(cached), True, key=lambda place: cached_block(hashes[place], FULL)[0].ref_cnt == 0)
        return PrefixHit(cached * size_tokens, float(held))

    def _longest_hit(self, request: Request) -> PrefixHit:
        groups, tokens, *_ = self._manager.coordinator.find_longest_cache_hit(
            request.block_hashes, request.num_tokens - 1
        )
        held = sum(block.ref_cnt > 0 and not block.is_null for group in groups for block in group)
        return PrefixHit(tokens, float(held))


def _blocks(tokens: float, shapes: Counter[tuple[int, float]]) -> float:
    return sum(count * min(math.ceil(tokens / size), most) for (size, most), count in shapes.items())


def _kept_blocks(manager: SingleTypeKVCacheManager, scheduler: AsyncScheduler) -> float:
    """Return the most blocks that a group of layers keeps of one request; infinite where it keeps every token."""
    spec, size = manager.kv_cache_spec, manager.block_size
    if isinstance(spec, SlidingWindowSpec):
        # The window need not begin with a block.
        return float(math.ceil((spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)) / size) + 1)
    if isinstance(spec, ChunkedLocalAttentionSpec):
        return float(math.ceil(spec.attention_chunk_size / size))
    if isinstance(spec, _OF_FIXED_SIZE):
        return float(math.ceil(spec.max_memory_usage_bytes(scheduler.vllm_config) / spec.page_size_bytes))
    return math.inf


def _asked_blocks(manager: SingleTypeKVCacheManager, scheduler: AsyncScheduler) -> float:
    """Return the most blocks that vLLM asks for when it admits a request: with those of the steps in flight."""
    most = admission_cap(manager)
    return _kept_blocks(manager, scheduler) if most is None else float(most)


def _is_chained(manager: SingleTypeKVCacheManager) -> bool:
    """Whether a hit is the longest run of cached blocks, nothing less."""
    return type(manager) is FullAttentionManager and not manager.use_eagle and manager.dcp_world_size == 1


def _own_tail(blocks: list[KVCacheBlock]) -> int:
    """Return how many of a request's blocks no other holds, where layers keep every token: the shared come first."""
    return len(blocks) - bisect_left(blocks, True, key=_is_own)


def _is_own(block: KVCacheBlock) -> bool:
    """Whether one request holds a block; the null block stands for those that a window has left."""
    return bool(block.ref_cnt == 1 and not block.is_null)
