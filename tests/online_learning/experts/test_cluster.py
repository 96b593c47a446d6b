"""What becomes of clusters, and of what they knew, over the life of the expert."""

import numpy as np
import pytest

from online_learning.clustering.clusters import ClusterSettings
from online_learning.distribution import log_grid
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import Query
from online_learning.features.prompt_features import DIMENSIONS, TEXT_DIMENSIONS
from online_learning.length_learner import ClusterChange, Features, Observation
from online_learning.survival.length_sketch import SketchSettings
from online_learning.survival.model_prior import ModelPrior, ModelPriorSettings

SETTINGS = ClusterSettings(
    clusters=6, early_seed_prompts=(), seed_prompts=60, fewest_prompts=30, check_prompts=40, birth_prompts=1_000
)


def _prompt(family: int, shift: float, generator: np.random.Generator) -> Features:
    """A text near its family's direction, moved along one that all families share."""
    direction = np.random.default_rng(family).normal(size=TEXT_DIMENSIONS)
    text = direction / np.linalg.norm(direction) + 0.02 * generator.normal(size=TEXT_DIMENSIONS)
    text[0] += shift
    text /= np.linalg.norm(text)
    return np.concatenate((text, np.zeros(DIMENSIONS - TEXT_DIMENSIONS))).astype(np.float32)


class World:
    """An expert, its prior, and the changes of clusters that it reported."""

    def __init__(self, settings: ClusterSettings = SETTINGS) -> None:
        self.prior = ModelPrior(ModelPriorSettings())
        self.expert = ClusterLengthRegressor(settings, SketchSettings(memory_answers=1_000.0), max_models=4)
        self.changes: list[ClusterChange] = []
        self.random = np.random.default_rng(0)

    def query(self, family: int, shift: float = 0.0, model: str = "m") -> Query:
        return Query(_prompt(family, shift, self.random), model, self.prior.prior(model))

    def answer(self, family: int, median: float, *, shift: float = 0.0, model: str = "m") -> None:
        observation = Observation(1 + int(median * np.exp(0.3 * self.random.normal())), censored=False)
        self.changes += self.expert.learn(self.query(family, shift, model), observation, judged=True).changes
        self.prior.learn(model, observation)

    def median(self, family: int, shift: float = 0.0, model: str = "m") -> int:
        mass = self.expert.predict([self.query(family, shift, model)]).masses[0]
        return int(log_grid()[np.searchsorted(np.cumsum(mass), 0.5)])

    def cluster(self, family: int, shift: float = 0.0) -> int | None:
        clusters = self.expert.predict([self.query(family, shift)]).clusters
        return None if clusters is None else clusters[0]

    def kinds(self) -> list[str]:
        return [change.kind for change in self.changes]


def _split_world() -> World:
    """Two families; from the 200th answer on, half of the first one's prompts differ a little, and its answers much."""
    world = World()
    for number in range(200):
        world.answer(number % 2, 100.0)
    for number in range(600):
        if number % 2:
            world.answer(1, 100.0)
        elif number % 4:
            world.answer(0, 40.0, shift=0.35)
        else:
            world.answer(0, 400.0, shift=-0.35)
    return world


def test_a_cluster_that_becomes_two_is_split_and_each_half_knows_its_own() -> None:
    """The half that is split off has a new id, the other keeps its own, and both know their lengths."""
    world = _split_world()
    splits = [change for change in world.changes if change.kind == "split"]
    assert splits
    assert splits[0].cluster > 1, "a new id"
    assert splits[0].other in {0, 1}, "the family's own"
    assert world.cluster(0, 0.35) != world.cluster(0, -0.35)
    assert world.median(0, 0.35) < 70
    assert world.median(0, -0.35) > 250


@pytest.mark.slow
def test_clusters_that_become_alike_are_merged_and_lose_nothing() -> None:
    """Halves that come to be asked and to answer alike become one again; no prompt is in the one that is gone, and little is forgotten."""
    world = World()
    for number in range(4_000):
        world.answer(1, 100.0)
        apart = max(0.0, 1.0 - max(0, number - 500) / 1_500)
        if number % 2:
            world.answer(0, 100.0 * 0.4**apart, shift=0.35 * apart)
        else:
            world.answer(0, 100.0 * 4.0**apart, shift=-0.35 * apart)
    merged = [change for change in world.changes if change.kind == "merged"]
    assert merged
    assert {change.cluster for change in merged}.isdisjoint(world.cluster(0, shift) for shift in (-0.35, 0.0, 0.35))
    assert all(change.other != change.cluster for change in merged)
    assert 80 < world.median(0) < 125
    assert world.expert.predict([world.query(0)]).evidence[0] > 200


def test_what_becomes_of_clusters_follows_from_the_answers_alone() -> None:
    """Two experts that are taught the same answers split, merge and predict the same, to the last bit."""
    one, other = _split_world(), _split_world()
    assert one.changes == other.changes
    mass = [world.expert.predict([world.query(0)]).masses[0] for world in (one, other)]
    np.testing.assert_array_equal(*mass)


def test_prompts_and_answers_of_one_kind_are_never_split() -> None:
    """A thousand answers to two families: nothing becomes of their clusters."""
    world = World()
    for number in range(1_000):
        world.answer(number % 2, 100.0 if number % 2 else 400.0)
    assert world.changes == []


def test_a_full_house_splits_only_after_a_merger() -> None:
    """With two slots for two families that differ there is no room to split; nothing is lost by trying."""
    world = World(
        ClusterSettings(
            clusters=2,
            early_seed_prompts=(),
            seed_prompts=60,
            fewest_prompts=30,
            check_prompts=40,
            birth_prompts=1_000,
        )
    )
    for number in range(600):
        if number % 2:
            world.answer(1, 100.0)
        else:
            world.answer(0, 40.0 if number % 4 else 400.0, shift=0.35 if number % 4 else -0.35)
    assert "split" not in world.kinds()
    assert {world.cluster(0), world.cluster(1)} == {0, 1}


def test_every_model_keeps_its_own_lengths_through_a_split() -> None:
    """A model that answers ten times as long does so on both sides of the border."""
    world = World()
    for number in range(1_200):
        shift, median = (0.35, 40.0) if number % 4 < 2 else (-0.35, 400.0)
        model, factor = ("m", 1.0) if number % 2 else ("n", 10.0)
        world.answer(0, median * factor, shift=shift, model=model)
        world.answer(1, 100.0, model=model)
    assert "split" in world.kinds()
    assert world.median(0, 0.35, "m") < 80
    assert 250 < world.median(0, 0.35, "n") < 900
    assert world.median(0, -0.35, "n") > 900


def test_a_cluster_long_unused_is_retired() -> None:
    """The family without prompts loses its cluster, and the others keep theirs."""
    world = World(
        ClusterSettings(
            clusters=6,
            early_seed_prompts=(),
            seed_prompts=60,
            fewest_prompts=30,
            check_prompts=40,
            birth_prompts=1_000,
            retire_prompts=300,
        )
    )
    for number in range(100):
        world.answer(number % 2, 100.0)
    gone, kept = world.cluster(0), world.cluster(1)
    for _ in range(500):
        world.answer(1, 100.0)
    assert [change.cluster for change in world.changes if change.kind == "retired"] == [gone]
    assert world.cluster(1) == kept
