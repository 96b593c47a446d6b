"""Token ids for workloads, without a tokenizer.

A virtual engine computes nothing, so its ids need not be a model's own.
They preserve what a scheduler and a learner can use:
equal text gives equal ids, texts that share words share ids, prompts that share a beginning share their first blocks,
and a prompt has exactly the workload's number of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from zlib import crc32

import numpy as np

VOCABULARY_SIZE = 32_000
"""Default size of the vocabulary; ids are below it."""

FIRST_TOKEN_ID = 16
"""Lower ids are reserved for a model's special tokens (padding, beginning, end of sequence)."""

PREFIX_BLOCK_TOKENS = 512
"""Tokens per block hash of a Mooncake trace."""

_PIECE = re.compile(r"[A-Za-z]{1,10}|\d{1,3}|[^\x00-\x7f]|[^\sA-Za-z\d]{1,2}")
"""Splits English text, code and markup into about as many pieces as byte-pair encodings of large models."""


def token_ids(text: str, prompt_tokens: int, *, vocabulary_size: int = VOCABULARY_SIZE) -> tuple[int, ...]:
    """Return the ids of a prompt of exactly ``prompt_tokens`` tokens, the same for the same text.

    A text with fewer pieces is preceded by the beginning of a fixed sequence, as by a system prompt;
    a text with more is truncated.

    >>> token_ids("Add 12 and 30.", 5) == token_ids("Add 12 and 30.", 8)[3:]
    True
    >>> token_ids("one thing", 40)[:30] == token_ids("another matter", 40)[:30]
    True
    """
    assert prompt_tokens >= 0, "a prompt's length is not negative"
    assert vocabulary_size > FIRST_TOKEN_ID, "the vocabulary holds special tokens only"
    pieces = [_piece_id(piece, vocabulary_size) for piece in _PIECE.findall(text)]
    missing = prompt_tokens - len(pieces)
    if missing <= 0:
        return tuple(pieces[:prompt_tokens])
    return _system_prompt(-(-missing // 1024) * 1024, vocabulary_size)[:missing] + tuple(pieces)


def count_tokens(text: str) -> int:
    """Estimate the number of tokens of a text; 1 for an empty one.

    Against ``cl100k_base`` on English prompts: 1% fewer in the median, from 14% fewer to 8% more for nine in ten.

    >>> count_tokens("Write a haiku about autumn rain.")
    7
    """
    return max(1, len(_PIECE.findall(text)))


def random_token_ids(
    prompt_tokens: int, seed: Iterable[int], *, vocabulary_size: int = VOCABULARY_SIZE
) -> tuple[int, ...]:
    """Draw the ids of a prompt of unknown text from ``seed``, without a prefix in common with others."""
    drawn = np.random.default_rng(list(seed)).integers(FIRST_TOKEN_ID, vocabulary_size, size=prompt_tokens)
    return tuple(map(_all_ids(vocabulary_size).__getitem__, drawn.tolist()))


def block_token_ids(
    block_hashes: Iterable[int],
    prompt_tokens: int,
    *,
    block_size_tokens: int = PREFIX_BLOCK_TOKENS,
    vocabulary_size: int = VOCABULARY_SIZE,
) -> tuple[int, ...]:
    """Return the ids of a prompt given by the hashes of its blocks of ``block_size_tokens`` tokens.

    Prompts with the same leading hashes have the same leading ids.
    Tokens beyond the last block hashed continue with that block's successor in kind, so that the length is exact.
    """
    ids: list[int] = []
    last = 0
    for block_hash in block_hashes:
        if len(ids) >= prompt_tokens:
            break
        ids += _block(block_hash, block_size_tokens, vocabulary_size)
        last = block_hash
    if len(ids) < prompt_tokens:
        ids += random_token_ids(prompt_tokens - len(ids), (last, 1), vocabulary_size=vocabulary_size)
    return tuple(ids[:prompt_tokens])


@lru_cache(maxsize=1 << 16)
def _piece_id(piece: str, vocabulary_size: int) -> int:
    return FIRST_TOKEN_ID + crc32(piece.encode("utf-8", "surrogatepass")) % (vocabulary_size - FIRST_TOKEN_ID)


@lru_cache(maxsize=16)
def _system_prompt(tokens: int, vocabulary_size: int) -> tuple[int, ...]:
    return tuple(_piece_id(f"system prompt {position}", vocabulary_size) for position in range(tokens))


@lru_cache(maxsize=4096)
def _block(block_hash: int, tokens: int, vocabulary_size: int) -> tuple[int, ...]:
    return random_token_ids(tokens, (block_hash, 0), vocabulary_size=vocabulary_size)


@lru_cache(maxsize=4)
def _all_ids(vocabulary_size: int) -> tuple[int, ...]:
    """Return one int object per id, so that millions of ids cost a pointer each."""
    return tuple(range(vocabulary_size))
