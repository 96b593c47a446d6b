"""Adverse variants of a workload: uninformative prompts, drifting lengths, heavy tails.

Under each of them a scheduler must not be worse than first come, first served.
A variant changes only the answers' lengths, not prompts and arrival times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from engine_adapter.workloads.rows import WorkloadRow
from engine_adapter.workloads.synthetic import MAX_RESPONSE_TOKENS
from store.errors import WorkloadError

Variant: TypeAlias = Literal["no-signal", "drift", "heavy-tail"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

_DRIFT_FACTOR = 2.0
_TAIL_SHARE = 0.05
_TAIL_EXPONENT = 1.1


def split_variant(name: str) -> tuple[str, Variant | None]:
    """Split ``:variant`` off a workload's name; raise `WorkloadError` for an unknown one, unless the path exists.

    >>> split_variant("mix.parquet:drift"), split_variant("mix.parquet")
    (('mix.parquet', 'drift'), ('mix.parquet', None))
    >>> split_variant("mix.parquet:wave")
    Traceback (most recent call last):
    store.errors.WorkloadError: workload 'mix.parquet:wave' has the variant 'wave': choose of no-signal, drift, heavy-tail
    """
    base, colon, word = name.rpartition(":")
    if not colon or "/" in word or "." in word:
        return name, None
    for variant in VARIANTS:
        if word == variant:
            return base, variant
    raise WorkloadError(f"workload {name!r} has the variant {word!r}: choose of {', '.join(VARIANTS)}")


def varied(rows: Sequence[WorkloadRow], variant: Variant, *, drift_at: int, seed: int) -> tuple[WorkloadRow, ...]:
    """Return the rows with other answer lengths; the same arguments give the same ones.

    ``no-signal``: the lengths are permuted at random, so that prompts carry no information about them.
    ``drift``: from the row ``drift_at`` on, answers of every other task are twice as long, and of the others half.
    ``heavy-tail``: one answer in twenty is longer by a Pareto-distributed factor with exponent 1.1, of infinite variance.
    """
    lengths = np.array([row.response_len_tokens for row in rows], dtype=np.int64)
    generator = np.random.default_rng([seed, 5])
    if variant == "no-signal":
        lengths = generator.permutation(lengths)
    elif variant == "drift":
        lengths = _drifted(rows, lengths, drift_at)
    else:
        tail = generator.random(lengths.size) < _TAIL_SHARE
        factors = np.where(tail, 1.0 + generator.pareto(_TAIL_EXPONENT, lengths.size), 1.0)
        lengths = np.minimum(np.rint(lengths * factors), np.maximum(lengths, MAX_RESPONSE_TOKENS)).astype(np.int64)
    return tuple(replace(row, response_len_tokens=length) for row, length in zip(rows, lengths.tolist(), strict=True))


def within(rows: Sequence[WorkloadRow], tokens: int) -> tuple[WorkloadRow, ...]:
    """Cut answers so that each row fits into ``tokens``; all prompts are shorter."""
    return tuple(
        replace(row, response_len_tokens=min(row.response_len_tokens, tokens - row.prompt_len_tokens)) for row in rows
    )


def _drifted(rows: Sequence[WorkloadRow], lengths: NDArray[np.int64], drift_at: int) -> NDArray[np.int64]:
    tasks = {task: place for place, task in enumerate(sorted({row.task for row in rows}))}
    factors = np.array([1.0 / _DRIFT_FACTOR if tasks[row.task] % 2 else _DRIFT_FACTOR for row in rows])
    factors[:drift_at] = 1.0
    drifted: NDArray[np.int64] = np.maximum(1, np.rint(lengths * factors)).astype(np.int64)
    return drifted
