"""An exception out of any call into a library, deep inside learner or store, leaves nothing half-made behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import duckdb
import numpy as np
import pytest
from harness.library_calls import LibraryCalls

from online_learning.clustering.clusters import ClusterSettings
from online_learning.distribution import log_grid
from online_learning.experts.cluster import ClusterLengthRegressor
from online_learning.experts.expert import Expert, SoloLearner
from online_learning.experts.neighbours import NeighbourExpert, NeighbourSettings
from online_learning.experts.network import NetworkExpert, NetworkSettings
from online_learning.experts.quantile_bands import QuantileBandExpert
from online_learning.experts.semantic import SemanticLearner, with_embedding
from online_learning.length_learner import Features, LengthLearner, Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings
from online_learning.survival.length_sketch import SketchSettings
from store.entries import Entry
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.records import FirstToken

CLUSTERS = ClusterSettings(
    clusters=6,
    early_seed_prompts=(12,),
    seed_prompts=24,
    fewest_prompts=3,
    check_prompts=12,
    recent_prompts=24,
    birth_prompts=3,
    far_deviations=1.0,
    idle_prompts=20,
    retire_prompts=40,
    merge_nats=0.0,
    merge_share=0.5,
    split_share=0.6,
    split_nats=0.5,
)
SKETCH = SketchSettings(memory_answers=100.0, recent_answers=40, drift_confidence=0.5)
COMMON = LearnerSettings(max_models=2, sketch=SKETCH, cluster_sketch=SKETCH, clusters=CLUSTERS)
GRID = log_grid()
NEIGHBOURS = NeighbourSettings(history_prompts=200, fit_prompts=(12, 30))
NETWORK = NetworkSettings(batch_answers=4)
ANSWERS = 220
STRIKES = 30


def solo(expert: Expert) -> LengthLearner:
    return SoloLearner(expert, COMMON.model_prior)


LEARNERS: dict[str, Callable[[], LengthLearner]] = {
    "cluster": lambda: solo(ClusterLengthRegressor(CLUSTERS, SKETCH, max_models=2)),
    "neighbours": lambda: solo(NeighbourExpert(GRID, NEIGHBOURS, max_models=2)),
    "bands": lambda: solo(QuantileBandExpert(GRID)),
    "network": lambda: solo(NetworkExpert(GRID, NETWORK)),
    "semantic": lambda: SemanticLearner(solo(QuantileBandExpert(GRID))),
    "mixture": lambda: MixtureLearner(MixtureSettings(common=COMMON, neighbours=NEIGHBOURS, network=NETWORK)),
}


def stream(learner: LengthLearner, embedded: bool) -> list[tuple[Features, str, Observation]]:
    """Prompts of families that come and go, answers whose lengths jump, three models of which two are remembered."""
    chance = np.random.default_rng(1)
    answers = []
    for number in range(ANSWERS):
        family = int(chance.integers(3)) + 3 * (number // 80)
        words = np.random.default_rng(family).integers(16, 32_000, 40)
        tokens = np.concatenate((words[:8], chance.choice(words, 30))).astype(np.uint32)
        model = "mno"[int(chance.integers(2)) if number % 40 else 2]
        prompt = Prompt(token_ids=tokens, prompt_tokens=38, max_tokens=2_000, temperature=0.7, model=model, tenant="t")
        features = learner.features(prompt)
        if embedded:
            features = with_embedding(features, chance.normal(size=4 if number < 100 else 6).astype(np.float32))
        length = 1 + int((30, 200, 900)[(family + number // 70) % 3] * np.exp(0.4 * chance.normal()))
        answers.append((features, model, Observation(length, censored=bool(chance.random() < 0.1))))
    return answers


def go_on(learner: LengthLearner, answers: list[tuple[Features, str, Observation]]) -> None:
    """Predict and learn on as if nothing had been; every prediction is a distribution."""
    for features, model, observation in answers:
        mass = learner.predict_one(features, model).distribution.mass
        assert abs(float(mass.sum()) - 1.0) < 1e-9
        assert float(mass.min()) >= 0.0
        assert abs(float(learner.prior(model).mass.sum()) - 1.0) < 1e-9
        learner.learn_one(features, model, observation)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_a_learner_goes_on_after_any_one_failure_within_it(name: str) -> None:
    """Once, at any call into numpy, sklearn or river, whether it predicts or learns: later calls all work."""
    chance = random.Random(name)
    learner = LEARNERS[name]()
    answers = stream(learner, embedded=name == "semantic")
    struck: set[str] = set()
    marks = {n for mark in (12, 24, 30) for n in (mark - 1, mark)}
    for number, (features, model, observation) in enumerate(answers):
        for _ in range(8 if number in marks else chance.random() < STRIKES / ANSWERS):
            struck.add(strike(deepcopy(learner), answers[number:], chance))
        learner.learn_one(features, model, observation)
    assert len(struck) > 15, "failures were spread over the learner"


def strike(learner: LengthLearner, answers: list[tuple[Features, str, Observation]], chance: random.Random) -> str:
    """Fail once within the next prediction or answer, at a call chosen by chance, and go on; where it failed."""
    (features, model, observation), *later = answers
    counted = deepcopy(learner)
    with LibraryCalls(("online_learning",)).armed() as calls:
        counted.predict_one(features, model)
        counted.learn_one(features, model, observation)
    spoiled = LibraryCalls(("online_learning",), strike=chance.randrange(calls.calls))
    with suppress(MemoryError), spoiled.armed():
        learner.predict_one(features, model)
        learner.learn_one(features, model, observation)
    assert spoiled.struck is not None
    try:
        go_on(learner, [answers[0], *later[:70]])
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error} after a failure at {spoiled.struck}") from error
    return spoiled.struck


@pytest.mark.slow
def test_the_store_loses_and_doubles_nothing_after_failures_within_it(tmp_path: Path) -> None:
    """At any call into DuckDB, pyarrow or the system: while it opens, commits, seals, merges segments and removes files."""
    chance, now_s, struck = random.Random(1), 1.8e9, set()
    history = HistoryWriter(tmp_path, seal_interval_s=0.0, grace_s=600.0, clock=lambda: now_s, timer=lambda: now_s)
    history.open()
    for batch in range(1, 80):
        fact = FirstToken(request_id=f"r{batch}", time_s=now_s, scheduled_s=now_s, cached_prompt_tokens=0)
        history.append([Entry(engine_id="e", session_id="s", batch=batch, record=fact)])
        error = chance.choice([MemoryError, duckdb.IOException, RuntimeError])
        with LibraryCalls(("store",), chance.randrange(chance.choice([15, 60, 300])), error).armed() as calls:
            history.turn()
        struck.add(calls.struck)
        if chance.random() < 0.5:
            history.turn()
        now_s += 900.0
    assert history.turn(), history.stats.last_error
    history._finish()
    assert len(struck) > 15, "failures were spread over the store"
    with open_history(tmp_path) as connection:
        rows = connection.execute("SELECT request_id, batch FROM first_tokens ORDER BY batch").fetchall()
    assert rows == [(f"r{batch}", batch) for batch in range(1, 80)]
