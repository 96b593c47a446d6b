"""One model's length distributions, a sketch for each cluster, and how far they are shrunk to the model's."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from online_learning.clustering.clusters import Neighbourhoods
from online_learning.distribution import FloatArray, IntArray
from online_learning.length_learner import Observation
from online_learning.rows import dot, times
from online_learning.survival.hazard import posterior_hazard, survival_from_hazard
from online_learning.survival.length_sketch import LengthSketch, SketchSettings
from online_learning.survival.model_prior import Prior
from online_learning.survival.shrinkage import Shrinkage

_INHERITED_ANSWERS = 10.0
"""Weight of what a split cluster knew from before its recent answers, in each half."""


class PooledCounts(msgspec.Struct, frozen=True, eq=False):
    """Counts of neighbourhoods, weighted by nearness, a row for each prompt."""

    events: FloatArray
    exposure: FloatArray
    evidence: FloatArray


class ClusterPredictions:
    """One model's sketches, one for each slot, with their counts, and how far they are shrunk.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,).
        slots: number of clusters that there may be at a time.
        settings: of each sketch.
    """

    def __init__(self, lengths: IntArray, slots: int, settings: SketchSettings) -> None:
        self.counts: FloatArray = np.zeros((slots, 2, lengths.size))
        """Events and exposure by slot, shape (slots, 2, bins); the sketches count in it."""
        self.shrinkage = Shrinkage()
        self.prior: Prior | None = None
        """The model's distribution when it last taught."""
        self._lengths = lengths
        self._settings = settings
        self.sketches = [LengthSketch(lengths, settings, rows) for rows in self.counts]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let the sketches of a copy count in the copy's array."""
        self.__dict__.update(state)
        for sketch, rows in zip(self.sketches, self.counts, strict=True):
            sketch.events, sketch.exposure = rows

    def blank(self) -> LengthSketch:
        """An empty sketch, to be `put` in a slot."""
        return LengthSketch(self._lengths, self._settings)

    def put(self, slot: int, sketch: LengthSketch) -> None:
        """Let a sketch be a slot's, in place of the one that was there."""
        rows = self.counts[slot]
        rows[0], rows[1] = sketch.events, sketch.exposure
        sketch.events, sketch.exposure = rows
        self.sketches[slot] = sketch

    def pool(self, near: Neighbourhoods) -> PooledCounts:
        """The counts of neighbourhoods."""
        _, kinds, bins = self.counts.shape
        counts = self.counts[near.slots].reshape(*near.slots.shape, kinds * bins)
        pooled = times(near.weights, counts).reshape(-1, kinds, bins)
        evidences = np.array([[self.sketches[slot].evidence for slot in slots] for slots in near.slots.tolist()])
        return PooledCounts(pooled[:, 0], pooled[:, 1], dot(near.weights, evidences))

    def half(self, slot: int, answers: list[Observation]) -> LengthSketch:
        """The sketch of a half of a cluster: its recent answers, and a little of what the whole knew from before."""
        evidence, sketch = self.sketches[slot].evidence, self.blank()
        sketch.inherit(self.counts[slot], evidence, min(_INHERITED_ANSWERS, evidence))
        sketch.recall(answers)
        return sketch

    def candidates(self, pooled: PooledCounts, prior: Prior) -> FloatArray:
        """Survival of each prompt under each strength of shrinkage, shape (prompts, strengths, bins)."""
        strength = self.shrinkage.strengths[:, None] * prior.survival
        events, exposure = pooled.events[:, None, :], pooled.exposure[:, None, :]
        return survival_from_hazard(posterior_hazard(events, exposure, prior.hazard, strength))
