"""How long this engine's steps take, fitted to what its snapshots measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from online_learning.distribution import FloatArray

FEWEST_SAMPLES = 20
"""Below this a fit would be noise, and every step takes the mean."""
UNKNOWN_STEP_S = 0.03
SHORTEST_STEP_S = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """Sums over the steps of one snapshot."""

    steps: int
    step_s: float
    prefill_tokens: int
    decode_tokens: int
    kv_tokens_read: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Seconds of a step = base + prefill tokens·p + decoding sequences·d + KV tokens read·k; none is negative."""

    base_s: float
    prefill_token_s: float = 0.0
    decode_seq_s: float = 0.0
    kv_token_s: float = 0.0


def fit_step_model(samples: Sequence[StepSample]) -> StepModel:
    """Least squares over snapshots, each weighted by its steps, with no coefficient below zero.

    With too few snapshots the base is the mean step time, and with none a typical one.

    >>> fit_step_model([StepSample(steps=2, step_s=0.1, prefill_tokens=0, decode_tokens=2, kv_tokens_read=9)])
    StepModel(base_s=0.05, prefill_token_s=0.0, decode_seq_s=0.0, kv_token_s=0.0)
    """
    usable = [sample for sample in samples if sample.steps > 0 and sample.step_s > 0.0]
    if not usable:
        return StepModel(base_s=UNKNOWN_STEP_S)
    sums = np.array([(s.steps, s.prefill_tokens, s.decode_tokens, s.kv_tokens_read) for s in usable], dtype=np.float64)
    step_s = np.array([sample.step_s for sample in usable])
    if len(usable) < FEWEST_SAMPLES:
        return StepModel(base_s=max(float(step_s.sum() / sums[:, 0].sum()), SHORTEST_STEP_S))
    weight = 1.0 / np.sqrt(sums[:, 0])
    base, prefill, decode, kv = _not_negative(sums * weight[:, None], step_s * weight).tolist()
    return StepModel(base_s=max(base, SHORTEST_STEP_S), prefill_token_s=prefill, decode_seq_s=decode, kv_token_s=kv)


def _not_negative(columns: FloatArray, target: FloatArray) -> FloatArray:
    """Least squares in which the most negative coefficient is set to zero until none is left."""
    scale = np.linalg.norm(columns, axis=0)
    active = scale > 0.0
    while True:
        solution = np.zeros(scale.size)
        scaled = columns[:, active] / scale[active]
        solution[active] = np.linalg.lstsq(scaled, target, rcond=None)[0] / scale[active]
        if (solution >= 0.0).all():
            return solution
        active[np.argmin(solution * np.where(active, scale, 0.0))] = False
