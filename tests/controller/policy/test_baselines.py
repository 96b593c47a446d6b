"""The baselines are what their sources say, seen in their tables and in what an engine does under them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy import baselines
from controller.policy.baseline_ordering import PreemptiveOrdering, PromotingOrdering
from controller.policy.baselines import (
    BENCH_POLICY_NAMES,
    PAPER_VARIANTS,
    BenchContext,
    bench_policy,
    ordering_of,
    variants_of,
)
from controller.policy.policies import Schedule, policy_named
from controller.policy.policy import EngineFacts, Policy, RequestFacts
from engine_adapter.transport.link import DirectLink
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest, serve
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.distribution import LengthDistribution, log_grid
from store.errors import ConfigError
from store.records import (
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Facts,
    Hello,
    IndexTable,
    Settings,
    Welcome,
)

ENGINE = EngineFacts(kv_tokens=24_000, block_size_tokens=16, max_num_seqs=1024, base_s=0.033, prefill_token_s=1.4e-4)
REQUEST = RequestFacts(request_id="r", prompt_tokens=300, max_tokens=2000)
CONTEXT = BenchContext(schedule=Schedule(), lengths={"r": 700})
ONE_SLOT = Profile(
    name="one-slot",
    base_s=0.01,
    prefill_token_s=0.0001,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=16_000,
    block_size_tokens=16,
    max_num_seqs=1,
    token_budget=2048,
    max_model_len_tokens=4096,
)


def point(tokens: int) -> LengthDistribution:
    """A length that is certain."""
    return LengthDistribution(np.array([tokens]), np.array([1.0]))


@st.composite
def distributions(draw: st.DrawFn) -> LengthDistribution:
    """Any mass on the grid."""
    grid = log_grid(2000)
    weights = np.array(draw(st.lists(st.floats(0.0, 1.0), min_size=grid.size, max_size=grid.size)))
    weights[draw(st.integers(0, grid.size - 1))] += 0.1
    return LengthDistribution(grid, weights / weights.sum())


def at(table: IndexTable, attained_tokens: int, values: tuple[float, ...] | None = None) -> float:
    """The index, or another of the table's values, that holds with so many tokens."""
    held = zip(reversed(table.attained_tokens), reversed(values or table.index_s), strict=True)
    return next(value for since, value in held if since <= attained_tokens)


@pytest.mark.slow
@pytest.mark.parametrize("name", [variant for name in BENCH_POLICY_NAMES for variant in variants_of(name)])
@given(predicted=distributions())
def test_every_policy_of_the_benchmark_gives_a_table(name: str, predicted: LengthDistribution) -> None:
    """Under its own name, for a request and for the prior, starting at 0 and rising, with a number at each step."""
    policy = bench_policy(name, CONTEXT)
    assert policy.name == ("sage" if name.startswith("sage-") else name)
    for request in (REQUEST, RequestFacts(request_id=None, prompt_tokens=256, max_tokens=8192)):
        assessment = policy.assess(request, predicted.cut(request.max_tokens), ENGINE)
        table = assessment.table
        assert table.request_id == request.request_id
        assert table.attained_tokens[0] == 0
        assert all(first < second for first, second in pairwise(table.attained_tokens))
        assert np.isfinite(table.index_s).all()
        assert min(table.index_s) >= 0.0, "a negative index would turn a relative hysteresis round"
        assert assessment.cost_s > 0.0


def test_what_goes_with_the_orders_is_as_their_sources_have_it() -> None:
    """Who preempts, who promotes, and that no baseline has our gate or boost."""
    policies = {name: bench_policy(name, CONTEXT) for name in ("fastserve", "ssjf", "ltr", "trail", *PAPER_VARIANTS)}
    orderings = {name: ordering_of(policy)(16, 8) for name, policy in policies.items()}
    preemptive = {name for name, ordering in orderings.items() if isinstance(ordering, PreemptiveOrdering)}
    assert preemptive == {"fastserve", "ltr", "trail", *PAPER_VARIANTS[2:]}
    assert {name for name, ordering in orderings.items() if isinstance(ordering, PromotingOrdering)} == {"ltr"}
    assert orderings["ltr"].idle_steps == 200
    assert orderings["ltr"].promoted_steps == 10
    assert all(policy.rules == EngineRules() for policy in policies.values())


@given(predicted=distributions(), prompt_tokens=st.integers(1, 8000))
def test_fastserve_joins_by_the_prompt_and_falls_with_doubling_quanta(
    predicted: LengthDistribution, prompt_tokens: int
) -> None:
    """The first level covers the first iteration and the one above does not; each level's service is its quantum."""
    request = RequestFacts(request_id="r", prompt_tokens=prompt_tokens, max_tokens=8192)
    table = baselines.skip_join_levels(request, predicted, ENGINE)
    first_s = ENGINE.base_s + ENGINE.prefill_token_s * prompt_tokens
    joined = int(table.index_s[0])
    assert ENGINE.base_s * 2**joined >= first_s
    assert joined == 0 or ENGINE.base_s * 2 ** (joined - 1) < first_s
    assert list(table.index_s) == [float(joined + place) for place in range(len(table.index_s))]
    for number, attained in enumerate(table.attained_tokens[1:], 1):
        quanta_s = sum(ENGINE.base_s * 2 ** (joined + place) for place in range(number))
        served_s = first_s + (attained - 1) * ENGINE.base_s
        assert served_s <= quanta_s + 1e-6 < served_s + ENGINE.base_s + 2e-6


@given(predicted=distributions())
def test_fastserve_needs_no_prediction(predicted: LengthDistribution) -> None:
    """For any predicted distribution, the table is the same."""
    assert baselines.skip_join_levels(REQUEST, predicted, ENGINE) == baselines.skip_join_levels(
        REQUEST, point(5), ENGINE
    )


@given(predicted=distributions())
def test_ssjf_and_ltr_rank_by_mean_and_median_whatever_the_age(predicted: LengthDistribution) -> None:
    """Both fix what they believe at arrival; under SSJF nobody passes what has started."""
    mean, median = (
        order(REQUEST, predicted, ENGINE) for order in (baselines.shortest_mean_first, baselines.median_rank)
    )
    assert at(mean, 0) == predicted.mean_tokens
    assert {at(mean, age) for age in (1, 10, 1999)} == {0.0}
    assert {at(median, age) for age in (0, 1, 1999)} == {float(predicted.quantile(0.5))}


@given(predicted=distributions(), age=st.integers(0, 2000))
def test_trail_is_the_mean_of_what_is_left_until_four_fifths(predicted: LengthDistribution, age: int) -> None:
    """Against brute force over the distribution; past 0.8 of the first prediction nobody passes it."""
    table = baselines.expected_remaining(REQUEST, predicted, ENGINE)
    if age >= 0.8 * predicted.mean_tokens and age > 0:
        assert at(table, age) == 0.0
        return
    since = max(step for step in table.attained_tokens if step <= age)
    left = [
        (length - since) * mass
        for length, mass in zip(predicted.lengths, predicted.mass, strict=True)
        if length > since
    ]
    alive = sum(mass for length, mass in zip(predicted.lengths, predicted.mass, strict=True) if length > since)
    assert at(table, age) == pytest.approx(sum(left) / alive, rel=1e-6, abs=1e-6)


@given(predicted=distributions())
def test_the_paper_s_index_moves_at_its_bucket_borders_only(predicted: LengthDistribution) -> None:
    """At multiples of 200 tokens, or of a tenth of the longest predicted length."""
    assert all(step % 200 == 0 for step in baselines.paper_200_tokens(REQUEST, predicted, ENGINE).attained_tokens)
    steps = baselines.paper_10_buckets(REQUEST, predicted, ENGINE).attained_tokens
    assert all(step % 200 == 0 for step in steps), "the distribution reaches to 2000"
    tenth = baselines.paper_10_buckets(REQUEST, point(90), ENGINE).attained_tokens
    assert all(step % 9 == 0 for step in tenth)
    assert len(tenth) >= 10


@given(predicted=distributions(), age=st.integers(0, 1999))
def test_a_gated_order_is_the_other_s_with_our_growth(predicted: LengthDistribution, age: int) -> None:
    """The index is the oracle's at every age, the growth ours, and the gate the one in force."""
    gated = bench_policy("srpt-oracle-gated", CONTEXT)
    oracle = policy_named("srpt-oracle", lengths=CONTEXT.lengths)
    ours = policy_named("sage", schedule=CONTEXT.schedule)
    table, theirs, grows = (policy.assess(REQUEST, predicted, ENGINE).table for policy in (gated, oracle, ours))
    assert gated.rules.gate == CONTEXT.schedule.gate
    assert at(table, age) == at(theirs, age)
    assert at(table, age, table.growth_tokens) == pytest.approx(at(grows, age, grows.growth_tokens), rel=0.03)
    flat = bench_policy("fcfs-gated", CONTEXT).assess(REQUEST, predicted, ENGINE).table
    assert set(flat.index_s) == {0.0}


def test_a_gated_order_without_a_gate_is_refused() -> None:
    """It would be the other's order under a wrong name."""
    with pytest.raises(ConfigError, match="fcfs-gated"):
        bench_policy("fcfs-gated", BenchContext(schedule=Schedule(gate=None), lengths={}))


def ended(policy: Policy, lengths: dict[str, tuple[float, int]]) -> list[CompletedRequest]:
    """Serve requests of known lengths, given as arrival and length, on an engine with one slot."""

    def answer(message: EngineMessage) -> list[ControllerMessage]:
        match message:
            case Hello():
                settings = Settings(revision=1, mode="on", lease_s=1e9, rules=policy.rules)
                prior = policy.assess(RequestFacts(request_id=None, prompt_tokens=9, max_tokens=2000), point(9), ENGINE)
                return [Welcome(controller_id="c", durable_batch=0), settings, prior.table]
            case Facts():
                return [
                    policy.assess(
                        RequestFacts(request_id=fact.request_id, prompt_tokens=64, max_tokens=2000),
                        point(lengths[fact.request_id][1]),
                        ENGINE,
                    ).table
                    for fact in message.facts
                    if isinstance(fact, Arrived)
                ]
        return []

    works = [
        TraceRequest(
            request_id=name, arrival_s=arrival_s, token_ids=(1,) * 64, max_tokens=2000, true_output_tokens=tokens
        )
        for name, (arrival_s, tokens) in lengths.items()
    ]
    engine = SimulatedEngine(ONE_SLOT, link=DirectLink(answer), make_ordering=ordering_of(policy))
    return serve(engine, works).completed


LATE_SHORT = {"long": (0.0, 500), "short": (1.0, 50)}


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("ssjf", ["long", "short"]),
        ("ltr", ["short", "long"]),
        ("trail", ["short", "long"]),
        ("fastserve", ["short", "long"]),
        ("sagesched-paper/200-tokens", ["long", "short"]),
        ("sagesched-paper/200-tokens/preemptive", ["short", "long"]),
        ("sagesched-paper/10-buckets/preemptive", ["short", "long"]),
    ],
)
def test_the_preemptive_push_out_what_runs_and_the_others_wait(name: str, order: list[str]) -> None:
    """A short request that comes while a long one has the only slot goes first exactly where the source says so."""
    lives = ended(bench_policy(name, CONTEXT), LATE_SHORT)
    assert [life.request_id for life in lives] == order
    assert sum(life.preemptions for life in lives) == (order[0] == "short")


def test_trail_leaves_who_is_nearly_done_alone() -> None:
    """Past 80% of its prediction a running request is safe from a shorter one."""
    lives = ended(bench_policy("trail", CONTEXT), {"long": (0.0, 500), "short": (4.5, 10)})
    assert [life.request_id for life in lives] == ["long", "short"]
