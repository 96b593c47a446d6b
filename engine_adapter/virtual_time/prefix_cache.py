"""The KV cache of the simulated engine with prefix caching: blocks by name, as vLLM's block pool keeps them."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from engine_adapter.virtual_time.block_hashes import BlockHashes
from engine_adapter.virtual_time.kv_cache import NOTHING_CACHED, Cacheable, CachedPrefix, KvCache


@dataclass(slots=True)
class _BlockTable:
    """The blocks of an admitted request."""

    hashes: BlockHashes
    blocks: list[int]
    cached: int
    """Blocks at the start whose hashes are known to the cache: all full ones."""
    next_tokens: int = 0
    """Number of tokens from which on the request needs a block or fills one."""


class PrefixCache(KvCache):
    """KV blocks that requests with equal prompt prefixes share, and that stay cached while nobody needs them.

    The rules are those of vLLM's ``BlockPool`` and ``KVCacheManager`` for one group of full attention:

    - A full block is cached by its hash as soon as it is allocated for tokens that the step computes. Blocks are never
      merged: of several with one hash the oldest is found.
    - A released block that is cached joins the free ones at the end, the last block of its request first; one that is
      not cached is the next to be taken.
    - A block is taken from the free ones that are not cached, then from the cached one released longest ago.
    - A request finds the cached blocks of its prefix except that of its last token, whose logits it needs.

    A request that holds a block holds one for each hash before it and releases them after it, so a cached hash implies
    that all hashes before it are cached: the longest prefix is found by bisection.
    """

    def __init__(self, *, blocks: int, block_size_tokens: int, watermark: float = 0.0) -> None:
        super().__init__(blocks=blocks, block_size_tokens=block_size_tokens, watermark=watermark)
        self._tables: dict[str, _BlockTable] = {}
        self._references = [0] * blocks
        self._hash_of: list[int | None] = [None] * blocks
        self._found_by: dict[int, int] = {}
        self._copies: dict[int, list[int]] = {}
        """Further blocks of a hash, oldest first."""
        self._blank = list(range(blocks))
        """Free blocks that are not cached."""
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Free blocks that are cached, the one released longest ago first."""
        self._prefixes: dict[str, CachedPrefix] = {}
        """Prefixes found since anything changed."""

    def held_blocks(self, request_id: str) -> int:
        """Blocks that one request holds, shared ones included."""
        table = self._tables.get(request_id)
        return 0 if table is None else len(table.blocks)

    def own_blocks(self, request_id: str) -> int:
        """Blocks at the end of a request that no other holds; as the plugin counts them for vLLM."""
        blocks, references = self._tables[request_id].blocks, self._references
        return len(blocks) - bisect_left(blocks, True, key=lambda block: references[block] == 1)

    def expected_hit(self, request: Cacheable) -> tuple[int, int]:
        """Return the tokens that a waiting request would find, and how many of their blocks requests hold.

        Held ones are taken to come first, as the plugin takes them to for vLLM; where equal prompts were computed at the
        same time they may be fewer or more. The price grows with the logarithm of the prompt's length.
        """
        assert request.block_hashes is not None
        length = self._prefix_length(request)
        hashes, found, references = request.block_hashes.first(length), self._found_by, self._references
        held = bisect_left(range(length), True, key=lambda place: not references[found[hashes[place]]])
        return length * self.block_size_tokens, held

    def find_prefix(self, request: Cacheable) -> CachedPrefix:
        """Find the cached blocks of a waiting request's prefix; computed again only after a change."""
        prefix = self._prefixes.get(request.request_id)
        if prefix is None:
            self._prefixes[request.request_id] = prefix = self._look_up(request)
        return prefix

    def admit(
        self, request: Cacheable, prefix: CachedPrefix, *, tokens: int, must_fit_tokens: int, keep_free_blocks: int
    ) -> bool:
        """Let a waiting request hold ``tokens`` with its cached prefix; False when ``must_fit_tokens`` do not fit."""
        lacking = self.blocks_for(must_fit_tokens) - len(prefix.blocks) + prefix.idle_blocks
        if lacking + keep_free_blocks > self.free_blocks:
            return False
        for block in prefix.blocks:
            if not self._references[block]:
                del self._idle[block]
            self._references[block] += 1
        self.free_blocks -= prefix.idle_blocks
        assert request.block_hashes is not None
        table = _BlockTable(request.block_hashes, list(prefix.blocks), len(prefix.blocks))
        self._tables[request.request_id] = table
        return self.allocate(request.request_id, tokens=tokens)

    def allocate(self, request_id: str, *, tokens: int, keep_free_blocks: int = 0) -> bool:
        """Let an admitted request hold ``tokens`` in total; False, without any change, when too few blocks are free."""
        table = self._tables[request_id]
        if tokens < table.next_tokens and not keep_free_blocks:
            return True
        lacking = max(0, -(-tokens // self.block_size_tokens) - len(table.blocks))
        if lacking + keep_free_blocks > self.free_blocks:
            return False
        self._take(lacking, table.blocks)
        self._cache_full(table, tokens // self.block_size_tokens)
        self._prefixes.clear()
        return True

    def release(self, request_id: str) -> int:
        """Release all blocks of a request, the last first; return the number that nobody holds any more."""
        self._prefixes.pop(request_id, None)
        table = self._tables.pop(request_id, None)
        if table is None:
            return 0
        freed = 0
        for place in range(len(table.blocks) - 1, -1, -1):
            block = table.blocks[place]
            self._references[block] -= 1
            if self._references[block]:
                continue
            freed += 1
            if place < table.cached:
                self._idle[block] = None
            else:
                self._blank.append(block)
        self.free_blocks += freed
        self._prefixes.clear()
        return freed

    def _look_up(self, request: Cacheable) -> CachedPrefix:
        assert request.block_hashes is not None
        length = self._prefix_length(request)
        if not length:
            return NOTHING_CACHED
        blocks = list(map(self._found_by.__getitem__, islice(request.block_hashes.first(length), length)))
        idle = list(map(self._references.__getitem__, blocks)).count(0)
        return CachedPrefix(length * self.block_size_tokens, blocks, idle)

    def _prefix_length(self, request: Cacheable) -> int:
        """Return the number of cached blocks at a request's start."""
        assert request.block_hashes is not None
        most = (request.num_tokens - 1) // self.block_size_tokens
        hashes, found = request.block_hashes.first(most), self._found_by
        if not most or hashes[0] not in found:
            return 0
        return bisect_left(range(most), True, key=lambda place: hashes[place] not in found)

    def _take(self, count: int, blocks: list[int]) -> None:
        """Take free blocks for a request and append them to its ``blocks``."""
        self.free_blocks -= count
        blank, idle, references = self._blank, self._idle, self._references
        for _ in range(count):
            if blank:
                block = blank.pop()
            else:
                block, _ = idle.popitem(last=False)
                self._evict(block)
            references[block] = 1
            blocks.append(block)

    def _cache_full(self, table: _BlockTable, full: int) -> None:
        """Make the first ``full`` blocks of a request findable."""
        if full > table.cached:
            hashes: Sequence[int] = table.hashes.first(full)
            for place in range(table.cached, full):
                block, value = table.blocks[place], hashes[place]
                self._hash_of[block] = value
                if self._found_by.setdefault(value, block) != block:
                    self._copies.setdefault(value, []).append(block)
            table.cached = full
        size = self.block_size_tokens
        table.next_tokens = min(len(table.blocks) * size + 1, (table.cached + 1) * size)

    def _evict(self, block: int) -> None:
        """Make a block impossible to find; the next oldest of its hash is found from now on."""
        value = self._hash_of[block]
        assert value is not None
        self._hash_of[block] = None
        copies = self._copies.get(value) if self._copies else None
        if copies is None:
            del self._found_by[value]
            return
        if self._found_by[value] == block:
            self._found_by[value] = copies.pop(0)
        else:
            copies.remove(block)
        if not copies:
            del self._copies[value]
