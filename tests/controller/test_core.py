"""The brain and the agent together, over a link that a test can break at any moment."""

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core import Core, CoreConfig
from controller.policies import policy_named
from engine_adapter.agent import Agent, View
from online_learning.learner import ClusterLearner
from online_learning.prompt import Features, LengthLearner, Observation, Prompt
from store.records import (
    Arrived,
    ControllerMessage,
    Decision,
    EngineMessage,
    EngineSeen,
    Entry,
    Facts,
    Finished,
    Hello,
    IndexTable,
    Outcome,
    Prediction,
    Settings,
    SettingsChanged,
)

HELLO = Hello(
    engine_id="e", session_id="s", model="m", engine="simulated", engine_version="1", kv_blocks=1000,
    block_size_tokens=16, max_num_seqs=64, token_budget=512, max_model_len_tokens=4096, prefix_caching=False,
    started_s=0.0,
)  # fmt: skip


def arrived(request_id: str, *, max_tokens: int = 500) -> Arrived:
    ids = np.random.default_rng(len(request_id)).integers(0, 1000, 20, dtype=np.uint32)
    return Arrived(
        request_id=request_id, arrival_s=0.0, prompt_tokens=20, token_ids=ids.tobytes(), max_tokens=max_tokens,
        temperature=1.0,
    )  # fmt: skip


def finished(request_id: str, output_tokens: int = 7, reason: str = "stop") -> Finished:
    return Finished(
        request_id=request_id, time_s=1.0, reason=reason, arrival_s=0.0, prompt_tokens=20,  # type: ignore[arg-type]
        output_tokens=output_tokens, max_tokens=500, cached_prompt_tokens=0, preemptions=0, recomputed_tokens=0,
    )  # fmt: skip


def core(durable: dict[str, int] | None = None, policy: str = "sage", learner: LengthLearner | None = None) -> Core:
    return Core(
        learner=learner or ClusterLearner(),
        policy=policy_named(policy),
        config=CoreConfig(controller_id="c", mode="on", hash_key=b"k"),
        now_s=0.0,
        timer=lambda: 0.0,
        durable_batches=durable,
    )


def records(brain: Core, kind: type) -> list[object]:
    return [entry.record for entry in brain.drain_entries() if isinstance(entry.record, kind)]


def test_an_engine_is_welcomed_with_settings_and_a_prior() -> None:
    """Hello is answered by what is durable, the settings in force and a table for all without their own."""
    brain = core({"s": 7})
    messages = [message for _, message in brain.take(b"x", HELLO, 0.0)]
    assert messages[0].durable_batch == 7
    assert isinstance(messages[1], Settings)
    assert messages[1].mode == "on"
    assert isinstance(messages[2], IndexTable)
    assert messages[2].request_id is None


def test_an_arrival_is_predicted_decided_and_recorded() -> None:
    """One table goes out, and the history gets the fact, the prediction and the decision, in this order."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    [(connection, table)] = brain.take(b"x", Facts(batch=1, facts=(arrived("a"),)), 0.1)
    assert connection == b"x"
    assert isinstance(table, IndexTable)
    assert table.request_id == "a"
    entries = brain.drain_entries()
    assert [type(entry.record) for entry in entries] == [Arrived, Prediction, Decision]
    assert [entry.batch for entry in entries] == [1, None, None]


def test_a_batch_that_comes_twice_counts_once() -> None:
    """The same number again changes nothing and is counted."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    facts = Facts(batch=1, facts=(arrived("a"), finished("a")))
    brain.take(b"x", facts, 0.1)
    brain.drain_entries()
    assert brain.take(b"x", facts, 0.2) == []
    assert brain.drain_entries() == []
    assert brain.counts.duplicate_batches == 1
    assert brain.counts.completions == 1


class BrokenLearner(ClusterLearner):
    """Raises on every prompt, as a learner with a fault would."""

    def features(self, prompt: Prompt) -> Features:
        raise ArithmeticError(prompt.prompt_tokens)


def test_a_failing_learner_loses_no_fact() -> None:
    """All facts of a batch are in the history before any of them is handled."""
    brain = core(learner=BrokenLearner())
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    with pytest.raises(ArithmeticError):
        brain.take(b"x", Facts(batch=1, facts=(arrived("a"), finished("a"), arrived("b"))), 0.1)
    assert [entry.batch for entry in brain.drain_entries()] == [1, 1, 1]


def test_an_answer_that_was_cut_is_a_lower_bound() -> None:
    """Reason ``length`` and ``abort`` are recorded and learnt as censored, ``stop`` as exact."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    reasons = {"a": "stop", "b": "length", "c": "abort"}
    facts = [fact for name, reason in reasons.items() for fact in (arrived(name), finished(name, 30, reason))]
    brain.take(b"x", Facts(batch=1, facts=tuple(facts)), 0.1)
    outcomes = [record for record in records(brain, Outcome) if isinstance(record, Outcome)]
    assert {outcome.request_id: outcome.censored for outcome in outcomes} == {"a": False, "b": True, "c": True}
    assert (brain.counts.completions, brain.counts.censored) == (3, 2)


def test_what_is_learnt_moves_what_is_waiting() -> None:
    """A request predicted by a young learner gets a new table when much more is known."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    [(_, first)] = brain.take(b"x", Facts(batch=1, facts=(arrived("a"),)), 0.1)
    request = brain.sessions[0].requests["a"]
    for _ in range(100):
        brain.teach(request.features, "m", Observation(450, censored=False))
    tables = [message for _, message in brain.tick(10.0) if isinstance(message, IndexTable)]
    assert [table.request_id for table in tables] == ["a", None]
    assert isinstance(first, IndexTable)
    assert tables[0].index_s[0] > 2 * first.index_s[0], "long answers were learnt"


def test_without_ordering_nothing_is_predicted() -> None:
    """The policy ``fcfs`` keeps the engine's own order: mode off, no tables."""
    brain = core(policy="fcfs")
    messages = [message for _, message in brain.take(b"x", HELLO, 0.0)]
    assert [type(message).__name__ for message in messages] == ["Welcome", "Settings"]
    assert brain.settings.mode == "off"
    assert brain.take(b"x", Facts(batch=1, facts=(arrived("a"),)), 0.1) == []


def test_a_switch_of_mode_reaches_every_engine_and_the_history() -> None:
    """Settings get a new revision, go to all connections and are recorded with the reason."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    [(connection, sent)] = brain.set_mode("shadow", "trial", 1.0)
    assert connection == b"x"
    assert isinstance(sent, Settings)
    assert (sent.mode, sent.revision) == ("shadow", 2)
    [change] = records(brain, SettingsChanged)
    assert isinstance(change, SettingsChanged)
    assert change.reason == "trial"
    assert brain.set_mode("shadow", "again", 2.0) == []


def test_an_engine_that_goes_is_recorded_and_forgotten() -> None:
    """A lost connection is noted once; after a while the session is gone and strangers are counted."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    brain.lost(b"x", 1.0)
    brain.lost(b"x", 2.0)
    [seen] = records(brain, EngineSeen)
    assert isinstance(seen, EngineSeen)
    assert seen.event == "lost"
    brain.tick(100.0)
    assert brain.sessions == []
    brain.take(b"x", Facts(batch=1, facts=()), 101.0)
    assert brain.counts.strangers == 1


@dataclass
class World:
    """An engine's agent and a controller with a history, joined by a link that loses what is under way at a crash."""

    to_controller: deque[EngineMessage] = field(default_factory=deque)
    to_engine: deque[ControllerMessage] = field(default_factory=deque)
    now_s: float = 0.0
    history: list[Entry] = field(default_factory=list)
    unwritten: list[Entry] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    begun: int = 0
    connection: int = 0

    def __post_init__(self) -> None:
        self.agent = Agent(hello=HELLO, link=self)
        self.brain = core()

    def send(self, message: EngineMessage) -> bool:
        if len(self.to_controller) >= 5:
            return False
        self.to_controller.append(message)
        return True

    def receive(self) -> list[ControllerMessage]:
        received = list(self.to_engine)
        self.to_engine.clear()
        return received

    def close(self) -> None:
        raise AssertionError

    def arrive(self) -> None:
        name = str(self.begun)
        self.begun += 1
        self.unfinished.append(name)
        self.agent.arrived(arrived(name))

    def finish(self) -> None:
        if self.unfinished:
            self.agent.finished(finished(self.unfinished.pop(0)))

    def poll(self) -> None:
        self.agent.poll(self.now_s)
        if self.agent.snapshot_due(self.now_s):
            self.agent.report(self.now_s, View(kv_blocks_used=0, waiting=0, running=0, queue=(), running_requests=()))

    def deliver(self) -> None:
        name = str(self.connection).encode()
        while self.to_controller:
            self.to_engine.extend(m for _, m in self.brain.take(name, self.to_controller.popleft(), self.now_s))
        self.to_engine.extend(m for _, m in self.brain.tick(self.now_s))
        self.unwritten.extend(self.brain.drain_entries())

    def commit(self) -> None:
        self.history.extend(self.unwritten)
        batches = [entry.batch for entry in self.unwritten if entry.batch is not None]
        self.unwritten.clear()
        if batches:
            self.to_engine.extend(m for _, m in self.brain.acknowledge("s", max(batches)))

    def crash(self) -> None:
        self.unwritten.clear()
        self.to_controller.clear()
        self.to_engine.clear()
        self.connection += 1
        batches = [entry.batch for entry in self.history if entry.batch is not None]
        self.brain = core({"s": max(batches)} if batches else None)

    def settle(self) -> None:
        for _ in range(60):
            self.now_s += 0.5
            self.poll()
            self.deliver()
            self.commit()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["arrive", "finish", "poll", "deliver", "commit", "crash"]), max_size=60))
def test_every_fact_is_in_the_history_once_whatever_happens(moves: list[str]) -> None:
    """Crashes, full links and lost messages neither lose nor double a fact, and every unfinished request is known."""
    world = World()
    for move in moves:
        world.now_s += 0.3
        getattr(world, move)()
    world.settle()
    facts = [entry.record for entry in world.history if entry.batch is not None]
    arrivals = Counter(fact.request_id for fact in facts if isinstance(fact, Arrived) and not fact.resent)
    ends = Counter(fact.request_id for fact in facts if isinstance(fact, Finished))
    everybody = {str(number) for number in range(world.begun)}
    assert arrivals == dict.fromkeys(everybody, 1)
    assert ends == dict.fromkeys(everybody - set(world.unfinished), 1)
    [session] = world.brain.sessions
    assert set(session.requests) == set(world.unfinished)
    assert world.agent.mode(world.now_s) == "on"
