"""The expert of prompt clusters, a River regressor: each cluster has its own length distribution per model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import base

from online_learning.attempts import Attempts
from online_learning.clustering.clusters import ClusterSettings, Neighbourhood, Neighbourhoods, PromptClusters
from online_learning.clustering.split_tests import Members, SplitSettings, nats_for_two, two_halves
from online_learning.distribution import FloatArray, IntArray, LengthDistribution, log_grid
from online_learning.experts.cluster_predictions import ClusterPredictions
from online_learning.experts.expert import (
    ExpertPredictions,
    LearningResult,
    Query,
    ScoredPrediction,
    bin_of,
    chances,
    drifts_of,
    scored_prediction,
)
from online_learning.features.feature_slots import FeatureSlots
from online_learning.length_learner import ClusterChange, Drift, Observation
from online_learning.survival.hazard import mass_from_survival
from online_learning.survival.length_sketch import LengthSketch, SketchSettings
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings
from online_learning.survival.per_model import ModelTable

CLUSTER_SKETCH = SketchSettings(memory_answers=1_000.0, recent_answers=128)
"""How a cluster's distribution forgets, where nothing else is said."""

_NAMED_FEATURES = ClusterSettings(dimensions=64, text_dimensions=0)
"""Features of a dictionary, none of which is a coordinate of text."""

_ONE_MODEL = ""
"""The model that answers where features have names."""

_PAIRS_TRIED = 8
"""Pairs of near clusters that are compared, at most, to make room for one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Answer:
    """One of a cluster's recent answers."""

    point: NDArray[np.float32]
    model: str
    observation: Observation
    position: int


class ClusterLengthRegressor(base.Regressor):
    """Prompt clusters, each with its own length distribution per model, shrunk to the model's by evidence.

    An online k-means whose clusters hold life tables of lengths, so that answers of which only a lower bound is known
    count too. The distribution of a prompt is pooled over its nearest clusters and shrunk to the distribution of all
    answers; how far is learnt from recent log scores, so that on features that say nothing about length the
    prediction stays the prior. Until ``clusters.early_seed_prompts`` it is the prior; then, and once more at
    ``clusters.seed_prompts``, the clusters are formed and the answers so far are assigned to them. From there on
    clusters follow their prompts: they are born where prompts lie far from all others, split where prompts or answers
    are clearly two groups, merged where both have become alike, and retired when they were idle for long.

    It has two interfaces to the same state. As one of the mixture's experts it predicts and learns from vectors, with
    the prior that all experts share: `predict` and `learn`. As a River regressor it takes dictionaries of numbers, of
    any names: `predict_one`, `predict_distribution_one` and `learn_one`, with a prior of its own. An instance serves
    one of the two. As lengths are positive, so are the targets, which are rounded to whole numbers.

    Fails where one family of prompts is spread over feature space, because it gets several clusters with less
    evidence each; where length depends on features smoothly, of which it makes steps; and for features that first
    appear after the clusters were formed, or beyond ``clusters.dimensions`` names, because they are ignored.

    Args:
        clusters: how prompts are grouped, and the layout of the vectors; by default 64 dictionary features, each in
            its standard deviations.
        sketch: how fast a cluster forgets, in answers, and its test for drift.
        longest_tokens: longest length of the grid, in tokens; a longer answer counts as one of this length.
        max_models: models remembered; the one that was taught longest ago is forgotten first.

    >>> from river import evaluate, metrics, preprocessing
    >>> model = preprocessing.StandardScaler() | ClusterLengthRegressor()
    >>> stream = [({"words": 10.0 + n % 7, "code": float(n % 2)}, (60, 900)[n % 2] + n % 5) for n in range(400)]
    >>> evaluate.progressive_val_score(stream, model, metrics.MAE()).get() < 100.0
    True
    >>> model.predict_one({"words": 12.0, "code": 1.0}), model.predict_one({"words": 12.0, "code": 0.0})
    (932.0, 62.0)

    References: Walker and Muliere (1997), Beta-Stacy processes and a generalization of the Pólya-urn scheme, for the
    shrinkage; Bifet and Gavaldà (2007), Learning from time-changing data with adaptive windowing, for the drift test.
    """

    name = "cluster"

    def __init__(
        self,
        clusters: ClusterSettings | None = None,
        sketch: SketchSettings | None = None,
        longest_tokens: int = 131_072,
        max_models: int = 16,
    ) -> None:
        self.clusters = clusters
        self.sketch = sketch
        self.longest_tokens = longest_tokens
        self.max_models = max_models
        self._settings = clusters or _NAMED_FEATURES
        self._lengths = log_grid(longest_tokens)
        self._clusters = PromptClusters(self._settings)
        self._models = self._new_models()
        self._recent = self._no_answers()
        self._checked: IntArray = np.zeros(self._settings.clusters, dtype=np.int64)
        self._settled = False
        self._first: deque[tuple[Query, Observation]] = deque(maxlen=self._settings.seed_prompts)
        self._taught = 0
        self._forming = Attempts((*self._settings.early_seed_prompts, self._settings.seed_prompts))
        self._named = FeatureSlots(self._settings.dimensions)
        self._prior = ModelPrior(ModelPriorSettings(longest_tokens=longest_tokens, max_models=1))

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        """Parameters that River's checks are run with: the default, and clusters that form within a short stream."""
        yield {}
        yield {
            "clusters": ClusterSettings(
                clusters=4, dimensions=8, text_dimensions=0, early_seed_prompts=(20,), seed_prompts=40, check_prompts=24
            )
        }

    # --- River's interface --------------------------------------------------------------------------

    def predict_one(self, x: dict[base.typing.FeatureName, Any]) -> float:
        """The median of the predicted distribution, in tokens."""
        return float(self.predict_distribution_one(x).quantile(0.5))

    def predict_distribution_one(self, x: dict[base.typing.FeatureName, Any]) -> LengthDistribution:
        """The predicted distribution of the length, in tokens; features without a slot or a finite value are ignored."""
        return LengthDistribution(self._lengths, self.predict([self._query(x)]).masses[0])

    def learn_one(self, x: dict[base.typing.FeatureName, Any], y: float, *, censored: bool = False) -> None:
        """Learn from an answer of ``y`` tokens, or, where it is ``censored``, of at least ``y``.

        Raises `ValueError` where ``y`` is no number, and `TypeError` where a feature is none.
        """
        self._named.learn(x)
        observation = Observation(round(y), censored)
        self.learn(self._query(x), observation, judged=True)
        self._prior.learn(_ONE_MODEL, observation)

    def _query(self, x: dict[base.typing.FeatureName, Any]) -> Query:
        return Query(self._named.vector(x), _ONE_MODEL, self._prior.prior(_ONE_MODEL))

    # --- the mixture's interface --------------------------------------------------------------------

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        """The distributions pooled over the nearest clusters; the prior until there are clusters."""
        if not self._clusters.seeded:
            return ExpertPredictions.of_prior(queries)
        near = self._clusters.neighbourhoods([query.features for query in queries])
        known = self._models.get(queries[0].model)
        if known is None:
            return ExpertPredictions.of_prior(queries, near.clusters)
        pooled = known.pool(near)
        return ExpertPredictions(
            masses=mass_from_survival(known.shrinkage.mix(known.candidates(pooled, queries[0].prior))),
            evidence=pooled.evidence,
            trust=known.shrinkage.trust(pooled.evidence),
            clusters=near.clusters,
            at_risk=pooled.exposure,
        )

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Learn from an answer; the result holds the drift of its cluster, and which clusters came or went."""
        if self._clusters.seeded:
            result = self._learn_in_cluster(query, observation, judged=judged)
        else:
            position = bin_of(self._lengths, observation)
            result = LearningResult(scored_prediction(query.prior.mass, position, censored=observation.censored))
        if not self._settled:
            self._first.append((query, observation))
            self._taught += 1
            if self._forming.is_due(self._taught):
                with self._forming.attempt():
                    result.changes.extend(self._seed())
        return result

    def _seed(self) -> list[ClusterChange]:
        """Form the clusters, in place of the provisional ones; if it raises, those stay as they are."""
        changes = [ClusterChange("retired", cluster) for cluster in self._clusters.ids]
        formed: ClusterLengthRegressor = copy(self)
        formed._clusters = deepcopy(self._clusters)
        formed._clusters.seed([query.features for query, _ in self._first])
        formed._models = self._new_models()
        formed._recent = self._no_answers()
        for query, observation in self._first:
            formed._learn_in_cluster(query, observation, judged=True)
        self._clusters, self._models, self._recent = formed._clusters, formed._models, formed._recent
        if self._taught >= self._settings.seed_prompts:
            self._settled = True
            self._first.clear()
        return changes

    def _learn_in_cluster(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        model = self._models.get_or_create(query.model)
        model.prior = query.prior
        alone = self._clusters.neighbourhoods([query.features])
        near = alone.of(0)
        cluster = near.cluster
        scored = self._score(model, alone, query, observation) if judged else None
        changes: list[ClusterChange] = []
        if self._settled:
            changes += self._add_cluster(near)
            if changes:
                near = self._clusters.neighbourhood(query.features)
        slot = self._clusters.follow(near)
        surprise = None if observation.surprises is None else observation.surprises[1]
        forgetting = model.sketches[slot].learn_one(observation, surprise)
        drifts: list[Drift] = drifts_of(query.model, near.cluster, forgetting)
        position = bin_of(self._lengths, observation)
        self._recent[slot].append(_Answer(near.point, query.model, observation, position))
        if self._settled:
            changes += self._split_or_merge(slot)
        return LearningResult(scored, drifts, cluster, changes)

    def _score(
        self, model: ClusterPredictions, near: Neighbourhoods, query: Query, observation: Observation
    ) -> ScoredPrediction:
        """Score the prediction, and the strengths of shrinkage by it."""
        candidates = model.candidates(model.pool(near), query.prior)
        position = bin_of(self._lengths, observation)
        (mass,) = mass_from_survival(model.shrinkage.mix(candidates))
        model.shrinkage.learn(chances(candidates[0], position, censored=observation.censored))
        return scored_prediction(mass, position, censored=observation.censored)

    # --- birth, split, merger and retirement of clusters --------------------------------------------

    def _add_cluster(self, near: Neighbourhood) -> list[ClusterChange]:
        """Let a cluster be born of a prompt that was just assigned, where it is far from all others."""
        birth = self._clusters.birth(near)
        if birth is None:
            return []
        gone = [] if birth.retired is None else [ClusterChange("retired", birth.retired)]
        blanks = self._blanks()
        self._clusters.bear(birth)
        self._empty(birth.slot, blanks)
        return [*gone, ClusterChange("born", self._clusters.id_of(birth.slot))]

    def _split_or_merge(self, slot: int) -> list[ClusterChange]:
        """Test the cluster of the latest answer, each time after `check_prompts` of its prompts."""
        self._checked[slot] += 1
        due, every = int(self._checked[slot]), self._settings.check_prompts
        if due % every == 0:
            return self._split(slot)
        if due % every == every // 2:
            return [*self._merge(slot), *self._retire()]
        return []

    def _split(self, slot: int) -> list[ClusterChange]:
        priors = {name: model.prior for name, model in self._models.items() if model.prior is not None}
        answers = [answer for answer in self._recent[slot] if answer.model in priors]
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
        changes = self._make_room(slot) if self._clusters.full else []
        if self._clusters.full:
            return []
        stayed = [answer for answer, leaves in zip(answers, leaving, strict=True) if not leaves]
        left = [answer for answer, leaves in zip(answers, leaving, strict=True) if leaves]
        models = self._models.items()
        sketches = [[model.half(slot, _of(name, half)) for half in (stayed, left)] for name, model in models]
        new = self._clusters.split(slot, members.points[~leaving], members.points[leaving])
        for (_, model), (staying, going) in zip(models, sketches, strict=True):
            model.put(slot, staying)
            model.put(new, going)
        for half, answers_of_it in ((slot, stayed), (new, left)):
            self._recent[half] = deque(answers_of_it, self._settings.recent_prompts)
            self._checked[half] = 0
        return [*changes, ClusterChange("split", self._clusters.id_of(new), self._clusters.id_of(slot))]

    def _make_room(self, slot: int) -> list[ClusterChange]:
        """Merge the nearest two other clusters whose answers speak for one."""
        within = self._settings.pressed_share * self._clusters.usual_distance
        for one, other in self._clusters.nearest_pairs(within=within, most=_PAIRS_TRIED):
            if slot not in {one, other} and self._nats_for_two(one, other) < 0.0:
                return [self._merge_two(one, other)]
        return []

    def _merge(self, slot: int) -> list[ClusterChange]:
        """Merge a cluster with its nearest where both prompts and answers have become alike."""
        nearest = self._clusters.nearest_other(slot)
        if nearest is None or nearest[1] >= self._settings.merge_share * self._clusters.usual_distance:
            return []
        if self._nats_for_two(slot, nearest[0]) > -self._settings.merge_nats:
            return []
        return [self._merge_two(slot, nearest[0])]

    def _merge_two(self, one: int, other: int) -> ClusterChange:
        survivor, gone = self._clusters.larger(one, other)
        blanks = self._blanks()
        self._clusters.merge(survivor, gone)
        for model in self._models.states():
            model.sketches[survivor].absorb(model.sketches[gone])
        self._recent[survivor].extendleft(reversed(self._room_for(survivor, gone)))
        self._empty(gone, blanks)
        return ClusterChange("merged", self._clusters.id_of(gone), self._clusters.id_of(survivor))

    def _room_for(self, survivor: int, gone: int) -> list[_Answer]:
        """The latest answers of a cluster, as many as fit beside the survivor's own."""
        room = self._settings.recent_prompts - len(self._recent[survivor])
        return list(self._recent[gone])[-room:] if room else []

    def _retire(self) -> list[ClusterChange]:
        slot = self._clusters.retiring
        if slot is None:
            return []
        blanks = self._blanks()
        self._clusters.retire(slot)
        self._empty(slot, blanks)
        return [ClusterChange("retired", self._clusters.id_of(slot))]

    def _nats_for_two(self, one: int, other: int) -> float:
        """Log likelihood ratio for two clusters' answers coming from two distributions, over all models."""
        return sum(
            nats_for_two(_pair(model.counts[one]), _pair(model.counts[other]), model.prior)
            for model in self._models.states()
            if model.prior is not None
        )

    def _blanks(self) -> list[LengthSketch]:
        """What empties a slot, made before anything is changed: an empty sketch for each model."""
        return [model.blank() for model in self._models.states()]

    def _empty(self, slot: int, blanks: list[LengthSketch]) -> None:
        for model, blank in zip(self._models.states(), blanks, strict=True):
            model.put(slot, blank)
        self._recent[slot].clear()
        self._checked[slot] = 0

    def _no_answers(self) -> list[deque[_Answer]]:
        return [deque(maxlen=self._settings.recent_prompts) for _ in range(self._settings.clusters)]

    def _new_models(self) -> ModelTable[ClusterPredictions]:
        create = partial(ClusterPredictions, self._lengths, self._settings.clusters, self.sketch or CLUSTER_SKETCH)
        return ModelTable(create, bound=self.max_models)


def _pair(counts: FloatArray) -> tuple[FloatArray, FloatArray]:
    return counts[0], counts[1]


def _of(model: str, answers: list[_Answer]) -> list[Observation]:
    return [answer.observation for answer in answers if answer.model == model]
