"""The settings that all learners share.

A learner's state is a function of the (features, model, observation) triples that it was taught, in their order:
predicting changes nothing and all chance is seeded, so that teaching the recorded triples again to a new learner
with the same settings rebuilds it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from online_learning.clustering.clusters import ClusterSettings
from online_learning.experts.cluster import CLUSTER_SKETCH
from online_learning.survival.length_sketch import SketchSettings
from online_learning.survival.model_prior import ModelPriorSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSettings:
    """Settings that all learners share."""

    longest_tokens: int = 131_072
    """Longest length of the grid; a longer answer counts as one that long."""
    max_models: int = 16
    """Models remembered; the one taught longest ago is forgotten first."""
    prior_answers: float = 10.0
    """Weight of the distribution over all models in that of one, in answers."""
    sketch: SketchSettings = field(default_factory=SketchSettings)
    clusters: ClusterSettings = field(default_factory=ClusterSettings)
    cluster_sketch: SketchSettings = CLUSTER_SKETCH

    @property
    def model_prior(self) -> ModelPriorSettings:
        """Those of the prior."""
        return ModelPriorSettings(
            longest_tokens=self.longest_tokens,
            max_models=self.max_models,
            prior_answers=self.prior_answers,
            sketch=self.sketch,
        )
