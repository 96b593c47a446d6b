"""The prior of every prediction: one sketch per model, shrunk to the sketch of all models."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from online_learning.distribution import FloatArray, IntArray, log_grid
from online_learning.length_learner import Observation
from online_learning.survival.hazard import mass_from_survival, posterior_hazard, prior_with_tail, survival_from_hazard
from online_learning.survival.length_sketch import Forgetting, LengthSketch, SketchSettings
from online_learning.survival.per_model import ModelTable

_VAGUE_ANSWERS = 3.0
"""Weight of knowing nothing, in answers: long answers end last, so the first few are no fair sample."""

_STALE_SHARE = 0.005
"""Share of new evidence at which a model's prior is computed again, which costs 50 µs."""


_SURE = 1e-6
"""Hazards are kept so far from 0 and 1 where odds are taken of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPriorSettings:
    """How a model's prior is formed."""

    longest_tokens: int = 131_072
    """Longest length of the grid; a longer answer counts as one that long."""
    max_models: int = 16
    """Models remembered; the one taught longest ago is forgotten first."""
    prior_answers: float = 10.0
    """Weight of the distribution over all models in that of one, in answers."""
    sketch: SketchSettings = field(default_factory=SketchSettings)


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """The distribution of all of a model's answers, in the forms that experts need."""

    hazard: FloatArray
    survival: FloatArray
    mass: FloatArray
    odds: FloatArray
    """Odds to end in a bin, kept from their ends."""
    log_odds: NDArray[np.float32]

    @classmethod
    def of(cls, hazard: FloatArray) -> Prior:
        """All forms of one distribution."""
        inside = np.clip(hazard, _SURE, 1.0 - _SURE)
        survival = survival_from_hazard(hazard)
        odds = inside / (1.0 - inside)
        return cls(hazard, survival, mass_from_survival(survival), odds, np.log(odds).astype(np.float32))


class _ModelHazards:
    """One model's sketch and the prior that was last computed from it."""

    def __init__(self, lengths: IntArray, settings: SketchSettings) -> None:
        self.sketch = LengthSketch(lengths, settings)
        self.prior: Prior | None = None
        """None until it was taught an answer."""
        self.answers_since = 0

    def renew(self, prior: Prior) -> None:
        """Take over the prior that was just computed."""
        self.prior, self.answers_since = prior, 0


class ModelPrior:
    """Length distributions by model; an unknown model has that of all of them together.

    A prior is computed again when half a percent of its evidence is new, so that it lags by as much.

    Args:
        settings: grid, memory, and how far one model is shrunk to all.
    """

    def __init__(self, settings: ModelPriorSettings) -> None:
        self._settings = settings
        self.lengths = log_grid(settings.longest_tokens)
        create = partial(_ModelHazards, self.lengths, settings.sketch)
        self._everything = create()
        self._models = ModelTable(create, bound=settings.max_models)
        self._everything.prior = self._over_models()

    def prior(self, model: str) -> Prior:
        """The distribution of all of a model's answers."""
        known = self._models.get(model)
        prior = None if known is None else known.prior
        prior = self._everything.prior if prior is None else prior
        assert prior is not None, "the prior of all models is computed first"
        return prior

    def evidence(self, model: str) -> float:
        """Effective number of answers behind a model's prior."""
        known = self._models.get(model)
        return (self._everything if known is None else known).sketch.evidence

    def at_risk(self, model: str) -> FloatArray:
        """Answers behind a model's prior that reached each bin, and the weight of what they are shrunk to; shape (bins,)."""
        known = self._models.get(model)
        if known is None:
            return np.asarray(self._everything.sketch.exposure + _VAGUE_ANSWERS)
        return np.asarray(known.sketch.exposure + self._settings.prior_answers)

    def learn(self, model: str, observation: Observation) -> Forgetting | None:
        """Count an answer; returns what the model's sketch forgot when it reveals a drift."""
        if _count(self._everything, observation)[1]:
            self._everything.renew(self._over_models())
        known = self._models.get_or_create(model)
        forgetting, stale = _count(known, observation)
        if stale:
            known.renew(self._of_model(known.sketch))
        return forgetting

    def _over_models(self) -> Prior:
        sketch = self._everything.sketch
        vague = prior_with_tail(self.lengths, sketch.events, sketch.exposure)
        return Prior.of(posterior_hazard(sketch.events, sketch.exposure, vague, _VAGUE_ANSWERS))

    def _of_model(self, sketch: LengthSketch) -> Prior:
        assert self._everything.prior is not None, "it is formed first"
        prior = self._everything.prior.hazard
        return Prior.of(posterior_hazard(sketch.events, sketch.exposure, prior, self._settings.prior_answers))


def _count(predicted: _ModelHazards, observation: Observation) -> tuple[Forgetting | None, bool]:
    """Teach a sketch; says too whether the prior computed from it is stale."""
    surprise = None if observation.surprises is None else observation.surprises[0]
    forgetting = predicted.sketch.learn_one(observation, surprise)
    predicted.answers_since += 1
    stale = forgetting is not None or predicted.answers_since >= _STALE_SHARE * predicted.sketch.evidence
    return forgetting, stale or predicted.prior is None
