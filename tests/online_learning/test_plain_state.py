"""Every learner as plain data and back: the same to the last digit, then and after further answers."""

from __future__ import annotations

import pickle
from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_learning.calibration.calibration import CalibrationBook, judge
from online_learning.clustering.clusters import ClusterSettings
from online_learning.experts.neighbours import NeighbourSettings
from online_learning.experts.semantic import SemanticLearner, with_embedding
from online_learning.length_learner import Features, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings, solo_learners
from online_learning.mixture.pooling import PoolSettings
from online_learning.mixture.settings import LearnerSettings
from online_learning.plain_state import UnknownStateError, restored, written
from online_learning.survival.length_sketch import SketchSettings

SETTINGS = MixtureSettings(
    common=LearnerSettings(
        max_models=3,
        sketch=SketchSettings(recent_answers=64),
        cluster_sketch=SketchSettings(memory_answers=1_000.0, recent_answers=40),
        clusters=ClusterSettings(clusters=6, early_seed_prompts=(30,), seed_prompts=60, check_prompts=24),
    ),
    neighbours=NeighbourSettings(history_prompts=150, fit_prompts=(30, 100)),
    pool=PoolSettings(max_models=3, max_clusters=12),
    judge_all=50,
)
MODELS = ("m", "n", "o", "p")


def blank(name: str) -> LengthLearner:
    if name == "mixture":
        return MixtureLearner(SETTINGS)
    return SemanticLearner(MixtureLearner(SETTINGS)) if name == "semantic" else solo_learners(SETTINGS)[name]


NAMES = ("mixture", "semantic", *solo_learners(SETTINGS))


def lesson(learner: LengthLearner, chance: np.random.Generator, *, drifted: bool) -> tuple[Features, str, Observation]:
    """An answer of one of three families, of which one is new and another has other lengths once they have drifted."""
    family = int(chance.integers(2 + drifted))
    words = np.random.default_rng(family).integers(16, 32_000, 40)
    prompt = Prompt(
        token_ids=chance.choice(words, 30).astype(np.uint32),
        prompt_tokens=int(chance.integers(30, 300)),
        max_tokens=2_000,
        temperature=0.7,
        model=MODELS[int(chance.integers(len(MODELS)))],
        tenant=f"tenant {family}",
        session=f"session {chance.integers(9)}" if chance.random() < 0.5 else None,
        expected_output_tokens=int(chance.integers(1, 2_000)) if chance.random() < 0.3 else None,
    )
    features = learner.features(prompt)
    if isinstance(learner, SemanticLearner) and chance.random() < 0.7:
        features = with_embedding(features, chance.normal(size=12).astype(np.float32))
    tokens = int(chance.lognormal(3.0 + 1.5 * family + 2.0 * (drifted and family == 0), 0.5)) + 1
    surprises = (float(chance.normal()), float(chance.normal())) if chance.random() < 0.5 else None
    return features, prompt.model, Observation(tokens, bool(chance.random() < 0.2), surprises)


def assert_same(one: LengthLearner, other: LengthLearner, chance: np.random.Generator) -> None:
    for _ in range(12):
        features, model, _ = lesson(one, chance, drifted=True)
        mine, theirs = one.predict_one(features, model), other.predict_one(features, model)
        np.testing.assert_array_equal(mine.distribution.mass, theirs.distribution.mass)
        assert (mine.cluster, mine.evidence, mine.experts) == (theirs.cluster, theirs.evidence, theirs.experts)
        np.testing.assert_array_equal(one.prior(model).mass, other.prior(model).mass)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=4, deadline=None)
@given(answers=st.integers(0, 420), seed=st.integers(0, 1_000))
def test_a_restored_learner_predicts_and_learns_as_the_one_that_was_written(name: str, answers: int, seed: int) -> None:
    """Before there are clusters and after, with many models, drifts and new families; what it learns next included."""
    chance, learner = np.random.default_rng(seed), blank(name)
    for number in range(answers):
        learner.learn_one(*lesson(learner, chance, drifted=number > 300))
    data = written(learner)
    again = restored(data, blank(name))
    assert written(again) == data, "nothing was lost on the way"
    assert_same(learner, again, chance)
    for _ in range(60):
        taught = lesson(learner, chance, drifted=True)
        assert learner.learn_one(*taught) == again.learn_one(*taught)
    assert_same(learner, again, chance)


def test_calibration_comes_back_with_its_guards() -> None:
    """A model that lost trust has lost it after a restart, for the same reason."""
    learner, chance, book = blank("global"), np.random.default_rng(1), CalibrationBook()
    for _ in range(120):
        features, model, observation = lesson(learner, chance, drifted=False)
        predicted, prior = learner.predict_one(features, model).distribution, learner.prior(model)
        wrong = Observation(1, censored=False) if len(book.doubted_models) < 1 else observation
        book.record("m", 3, judge(predicted, prior, wrong, trusted=True, uniform=0.5))
    assert book.doubted_models == ["m"]
    again = restored(written(book), CalibrationBook())
    assert again.doubted_models == ["m"]
    assert again.due(0.0) == book.due(0.0)


class _Point(NamedTuple):
    x: int
    y: float


class _Record(msgspec.Struct, frozen=True):
    name: str
    values: tuple[int, ...]


@dataclass(slots=True)
class _Node:
    name: str
    other: _Node | None = None
    seen: list[int] = field(default_factory=list)


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The classes of this file are taken for the learner's own."""
    monkeypatch.setattr("online_learning.plain_state._PACKAGE", __name__.split(".")[0])
    monkeypatch.setitem(__import__("sys").modules, __name__, __import__("types").SimpleNamespace(**globals()))


@pytest.mark.usefixtures("ours")
def test_what_is_shared_is_shared_again_and_types_are_kept() -> None:
    """Also where objects refer to each other, and whatever containers and numbers they hold."""
    one, rows = _Node("one"), np.asfortranarray(np.arange(6.0).reshape(2, 3))
    one.other = _Node("two", one, one.seen)
    generator = np.random.default_rng(4)
    state = {
        "node": one,
        "rows": (rows, rows, rows[:, 1]),
        ("a", 1): deque([_Point(1, 0.1), None], maxlen=3),
        "kinds": [Counter({"a": 2}), OrderedDict(b=1), frozenset({"x"}), {3, 1}, _Record("r", (1, 2))],
        "numbers": [1 << 90, -1, float("inf"), np.float32(0.1), np.int64(7), True, b"\0", "ä"],
        "chance": generator,
    }
    again = restored(written(state), {})
    assert again["node"].other.other is again["node"]
    assert again["node"].other.seen is again["node"].seen
    assert again["rows"][0] is again["rows"][1]
    assert again["rows"][0].flags.f_contiguous
    assert again["chance"].random() == generator.random()
    for name in (("a", 1), "kinds", "numbers"):
        assert again[name] == state[name]
    assert [type(kind) for kind in (*again["kinds"], *again["numbers"])] == [
        type(kind) for kind in (*state["kinds"], *state["numbers"])
    ]
    assert again["a", 1].maxlen == 3


@pytest.mark.parametrize(
    "state",
    [object(), pickle.Pickler, np.array([object()]), np.ma.array([1]), {1: iter(())}, deque([open])],
    ids=["object", "type", "objects", "masked", "iterator", "function"],
)
def test_what_would_not_come_back_is_not_written(state: object) -> None:
    with pytest.raises(UnknownStateError):
        written(state)


@pytest.mark.parametrize(
    "data",
    [
        ["object", "os:system", [], []],
        ["object", "online_learning.mixture.mixture:np", [], []],
        ["struct", "online_learning.experts.expert:Query", [], []],
        ["named", "online_learning.plain_state:written", [1]],
        ["met", 7],
        ["array", "<f4", [3], "C", b"12"],
        ["nonsense"],
        ["scalar"],
    ],
    ids=str,
)
def test_data_that_name_anything_else_are_refused(data: list[object]) -> None:
    """Nothing is called that they name: only classes of the learner are made, and only filled."""
    with pytest.raises(UnknownStateError):
        restored(msgspec.msgpack.encode(data), None)


def test_an_object_that_needs_a_blank_one_is_refused_without_it() -> None:
    """What can be called is the blank one's."""
    with pytest.raises(UnknownStateError, match="has no _create"):
        restored(written(blank("mixture")), None)
