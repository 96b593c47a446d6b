"""What an engine's steps cost and what of it is scarce, learned online from its snapshots."""

from __future__ import annotations

import math
from collections import deque

from controller.core.step_model import FEWEST_SAMPLES, StepModel, StepSample, fit_step_model
from controller.policy.policy import DEFAULT_PREFILL_TOKEN_S
from store.records import Snapshot

DEFAULT_STEP_S = 0.03
STEP_MEMORY = 0.02
"""Weight of the newest snapshot in the running mean of the step time."""
SAMPLES = 600
"""Snapshots of the last minute, at ten a second, that the step model is fitted to."""
USE_WINDOW_S = 60.0
_LEAST_USE = 1e-6
SHARPNESS = 2.0
"""Power of the relative use of a resource that is its price: what is half as full as the other costs a quarter."""


class StepPrices:
    """Mean step time, the step model fitted to snapshots, and how much of memory and slots is in use under a queue.

    >>> StepPrices().weights(max_num_seqs=256)
    (1.0, 1.0)
    """

    def __init__(self) -> None:
        self.step_s: float | None = None
        """Mean seconds of a step lately; None before any."""
        self.model: StepModel | None = None
        """Fitted on the slow tick; None while there is too little to fit."""
        self._samples: deque[StepSample] = deque(maxlen=SAMPLES)
        self._kv_use: float | None = None
        self._running = 0.0
        self._seen_s = -math.inf

    def observe(self, snapshot: Snapshot) -> None:
        """Take a snapshot into account."""
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

    def fit(self) -> None:
        """Fit the step model to the latest snapshots."""
        if len(self._samples) >= FEWEST_SAMPLES:
            self.model = fit_step_model(list(self._samples))

    @property
    def prefill_token_s(self) -> float:
        """Seconds that a prompt token adds to a step."""
        return DEFAULT_PREFILL_TOKEN_S if self.model is None else self.model.prefill_token_s

    def weights(self, max_num_seqs: int) -> tuple[float, float]:
        """Prices of KV memory and of slots, the scarcer one 1.

        Scarce is what is full while requests wait; without a queue nothing is known to be, and both cost the same.
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
