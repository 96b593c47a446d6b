"""Each ablation lacks its part and nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.benchmark.scheduling.learners import MisledLearner, bench_learner
from controller.policy.ablations import ABLATION_NAMES, MISLED, without
from controller.policy.baselines import BenchContext, bench_policy, is_ours
from controller.policy.cost import hybrid_cost
from controller.policy.policies import IndexPolicy, Schedule
from controller.policy.policy import EngineFacts, RequestFacts, Tuning
from online_learning.distribution import LengthDistribution, log_grid
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Observation, Prompt
from online_learning.mixture.mixture import MixtureLearner
from store.errors import ConfigError
from store.records import EngineRules, Gate, Preemption

ENGINE = EngineFacts(kv_tokens=24_000, block_size_tokens=16, max_num_seqs=1024, base_s=0.033, prefill_token_s=1.4e-4)
REQUEST = RequestFacts(request_id="r", prompt_tokens=300, max_tokens=2000)
TUNING = Tuning(gate_exchange=None, boost_scale=None, shapes=True)
RULES = EngineRules(
    gate=Gate(horizon_tokens=32),
    boost_per_s=0.01,
    preemption=Preemption(token_s=1e-4),
    victims="later",
)
WHOLE = IndexPolicy(
    name="sage",
    cost=hybrid_cost,
    index="mean",
    rules=RULES,
    tuning=TUNING,
)
GRID = log_grid(2000)


@given(weights=st.lists(st.floats(0.01, 1.0), min_size=GRID.size, max_size=GRID.size))
def test_the_mean_of_what_is_left_is_that_of_brute_force(weights: list[float]) -> None:
    """With the Gittins index in its place growth and everything else of the table stay."""
    predicted = LengthDistribution(GRID, np.array(weights) / sum(weights))
    found = WHOLE.assess(REQUEST, predicted, ENGINE).table
    price_s = hybrid_cost(ENGINE).total_s(300, GRID)
    for age, index_s in zip(found.attained_tokens, found.index_s, strict=True):
        beyond = age < GRID
        paid_s = float(hybrid_cost(ENGINE).total_s(300, np.array([age]))[0])
        if predicted.mass[beyond].sum() > 1e-6:
            left_s = float((price_s[beyond] - paid_s) @ predicted.mass[beyond] / predicted.mass[beyond].sum())
            assert index_s == pytest.approx(left_s, rel=1e-5, abs=1e-9)
    gittins = without(WHOLE, "sage-with-gittins").assess(REQUEST, predicted, ENGINE).table
    held = dict(zip(found.attained_tokens, found.index_s, strict=True))
    for age, index_s in zip(gittins.attained_tokens, gittins.index_s, strict=True):
        assert index_s <= held.get(age, np.inf) * (1 + 1e-9), (
            "it may stop investing, so that it is never above the mean"
        )


def test_without_the_index_arrival_decides() -> None:
    """All have the same index, and the growth that they had."""
    predicted = LengthDistribution(GRID, np.full(GRID.size, 1.0 / GRID.size))
    whole, found = (
        policy.assess(REQUEST, predicted, ENGINE).table for policy in (WHOLE, without(WHOLE, "sage-without-index"))
    )
    assert (found.attained_tokens, found.growth_tokens) == (whole.attained_tokens, whole.growth_tokens)
    assert set(found.index_s) == {1.0}
    assert len(set(whole.index_s)) > 1


def test_each_part_is_taken_out_alone() -> None:
    """What is left is the whole policy; a part that is not there cannot be taken out."""
    less = {
        "sage-without-gate": replace(WHOLE, rules=structs.replace(RULES, gate=None)),
        "sage-without-boost": replace(WHOLE, rules=structs.replace(RULES, boost_per_s=None)),
        "sage-without-victims": replace(WHOLE, rules=structs.replace(RULES, victims="last")),
        "sage-without-shape": replace(WHOLE, tuning=replace(TUNING, shapes=False)),
        "sage-without-preemption": replace(WHOLE, rules=structs.replace(RULES, preemption=None)),
    }
    for name, expected in less.items():
        assert without(WHOLE, name) == replace(expected, name=name)
        with pytest.raises(ConfigError, match=name):
            without(expected, name)
    assert without(WHOLE, "sage-without-cost") != replace(WHOLE, name="sage-without-cost")
    assert without(WHOLE, "sage-without-targets") == replace(WHOLE, name="sage-without-targets")


@pytest.mark.parametrize("name", MISLED)
def test_misled_predictions_are_those_of_the_learner_but_wrong(name: str) -> None:
    """Longer, shorter, or another request's; what is learnt and the prior are right."""
    learner = bench_learner(name)
    prompts = [
        Prompt(
            token_ids=np.full(8, number, dtype=np.uint32), prompt_tokens=8, max_tokens=900, temperature=1.0, model="m"
        )
        for number in (100, 200)
    ]
    for _ in range(120):
        for prompt, tokens in zip(prompts, (10, 200), strict=True):
            learner.learn_one(learner.features(prompt), "m", Observation(tokens, censored=False))
    assert isinstance(learner, MisledLearner)
    features = [learner.features(prompt) for prompt in prompts]
    right = [learner.learner.predict_one(one, "m").distribution.mean_tokens for one in features]
    assert right[0] < 0.5 * right[1]
    found = [learner.predict_one(one, "m").distribution.mean_tokens for one in features * 20]
    if (factor := MISLED[name]) is None:
        assert len({round(mean) for mean in found[1::2]}) > 1
    else:
        assert found[:2] == pytest.approx([factor * mean for mean in right], rel=0.1, abs=1.0)
    assert learner.prior("m").mean_tokens == learner.learner.prior("m").mean_tokens


def test_the_benchmark_knows_them_as_ours_and_takes_the_predictor_out() -> None:
    """They are not tuned, and only one of them believes the same of every prompt."""
    assert all(is_ours(name) for name in ABLATION_NAMES)
    learners = {name: type(bench_learner(name)) for name in ABLATION_NAMES}
    assert {name for name, kind in learners.items() if kind is GlobalLearner} == {"sage-without-predictor"}
    assert {name for name, kind in learners.items() if kind is MisledLearner} == set(MISLED)
    assert set(learners.values()) == {GlobalLearner, MixtureLearner, MisledLearner}
    context = BenchContext(schedule=Schedule(), lengths={})
    assert bench_policy("sage-without-boost", context).rules.boost_per_s is None
