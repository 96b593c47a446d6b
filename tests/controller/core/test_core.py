"""Messages and entries of the core, message by message."""

import numpy as np
import pytest

from controller.core.core import Core, CoreConfig
from controller.policy.policies import policy_named
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Features, LengthLearner, Observation, Prompt
from store.entries import Decision, EngineSeen, Outcome, Prediction, SettingsChanged
from store.records import (
    Acknowledged,
    Arrived,
    ControllerMessage,
    EngineMessage,
    Facts,
    Finished,
    Heartbeat,
    Hello,
    IndexTable,
    RunningRequest,
    Settings,
    Snapshot,
)

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=1000,
    block_size_tokens=16,
    max_num_seqs=64,
    token_budget=512,
    max_model_len_tokens=4096,
    prefix_caching=False,
    started_s=0.0,
)


def arrived(request_id: str, *, max_tokens: int = 500) -> Arrived:
    ids = np.random.default_rng(len(request_id)).integers(0, 1000, 20, dtype=np.uint32)
    return Arrived(
        request_id=request_id,
        arrival_s=0.0,
        prompt_tokens=20,
        token_ids=ids.tobytes(),
        max_tokens=max_tokens,
        temperature=1.0,
    )


def finished(request_id: str, output_tokens: int = 7, reason: str = "stop") -> Finished:
    return Finished(
        request_id=request_id,
        time_s=1.0,
        reason=reason,
        arrival_s=0.0,
        prompt_tokens=20,  # type: ignore[arg-type]
        output_tokens=output_tokens,
        max_tokens=500,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
    )


def a_core(
    durable: dict[str, int] | None = None, policy: str = "sage", learner: LengthLearner | None = None, backlog: int = 0
) -> Core:
    return Core(
        learner=learner or GlobalLearner(),
        policy=policy_named(policy),
        config=CoreConfig(controller_id="c", mode="on", hash_key=b"k", backlog=backlog),
        now_s=0.0,
        timer=lambda: 0.0,
        durable_batches=durable,
    )


def ask(core: Core, connection: bytes, message: EngineMessage, now_s: float) -> list[tuple[bytes, ControllerMessage]]:
    """What the core sends upon a message."""
    core.handle(connection, message, now_s)
    return core.drain_messages()


def records(core: Core, kind: type) -> list[object]:
    return [entry.record for entry in core.drain_entries() if isinstance(entry.record, kind)]


def test_an_engine_is_welcomed_with_settings_and_a_prior() -> None:
    """Hello is answered by what is durable, the settings in force and a table for all without their own."""
    core = a_core({"s": 7})
    messages = [message for _, message in ask(core, b"x", HELLO, 0.0)]
    assert messages[0].durable_batch == 7
    assert isinstance(messages[1], Settings)
    assert messages[1].mode == "on"
    assert isinstance(messages[2], IndexTable)
    assert messages[2].request_id is None


def test_an_arrival_is_predicted_decided_and_recorded() -> None:
    """One table goes out, and the history gets the fact, the prediction and the decision, in this order."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.drain_entries()
    [(connection, table)] = ask(core, b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
    assert connection == b"x"
    assert isinstance(table, IndexTable)
    assert table.request_id == "a"
    entries = core.drain_entries()
    assert [type(entry.record) for entry in entries] == [Arrived, Prediction, Decision]
    assert [entry.batch for entry in entries] == [1, None, None]


def test_a_batch_that_comes_twice_counts_once() -> None:
    """The same number again changes nothing and is counted."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    facts = Facts(batch=1, facts=(arrived("a"), finished("a")), oldest=1)
    ask(core, b"x", facts, 0.1)
    core.drain_entries()
    assert ask(core, b"x", facts, 0.2) == []
    assert core.drain_entries() == []
    assert core.counts.duplicate_batches == 1
    assert core.counts.completions == 1


def test_batches_are_taken_in_their_order() -> None:
    """One that overtook another is left for later, unless the engine says that the other is no more."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.drain_entries()
    second = Facts(batch=2, facts=(arrived("b"),), oldest=1)
    assert ask(core, b"x", second, 0.1) == []
    assert core.drain_entries() == []
    assert core.counts.early_batches == 1
    ask(core, b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.2)
    ask(core, b"x", second, 0.3)
    ask(core, b"x", Facts(batch=9, facts=(arrived("i"),), oldest=9), 0.4)
    assert [entry.batch for entry in core.drain_entries() if entry.batch is not None] == [1, 2, 9]


def test_a_batch_that_is_durable_is_acknowledged_again() -> None:
    """Its engine tells it again because the acknowledgement was lost."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    facts = Facts(batch=1, facts=(arrived("a"),), oldest=1)
    ask(core, b"x", facts, 0.1)
    assert ask(core, b"x", facts, 0.2) == []
    core.acknowledge("s", 1)
    assert core.drain_messages() == [(b"x", Acknowledged(batch=1))]
    assert ask(core, b"x", facts, 0.3) == [(b"x", Acknowledged(batch=1))]


def test_heartbeats_repeat_the_settings() -> None:
    """Whoever missed a change of the settings has them with the next heartbeat."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.tick(10.0)
    beats = [message for _, message in core.drain_messages() if isinstance(message, Heartbeat)]
    assert [beat.settings for beat in beats] == [core.settings]


class BrokenLearner(GlobalLearner):
    """Raises on every prompt, as a learner with a fault would."""

    def features(self, prompt: Prompt) -> Features:
        raise ArithmeticError(prompt.prompt_tokens)


def test_a_failing_learner_loses_no_fact() -> None:
    """All facts of a batch are in the history before any of them is handled."""
    core = a_core(learner=BrokenLearner())
    ask(core, b"x", HELLO, 0.0)
    core.drain_entries()
    with pytest.raises(ArithmeticError):
        ask(core, b"x", Facts(batch=1, facts=(arrived("a"), finished("a"), arrived("b")), oldest=1), 0.1)
    assert [entry.batch for entry in core.drain_entries()] == [1, 1, 1]


class ChokingLearner(GlobalLearner):
    """Raises when it is first asked."""

    choked = False

    def features(self, prompt: Prompt) -> Features:
        if not self.choked:
            self.choked = True
            raise ArithmeticError
        return super().features(prompt)


def test_a_fact_that_fails_costs_the_others_nothing() -> None:
    """What came with it and behind it is predicted, learnt and forgotten as ever."""
    core = a_core(learner=ChokingLearner())
    ask(core, b"x", HELLO, 0.0)
    with pytest.raises(ArithmeticError):
        ask(core, b"x", Facts(batch=1, facts=(arrived("a"), arrived("b"), arrived("c"), finished("b")), oldest=1), 0.1)
    assert core.unhandled == 4
    core.proceed(0.1)
    tables = [message for _, message in core.drain_messages() if isinstance(message, IndexTable)]
    assert [table.request_id for table in tables] == ["a", "b", "c"]
    assert core.counts.completions == 1
    assert list(core.sessions[0].requests) == ["a", "c"]


class PriorlessLearner(GlobalLearner):
    """Has no prior to give."""

    def prior(self, model: str) -> LengthDistribution:
        raise ArithmeticError(model)


def test_an_engine_is_welcomed_by_a_core_that_fails() -> None:
    """Welcome and settings reach an engine whose prior cannot be formed, so that its facts are taken."""
    core = a_core(learner=PriorlessLearner())
    with pytest.raises(ArithmeticError):
        ask(core, b"x", HELLO, 0.0)
    core.proceed(0.0)
    assert [type(message).__name__ for _, message in core.drain_messages()] == ["Welcome", "Settings"]


def test_an_answer_that_was_cut_is_a_lower_bound() -> None:
    """Reason ``length`` and ``abort`` are recorded and learnt as censored, ``stop`` as exact."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    reasons = {"a": "stop", "b": "length", "c": "abort"}
    facts = [fact for name, reason in reasons.items() for fact in (arrived(name), finished(name, 30, reason))]
    ask(core, b"x", Facts(batch=1, facts=tuple(facts), oldest=1), 0.1)
    outcomes = [record for record in records(core, Outcome) if isinstance(record, Outcome)]
    assert {outcome.request_id: outcome.censored for outcome in outcomes} == {"a": False, "b": True, "c": True}
    assert (core.counts.completions, core.counts.censored) == (3, 2)


def test_what_is_learnt_moves_what_is_waiting() -> None:
    """A request predicted by a young learner gets a new table when much more is known."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    [(_, first)] = ask(core, b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
    request = core.sessions[0].requests["a"]
    for _ in range(100):
        core.teach(request.features, "m", Observation(450, censored=False))
    core.tick(10.0)
    tables = [message for _, message in core.drain_messages() if isinstance(message, IndexTable)]
    assert [table.request_id for table in tables] == ["a", None]
    assert isinstance(first, IndexTable)
    assert tables[0].index_s[0] > 2 * first.index_s[0], "long answers were learnt"


def test_without_ordering_nothing_is_predicted() -> None:
    """The policy ``fcfs`` keeps the engine's own order: mode off, no tables."""
    core = a_core(policy="fcfs")
    messages = [message for _, message in ask(core, b"x", HELLO, 0.0)]
    assert [type(message).__name__ for message in messages] == ["Welcome", "Settings"]
    assert core.settings.mode == "off"
    assert ask(core, b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1) == []


def test_a_switch_of_mode_reaches_every_engine_and_the_history() -> None:
    """Settings get a new revision, go to all connections and are recorded with the reason."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.drain_entries()
    core.set_mode("shadow", "trial", 1.0)
    [(connection, sent)] = core.drain_messages()
    assert connection == b"x"
    assert isinstance(sent, Settings)
    assert (sent.mode, sent.revision) == ("shadow", 2)
    [change] = records(core, SettingsChanged)
    assert isinstance(change, SettingsChanged)
    assert change.reason == "trial"
    core.set_mode("shadow", "again", 2.0)
    assert core.drain_messages() == []


def test_an_engine_that_goes_is_recorded_and_forgotten() -> None:
    """A lost connection is recorded once; after a while the session is removed and its messages count as of an unknown connection."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.drain_entries()
    core.lost(b"x", 1.0)
    core.lost(b"x", 2.0)
    [seen] = records(core, EngineSeen)
    assert isinstance(seen, EngineSeen)
    assert seen.event == "lost"
    core.tick(100.0)
    assert core.sessions == []
    ask(core, b"x", Facts(batch=1, facts=(), oldest=1), 101.0)
    assert core.counts.unknown_connections == 1


def test_a_core_that_is_behind_orders_every_request_and_learns_from_what_it_can() -> None:
    """Ends beyond what may wait are counted, not learnt; each request has its table and none is kept for ever."""
    core = a_core(backlog=3)
    ask(core, b"x", HELLO, 0.0)
    ended: list[Outcome | None] = []
    core.completions.on_finished = lambda _session, _request, _finished, outcome: ended.append(outcome)
    names = [f"r{number}" for number in range(8)]
    tables = ask(core, b"x", Facts(batch=1, facts=tuple(arrived(name) for name in names), oldest=1), 0.1)
    assert [table.request_id for _, table in tables if isinstance(table, IndexTable)] == names
    ask(core, b"x", Facts(batch=2, facts=tuple(finished(name) for name in names), oldest=2), 0.2)
    assert (core.backlog, core.counts.not_learnt, ended) == (3, 5, [None] * 5)
    assert not core.sessions[0].requests
    while core.backlog:
        core.work(0.3)
    assert (core.counts.completions, core.counts.not_learnt, len(ended)) == (3, 5, 8)


def test_an_overloaded_core_defers_arrivals_and_predicts_them_in_their_order() -> None:
    """They go by the prior until there is time; who is known already is told of at once, who has ended never."""
    core = a_core(backlog=10)
    ask(core, b"x", HELLO, 0.0)
    ask(core, b"x", Facts(batch=1, facts=(arrived("known"),), oldest=1), 0.1)
    core.arrivals.overloaded = True
    tables = ask(core, b"x", Facts(batch=2, facts=tuple(map(arrived, ("known", "a", "b", "c"))), oldest=2), 0.2)
    assert [table.request_id for _, table in tables if isinstance(table, IndexTable)] == ["known"]
    assert (core.backlog, core.counts.deferred, core.counts.predictions) == (3, 3, 1)
    ask(core, b"x", Facts(batch=3, facts=(finished("b"),), oldest=3), 0.3)
    core.work(0.4)
    core.work(0.4)
    told = [message.request_id for _, message in core.drain_messages() if isinstance(message, IndexTable)]
    assert (told, core.counts.not_predicted, core.counts.predictions) == (["a", "c"], 1, 3)
    core.work(0.5)
    assert (core.backlog, set(core.sessions[0].requests)) == (0, {"known", "a", "c"})
    ask(core, b"x", Facts(batch=4, facts=(finished("a"), finished("known")), oldest=4), 0.6)
    while core.backlog:
        core.work(0.7)
    # The short ones of the deferred requests ended without a prediction: the others would teach that answers are long.
    assert (core.counts.completions, core.counts.not_learnt) == (1, 0)


def test_a_deferred_arrival_is_predicted_once_and_only_for_a_connected_engine() -> None:
    """An engine that comes back tells its arrivals again; one that stays away takes what waited with it."""
    core = a_core(backlog=10)
    ask(core, b"x", HELLO, 0.0)
    core.arrivals.overloaded = True
    ask(core, b"x", Facts(batch=1, facts=(arrived("a"), arrived("b")), oldest=1), 0.1)
    core.lost(b"x", 0.2)
    core.work(0.3)
    assert core.drain_messages() == []
    core.arrivals.overloaded = False
    ask(core, b"y", HELLO, 0.4)
    ask(core, b"y", Facts(batch=2, facts=(arrived("a"), arrived("b")), oldest=2), 0.5)
    assert (core.backlog, core.counts.predictions, core.counts.not_predicted) == (0, 2, 2)
    core.arrivals.overloaded = True
    ask(core, b"y", Facts(batch=3, facts=(arrived("c"), arrived("d")), oldest=3), 0.6)
    core.lost(b"y", 0.7)
    core.tick(100.0)
    assert (core.sessions, core.backlog, core.counts.not_predicted) == ([], 0, 4)


def test_an_overloaded_core_without_deferred_work_predicts_at_once() -> None:
    """As in virtual time, where nothing is ever late."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    core.arrivals.overloaded = True
    [(_, table)] = ask(core, b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
    assert isinstance(table, IndexTable)


def snapshot(
    time_s: float, *, running: tuple[str, ...] = (), queue: tuple[str, ...] = (), waiting: int = 0
) -> Snapshot:
    return Snapshot(
        time_s=time_s,
        waiting=waiting or len(queue),
        running=len(running),
        kv_blocks_used=0,
        kv_blocks=1000,
        mode="on",
        steps=1,
        step_s=0.03,
        prefill_tokens=0,
        decode_tokens=0,
        kv_tokens_read=0,
        preemptions=0,
        recomputed_tokens=0,
        running_requests=tuple(RunningRequest(name, 1, 1) for name in running),
        queue=queue,
    )


def test_a_request_whose_end_was_lost_is_forgotten_when_its_engine_no_longer_names_it() -> None:
    """A minute after the first list without it: facts may be late; a list that is cut short says nothing."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    ask(core, b"x", Facts(batch=1, facts=tuple(map(arrived, ("lost", "runs", "waits"))), oldest=1), 0.1)
    [session] = core.sessions
    there = {"running": ("runs",), "queue": ("waits",)}
    ask(core, b"x", snapshot(1.0, running=("runs", "lost"), queue=("waits",)), 1.0)
    ask(core, b"x", snapshot(30.0, **there), 30.0)
    ask(core, b"x", snapshot(85.0, running=("runs",), waiting=1), 85.0)
    ask(core, b"x", snapshot(89.0, **there), 89.0)
    assert session.requests.keys() == {"lost", "runs", "waits"}
    ask(core, b"x", snapshot(95.0, **there), 95.0)
    assert session.requests.keys() == {"runs", "waits"}
    ask(core, b"x", Facts(batch=9, facts=(finished("lost"), finished("runs"), finished("waits")), oldest=9), 96.0)
    assert (session.requests, core.counts.completions, core.backlog) == ({}, 2, 0)


def test_an_end_that_comes_late_is_learned_from() -> None:
    """A request that is named again, or whose end comes within the minute, was never lost."""
    core = a_core()
    ask(core, b"x", HELLO, 0.0)
    ask(core, b"x", Facts(batch=1, facts=(arrived("a"), arrived("b")), oldest=1), 0.1)
    for time_s in range(0, 300, 40):
        ask(core, b"x", snapshot(time_s, running=("b",)), time_s)
        ask(core, b"x", snapshot(time_s + 20.0, running=("a", "b")), time_s + 20.0)
    ask(core, b"x", snapshot(301.0), 301.0)
    ask(core, b"x", Facts(batch=2, facts=(finished("a"), finished("b")), oldest=1), 350.0)
    assert core.counts.completions == 2
