"""Prompt features from token ids alone: no tokenizer, no encoder, nothing that was learnt.

A feature vector has two parts.
The text part is a unit vector: the prompt's token n-grams, hashed, weighted by sublinear counts and projected by
fixed random signs (Weinberger et al. 2009, feature hashing; Achlioptas 2003, projection with coin flips).
The cosine of two text parts estimates how much the two prompts share.
The scalar part holds what the request says about itself.

Vectors do not depend on what was learnt, so that stored ones stay valid for ever.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from online_learning.prompt import Features, Prompt

TEXT_DIMENSIONS = 128
"""Length of the text part, which comes first."""

SCALAR_DIMENSIONS = 3
"""Log prompt length, log max_tokens, temperature; each about -1 to 1 on usual traffic."""

DIMENSIONS = TEXT_DIMENSIONS + SCALAR_DIMENSIONS

HEAD_TOKENS = 192
TAIL_TOKENS = 320
"""Of a longer prompt the first and the last tokens count: template and question."""

_TEMPLATE_TOKENS = (4, 16, 64)
"""The leading tokens count as n-grams of these lengths: requests made by one template share them."""

_TABLE_BITS = 14
_SEED = 20_240_117
_MIX_1 = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_2 = np.uint64(0xBF58_476D_1CE4_E5B9)
_FOLD = np.uint64(0x0000_0100_0000_01B3)


def _random_signs() -> NDArray[np.float32]:
    generator = np.random.default_rng(_SEED)
    signs = generator.integers(0, 2, size=(1 << _TABLE_BITS, TEXT_DIMENSIONS), dtype=np.int8)
    return (2 * signs - 1).astype(np.float32)


_PROJECTION = _random_signs()


def prompt_features(prompt: Prompt) -> Features:
    """The feature vector of a prompt, `DIMENSIONS` long, float32; the same in every process.

    >>> tokens = np.arange(100, dtype=np.uint32)
    >>> prompt = Prompt(token_ids=tokens, prompt_tokens=100, max_tokens=512, temperature=0.6, model="m")
    >>> vector = prompt_features(prompt)
    >>> vector.shape, vector.dtype.name, round(float(np.linalg.norm(vector[:TEXT_DIMENSIONS])), 3)
    ((131,), 'float32', 1.0)
    """
    features = np.empty(DIMENSIONS, dtype=np.float32)
    features[:TEXT_DIMENSIONS] = _text_part(prompt.token_ids)
    features[TEXT_DIMENSIONS:] = (
        (math.log(max(1, prompt.prompt_tokens)) - 5.0) / 3.0,
        (math.log(max(1, prompt.max_tokens)) - 7.0) / 3.0,
        min(max(prompt.temperature, 0.0), 2.0) - 1.0,
    )
    return features


def _text_part(token_ids: NDArray[np.uint32]) -> NDArray[np.float32]:
    tokens = _bounded(token_ids).astype(np.uint64)
    rows, counts = np.unique(_hashed_grams(tokens), return_counts=True)
    if rows.size == 0:
        return np.zeros(TEXT_DIMENSIONS, dtype=np.float32)
    weights = (1.0 + np.log(counts)).astype(np.float32)
    text = weights @ _PROJECTION[rows]
    norm = float(np.linalg.norm(text))
    return np.asarray(text / norm if norm > 0.0 else text)


def _bounded(token_ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
    if token_ids.size <= HEAD_TOKENS + TAIL_TOKENS:
        return token_ids
    return np.concatenate((token_ids[:HEAD_TOKENS], token_ids[-TAIL_TOKENS:]))


def _hashed_grams(tokens: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Rows of the projection for the uni- and bigrams and for the leading tokens of each template length."""
    mixed = _mix(tokens)
    positioned = _mix(mixed + np.arange(mixed.size, dtype=np.uint64))
    templates = [np.bitwise_xor.reduce(positioned[:n], keepdims=True) for n in _TEMPLATE_TOKENS if n < tokens.size]
    grams = np.concatenate([mixed, _mix(mixed[:-1] * _FOLD + mixed[1:]), *templates])
    return np.asarray(grams >> np.uint64(64 - _TABLE_BITS))


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread 64-bit values (the finaliser of SplitMix64, one round); wraps around on purpose."""
    spread = (values + _MIX_1) * _MIX_1
    spread = (spread ^ (spread >> np.uint64(29))) * _MIX_2
    return np.asarray(spread ^ (spread >> np.uint64(32)), dtype=np.uint64)
