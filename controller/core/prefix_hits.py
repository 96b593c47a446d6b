"""The part of a prompt that an engine is expected to have in its prefix cache, learnt from what it found before.

The controller does not see a cache. It sees what each request found at its first token, and the head of each prompt:
requests of one template or system prompt begin with the same tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

HEAD_TOKENS = 32
"""Tokens from which a prompt's head is recognised; two blocks, as engines cache whole ones."""
_HEAD_BYTES = 4 * HEAD_TOKENS

MEMORY_REQUESTS = 50.0
"""Later requests after which one's weight has fallen by a factor e."""

MOST_HEADS = 1_024
"""Heads remembered of an engine; the one that came longest ago is forgotten first."""


class _Found(msgspec.Struct, gc=False):
    """Fading means over requests of one kind: prompt tokens, and those of them that were found."""

    requests: float = 0.0
    prompt_tokens: float = 0.0
    cached_tokens: float = 0.0

    def record(self, prompt_tokens: int, cached_tokens: int) -> None:
        self.requests = min(self.requests + 1.0, MEMORY_REQUESTS)
        self.prompt_tokens += (prompt_tokens - self.prompt_tokens) / self.requests
        self.cached_tokens += (cached_tokens - self.cached_tokens) / self.requests

    @property
    def share(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


@dataclass(slots=True)
class PrefixHits:
    """Expected prefix cache hits of one engine.

    A prompt whose head is known finds what its like found: as many tokens, or as great a share of its own, whichever is
    less, so that a short system prompt is not taken to grow with the question, nor a long one to fit in a short prompt.
    One with a new head finds the share that new heads found; one of which only the length is known the share of all.
    Wrong where blocks were evicted since.

    >>> hits = PrefixHits()
    >>> hits.expected_tokens(b"x" * 400, 100)
    0
    >>> for _ in range(3):
    ...     hits.record(b"x" * 400, 100, 80)
    >>> hits.expected_tokens(b"x" * 400, 100), hits.expected_tokens(b"x" * 400, 50), hits.expected_tokens(b"y" * 400, 100)
    (80, 40, 80)
    """

    _all: _Found = field(default_factory=_Found)
    _new: _Found = field(default_factory=_Found)
    _heads: OrderedDict[bytes, _Found] = field(default_factory=OrderedDict)

    def record(self, token_ids: bytes, prompt_tokens: int, cached_tokens: int) -> None:
        """Learn what a request found.

        Args:
            token_ids: its prompt, or its head and tail, four bytes a token; empty where only its length is known.
            prompt_tokens: length of the prompt.
            cached_tokens: prompt tokens that it found in the cache.
        """
        self._all.record(prompt_tokens, cached_tokens)
        head = token_ids[:_HEAD_BYTES]
        if len(head) < _HEAD_BYTES:
            return
        if head not in self._heads:
            self._new.record(prompt_tokens, cached_tokens)
            if len(self._heads) >= MOST_HEADS:
                self._heads.popitem(last=False)
            self._heads[head] = _Found()
        self._heads.move_to_end(head)
        self._heads[head].record(prompt_tokens, cached_tokens)

    def expected_tokens(self, token_ids: bytes, prompt_tokens: int) -> int:
        """Tokens of a prompt that it is expected to find; at least one is always computed."""
        head = token_ids[:_HEAD_BYTES]
        found = self._all if len(head) < _HEAD_BYTES else self._heads.get(head)
        if found is None:
            expected = self._new.share * prompt_tokens
        elif found is self._all:
            expected = found.share * prompt_tokens
        else:
            expected = min(found.cached_tokens, found.share * prompt_tokens)
        return max(0, min(int(expected + 1e-9), prompt_tokens - 1))
