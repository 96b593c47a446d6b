from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapter.transport.link import DirectLink, NoLink
from engine_adapter.virtual_time.engine import CompletedRequest, TraceRequest, serve
from engine_adapter.virtual_time.profiles import PROFILES, Profile
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.errors import ConfigError, WorkloadError
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    EngineRules,
    Fact,
    Facts,
    Finished,
    FirstToken,
    Hello,
    IndexTable,
    Preempted,
    Settings,
    Snapshot,
    Welcome,
)

PROFILE = Profile(
    name="tiny",
    base_s=0.01,
    prefill_token_s=0.001,
    decode_seq_s=0.0005,
    kv_token_s=0.00001,
    kv_tokens=128,
    max_num_seqs=8,
    token_budget=48,
    max_model_len_tokens=96,
)
PRIOR = IndexTable(request_id=None, attained_tokens=(0,), index_s=(50.0,), growth_tokens=(0.0,))


@dataclass
class Listener:
    """A controller that keeps all facts and snapshots, and orders by the tables that it is given."""

    tables: dict[str, IndexTable] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)
    snapshots: list[Snapshot] = field(default_factory=list)

    def answer(self, message: EngineMessage) -> Iterable[ControllerMessage]:
        """Welcome the engine, acknowledge facts, send a table when its request arrives."""
        match message:
            case Hello():
                yield Welcome(controller_id="listener", durable_batch=0)
                yield Settings(revision=1, mode="on", lease_s=math.inf, rules=EngineRules())
                yield PRIOR
            case Snapshot():
                self.snapshots.append(message)
            case Facts():
                yield Acknowledged(batch=message.batch)
                self.facts.extend(message.facts)
                arrived = [fact.request_id for fact in message.facts if isinstance(fact, Arrived)]
                yield from (self.tables[request_id] for request_id in arrived if request_id in self.tables)

    def of(self, kind: type[Fact], request_id: str) -> list[Fact]:
        """All facts of one kind about one request."""
        return [fact for fact in self.facts if isinstance(fact, kind) and fact.request_id == request_id]


def work(request_id: str, arrival_s: float = 0.0, *, prompt: int = 8, output: int = 5, **more: int) -> TraceRequest:
    """A request whose answer is ``output`` tokens long."""
    return TraceRequest(
        request_id=request_id,
        arrival_s=arrival_s,
        token_ids=tuple(range(prompt)),
        max_tokens=more.pop("max_tokens", 80),
        true_output_tokens=output,
        **more,
    )


works = st.lists(
    st.builds(
        lambda arrival, prompt, output, limit, gone: (arrival, prompt, output, limit, gone),
        st.integers(0, 40),
        st.integers(1, 90),
        st.integers(1, 60),
        st.integers(1, 60),
        st.none() | st.integers(1, 30),
    ),
    min_size=1,
    max_size=15,
).map(
    lambda rows: [
        replace(
            work(f"r{place}", arrival / 20, prompt=prompt, output=output, max_tokens=limit), abort_after_tokens=gone
        )
        for place, (arrival, prompt, output, limit, gone) in enumerate(rows)
    ]
)


@settings(max_examples=60, deadline=None)
@given(works=works)
def test_every_request_is_told_and_served_once_and_to_its_end(works: list[TraceRequest]) -> None:
    """Each life ends once, with the right length and reason, and the facts that the controller hears say the same."""
    listener = Listener()
    engine = SimulatedEngine(PROFILE, link=DirectLink(listener.answer))
    lives = {life.request_id: life for life in serve(engine, works).completed}
    assert len(lives) == len(works)
    engine.step()
    assert engine.agent.unacknowledged == 0
    for one in works:
        life = lives[one.request_id]
        room = PROFILE.max_model_len_tokens - len(one.token_ids)
        gone = math.inf if one.abort_after_tokens is None else one.abort_after_tokens
        assert life.output_tokens == min(one.true_output_tokens, one.max_tokens, room, gone)
        assert life.reason == _reason(one, life)
        assert one.arrival_s <= life.scheduled_s < life.first_token_s <= life.finished_s
        _assert_facts_say(listener, life)


def _reason(one: TraceRequest, life: CompletedRequest) -> str:
    if life.output_tokens == one.true_output_tokens:
        return "stop"
    room = PROFILE.max_model_len_tokens - len(one.token_ids)
    return "length" if life.output_tokens in {one.max_tokens, room} else "abort"


def _assert_facts_say(listener: Listener, life: CompletedRequest) -> None:
    (arrived,) = listener.of(Arrived, life.request_id)
    (first,) = listener.of(FirstToken, life.request_id)
    (finished,) = listener.of(Finished, life.request_id)
    preempted = listener.of(Preempted, life.request_id)
    assert isinstance(arrived, Arrived)
    assert isinstance(first, FirstToken)
    assert isinstance(finished, Finished)
    assert arrived.prompt_tokens == life.prompt_tokens == finished.prompt_tokens
    assert (first.time_s, first.scheduled_s) == (life.first_token_s, life.scheduled_s)
    assert (finished.time_s, finished.reason) == (life.finished_s, life.reason)
    assert finished.output_tokens == life.output_tokens
    assert len(preempted) == life.preemptions == finished.preemptions
    lost = sum(fact.lost_tokens for fact in preempted if isinstance(fact, Preempted))
    assert lost == life.recomputed_tokens == finished.recomputed_tokens


@settings(max_examples=40, deadline=None)
@given(works=works)
def test_snapshots_add_up_to_what_was_computed(works: list[TraceRequest]) -> None:
    """The sums of all snapshots are the tokens and times of all steps, and the last one shows an idle engine."""
    listener = Listener()
    engine = SimulatedEngine(PROFILE, link=DirectLink(listener.answer))
    engine.step()
    engine.step()
    totals = serve(engine, works)
    computed = sum(shot.prefill_tokens + shot.decode_tokens for shot in listener.snapshots)
    assert computed == totals.computed_tokens
    assert sum(shot.steps for shot in listener.snapshots) == totals.steps
    assert sum(shot.preemptions for shot in listener.snapshots) == totals.preemptions
    last = listener.snapshots[-1]
    assert (last.waiting, last.running, last.kv_blocks_used) == (0, 0, 0)


def test_tables_order_the_queue() -> None:
    """With one place, the request of the lowest index goes first, whenever it came."""
    order = {"slow": 9.0, "quick": 1.0, "middle": 5.0}
    listener = Listener(
        tables={
            name: IndexTable(request_id=name, attained_tokens=(0,), index_s=(index,), growth_tokens=(0.0,))
            for name, index in order.items()
        }
    )
    engine = SimulatedEngine(replace(PROFILE, max_num_seqs=1), link=DirectLink(listener.answer))
    lives = serve(engine, [work("first"), *(work(name, 0.02) for name in order)]).completed
    assert [life.request_id for life in lives] == ["first", "quick", "middle", "slow"]


def test_an_error_in_the_policy_costs_no_request() -> None:
    """A table that makes no sense is counted, and everybody is served first come, first served."""
    broken = IndexTable(request_id="r1", attained_tokens=(0, 2), index_s=(1.0,), growth_tokens=(0.0,))
    listener = Listener(tables={"r1": broken})
    engine = SimulatedEngine(replace(PROFILE, max_num_seqs=1), link=DirectLink(listener.answer))
    lives = serve(engine, [work(f"r{number}", number / 100) for number in range(5)]).completed
    assert [life.request_id for life in lives] == ["r0", "r1", "r2", "r3", "r4"]
    assert listener.snapshots[-1].policy_errors == 1
    assert "index table of 'r1' has columns of different lengths" in (listener.snapshots[-1].fallback or "")
    assert [len(listener.of(Finished, f"r{number}")) for number in range(5)] == [1] * 5


def test_an_abort_from_outside_ends_a_life_with_the_next_step() -> None:
    """A waiting request that leaves is handed out as aborted, and its blocks are free."""
    engine = SimulatedEngine(replace(PROFILE, max_num_seqs=1), link=NoLink())
    engine.submit(work("runs"))
    engine.submit(work("waits"))
    engine.step()
    engine.abort("waits")
    assert engine.unfinished == 2
    (life,) = engine.step().finished
    assert (life.request_id, life.reason, life.output_tokens) == ("waits", "abort", 0)
    engine.abort("runs")
    step = engine.step()
    assert [life.request_id for life in step.finished] == ["runs"]
    assert (engine.unfinished, step.kv_blocks_used, step.duration_s) == (0, 0, 0.0)


def test_what_cannot_be_served_is_refused_by_name() -> None:
    """A cache smaller than one request, and prompts that no step could hold."""
    with pytest.raises(ConfigError, match="64 KV tokens cannot hold one request of 96"):
        SimulatedEngine(replace(PROFILE, kv_tokens=64), link=NoLink())
    engine = SimulatedEngine(PROFILE, link=NoLink())
    for prompt in (0, 96):
        with pytest.raises(WorkloadError, match=f"prompt of {prompt} tokens"):
            engine.submit(work("odd", prompt=prompt))
    with pytest.raises(WorkloadError, match="max_tokens=0"):
        engine.submit(work("odd", max_tokens=0))
    assert engine.unfinished == 0


def test_a_saturated_profile_preempts_and_still_serves_everybody() -> None:
    """Far above capacity on a real profile: long answers collide, are computed again, and all end."""
    profile = PROFILES["h800-qwen3-32b-24k"]
    burst = [work(f"r{number}", prompt=200, output=900, max_tokens=2000) for number in range(120)]
    totals = serve(SimulatedEngine(profile, link=NoLink()), burst)
    assert len(totals.completed) == 120
    assert totals.preemptions > 0
    assert totals.recomputed_tokens == sum(life.recomputed_tokens for life in totals.completed) > 0
    fresh = sum(life.prompt_tokens + life.output_tokens - 1 for life in totals.completed)
    assert totals.computed_tokens == fresh + totals.recomputed_tokens
