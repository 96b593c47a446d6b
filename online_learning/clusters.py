"""A bounded number of prompt clusters: seeded by k-means, followed online from then on."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from online_learning.features import DIMENSIONS, TEXT_DIMENSIONS
from online_learning.prompt import Features

_SCALAR_WEIGHT = 0.7
"""Weight of a scalar against the whole text in the distance; measured: prompt length says about as much as words."""

_LEAST_DEVIATION = 0.05
"""A scalar that varies less than this is magnified no further; one that varies hardly at all is left out."""

_USUAL_PROMPTS = 500.0
_FEWEST_DISTANCES = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How prompts are grouped."""

    clusters: int = 64
    seed_prompts: int = 500
    """Prompts from which the clusters are formed for good."""
    early_seed_prompts: tuple[int, ...] = (60, 200)
    """Numbers of prompts at which clusters are formed for the time being, from all prompts so far."""
    fewest_prompts: int = 6
    """Prompts per cluster when they are formed: few prompts make few clusters."""
    nearest: int = 4
    """Clusters that a belief is drawn from."""
    softness: float = 0.1
    """Squared distance beyond the nearest centroid's by which a cluster's weight falls by a factor e."""
    centroid_memory_prompts: int = 500
    """A centroid moves by a share of 1/prompts towards each of its prompts, and this is the most it remembers."""
    far_deviations: float = 3.0
    """A prompt is far from all clusters when its distance exceeds the usual one by so many standard deviations."""
    far_prompts: int = 64
    """Far prompts remembered, the latest: a new family is looked for among them."""
    birth_prompts: int = 10
    """Far prompts near each other that make a cluster."""
    idle_prompts: int = 2_000
    """A cluster without a prompt among so many may be retired when a new one needs room."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The clusters nearest to a prompt, the nearest first, and their weights, which sum to 1."""

    clusters: NDArray[np.intp]
    weights: NDArray[np.float64]
    point: NDArray[np.float32]
    """The prompt's place in feature space."""
    distance: float
    """Squared, to the nearest centroid."""


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpace:
    """Where distances between prompts are taken: what all the first prompts shared is removed.

    A system prompt that everyone sends would otherwise leave little room for the differences.
    Text is centred and brought to unit length again; scalars are in their standard deviations, a constant one is
    ignored.
    """

    centre: NDArray[np.float32]
    scalar_scale: NDArray[np.float32]

    @classmethod
    def of(cls, prompts: NDArray[np.float32]) -> FeatureSpace:
        """The space of these prompts: the dense parts of their features, one in each row."""
        deviation = prompts[:, TEXT_DIMENSIONS:].std(axis=0)
        scale = np.where(deviation > _LEAST_DEVIATION, _SCALAR_WEIGHT / np.maximum(deviation, _LEAST_DEVIATION), 0.0)
        return cls(prompts.mean(axis=0), scale.astype(np.float32))

    def point(self, features: Features) -> NDArray[np.float32]:
        """A prompt's place in the space."""
        point = features[:DIMENSIONS] - self.centre
        norm = math.sqrt(float(point[:TEXT_DIMENSIONS] @ point[:TEXT_DIMENSIONS]))
        point[:TEXT_DIMENSIONS] /= max(norm, 1e-6)
        point[TEXT_DIMENSIONS:] *= self.scalar_scale
        return point


class PromptClusters:
    """Centroids in feature space; `seed` them, then let them `follow` the prompts.

    A family that appears later has a cluster `born` for it, once several of its prompts lie far from all clusters and
    near each other; the cluster that was idle for longest makes room, if one was. Clusters are neither split nor
    merged. Fails where one prompt family is spread over feature space: it gets several clusters, each with less
    evidence.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._space: FeatureSpace | None = None
        self._centroids: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self._prompts: NDArray[np.float64] = np.empty(0)
        self._last: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._followed = 0
        self._usual = _Usual()
        self._far: deque[NDArray[np.float32]] = deque(maxlen=settings.far_prompts)

    @property
    def seeded(self) -> bool:
        """Whether there are clusters yet."""
        return self._space is not None

    def seed(self, prompts: list[Features]) -> None:
        """Form the clusters anew from the first prompts; the same prompts give the same clusters."""
        self._space = FeatureSpace.of(np.stack([features[:DIMENSIONS] for features in prompts]))
        points = np.stack([self._space.point(features) for features in prompts])
        affordable = max(1, len(prompts) // self._settings.fewest_prompts)
        count = min(self._settings.clusters, affordable, np.unique(points, axis=0).shape[0])
        # One thread: the order of a parallel sum would make a rebuilt learner differ in the last bit.
        with threadpool_limits(limits=1):
            fitted = KMeans(n_clusters=count, n_init=1, random_state=self._settings.seed).fit(points)
        self._centroids = np.ascontiguousarray(fitted.cluster_centers_, dtype=np.float32)
        self._prompts = np.bincount(fitted.labels_, minlength=count).astype(np.float64)
        self._last = np.full(count, self._followed)
        self._usual = _Usual()
        self._far.clear()

    def neighbourhood(self, features: Features) -> Neighbourhood:
        """The clusters that a prompt belongs to, softly; there must be clusters."""
        point = self._point(features)
        distances = self._distances(point)
        nearest = min(self._settings.nearest, distances.size)
        clusters = np.argsort(distances, kind="stable")[:nearest]
        beyond = (distances[clusters] - distances[clusters[0]]).astype(np.float64)
        weights = np.exp(-beyond / self._settings.softness)
        return Neighbourhood(clusters, weights / weights.sum(), point, float(distances[clusters[0]]))

    def follow(self, near: Neighbourhood) -> int:
        """Move the nearest centroid towards a prompt that was just placed; returns which it is."""
        cluster, point = int(near.clusters[0]), near.point
        self._followed += 1
        self._last[cluster] = self._followed
        self._prompts[cluster] = min(self._prompts[cluster] + 1.0, self._settings.centroid_memory_prompts)
        self._centroids[cluster] += (point - self._centroids[cluster]) / np.float32(self._prompts[cluster])
        return cluster

    def born(self, near: Neighbourhood) -> int | None:
        """The cluster that a prompt which was just placed gives birth to, if it does; what was there is gone."""
        border = self._usual.border(self._settings.far_deviations)
        self._usual.add(min(near.distance, border))  # Far ones must not make far usual before they have a cluster.
        if near.distance <= border:
            return None
        family = self._family(near.point)
        self._far.append(near.point)
        room = self._room() if len(family) + 1 >= self._settings.birth_prompts else None
        if room is None:
            return None
        self._centroids[room] = np.mean([near.point, *family], axis=0)
        self._prompts[room] = len(family) + 1.0
        self._last[room] = self._followed
        self._far.clear()
        return room

    def _family(self, point: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Far prompts near this one: no farther than two prompts of one cluster usually are from each other."""
        reach = 2.0 * self._usual.mean
        return [other for other in self._far if float(((other - point) ** 2).sum()) < reach]

    def _room(self) -> int | None:
        """A place for a cluster: a new one, or that of the one idle for longest."""
        count = len(self._centroids)
        if count < self._settings.clusters:
            self._centroids = np.concatenate((self._centroids, np.zeros_like(self._centroids[:1])))
            self._prompts = np.append(self._prompts, 0.0)
            self._last = np.append(self._last, 0)
            return count
        oldest = int(np.argmin(self._last))
        return oldest if self._followed - self._last[oldest] >= self._settings.idle_prompts else None

    def _point(self, features: Features) -> NDArray[np.float32]:
        assert self._space is not None, "the clusters must be seeded first"
        return self._space.point(features)

    def _distances(self, point: NDArray[np.float32]) -> NDArray[np.float32]:
        difference = self._centroids - point
        return np.asarray(np.einsum("ij,ij->i", difference, difference))


class _Usual:
    """Mean and standard deviation of the latest distances to the nearest centroid."""

    def __init__(self) -> None:
        self.mean = 0.0
        self._square = 0.0
        self._count = 0.0

    def add(self, distance: float) -> None:
        self._count = min(self._count + 1.0, _USUAL_PROMPTS)
        self.mean += (distance - self.mean) / self._count
        self._square += (distance**2 - self._square) / self._count

    def border(self, deviations: float) -> float:
        """The distance that is so many standard deviations from the mean; infinite while little is known."""
        if self._count < _FEWEST_DISTANCES:
            return math.inf
        deviation = math.sqrt(max(self._square - self.mean**2, 0.0))
        return self.mean + deviations * max(deviation, 0.05 * self.mean)
