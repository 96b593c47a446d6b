"""Prompt features from token ids alone: no tokenizer, no encoder, nothing that was learnt.

A feature vector has four parts.
The text part is a unit vector: the prompt's token n-grams, hashed, weighted by sublinear counts and projected by
fixed random signs (Weinberger et al. 2009, feature hashing; Achlioptas 2003, projection with coin flips).
The cosine of two text parts estimates how much the two prompts share.
The scalar part holds what the request says about itself.
The identities are hashes of the leading tokens, at several depths, and of the tenant: requests of one group share them.
The list that follows, as long as the prompt needs, has the hashed n-grams themselves, for learners that weigh each alone.
Behind it stand the request's hints, where it has any: its session and the length that its client expects.

Vectors do not depend on what was learnt, so that stored ones stay valid for ever.
"""

from __future__ import annotations

import math
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from online_learning.features.request_hints import HINTS_FROM, RequestHints, coded, decoded
from online_learning.length_learner import Features, Prompt

TEXT_DIMENSIONS = 128
"""Length of the text part, which comes first."""

SCALAR_DIMENSIONS = 3
"""Log prompt length, log max_tokens, temperature; each about -1 to 1 on usual traffic."""

DIMENSIONS = TEXT_DIMENSIONS + SCALAR_DIMENSIONS
"""Length of the dense part: text and scalars."""

TEMPLATE_DEPTHS = (8, 32, 128)
"""Leading tokens whose hash identifies a template; a shorter prompt has none of that depth."""

IDENTITIES = len(TEMPLATE_DEPTHS) + 1
"""Hashes between the dense part and the n-grams: templates by depth, then the tenant; 0 for none."""

MAX_GRAMS = 128
"""N-grams listed of one prompt; of more, those of its ending, and of the rest the same random part for every prompt."""

GRAM_ROWS = 1 << 14
"""N-grams are hashed to rows below this."""

HEAD_TOKENS = 192
TAIL_TOKENS = 320
"""Of a longer prompt the first and the last tokens count: template and question."""

_TEMPLATE_TOKENS = (4, 16, 64)
"""The leading tokens count as n-grams of these lengths: requests made by one template share them."""

_TABLE_BITS = 14
_IDENTITY_BITS = 24
_MOST_COUNTED = 255
_ENDING_TOKENS = 48
_SEED = 20_240_117
_MIX_1 = np.uint64(0x9E37_79B9_7F4A_7C15)
_MIX_2 = np.uint64(0xBF58_476D_1CE4_E5B9)
_FOLD = np.uint64(0x0000_0100_0000_01B3)


def _random_signs() -> NDArray[np.float32]:
    generator = np.random.default_rng(_SEED)
    signs = generator.integers(0, 2, size=(1 << _TABLE_BITS, TEXT_DIMENSIONS), dtype=np.int8)
    return (2 * signs - 1).astype(np.float32)


_PROJECTION = _random_signs()
_SUBLINEAR = (1.0 + np.log(np.maximum(np.arange(_MOST_COUNTED + 1), 1))).astype(np.float32)
"""Weight of an n-gram by its count."""


def prompt_features(prompt: Prompt) -> Features:
    """The feature vector of a prompt, float32; the same in every process.

    Its first `DIMENSIONS` are dense, then come `IDENTITIES` hashes, up to `MAX_GRAMS` n-grams and the hints that there are;
    hashes, rows, counts and hints are integers below 2²⁴, which float32 holds exactly.

    >>> tokens = np.arange(100, dtype=np.uint32)
    >>> prompt = Prompt(token_ids=tokens, prompt_tokens=100, max_tokens=512, temperature=0.6, model="m")
    >>> vector = prompt_features(prompt)
    >>> vector.shape, vector.dtype.name, round(float(np.linalg.norm(vector[:TEXT_DIMENSIONS])), 3)
    ((263,), 'float32', 1.0)
    """
    tokens = _bounded(prompt.token_ids).astype(np.uint64)
    hashed = _hashed_grams(tokens)
    rows, counts = _counted(hashed)
    listed = _listed(rows, counts, _ending(hashed, tokens.size))
    hints = coded(prompt)
    if hints:
        listed = np.concatenate((listed, hints))
    features = np.empty(DIMENSIONS + IDENTITIES + listed.size, dtype=np.float32)
    features[:TEXT_DIMENSIONS] = _text_part(rows, counts)
    features[TEXT_DIMENSIONS:DIMENSIONS] = (
        (math.log(max(1, prompt.prompt_tokens)) - 5.0) / 3.0,
        (math.log(max(1, prompt.max_tokens)) - 7.0) / 3.0,
        min(max(prompt.temperature, 0.0), 2.0) - 1.0,
    )
    features[DIMENSIONS : DIMENSIONS + IDENTITIES] = (*_templates(prompt.token_ids), _tenant(prompt.tenant))
    features[DIMENSIONS + IDENTITIES :] = listed
    return features


def grams(features: Features) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the listed n-grams and their weights: sublinear counts, of unit length together.

    >>> tokens = np.array([5, 6, 5], dtype=np.uint32)
    >>> prompt = Prompt(token_ids=tokens, prompt_tokens=3, max_tokens=9, temperature=0.0, model="m")
    >>> rows, weights = grams(prompt_features(prompt))
    >>> rows.size, round(float(weights.min()), 2), round(float(weights @ weights), 3)
    (4, 0.41, 1.0)
    """
    codes = features[DIMENSIONS + IDENTITIES :].astype(np.int64)
    if has_hints(features):
        codes = codes[codes < HINTS_FROM]
    weights = _SUBLINEAR[codes >> _TABLE_BITS]
    norm = math.sqrt(float(weights @ weights))
    return codes & (GRAM_ROWS - 1), np.asarray(weights / np.float32(max(norm, 1.0)), dtype=np.float32)


def has_hints(features: Features) -> bool:
    """Whether the request says of which session it is, or how long an answer its client expects."""
    return features.size > DIMENSIONS + IDENTITIES and bool(features[-1] >= HINTS_FROM)


def hints(features: Features) -> RequestHints:
    """What the request says beside its prompt.

    >>> tokens = np.array([5, 6], dtype=np.uint32)
    >>> told = Prompt(
    ...     token_ids=tokens, prompt_tokens=2, max_tokens=9, temperature=0.0, model="m", expected_output_tokens=7
    ... )
    >>> hints(prompt_features(told))
    RequestHints(tenant=0, session=None, expected_tokens=7)
    """
    tenant = int(features[DIMENSIONS + IDENTITIES - 1]) if features.size >= DIMENSIONS + IDENTITIES else 0
    return decoded(features[DIMENSIONS + IDENTITIES :], tenant)


def _counted(hashed: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
    """Each value once, in order, and how often it is there; numpy's own takes three times as long for so few.

    >>> rows, counts = _counted(np.array([7, 3, 7], dtype=np.uint64))
    >>> rows.tolist(), counts.tolist()
    ([3, 7], [1, 2])
    """
    if hashed.size == 0:
        return hashed, np.zeros(0, dtype=np.intp)
    ordered = np.sort(hashed)
    first = np.concatenate(([0], (ordered[1:] != ordered[:-1]).nonzero()[0] + 1))
    return ordered[first], np.concatenate((first[1:] - first[:-1], [hashed.size - first[-1]]))


def _text_part(rows: NDArray[np.uint64], counts: NDArray[np.intp]) -> NDArray[np.float32]:
    if rows.size == 0:
        return np.zeros(TEXT_DIMENSIONS, dtype=np.float32)
    weights = (1.0 + np.log(counts)).astype(np.float32)
    text = weights @ _PROJECTION[rows]
    norm = math.sqrt(float(text @ text))
    return np.asarray(text / norm if norm > 0.0 else text)


def _ending(hashed: NDArray[np.uint64], tokens: int) -> NDArray[np.uint64]:
    """The uni- and bigrams of the last tokens, where the question stands behind a long beginning."""
    pairs = hashed[tokens : 2 * tokens - 1]
    return np.concatenate((hashed[:tokens][-_ENDING_TOKENS:], pairs[-_ENDING_TOKENS:]))


def _listed(rows: NDArray[np.uint64], counts: NDArray[np.intp], ending: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Each row with its count, as row + 2¹⁴·count; of too many those of the ending, then those whose hash is lowest."""
    if rows.size > MAX_GRAMS:
        urgency = _mix(rows) >> np.uint64(1)
        stands_last = np.zeros(1 << _TABLE_BITS, dtype=np.bool_)
        stands_last[ending] = True
        urgency[stands_last[rows]] >>= np.uint64(32)
        kept = np.sort(np.argsort(urgency, kind="stable")[:MAX_GRAMS])
        rows, counts = rows[kept], counts[kept]
    return rows.astype(np.int64) + (np.minimum(counts, _MOST_COUNTED) << _TABLE_BITS)


def _templates(token_ids: NDArray[np.uint32]) -> list[int]:
    return [_identity(token_ids[:depth].tobytes()) if token_ids.size >= depth else 0 for depth in TEMPLATE_DEPTHS]


def _tenant(tenant: str | None) -> int:
    return 0 if tenant is None else _identity(tenant.encode())


def _identity(data: bytes) -> int:
    """A hash from 1 to 2²⁴ - 1; two of a thousand groups collide with a chance of 3%."""
    return max(1, crc32(data) >> (32 - _IDENTITY_BITS))


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
