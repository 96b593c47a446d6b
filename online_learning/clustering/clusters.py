"""A bounded number of prompt clusters: seeded by k-means, followed online, born, split, merged and retired."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from online_learning.features.prompt_features import DIMENSIONS, TEXT_DIMENSIONS
from online_learning.length_learner import Features
from online_learning.rows import dot

_SCALAR_WEIGHT = 0.7
"""Weight of a scalar against the whole text in the distance; measured: prompt length says about as much as words."""

_LEAST_DEVIATION = 0.05
"""A scalar that varies less than this is magnified no further; one that varies hardly at all is left out."""

_LEAST_NORM = np.float32(1e-6)

_USUAL_PROMPTS = 500.0
_FEWEST_DISTANCES = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """How prompts are grouped."""

    clusters: int = 64
    """Most clusters at a time."""
    dimensions: int = DIMENSIONS
    """Length of the part of a feature vector, its first, that distances are taken in."""
    text_dimensions: int = TEXT_DIMENSIONS
    """Of these the first, which are one direction; each one after them counts by itself, in standard deviations."""
    seed_prompts: int = 500
    """Number of prompts at which the clusters are formed for the last time."""
    early_seed_prompts: tuple[int, ...] = (60, 200)
    """Numbers of prompts at which clusters are formed provisionally, from all prompts so far."""
    fewest_prompts: int = 6
    """Prompts per cluster when they are formed: few prompts make few clusters."""
    nearest: int = 4
    """Clusters whose answers are pooled for a prediction."""
    softness: float = 0.1
    """Squared distance beyond the nearest centroid's by which a cluster's weight falls by a factor e."""
    centroid_memory_prompts: int = 500
    """A centroid moves by a share of 1/prompts towards each of its prompts, and this is the most it remembers."""
    far_deviations: float = 3.0
    """Standard deviations above the mean distance from which on a prompt is far from all clusters."""
    far_prompts: int = 64
    """Far prompts remembered, the latest: a new family is looked for among them."""
    birth_prompts: int = 10
    """Far prompts near each other that make a cluster."""
    idle_prompts: int = 2_000
    """Prompts since a cluster's latest after which it may be retired when a new one needs its slot."""
    retire_prompts: int = 20_000
    """Prompts since a cluster's latest after which it is retired."""
    recent_prompts: int = 128
    """Prompts kept of each cluster, the latest: whether it is one or two is read from them."""
    check_prompts: int = 48
    """Prompts of a cluster between two tests of whether it is two; half way between them it is tested whether it and
    its nearest are one."""
    split_nats: float = 4.0
    """Log likelihood ratio, on answers that the border was not drawn by, for two length distributions against one."""
    split_share: float = 0.82
    """Share of the scatter across a border that makes two clusters where the border explains it; 0.64 is one's own."""
    merge_nats: float = 3.0
    """Log likelihood ratio for one length distribution against two that merging demands."""
    merge_share: float = 0.12
    """Two clusters are alike when their squared distance is below this share of a prompt's usual one from its cluster."""
    pressed_share: float = 0.5
    """The same where a cluster that is two finds no free slot: then answers need only speak for one."""
    seed: int = 0
    """Of k-means."""


def prepare() -> None:
    """Load what clusters are formed with: it takes a second or more, in which nothing else should wait."""
    import sklearn.cluster  # noqa: F401


class Neighbourhood(msgspec.Struct, frozen=True, eq=False):
    """The clusters nearest to a prompt, the nearest first, and their weights, which sum to 1."""

    slots: NDArray[np.intp]
    weights: NDArray[np.float64]
    point: NDArray[np.float32]
    """Where the prompt lies in feature space."""
    distance: float
    """Squared, to the nearest centroid."""
    cluster: int
    """Id of the nearest."""


class Neighbourhoods(msgspec.Struct, frozen=True, eq=False):
    """The neighbourhoods of several prompts, a row for each."""

    slots: NDArray[np.intp]
    weights: NDArray[np.float64]
    points: NDArray[np.float32]
    distances: NDArray[np.float32]
    clusters: list[int]

    def of(self, row: int) -> Neighbourhood:
        """That of one prompt."""
        return Neighbourhood(
            self.slots[row], self.weights[row], self.points[row], float(self.distances[row]), self.clusters[row]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Birth:
    """A cluster's beginning, and the id of the one that is given up for it, if one is."""

    slot: int
    retired: int | None
    centroid: NDArray[np.float32]
    prompts: float


@dataclass(frozen=True, slots=True, eq=False)
class FeatureSpace:
    """Where distances between prompts are taken: what all the first prompts shared is removed.

    A system prompt that everyone sends would otherwise leave little room for the differences.
    Text is centred and brought to unit length again; scalars are in their standard deviations, a constant one is
    ignored.
    """

    centre: NDArray[np.float32]
    """Shape (dimensions,)."""
    scalar_scale: NDArray[np.float32]
    """Shape (dimensions - text_dimensions,)."""
    text_dimensions: int = TEXT_DIMENSIONS

    @classmethod
    def of(cls, prompts: NDArray[np.float32], text_dimensions: int = TEXT_DIMENSIONS) -> FeatureSpace:
        """The space of these prompts: the dense parts of their features, one in each row, the text's first."""
        deviation = prompts[:, text_dimensions:].std(axis=0)
        scale = np.where(deviation > _LEAST_DEVIATION, _SCALAR_WEIGHT / np.maximum(deviation, _LEAST_DEVIATION), 0.0)
        return cls(prompts.mean(axis=0), scale.astype(np.float32), text_dimensions)

    def points(self, features: Sequence[Features]) -> NDArray[np.float32]:
        """Where prompts lie in the space, shape (prompts, dimensions)."""
        points = np.empty((len(features), self.centre.size), dtype=np.float32)
        for row, prompt in zip(points, features, strict=True):
            np.subtract(prompt[: self.centre.size], self.centre, out=row)
        text = points[:, : self.text_dimensions]
        text /= np.maximum(np.sqrt(dot(text, text)), _LEAST_NORM)[:, None]
        points[:, self.text_dimensions :] *= self.scalar_scale
        return points


class PromptClusters:
    """Centroids in feature space; `seed` them, then let them `follow` the prompts.

    A cluster has a slot, below ``ClusterSettings.clusters``, where its state is kept, and an id, which no other
    cluster has before or after it. A family that appears later has a cluster `born <bear>` for it, once several of its
    prompts lie far from all clusters and near each other; a cluster may be `split` or `merged`, which others decide;
    one that was idle for long is `retired`, earlier if a new one needs its slot.
    Fails where one prompt family is spread over feature space: it gets several clusters, each with less evidence.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._space: FeatureSpace | None = None
        self._centroids: NDArray[np.float32] = np.zeros((settings.clusters, settings.dimensions), dtype=np.float32)
        self._prompts: NDArray[np.float64] = np.zeros(settings.clusters)
        self._last: NDArray[np.int64] = np.zeros(settings.clusters, dtype=np.int64)
        self._ids: NDArray[np.int64] = np.zeros(settings.clusters, dtype=np.int64)
        self._free: NDArray[np.bool_] = np.ones(settings.clusters, dtype=np.bool_)
        self._next_id = 0
        self._followed = 0
        self._usual = _Usual()
        self._far: deque[NDArray[np.float32]] = deque(maxlen=settings.far_prompts)

    @property
    def seeded(self) -> bool:
        """Whether there are clusters yet."""
        return self._space is not None

    @property
    def count(self) -> int:
        """Number of clusters."""
        return int((~self._free).sum())

    @property
    def full(self) -> bool:
        """Whether every slot is taken."""
        return not self._free.any()

    @property
    def usual_distance(self) -> float:
        """Squared distance that a prompt usually has from its cluster's centroid."""
        return self._usual.mean

    @property
    def ids(self) -> list[int]:
        """The ids of all clusters."""
        return [int(cluster) for cluster in self._ids[~self._free]]

    def id_of(self, slot: int) -> int:
        """The id of the cluster in a slot."""
        return int(self._ids[slot])

    def seed(self, prompts: list[Features]) -> None:
        """Form the clusters from the first prompts, in place of all others.

        The same prompts give the same clusters, under new ids. If it raises, the former clusters are untouched.
        """
        space = FeatureSpace.of(
            np.stack([features[: self._settings.dimensions] for features in prompts]), self._settings.text_dimensions
        )
        points = space.points(prompts)
        affordable = max(1, len(prompts) // self._settings.fewest_prompts)
        count = min(self._settings.clusters, affordable, np.unique(points, axis=0).shape[0])
        from sklearn.cluster import KMeans

        # One thread: the order of a parallel sum would make a rebuilt learner differ in the last bit.
        with threadpool_limits(limits=1):
            fitted = KMeans(n_clusters=count, n_init=1, random_state=self._settings.seed).fit(points)
        members: list[float] = np.bincount(fitted.labels_, minlength=count).astype(np.float64).tolist()
        self._space = space
        self._free[:] = True
        for slot, (centroid, prompts_of_it) in enumerate(zip(fitted.cluster_centers_, members, strict=True)):
            self._fill(slot, centroid, prompts_of_it)
        self._usual = _Usual()
        self._far.clear()

    def neighbourhoods(self, features: Sequence[Features]) -> Neighbourhoods:
        """The clusters that prompts belong to, softly; there must be clusters."""
        assert self._space is not None, "the clusters must be seeded first"
        points = self._space.points(features)
        distances = self._distances(points)
        slots = distances.argsort(axis=1, kind="stable")[:, : min(self._settings.nearest, self.count)]
        near = distances[np.arange(len(slots))[:, None], slots]
        weights = np.exp(-(near - near[:, :1]).astype(np.float64) / self._settings.softness)
        weights /= np.add.reduce(weights, axis=1, keepdims=True)
        return Neighbourhoods(slots, weights, points, near[:, 0], self._ids[slots[:, 0]].tolist())

    def neighbourhood(self, features: Features) -> Neighbourhood:
        """The clusters that one prompt belongs to."""
        return self.neighbourhoods([features]).of(0)

    def follow(self, near: Neighbourhood) -> int:
        """Move the nearest centroid towards a prompt that was just assigned to it; returns its slot."""
        slot, point = int(near.slots[0]), near.point
        self._followed += 1
        self._last[slot] = self._followed
        self._prompts[slot] = min(self._prompts[slot] + 1.0, self._settings.centroid_memory_prompts)
        self._centroids[slot] += (point - self._centroids[slot]) / np.float32(self._prompts[slot])
        return slot

    def birth(self, near: Neighbourhood) -> Birth | None:
        """The cluster that a prompt which was just assigned gives birth to, if it does; `bear` enters it."""
        border = self._usual.border(self._settings.far_deviations)
        self._usual.add(min(near.distance, border))  # Far ones must not make far usual before they have a cluster.
        if near.distance <= border:
            return None
        family = [near.point, *self._family(near.point)]
        self._far.append(near.point)
        if len(family) < self._settings.birth_prompts:
            return None
        slot = int(np.argmax(self._free))
        retired = None if self._free[slot] else self._idle(self._settings.idle_prompts)
        if retired is None and not self._free[slot]:
            return None
        gone = None if retired is None else self.id_of(retired)
        return Birth(slot if retired is None else retired, gone, np.mean(family, axis=0), float(len(family)))

    def bear(self, birth: Birth) -> None:
        """Enter a cluster that `birth` found, in place of the one that is given up for it."""
        self._far.clear()
        self._fill(birth.slot, birth.centroid, birth.prompts)

    def split(self, slot: int, kept: NDArray[np.float32], gone: NDArray[np.float32]) -> int:
        """Give some points of a cluster to a new one, in `free_slot`, for which there must be room; returns its slot."""
        centroid, other = kept.mean(axis=0), gone.mean(axis=0)
        new = self.free_slot
        self._centroids[slot] = centroid
        self._prompts[slot] = len(kept)
        self._fill(new, other, float(len(gone)))
        return new

    def nearest_other(self, slot: int) -> tuple[int, float] | None:
        """The cluster nearest to another, and their squared distance; None when there is but one."""
        (distances,) = self._distances(self._centroids[slot : slot + 1])
        distances[slot] = np.inf
        other = int(np.argmin(distances))
        return None if self._free[other] or other == slot else (other, float(distances[other]))

    def nearest_pairs(self, *, within: float, most: int) -> list[tuple[int, int]]:
        """At most ``most`` pairs of clusters whose squared distance is below ``within``, the nearest first."""
        slots = np.flatnonzero(~self._free)
        centroids = self._centroids[slots].astype(np.float64)
        squares = (centroids**2).sum(axis=1)
        distances = squares[:, None] + squares[None, :] - 2.0 * centroids @ centroids.T
        one, other = np.nonzero(np.triu(distances < within, k=1))
        nearest = np.argsort(distances[one, other], kind="stable")[:most]
        return [(int(slots[one[pair]]), int(slots[other[pair]])) for pair in nearest]

    def merge(self, survivor: int, gone: int) -> None:
        """Let one cluster have all of another."""
        total = self._prompts[survivor] + self._prompts[gone]
        share = np.float32(self._prompts[gone] / max(total, 1.0))
        self._centroids[survivor] += share * (self._centroids[gone] - self._centroids[survivor])
        self._prompts[survivor] = min(total, self._settings.centroid_memory_prompts)
        self._last[survivor] = max(self._last[survivor], self._last[gone])
        self._free[gone] = True

    def larger(self, one: int, other: int) -> tuple[int, int]:
        """Two clusters, the one with more prompts first; of equals the older."""
        ranked = sorted((one, other), key=lambda slot: (-self._prompts[slot], self._ids[slot]))
        return ranked[0], ranked[1]

    @property
    def retiring(self) -> int | None:
        """The slot of the cluster that was idle for longest, if that was very long."""
        return self._idle(self._settings.retire_prompts)

    def retire(self, slot: int) -> None:
        """Give up a cluster."""
        self._free[slot] = True

    @property
    def free_slot(self) -> int:
        """The first free slot; there must be one."""
        slot = int(np.argmax(self._free))
        assert self._free[slot], "there must be room"
        return slot

    def _idle(self, idle_prompts: int) -> int | None:
        oldest = int(np.argmin(np.where(self._free, self._followed + 1, self._last)))
        return None if self.count < 2 or self._followed - self._last[oldest] < idle_prompts else oldest

    def _fill(self, slot: int, centroid: NDArray[np.float32], prompts: float) -> None:
        """Put a cluster with a new id in a slot."""
        self._free[slot] = False
        self._centroids[slot] = centroid
        self._prompts[slot] = prompts
        self._last[slot] = self._followed
        self._ids[slot] = self._next_id
        self._next_id += 1

    def _family(self, point: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Far prompts near this one: no farther than two prompts of one cluster usually are from each other."""
        reach = 2.0 * self._usual.mean
        return [other for other in self._far if float(((other - point) ** 2).sum()) < reach]

    def _distances(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """Squared distances, a row for each point, by slot; a free slot is infinitely far."""
        difference = self._centroids - points[:, None, :]
        distances = np.asarray(np.einsum("pij,pij->pi", difference, difference))
        distances[:, self._free] = np.inf
        return distances


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
        """The mean distance plus a number of standard deviations; infinite while little is known."""
        if self._count < _FEWEST_DISTANCES:
            return math.inf
        deviation = math.sqrt(max(self._square - self.mean**2, 0.0))
        return self.mean + deviations * max(deviation, 0.05 * self.mean)
