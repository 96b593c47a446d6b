"""The expert of prompt clusters: each cluster has its own length distribution per model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_learning.clustering.clusters import ClusterSettings, Neighbourhood, PromptClusters
from online_learning.clustering.split_tests import Members, SplitSettings, nats_for_two, two_halves
from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import (
    ExpertPrediction,
    LearningResult,
    Query,
    ScoredPrediction,
    bin_of,
    chances,
    drifts_of,
    scored_prediction,
)
from online_learning.length_learner import ClusterChange, Drift, Observation
from online_learning.survival.hazard import mass_from_survival, posterior_hazard, survival_from_hazard
from online_learning.survival.length_sketch import LengthSketch, SketchSettings
from online_learning.survival.model_prior import Prior
from online_learning.survival.per_model import ModelTable
from online_learning.survival.shrinkage import Shrinkage

_INHERITED_ANSWERS = 10.0
"""Weight of what a split cluster knew from before its recent answers, in each half."""

_PAIRS_TRIED = 8
"""Pairs of near clusters that are compared, at most, to make room for one."""


class _Pooled(msgspec.Struct, frozen=True, eq=False):
    """Counts of a neighbourhood, weighted by nearness."""

    events: FloatArray
    exposure: FloatArray
    evidence: float


@dataclass(slots=True)
class _ClusterPredictions:
    """One model's sketches, one for each place, with their counts, and how far they are shrunk."""

    sketches: list[LengthSketch]
    counts: FloatArray
    """Events and exposure by place, shape (places, 2, bins)."""
    shrinkage: Shrinkage
    prior: Prior | None = None
    """The model's belief when it last taught."""

    def pool(self, near: Neighbourhood) -> _Pooled:
        """The counts of a neighbourhood."""
        _, kinds, bins = self.counts.shape
        events, exposure = (near.weights @ self.counts[near.places].reshape(-1, kinds * bins)).reshape(kinds, bins)
        evidences = [self.sketches[place].evidence for place in near.places]
        return _Pooled(events, exposure, float(near.weights @ np.array(evidences)))


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """One of a cluster's recent answers."""

    point: NDArray[np.float32]
    model: str
    observation: Observation
    position: int


class ClusterExpert:
    """Prompt clusters, each with its own length distribution per model, shrunk to the model's by evidence.

    Until `ClusterSettings.early_seed_prompts` it has nothing to say; then, and once more at `seed_prompts`, the
    clusters are formed and the answers so far are sorted into them. From there on they move and live: they are born,
    split where prompts or answers are clearly two, merged where both have become alike, and retired when they were
    idle for long. How far a cluster is shrunk is learnt from recent log scores, so that on prompts that say nothing
    about length it stays the prior.
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
        self._recent = self._no_answers()
        self._checked: IntArray = np.zeros(settings.clusters, dtype=np.int64)
        self._settled = False
        self._first: list[tuple[Query, Observation]] = []

    def predict_one(self, query: Query) -> ExpertPrediction:
        """The belief drawn from the nearest clusters; the prior until there are clusters."""
        if not self._clusters.seeded:
            return ExpertPrediction(query.prior.mass, 0.0, 0.0)
        near = self._clusters.neighbourhood(query.features)
        beliefs = self._models.known(query.model)
        if beliefs is None:
            return ExpertPrediction(query.prior.mass, 0.0, 0.0, near.cluster)
        pooled = beliefs.pool(near)
        return ExpertPrediction(
            mass=mass_from_survival(beliefs.shrinkage.mix(_candidates(pooled, query, beliefs.shrinkage))),
            evidence=pooled.evidence,
            trust=beliefs.shrinkage.trust(pooled.evidence),
            cluster=near.cluster,
            at_risk=pooled.exposure,
        )

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Take an answer into account; with the drift of its cluster, and what became of clusters by it."""
        if self._clusters.seeded:
            result = self._learn_in_cluster(query, observation, judged=judged)
        else:
            position = bin_of(self._lengths, observation)
            result = LearningResult(scored_prediction(query.prior.mass, position, censored=observation.censored))
        if not self._settled:
            self._first.append((query, observation))
            if len(self._first) in (*self._settings.early_seed_prompts, self._settings.seed_prompts):
                result.changes.extend(self._seed())
        return result

    def _seed(self) -> list[ClusterChange]:
        """Form the clusters, in place of those for the time being."""
        changes = [ClusterChange("retired", cluster) for cluster in self._clusters.ids]
        self._clusters.seed([query.features for query, _ in self._first])
        self._models = self._new_models()
        self._recent = self._no_answers()
        for query, observation in self._first:
            self._learn_in_cluster(query, observation, judged=True)
        if len(self._first) >= self._settings.seed_prompts:
            self._settled = True
            self._first.clear()
        return changes

    def _learn_in_cluster(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        beliefs = self._models.taught(query.model)
        beliefs.prior = query.prior
        near = self._clusters.neighbourhood(query.features)
        cluster = near.cluster
        said = self._judge(beliefs, near, query, observation) if judged else None
        changes: list[ClusterChange] = []
        if self._settled:
            changes += self._bear(near)
            if changes:
                near = self._clusters.neighbourhood(query.features)
        place = self._clusters.follow(near)
        forgetting = beliefs.sketches[place].learn_one(observation)
        drifts: list[Drift] = drifts_of(query.model, near.cluster, forgetting)
        position = bin_of(self._lengths, observation)
        self._recent[place].append(_Answer(near.point, query.model, observation, position))
        if self._settled:
            changes += self._tend(place)
        return LearningResult(said, drifts, cluster, changes)

    def _judge(
        self, beliefs: _ClusterPredictions, near: Neighbourhood, query: Query, observation: Observation
    ) -> ScoredPrediction:
        """What was believed of the answer; the strengths of shrinkage are scored by it."""
        candidates = _candidates(beliefs.pool(near), query, beliefs.shrinkage)
        position = bin_of(self._lengths, observation)
        mass = mass_from_survival(beliefs.shrinkage.mix(candidates))
        beliefs.shrinkage.learn(chances(candidates, position, censored=observation.censored))
        return scored_prediction(mass, position, censored=observation.censored)

    # --- what becomes of clusters -------------------------------------------------------------------

    def _bear(self, near: Neighbourhood) -> list[ClusterChange]:
        """Let a prompt that was just placed give birth to a cluster, if it does."""
        birth = self._clusters.born(near)
        if birth is None:
            return []
        gone = [] if birth.retired is None else [ClusterChange("retired", birth.retired)]
        self._forget(birth.place)
        return [*gone, ClusterChange("born", self._clusters.id_of(birth.place))]

    def _tend(self, place: int) -> list[ClusterChange]:
        """Every so often ask whether the cluster of the latest answer is two, or one with its nearest."""
        self._checked[place] += 1
        due, every = int(self._checked[place]), self._settings.check_prompts
        if due % every == 0:
            return self._split(place)
        if due % every == every // 2:
            return [*self._merge(place), *self._retire()]
        return []

    def _split(self, place: int) -> list[ClusterChange]:
        priors = {model: beliefs.prior for model, beliefs in self._models.items() if beliefs.prior is not None}
        answers = [answer for answer in self._recent[place] if answer.model in priors]
        if len(answers) < self._settings.check_prompts:
            return []
        members = Members(
            points=np.stack([answer.point for answer in answers]),
            bins=np.array([answer.position for answer in answers], dtype=np.int64),
            censored=np.array([answer.observation.censored for answer in answers]),
            models=tuple(answer.model for answer in answers),
        )
        settings = self._settings
        limits = SplitSettings(fewest=settings.check_prompts // 6, nats=settings.split_nats, share=settings.split_share)
        leaving = two_halves(members, priors, limits)
        if leaving is None:
            return []
        changes = self._make_room(place) if self._clusters.full else []
        if self._clusters.full:
            return []
        new = self._clusters.split(place, members.points[~leaving], members.points[leaving])
        stayed = [answer for answer, leaves in zip(answers, leaving, strict=True) if not leaves]
        left = [answer for answer, leaves in zip(answers, leaving, strict=True) if leaves]
        for model, beliefs in self._models.items():
            _divide(beliefs, place, new, [_of(model, half) for half in (stayed, left)], self._new_sketch)
        for half, answers_of_it in ((place, stayed), (new, left)):
            self._recent[half] = deque(answers_of_it, self._settings.recent_prompts)
            self._checked[half] = 0
        return [*changes, ClusterChange("split", self._clusters.id_of(new), self._clusters.id_of(place))]

    def _make_room(self, place: int) -> list[ClusterChange]:
        """Merge the nearest two other clusters whose answers speak for one."""
        within = self._settings.pressed_share * self._clusters.usual_distance
        for one, other in self._clusters.nearest_pairs(within=within, most=_PAIRS_TRIED):
            if place not in {one, other} and self._nats_for_two(one, other) < 0.0:
                return [self._merge_two(one, other)]
        return []

    def _merge(self, place: int) -> list[ClusterChange]:
        """Merge a cluster with its nearest where both prompts and answers have become alike."""
        nearest = self._clusters.nearest_other(place)
        if nearest is None or nearest[1] >= self._settings.merge_share * self._clusters.usual_distance:
            return []
        if self._nats_for_two(place, nearest[0]) > -self._settings.merge_nats:
            return []
        return [self._merge_two(place, nearest[0])]

    def _merge_two(self, one: int, other: int) -> ClusterChange:
        survivor, gone = self._clusters.larger(one, other)
        self._clusters.merge(survivor, gone)
        for beliefs in self._models.states():
            beliefs.sketches[survivor].absorb(beliefs.sketches[gone])
        self._recent[survivor].extendleft(reversed(self._room_for(survivor, gone)))
        self._forget(gone)
        return ClusterChange("merged", self._clusters.id_of(gone), self._clusters.id_of(survivor))

    def _room_for(self, survivor: int, gone: int) -> list[_Answer]:
        """The latest answers of a cluster, as many as fit beside the survivor's own."""
        room = self._settings.recent_prompts - len(self._recent[survivor])
        return list(self._recent[gone])[-room:] if room else []

    def _retire(self) -> list[ClusterChange]:
        place = self._clusters.retire()
        if place is None:
            return []
        self._forget(place)
        return [ClusterChange("retired", self._clusters.id_of(place))]

    def _nats_for_two(self, one: int, other: int) -> float:
        """Log likelihood ratio for two clusters' answers coming from two distributions, over all models."""
        return sum(
            nats_for_two(_pair(beliefs.counts[one]), _pair(beliefs.counts[other]), beliefs.prior)
            for beliefs in self._models.states()
            if beliefs.prior is not None
        )

    def _forget(self, place: int) -> None:
        """Start a place anew."""
        for beliefs in self._models.states():
            beliefs.sketches[place] = self._new_sketch(beliefs.counts[place])
        self._recent[place].clear()
        self._checked[place] = 0

    def _no_answers(self) -> list[deque[_Answer]]:
        return [deque(maxlen=self._settings.recent_prompts) for _ in range(self._settings.clusters)]

    def _new_models(self) -> ModelTable[_ClusterPredictions]:
        return ModelTable(self._new_beliefs, bound=self._max_models)

    def _new_beliefs(self) -> _ClusterPredictions:
        counts = np.zeros((self._settings.clusters, 2, self._lengths.size))
        return _ClusterPredictions([self._new_sketch(rows) for rows in counts], counts, Shrinkage())

    def _new_sketch(self, rows: FloatArray) -> LengthSketch:
        rows[:] = 0.0
        return LengthSketch(self._lengths, self._sketch, rows)


def _pair(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    return counts[0], counts[1]


def _of(model: str, answers: list[_Answer]) -> list[Observation]:
    return [answer.observation for answer in answers if answer.model == model]


def _divide(
    beliefs: _ClusterPredictions,
    place: int,
    new: int,
    halves: list[list[Observation]],
    new_sketch: Callable[[FloatArray], LengthSketch],
) -> None:
    """Give each half its recent answers, and a little of what the whole knew from before."""
    whole = beliefs.counts[place].copy()
    evidence = beliefs.sketches[place].evidence
    for half, answers in zip((place, new), halves, strict=True):
        sketch = beliefs.sketches[half] = new_sketch(beliefs.counts[half])
        sketch.inherit(whole, evidence, min(_INHERITED_ANSWERS, evidence))
        sketch.recall(answers)


def _candidates(pooled: _Pooled, query: Query, shrinkage: Shrinkage) -> FloatArray:
    """Survival under each strength of shrinkage, one row each."""
    strength = shrinkage.strengths[:, None] * query.prior.survival
    return survival_from_hazard(posterior_hazard(pooled.events, pooled.exposure, query.prior.hazard, strength))
