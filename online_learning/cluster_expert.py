"""The expert of prompt clusters: each cluster has its own length distribution per model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from online_learning.clusters import ClusterSettings, Neighbourhood, PromptClusters
from online_learning.distribution import FloatArray, IntArray
from online_learning.expert import Belief, Lesson, Query, Verdict, bin_of, chances, drifts_of, verdict
from online_learning.hazard import mass_from_survival, posterior_hazard, survival_from_hazard
from online_learning.models import ModelTable
from online_learning.prompt import Drift, Observation
from online_learning.shrinkage import Shrinkage
from online_learning.sketch import LengthSketch, SketchSettings


@dataclass(frozen=True, slots=True)
class _Pooled:
    """Counts of a neighbourhood, weighted by nearness."""

    events: FloatArray
    exposure: FloatArray
    evidence: float


@dataclass(frozen=True, slots=True)
class _ClusterBeliefs:
    """One model's sketches, one for each cluster, with their counts, and how far they are shrunk."""

    sketches: list[LengthSketch]
    counts: FloatArray
    """Events and exposure by cluster, shape (clusters, 2, bins)."""
    shrinkage: Shrinkage

    def forget(self, cluster: int, lengths: IntArray, settings: SketchSettings) -> None:
        """Start a cluster anew."""
        self.counts[cluster] = 0.0
        self.sketches[cluster] = LengthSketch(lengths, settings, self.counts[cluster])

    def pool(self, near: Neighbourhood) -> _Pooled:
        """The counts of a neighbourhood."""
        _, kinds, bins = self.counts.shape
        events, exposure = (near.weights @ self.counts[near.clusters].reshape(-1, kinds * bins)).reshape(kinds, bins)
        evidences = [self.sketches[cluster].evidence for cluster in near.clusters]
        return _Pooled(events, exposure, float(near.weights @ np.array(evidences)))


class ClusterExpert:
    """Prompt clusters, each with its own length distribution per model, shrunk to the model's by evidence.

    Until `ClusterSettings.early_seed_prompts` it has nothing to say; then, and once more at `seed_prompts`, the
    clusters are formed and the answers so far are sorted into them; from there on they move, and are born. How far a cluster
    is shrunk is learnt from recent log scores, so that on prompts that say nothing about length it stays the prior.
    """

    name = "cluster"

    def __init__(
        self, lengths: IntArray, settings: ClusterSettings, sketch: SketchSettings, *, max_models: int
    ) -> None:
        self._lengths = lengths
        self._settings = settings
        self._sketch = sketch
        self._max_models = max_models
        self._clusters = PromptClusters(settings)
        self._models = self._new_models()
        self._settled = False
        self._first: list[tuple[Query, Observation]] = []

    def believe(self, query: Query) -> Belief:
        """The belief drawn from the nearest clusters; the prior until there are clusters."""
        if not self._clusters.seeded:
            return Belief(query.prior.mass, 0.0, 0.0)
        near = self._clusters.neighbourhood(query.features)
        beliefs = self._models.known(query.model)
        if beliefs is None:
            return Belief(query.prior.mass, 0.0, 0.0, int(near.clusters[0]))
        pooled = beliefs.pool(near)
        return Belief(
            mass=mass_from_survival(beliefs.shrinkage.mix(_candidates(pooled, query, beliefs.shrinkage))),
            evidence=pooled.evidence,
            trust=beliefs.shrinkage.trust(pooled.evidence),
            cluster=int(near.clusters[0]),
        )

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> Lesson:
        """Take an answer into account; with the drift of its cluster, if that is what it revealed."""
        if self._clusters.seeded:
            lesson = self._learn_in_cluster(query, observation, judged=judged)
        else:
            position = bin_of(self._lengths, observation)
            lesson = Lesson(verdict(query.prior.mass, position, censored=observation.censored))
        if not self._settled:
            self._first.append((query, observation))
            if len(self._first) in (*self._settings.early_seed_prompts, self._settings.seed_prompts):
                self._seed()
        return lesson

    def _seed(self) -> None:
        self._clusters.seed([query.features for query, _ in self._first])
        self._models = self._new_models()
        for query, observation in self._first:
            self._learn_in_cluster(query, observation, judged=True)
        if len(self._first) >= self._settings.seed_prompts:
            self._settled = True
            self._first.clear()

    def _learn_in_cluster(self, query: Query, observation: Observation, *, judged: bool) -> Lesson:
        beliefs = self._models.taught(query.model)
        near = self._clusters.neighbourhood(query.features)
        said = self._judge(beliefs, near, query, observation) if judged else None
        born = self._clusters.born(near) if self._settled else None
        if born is not None:
            for model in self._models.states():
                model.forget(born, self._lengths, self._sketch)
            near = self._clusters.neighbourhood(query.features)
        cluster = self._clusters.follow(near)
        drifts: list[Drift] = drifts_of(query.model, cluster, beliefs.sketches[cluster].learn_one(observation))
        return Lesson(said, drifts, int(near.clusters[0]))

    def _judge(self, beliefs: _ClusterBeliefs, near: Neighbourhood, query: Query, observation: Observation) -> Verdict:
        """What was believed of the answer; the strengths of shrinkage are scored by it."""
        candidates = _candidates(beliefs.pool(near), query, beliefs.shrinkage)
        position = bin_of(self._lengths, observation)
        mass = mass_from_survival(beliefs.shrinkage.mix(candidates))
        beliefs.shrinkage.learn(chances(candidates, position, censored=observation.censored))
        return verdict(mass, position, censored=observation.censored)

    def _new_models(self) -> ModelTable[_ClusterBeliefs]:
        return ModelTable(self._new_beliefs, bound=self._max_models)

    def _new_beliefs(self) -> _ClusterBeliefs:
        counts = np.zeros((self._settings.clusters, 2, self._lengths.size))
        sketches = [LengthSketch(self._lengths, self._sketch, rows) for rows in counts]
        return _ClusterBeliefs(sketches, counts, Shrinkage())


def _candidates(pooled: _Pooled, query: Query, shrinkage: Shrinkage) -> FloatArray:
    """Survival under each strength of shrinkage, one row each."""
    strength = shrinkage.strengths[:, None] * query.prior.survival
    return survival_from_hazard(posterior_hazard(pooled.events, pooled.exposure, query.prior.hazard, strength))
