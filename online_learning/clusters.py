"""A bounded number of prompt clusters: seeded by k-means, followed online from then on."""

from __future__ import annotations

import math
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
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The clusters nearest to a prompt, the nearest first, and their weights, which sum to 1."""

    clusters: NDArray[np.intp]
    weights: NDArray[np.float64]
    point: NDArray[np.float32]
    """The prompt's place in feature space."""


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

    Fails where one prompt family is spread over feature space: it gets several clusters, each with less evidence.
    The seeds see the first prompts only; a family that appears later shares the cluster that is nearest to it.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._space: FeatureSpace | None = None
        self._centroids: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
        self._prompts: NDArray[np.float64] = np.empty(0)

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

    def neighbourhood(self, features: Features) -> Neighbourhood:
        """The clusters that a prompt belongs to, softly; there must be clusters."""
        point = self._point(features)
        distances = self._distances(point)
        nearest = min(self._settings.nearest, distances.size)
        clusters = np.argsort(distances, kind="stable")[:nearest]
        beyond = (distances[clusters] - distances[clusters[0]]).astype(np.float64)
        weights = np.exp(-beyond / self._settings.softness)
        return Neighbourhood(clusters, weights / weights.sum(), point)

    def follow(self, near: Neighbourhood) -> int:
        """Move the nearest centroid towards a prompt that was just placed; returns which it is."""
        cluster, point = int(near.clusters[0]), near.point
        self._prompts[cluster] = min(self._prompts[cluster] + 1.0, self._settings.centroid_memory_prompts)
        self._centroids[cluster] += (point - self._centroids[cluster]) / np.float32(self._prompts[cluster])
        return cluster

    def _point(self, features: Features) -> NDArray[np.float32]:
        assert self._space is not None, "the clusters must be seeded first"
        return self._space.point(features)

    def _distances(self, point: NDArray[np.float32]) -> NDArray[np.float32]:
        difference = self._centroids - point
        return np.asarray(np.einsum("ij,ij->i", difference, difference))
