"""What a request says beside its prompt, as numbers at the end of its features: its session, and the length expected.

A hint takes numbers from `HINTS_FROM` on, which no n-gram has, and a request without hints takes none: its features are
those that it always had. float32 holds each number exactly.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from online_learning.length_learner import Features, Prompt

HINTS_FROM = 1 << 22
"""Listed n-grams are numbers below."""

_SESSIONS_FROM = 1 << 23
"""The length expected is a number below, each half of a session's hash one from here on."""

_HALF_BITS = 23
_HALF = (1 << _HALF_BITS) - 1


class RequestHints(NamedTuple):
    """What a request says beside its prompt."""

    tenant: int
    """Hash of its tenant; 0 for none."""
    session: int | None
    """Hash of its session and tenant: two of 10,000 sessions collide with a chance of 1 in a million."""
    expected_tokens: int | None
    """Answer's length that the client expects."""


def coded(prompt: Prompt) -> list[int]:
    """A prompt's hints as numbers, the length expected first; empty where it has none.

    >>> ids = np.zeros(1, dtype=np.uint32)
    >>> prompt = Prompt(token_ids=ids, prompt_tokens=1, max_tokens=9, temperature=0.0, model="m", session="a")
    >>> len(coded(prompt)), decoded(np.array(coded(prompt), dtype=np.float32), 5).expected_tokens
    (2, None)
    """
    codes = []
    if prompt.expected_output_tokens is not None:
        codes.append(HINTS_FROM + min(max(1, prompt.expected_output_tokens), HINTS_FROM - 1))
    if prompt.session is not None:
        name = repr((prompt.tenant, prompt.session)).encode("utf-8", "replace")
        digest = int.from_bytes(blake2b(name, digest_size=8).digest()) >> (64 - 2 * _HALF_BITS)
        codes += [_SESSIONS_FROM + (digest >> _HALF_BITS), _SESSIONS_FROM + (digest & _HALF)]
    return codes


def decoded(codes: Features, tenant: int) -> RequestHints:
    """The hints among the numbers at the end of some features; ``tenant`` is the hash of the request's."""
    told = codes[-3:].astype(np.int64)
    session = told[told >= _SESSIONS_FROM] - _SESSIONS_FROM
    expected = told[(told >= HINTS_FROM) & (told < _SESSIONS_FROM)] - HINTS_FROM
    return RequestHints(
        tenant,
        (int(session[0]) << _HALF_BITS) + int(session[1]) if session.size > 1 else None,
        int(expected[0]) if expected.size else None,
    )
