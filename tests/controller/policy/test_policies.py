from dataclasses import replace
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
    """The paper has neither gate, boost nor patience, and what is asked for is what `sage` gets."""
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
    assert fixed.tuning == Tuning(gate_exchange=None, boost_scale=None)
    free = Schedule(objective=objective).policy()
    assert free.tuning is not None
    assert free.tuning.gate_exchange is not None
    assert (free.tuning.boost_scale is None) == (free.rules.boost_per_s is None) == (objective == "mean")


def test_patience_grows_with_the_answer_and_the_traffic() -> None:
    """The bound is so many times the mean time that answers run and the request's own expected time.

    The prior has one too: a request whose own table is lost must not wait for ever.
    """
    policy = Schedule(patience=10.0).policy()
    own_s = predicted().mean_tokens * ENGINE.base_s
    alone = policy.assess(REQUEST, predicted(), ENGINE).table.patience_s
    among = policy.assess(REQUEST, predicted(), replace(ENGINE, service_s=50.0)).table.patience_s
    assert alone == pytest.approx(10.0 * 2 * own_s)
    assert among == pytest.approx(10.0 * (50.0 + own_s))
    assert Schedule(patience=None).policy().assess(REQUEST, predicted(), ENGINE).table.patience_s is None
    prior = RequestFacts(request_id=None, prompt_tokens=256, max_tokens=8192)
    assert policy.assess(prior, predicted(), ENGINE).table.patience_s == alone


def test_who_may_end_among_the_slowest_is_passed_no_more() -> None:
    """What is left of the latest 99th percentile after the request's own expected time, where the bound is not nearer."""
    own_s = predicted().mean_tokens * ENGINE.base_s
    engine = replace(ENGINE, service_s=20.0, tail_s=own_s + 30.0)
    policy = Schedule(objective="balanced", patience=10.0).policy()
    assert policy.deadline == 1.0
    assert policy.assess(REQUEST, predicted(), engine).table.patience_s == pytest.approx(30.0)
    late = replace(engine, tail_s=own_s / 2)
    assert policy.assess(REQUEST, predicted(), late).table.patience_s == 0.0
    behind_a_queue = policy.assess(REQUEST, predicted(), replace(late, queue_s=12.0)).table.patience_s
    assert behind_a_queue == 12.0, "the order of arrival would have made it wait for so long too"
    bound_s = Schedule(patience=0.5).policy().assess(REQUEST, predicted(), engine).table.patience_s
    assert bound_s == pytest.approx(0.5 * (20.0 + own_s))
    for never in (Schedule(objective="mean"), Schedule(deadline=0.0)):
        unhurried = never.policy().assess(REQUEST, predicted(), engine).table.patience_s
        assert unhurried == pytest.approx(10.0 * (20.0 + own_s))


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
