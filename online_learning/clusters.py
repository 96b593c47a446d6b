"""A fixed number of prompt clusters: seeded once by k-means, followed online from then on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from online_learning.features import SCALAR_DIMENSIONS, TEXT_DIMENSIONS
from online_learning.prompt import Features

_SCALE = np.concatenate((np.ones(TEXT_DIMENSIONS), np.full(SCALAR_DIMENSIONS, 1.5))).astype(np.float32)
"""Weight of each feature in the distance; measured: a prompt's length says about as much as its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How prompts are grouped."""

    clusters: int = 64
    seed_prompts: int = 500
    """Prompts that are collected before the first clusters are formed."""
    nearest: int = 4
    """Clusters that a belief is drawn from."""
    softness: float = 0.05
    """Squared distance beyond the nearest centroid's by which a cluster's weight falls by a factor e."""
    centroid_memory_prompts: int = 500
    """A centroid moves by a share of 1/prompts towards each of its prompts, and this is the most it remembers."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """The clusters nearest to a prompt, the nearest first, and their weights, which sum to 1."""

    clusters: NDArray[np.intp]
    weights: NDArray[np.float64]


class PromptClusters:
    """Centroids in feature space; `seed` them, then let them `follow` the prompts.

    Fails where one prompt family is spread over feature space: it gets several clusters, each with less evidence.
    The seeds see the first prompts only; a family that appears later shares the cluster that is nearest to it.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._centroids: NDArray[np.float32] = np.empty((0, _SCALE.size), dtype=np.float32)
        self._prompts: NDArray[np.float64] = np.empty(0)

    @property
    def seeded(self) -> bool:
        """Whether there are clusters yet."""
        return len(self._centroids) > 0

    def seed(self, prompts: list[Features]) -> None:
        """Form the clusters from the first prompts; the same prompts give the same clusters."""
        points = np.stack(prompts) * _SCALE
        different = np.unique(points, axis=0).shape[0]
        count = min(self._settings.clusters, different)
        # One thread: the order of a parallel sum would make a rebuilt learner differ in the last bit.
        with threadpool_limits(limits=1):
            fitted = KMeans(n_clusters=count, n_init=1, random_state=self._settings.seed).fit(points)
        self._centroids = np.ascontiguousarray(fitted.cluster_centers_, dtype=np.float32)
        self._prompts = np.bincount(fitted.labels_, minlength=count).astype(np.float64)

    def neighbourhood(self, features: Features) -> Neighbourhood:
        """The clusters that a prompt belongs to, softly; there must be clusters."""
        distances = self._distances(features)
        nearest = min(self._settings.nearest, distances.size)
        clusters = np.argsort(distances, kind="stable")[:nearest]
        beyond = (distances[clusters] - distances[clusters[0]]).astype(np.float64)
        weights = np.exp(-beyond / self._settings.softness)
        return Neighbourhood(clusters, weights / weights.sum())

    def follow(self, features: Features) -> int:
        """Move the nearest centroid towards a prompt; returns which it is."""
        cluster = int(np.argmin(self._distances(features)))
        self._prompts[cluster] = min(self._prompts[cluster] + 1.0, self._settings.centroid_memory_prompts)
        self._centroids[cluster] += (features * _SCALE - self._centroids[cluster]) / np.float32(self._prompts[cluster])
        return cluster

    def _distances(self, features: Features) -> NDArray[np.float32]:
        difference = self._centroids - features * _SCALE
        return np.asarray(np.einsum("ij,ij->i", difference, difference))
