"""What a specialist is: an expert that speaks only of requests which say something beside their prompt.

It starts from what all others together predict, and is silent about the rest. `online_learning.mixture.specialists` weighs it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec
import numpy as np

from online_learning.distribution import FloatArray
from online_learning.features.request_hints import RequestHints
from online_learning.length_learner import Observation


class HintedQuery(msgspec.Struct, frozen=True, eq=False):
    """A request with hints, and what the others predict for it."""

    hints: RequestHints
    model: str
    before: FloatArray
    """Mass on the common grid, shape (bins,)."""

    @property
    def survival(self) -> FloatArray:
        """Predicted probability to reach each bin, shape (bins,)."""
        return np.asarray(np.maximum(self.before[::-1].cumsum()[::-1], _LEAST_SURVIVAL))

    @property
    def hazard(self) -> FloatArray:
        """Predicted chance to end in each bin once it is reached, shape (bins,)."""
        return np.asarray(self.before / self.survival)


_LEAST_SURVIVAL = 1e-12


class Specialist(Protocol):
    """Predicts from a request's hints, on the common grid; its state depends on what it was taught alone, in that order."""

    name: str

    def speaks(self, hints: RequestHints, model: str) -> bool:
        """Whether it has anything to say about a request with these hints."""
        ...

    def predict(self, query: HintedQuery) -> FloatArray:
        """The mass on the common grid, shape (bins,), for a request that it speaks of; changes nothing."""
        ...

    def learn(self, query: HintedQuery, observation: Observation) -> None:
        """Learn from the answer to any request with hints; the prediction was made, and scored, before."""
        ...
