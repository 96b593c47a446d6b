"""Named features as a vector: the seam between River's dictionaries and learners that work on arrays."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping

import numpy as np

from online_learning.length_learner import Features


class FeatureSlots:
    """Gives each feature name a permanent slot of a vector, and fills the slots of missing features with their means.

    Names get slots in the order in which they are learnt; those of one sample are sorted first, so that the order of
    a dictionary changes nothing. Fails where there are more names than slots: the names that come later are ignored.

    Args:
        size: number of slots, the length of the vectors.

    >>> slots = FeatureSlots(3)
    >>> slots.learn({"b": 4.0, "a": 1.0})
    >>> slots.vector({"b": 2.0, "unknown": 7.0}).tolist()
    [1.0, 2.0, 0.0]
    """

    def __init__(self, size: int) -> None:
        assert size > 0, "there must be a slot"
        self._slots: dict[Hashable, int] = {}
        self._means: Features = np.zeros(size, dtype=np.float32)
        self._counts = np.zeros(size, dtype=np.int64)

    def learn(self, x: Mapping[Hashable, float]) -> None:
        """Give new names their slots and move the means; raises `TypeError` where a value is no number."""
        free = self._means.size - len(self._slots)
        for name in sorted(x.keys() - self._slots.keys(), key=repr)[:free]:
            self._slots[name] = len(self._slots)
        for slot, value in self._known(x):
            self._counts[slot] += 1
            self._means[slot] += (value - self._means[slot]) / self._counts[slot]

    def vector(self, x: Mapping[Hashable, float]) -> Features:
        """The features as a vector of shape (size,); changes nothing."""
        vector = self._means.copy()
        for slot, value in self._known(x):
            vector[slot] = value
        return vector

    def _known(self, x: Mapping[Hashable, float]) -> list[tuple[int, float]]:
        """Slots and values of the features that have a slot and a finite value."""
        return [
            (slot, value)
            for name, value in x.items()
            if (slot := self._slots.get(name)) is not None and math.isfinite(value)
        ]
