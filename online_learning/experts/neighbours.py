"""The expert of nearest neighbours: past answers to similar prompts, weighted by how similar."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from online_learning.attempts import Attempts
from online_learning.clustering.clusters import FeatureSpace
from online_learning.distribution import FloatArray, IntArray
from online_learning.experts.expert import (
    ExpertPredictions,
    LearningResult,
    Query,
    ScoredPrediction,
    bin_of,
    chances,
    scored_prediction,
)
from online_learning.features.prompt_features import DIMENSIONS
from online_learning.length_learner import Features, Observation
from online_learning.rows import dot
from online_learning.survival.hazard import mass_from_survival, posterior_hazard, survival_from_hazard
from online_learning.survival.model_prior import Prior
from online_learning.survival.per_model import ModelTable
from online_learning.survival.shrinkage import ModelAverage

_SPARE_PROMPTS = 100
"""Prompts beyond the last fit that there is room for, should that fail and be tried again."""

_REACH = 2.5
"""Neighbours are counted down to a weight of e to the minus this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NeighbourSettings:
    """Who counts as a neighbour, and how much."""

    history_prompts: int = 10_000
    dimensions: int = 24
    """Principal directions of feature space in which distances are taken: more add noise, and cost time."""
    kernels: tuple[tuple[float, float], ...] = ((0.04, 4_000.0), (0.1, 4_000.0), (0.06, 300.0))
    """Where a weight falls by a factor e: this half squared distance beyond the nearest, and this number of answers.

    Which serves is learnt.
    """
    strengths: tuple[float, ...] = (5.0, 30.0, 1_000.0)
    """Weights of the prior, in answers; which serves is learnt."""
    other_model: float = 0.1
    """Half the squared distance that another model's answer counts farther."""
    fit_prompts: tuple[int, ...] = (60, 500, 5_000)
    """Numbers of prompts at which feature space is fitted to the prompts so far."""
    model_memory_answers: float = 500.0
    """Memory of a model's mean log-length, by which other models' answers are shifted to it."""


class _History:
    """The last prompts as points, and the bins of their answers; the oldest makes room."""

    def __init__(self, settings: NeighbourSettings) -> None:
        size = settings.history_prompts
        self._settings = settings
        kept = min(size, settings.fit_prompts[-1] + _SPARE_PROMPTS)
        self._raw: NDArray[np.float32] | None = np.zeros((kept, DIMENSIONS), np.float32)
        self._fits = Attempts(settings.fit_prompts)
        self._points = np.zeros((settings.dimensions + 1, size), dtype=np.float32)
        self._space: FeatureSpace | None = None
        self._directions = np.empty((0, 0), dtype=np.float32)
        self.codes: IntArray = np.zeros(size, dtype=np.int64)
        self.slots: IntArray = np.zeros(size, dtype=np.int64)
        self.serials: NDArray[np.float32] = np.zeros(size, dtype=np.float32)
        self.taught = 0

    @property
    def kept(self) -> int:
        return min(self.taught, self.codes.size)

    @property
    def ready(self) -> bool:
        return self._space is not None

    def add(self, features: Features, code: int, slot: int) -> None:
        row = self.taught % self.codes.size
        if self._space is not None:
            self._store(row, self._space.points([features])[0] @ self._directions)
        if self._raw is not None:
            self._raw[self.taught % len(self._raw)] = features[:DIMENSIONS]
        self.codes[row], self.slots[row], self.serials[row] = code, slot, self.taught
        self.taught += 1
        if self._raw is not None:
            self._maybe_fit(self._raw[: self.taught])

    def nearness(self, features: Features) -> NDArray[np.float32]:
        """Minus half the squared distance to each prompt kept, up to a constant."""
        assert self._space is not None, "the space must be fitted first"
        point = np.ones(self._settings.dimensions + 1, dtype=np.float32)
        np.matmul(self._space.points([features])[0], self._directions, out=point[: self._directions.shape[1]])
        return np.asarray(point @ self._points[:, : self.kept])

    def _store(self, row: int, point: NDArray[np.float32]) -> None:
        self._points[: point.size, row] = point
        self._points[-1, row] = np.float32(-0.5) * (point @ point)

    def _maybe_fit(self, prompts: NDArray[np.float32]) -> None:
        """Fit feature space if it is time; prompts are kept until the last fit, and no longer than there is room."""
        if self._fits.is_due(self.taught):
            with self._fits.attempt():
                self._fit(prompts)
            if self.taught >= self._settings.fit_prompts[-1]:
                self._raw = None
        if self._raw is not None and self.taught >= self._settings.fit_prompts[-1] + _SPARE_PROMPTS:
            self._raw = None

    def _fit(self, prompts: NDArray[np.float32]) -> None:
        space = FeatureSpace.of(prompts)
        points = space.points(list(prompts))
        directions = _principal(points, self._settings.dimensions)
        placed = points @ directions
        halves = np.float32(-0.5) * np.einsum("ij,ij->i", placed, placed)
        self._space, self._directions = space, directions
        self._points[: placed.shape[1], : len(placed)] = placed.T
        self._points[-1, : len(placed)] = halves


def _principal(points: NDArray[np.float32], dimensions: int) -> NDArray[np.float32]:
    """The directions of most scatter about the centre of the space, in columns."""
    scatter = points.T.astype(np.float64) @ points
    return np.ascontiguousarray(np.linalg.eigh(scatter)[1][:, : -dimensions - 1 : -1], dtype=np.float32)


class _Counted(msgspec.Struct, frozen=True, eq=False):
    """Weighted life-table counts of each query under each kernel, shape (queries, kernels, bins)."""

    events: FloatArray
    exposure: FloatArray
    evidence: FloatArray
    """Shape (queries, kernels)."""


class NeighbourExpert:
    """Past answers weighted by a kernel of the distance between prompts: Kaplan-Meier on weighted counts (Beran 1981).

    The kernel is scaled to the nearest prompt, so that a prompt unlike all others still has neighbours; how much
    they weigh, against the prior, goes by their effective number (Kish 1965) and by what predicted best of
    late, as do the kernel's width and memory. Answers of other models count as farther away and are shifted by the
    difference of the models' mean log-lengths.
    Fails where near prompts have nothing in common that tells length: then it stays the prior.

    Args:
        lengths: right edges of the bins in tokens, shape (bins,), increasing; `log_grid` makes them.
        settings: size of the history, kernels and strengths.
        max_models: models remembered; the one that was taught longest ago is forgotten first.
    """

    name = "neighbours"

    def __init__(self, lengths: IntArray, settings: NeighbourSettings | None = None, *, max_models: int = 16) -> None:
        self._settings = settings or NeighbourSettings()
        self._lengths = lengths
        self._history = _History(self._settings)
        self._models = ModelTable(self._new_model, bound=max_models)
        self._next_slot = 0

    def predict(self, queries: Sequence[Query]) -> ExpertPredictions:
        """The distributions pooled over the neighbours; the prior until feature space is fitted."""
        known = self._models.get(queries[0].model)
        if not self._history.ready or known is None:
            return ExpertPredictions.of_prior(queries)
        counted = self._count(queries, known)
        average = known.average
        weights = average.weights.reshape(len(self._settings.kernels), -1)
        evidence = counted.evidence[:, :, None]
        shares = weights * (evidence / (evidence + np.array(self._settings.strengths)))
        return ExpertPredictions(
            masses=mass_from_survival(average.mix(self._candidates(counted, queries[0].prior))),
            evidence=dot(counted.evidence, weights.sum(axis=1)),
            trust=shares.reshape(len(queries), -1).sum(axis=1),
        )

    def learn(self, query: Query, observation: Observation, *, judged: bool) -> LearningResult:
        """Add an answer to the history, and judge kernels and strengths by it."""
        model = self._models.get_or_create(query.model)
        position = bin_of(self._lengths, observation)
        said = self._judge(query, model, position, censored=observation.censored) if judged else None
        model.learn(position, self._settings.model_memory_answers)
        self._history.add(query.features, _code(self._lengths, observation, position), model.slot)
        return LearningResult(said)

    def _judge(self, query: Query, model: _Model, position: int, *, censored: bool) -> ScoredPrediction:
        mass = query.prior.mass
        if self._history.ready:
            candidates = self._candidates(self._count([query], model), query.prior)
            (mass,) = mass_from_survival(model.average.mix(candidates))
            model.average.learn(chances(candidates[0], position, censored=censored))
        return scored_prediction(mass, position, censored=censored)

    def _count(self, queries: Sequence[Query], model: _Model) -> _Counted:
        """Counts of the answers to near prompts, a row for each query."""
        kernels = len(self._settings.kernels)
        counts = np.empty((len(queries), kernels, 2 * self._lengths.size))
        evidence = np.empty((len(queries), kernels))
        for row, query in enumerate(queries):
            self._weigh(query.features, model, counts[row], evidence[row])
        return _life_table(counts.reshape(len(queries), kernels, -1, 2), evidence)

    def _weigh(self, features: Features, model: _Model, counts: FloatArray, evidence: FloatArray) -> None:
        """Weigh the answers to near prompts by each kernel: their counts by code, and their effective number."""
        settings, history = self._settings, self._history
        nearness = history.nearness(features)
        several = len(self._models) > 1
        if several:
            nearness -= np.float32(settings.other_model) * (history.slots[: history.kept] != model.slot)
        nearest = nearness.max()
        reach = np.float32(_REACH * max(bandwidth for bandwidth, _ in settings.kernels))
        near = (nearness > nearest - reach).nonzero()[0]
        beyond = nearness[near] - nearest
        age = history.serials[near] - np.float32(history.taught)
        codes = history.codes[near]
        if several:
            codes = self._shifted(codes, history.slots[near], model)
        for row, (bandwidth, memory_answers) in enumerate(settings.kernels):
            weights = np.exp(beyond * np.float32(1.0 / bandwidth) + age * np.float32(1.0 / memory_answers))
            counts[row] = np.bincount(codes, weights=weights, minlength=counts.shape[1])
            evidence[row] = float(weights.sum()) ** 2 / float(weights @ weights)

    def _shifted(self, codes: IntArray, slots: IntArray, model: _Model) -> IntArray:
        """Codes as if this model had answered: moved by the difference of the models' mean bins."""
        shifts = np.zeros(self._next_slot, dtype=np.int64)
        for other in self._models.states():
            shifts[other.slot] = round(model.mean_bin - other.mean_bin)
        shift = shifts[slots]
        bins = np.clip((codes >> 1) + shift, 0, self._lengths.size - 1)
        return np.asarray(2 * bins + (codes & 1))

    def _candidates(self, counted: _Counted, prior: Prior) -> FloatArray:
        """Survival under each kernel and strength, shape (queries, kernels x strengths, bins)."""
        strengths = np.array(self._settings.strengths)[None, :, None] * prior.survival
        events, exposure = counted.events[:, :, None], counted.exposure[:, :, None]
        survival = survival_from_hazard(posterior_hazard(events, exposure, prior.hazard, strengths))
        return survival.reshape(len(survival), -1, self._lengths.size)

    def _new_model(self) -> _Model:
        self._next_slot += 1
        return _Model(self._next_slot - 1, len(self._settings.kernels) * len(self._settings.strengths))


class _Model:
    """One model's mean bin, and what kernel and strength serve it."""

    def __init__(self, slot: int, candidates: int) -> None:
        self.slot = slot
        self.mean_bin = 0.0
        self.average = ModelAverage(candidates)
        self._answers = 0.0

    def learn(self, position: int, memory_answers: float) -> None:
        self._answers = min(self._answers + 1.0, memory_answers)
        self.mean_bin += (position - self.mean_bin) / self._answers


def _code(lengths: IntArray, observation: Observation, position: int) -> int:
    """Twice the bin, plus 1 for an unfinished answer, whose bin is the first that it is not known to have outlived.

    Half a bin counts as a whole one.
    """
    if not observation.censored:
        return 2 * position
    left = int(lengths[position - 1]) if position > 0 else 0
    outlived = 2 * (observation.output_tokens - 1 - left) >= int(lengths[position]) - left
    return 2 * min(position + int(outlived), lengths.size - 1) + 1


def _life_table(counts: FloatArray, evidence: FloatArray) -> _Counted:
    """Events and exposure from weighted counts of (finished, unfinished) by bin.

    Evidence in answers is spread over the weights: they are scaled to sum to it.
    """
    total = counts.sum(axis=(2, 3))
    scaled = counts * (evidence / total)[:, :, None, None]
    at_risk = scaled.sum(axis=3)[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
    return _Counted(scaled[..., 0], at_risk - scaled[..., 1], evidence)
