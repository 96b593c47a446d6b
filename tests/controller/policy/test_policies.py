import math
from itertools import pairwise

import numpy as np
import pytest

from controller.policy.policies import POLICY_NAMES, Objective, Schedule, policy_named
from controller.policy.policy import EngineFacts, RequestFacts, Tuning
from online_learning.distribution import LengthDistribution, log_grid
from store.errors import ConfigError
from store.records import Gate

ENGINE = EngineFacts(kv_tokens=24_000, block_size_tokens=16, max_num_seqs=1024, base_s=0.033, prefill_token_s=1.4e-4)
REQUEST = RequestFacts(request_id="r", prompt_tokens=300, max_tokens=2000)


def predicted() -> LengthDistribution:
    """Two kinds of answers: short ones and long ones."""
    grid = log_grid(2000)
    mass = np.exp(-((np.log(grid / 60.0)) ** 2)) + 0.3 * np.exp(-((np.log(grid / 900.0) * 2) ** 2))
    return LengthDistribution(grid, mass / mass.sum())


@pytest.mark.parametrize("name", POLICY_NAMES)
def test_every_policy_assesses_requests_and_the_prior(name: str) -> None:
    """Each name gives a policy of that name which has an answer for a request and for an unknown one."""
    policy = policy_named(name, lengths={"r": 500})
    prior = RequestFacts(request_id=None, prompt_tokens=256, max_tokens=8192)
    for request in (REQUEST, prior):
        assessment = policy.assess(request, predicted(), ENGINE)
        assert assessment.table.request_id == request.request_id
        assert assessment.cost_s > 0.0
    assert policy.name == name
    assert policy.orders == (name != "fcfs")


def test_only_sage_has_a_schedule() -> None:
    """The paper has neither gate nor boost, and what is asked for is what `sage` gets."""
    schedule = Schedule(gate=Gate(horizon_tokens=16), boost_per_s=0.07)
    policies = {name: policy_named(name, schedule=schedule, lengths={}) for name in POLICY_NAMES}
    assert {name for name, policy in policies.items() if policy.rules.gate} == {"sage"}
    assert policies["sage"].rules.gate == Gate(horizon_tokens=16)
    assert {policy.rules.boost_per_s for policy in policies.values()} == {None, 0.07}
    assert {name for name, policy in policies.items() if policy.tuning} == {"sage"}


@pytest.mark.parametrize("objective", ["mean", "balanced", "tail"])
def test_a_fixed_boost_and_gate_are_left_alone(objective: Objective) -> None:
    """What the operator fixes is not tuned; 0 is no boost; without a word the objective's own follows the traffic."""
    fixed = Schedule(objective=objective, boost_per_s=0.0, tune_gate=False).policy()
    assert fixed.rules.boost_per_s is None
    assert fixed.tuning == Tuning(gate_exchange=None, boost_scale=None, shapes=True)
    free = Schedule(objective=objective).policy()
    assert free.tuning is not None
    assert free.tuning.gate_exchange is not None
    assert free.tuning.boost_scale is not None
    assert free.rules.boost_per_s is not None


def test_the_objectives_differ_in_how_far_short_answers_overtake() -> None:
    """From mean to tail the boost's rate rises; what the operator fixes holds for each objective."""
    scales = []
    for objective in ("mean", "balanced", "tail"):
        tuning = Schedule(objective=objective).policy().tuning
        assert tuning is not None
        assert tuning.boost_scale is not None
        scales.append(tuning.boost_scale)
        fixed = Schedule(objective=objective, overtaking=3.0).policy().tuning
        assert fixed is not None
        assert fixed.boost_scale == pytest.approx(math.log(2.0) / 3.0)
    assert scales == sorted(scales)
    assert scales[1] == pytest.approx(math.log(2.0) / 30.0)


def test_the_paper_s_index_changes_at_bucket_borders_only() -> None:
    """Every breakpoint is a multiple of 200 generated tokens."""
    table = policy_named("sagesched-paper").assess(REQUEST, predicted(), ENGINE).table
    assert len(table.attained_tokens) > 2
    assert all(attained % 200 == 0 for attained in table.attained_tokens)


def test_growth_is_published_for_the_gate_only() -> None:
    """With a gate every age has an expected growth of at most the horizon; without one it is 0."""
    with_gate = Schedule(gate=Gate(horizon_tokens=16)).policy().assess(REQUEST, predicted(), ENGINE).table
    without = Schedule(gate=None).policy().assess(REQUEST, predicted(), ENGINE).table
    assert all(0.0 < growth <= 16.0 for growth in with_gate.growth_tokens)
    assert set(without.growth_tokens) == {0.0}


def test_the_oracle_s_index_is_the_true_remaining_cost() -> None:
    """It falls with every step of the answer and orders two requests by what they will really take."""
    policy = policy_named("srpt-oracle", lengths={"r": 500, "s": 100})
    long = policy.assess(REQUEST, predicted(), ENGINE)
    short = policy.assess(RequestFacts(request_id="s", prompt_tokens=300, max_tokens=2000), predicted(), ENGINE)
    assert long.table.index_s[0] == pytest.approx(long.cost_s)
    assert all(later < earlier for earlier, later in pairwise(long.table.index_s))
    assert short.table.index_s[0] < long.table.index_s[0]
    assert long.cost_s * ENGINE.kv_tokens / ENGINE.base_s == pytest.approx(300 * 500 + 500**2 / 2)


def test_the_oracle_needs_the_lengths() -> None:
    """Outside the benchmark nobody knows them, and asking for it there is bad input."""
    with pytest.raises(ConfigError, match="srpt-oracle"):
        policy_named("srpt-oracle")
