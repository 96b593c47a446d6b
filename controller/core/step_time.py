"""The step times of one engine and the scarcity of its resources, learned online from its snapshots."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from controller.policy.policy import DEFAULT_PREFILL_TOKEN_S, DEFAULT_STEP_S
from online_learning.distribution import FloatArray
from store.records import Snapshot

STEP_MEMORY = 0.02
"""Weight of the newest snapshot in the running mean of the step time."""
SAMPLES = 600
"""Snapshots that the step model is fitted to: one minute at ten a second."""
USE_WINDOW_S = 60.0
_LEAST_USE = 1e-6
SHARPNESS = 2.0
"""Exponent from the relative use of a resource to its price: half as full as the other costs a quarter."""
FEWEST_SAMPLES = 20
"""Smallest number of snapshots for a fit; with fewer, every step is assumed to take the mean time."""
SHORTEST_STEP_S = 1e-5


class StepPrices:
    """Mean step time, the fitted step model, and the use of memory and slots while requests wait.

    >>> StepPrices().weights(max_num_seqs=256)
    (1.0, 1.0)
    """

    def __init__(self) -> None:
        self.step_s: float | None = None
        """Running mean of the seconds of a step; None before any."""
        self.model: StepModel | None = None
        """Fitted on the slow tick, and sooner while `has_news`; None before the first fit."""
        self._samples: deque[StepSample] = deque(maxlen=SAMPLES)
        self._fit_at = FEWEST_SAMPLES
        self._kv_use: float | None = None
        self._running = 0.0
        self._seen_s = -math.inf

    def observe(self, snapshot: Snapshot) -> None:
        """Update the means with a snapshot."""
        if not snapshot.steps:
            return
        step_s = snapshot.step_s / snapshot.steps
        self.step_s = step_s if self.step_s is None else self.step_s + STEP_MEMORY * (step_s - self.step_s)
        self._samples.append(
            StepSample(
                steps=snapshot.steps,
                step_s=snapshot.step_s,
                prefill_tokens=snapshot.prefill_tokens,
                decode_tokens=snapshot.decode_tokens,
                kv_tokens_read=snapshot.kv_tokens_read,
            )
        )
        if snapshot.waiting:
            self._use(snapshot)

    @property
    def has_news(self) -> bool:
        """Whether a fit need not wait for the slow tick: a new engine's snapshots are enough, or twice those of the last."""
        return len(self._samples) >= self._fit_at

    def fit(self) -> None:
        """Fit the step model to the latest snapshots."""
        if len(self._samples) >= FEWEST_SAMPLES:
            self.model = fit_step_model(list(self._samples))
            self._fit_at = 2 * len(self._samples)

    @property
    def prefill_token_s(self) -> float:
        """Seconds that a prompt token adds to a step."""
        return DEFAULT_PREFILL_TOKEN_S if self.model is None else self.model.prefill_token_s

    def weights(self, max_num_seqs: int) -> tuple[float, float]:
        """Prices of KV memory and of slots; that of the scarcer one is 1.

        The resource that is fuller while requests wait is the scarcer one. Before any queue both prices are 1.
        """
        if self._kv_use is None:
            return 1.0, 1.0
        slot_share = self._running / max_num_seqs
        fullest = max(self._kv_use, slot_share, _LEAST_USE)
        return (self._kv_use / fullest) ** SHARPNESS, (slot_share / fullest) ** SHARPNESS

    def _use(self, snapshot: Snapshot) -> None:
        passed_s = max(0.0, snapshot.time_s - self._seen_s)
        weight = 1.0 if self._kv_use is None else -math.expm1(-passed_s / USE_WINDOW_S)
        self._seen_s = snapshot.time_s
        use = snapshot.kv_blocks_used / snapshot.kv_blocks
        self._kv_use = use if self._kv_use is None else self._kv_use + weight * (use - self._kv_use)
        self._running += weight * (snapshot.running - self._running)


class StepSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
        return StepModel(base_s=DEFAULT_STEP_S)
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
