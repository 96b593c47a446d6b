"""The brain and the agent together, over a link that a test can break at any moment."""

import numpy as np
import pytest

from controller.core.core import Core, CoreConfig
from controller.policy.policies import policy_named
from online_learning.distribution import LengthDistribution
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import Features, LengthLearner, Observation, Prompt
from store.entries import Decision, EngineSeen, Outcome, Prediction, SettingsChanged
from store.records import Acknowledged, Arrived, Facts, Finished, Heartbeat, Hello, IndexTable, Settings

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


def core(
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
    [(connection, table)] = brain.take(b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
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
    facts = Facts(batch=1, facts=(arrived("a"), finished("a")), oldest=1)
    brain.take(b"x", facts, 0.1)
    brain.drain_entries()
    assert brain.take(b"x", facts, 0.2) == []
    assert brain.drain_entries() == []
    assert brain.counts.duplicate_batches == 1
    assert brain.counts.completions == 1


def test_batches_are_taken_in_their_order() -> None:
    """One that overtook another is left for later, unless the engine says that the other is no more."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    second = Facts(batch=2, facts=(arrived("b"),), oldest=1)
    assert brain.take(b"x", second, 0.1) == []
    assert brain.drain_entries() == []
    assert brain.counts.early_batches == 1
    brain.take(b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.2)
    brain.take(b"x", second, 0.3)
    brain.take(b"x", Facts(batch=9, facts=(arrived("i"),), oldest=9), 0.4)
    assert [entry.batch for entry in brain.drain_entries() if entry.batch is not None] == [1, 2, 9]


def test_a_batch_that_is_durable_is_acknowledged_again() -> None:
    """Its engine tells it again because the acknowledgement was lost."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    facts = Facts(batch=1, facts=(arrived("a"),), oldest=1)
    brain.take(b"x", facts, 0.1)
    assert brain.take(b"x", facts, 0.2) == []
    brain.acknowledge("s", 1)
    assert brain.take(b"x", facts, 0.3) == [(b"x", Acknowledged(batch=1))]


def test_heartbeats_repeat_the_settings() -> None:
    """Whoever missed a change of the settings has them with the next heartbeat."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    beats = [message for _, message in brain.tick(10.0) if isinstance(message, Heartbeat)]
    assert [beat.settings for beat in beats] == [brain.settings]


class BrokenLearner(GlobalLearner):
    """Raises on every prompt, as a learner with a fault would."""

    def features(self, prompt: Prompt) -> Features:
        raise ArithmeticError(prompt.prompt_tokens)


def test_a_failing_learner_loses_no_fact() -> None:
    """All facts of a batch are in the history before any of them is handled."""
    brain = core(learner=BrokenLearner())
    brain.take(b"x", HELLO, 0.0)
    brain.drain_entries()
    with pytest.raises(ArithmeticError):
        brain.take(b"x", Facts(batch=1, facts=(arrived("a"), finished("a"), arrived("b")), oldest=1), 0.1)
    assert [entry.batch for entry in brain.drain_entries()] == [1, 1, 1]


class ChokingLearner(GlobalLearner):
    """Raises on the first prompt only."""

    choked = False

    def features(self, prompt: Prompt) -> Features:
        if not self.choked:
            self.choked = True
            raise ArithmeticError
        return super().features(prompt)


def test_a_fact_that_fails_costs_the_others_nothing() -> None:
    """What came behind it in its batch is predicted, learnt and forgotten as ever."""
    brain = core(learner=ChokingLearner())
    brain.take(b"x", HELLO, 0.0)
    with pytest.raises(ArithmeticError):
        brain.take(b"x", Facts(batch=1, facts=(arrived("a"), arrived("b"), arrived("c"), finished("b")), oldest=1), 0.1)
    assert brain.unhandled == 3
    tables = [message for _, message in brain.proceed(0.1) if isinstance(message, IndexTable)]
    assert [table.request_id for table in tables] == ["b", "c"]
    assert brain.counts.completions == 1
    assert list(brain.sessions[0].requests) == ["c"]


class PriorlessLearner(GlobalLearner):
    """Has no prior to give."""

    def prior(self, model: str) -> LengthDistribution:
        raise ArithmeticError(model)


def test_an_engine_is_welcomed_by_a_brain_that_fails() -> None:
    """Welcome and settings reach an engine whose prior cannot be formed, so that its facts are taken."""
    brain = core(learner=PriorlessLearner())
    with pytest.raises(ArithmeticError):
        brain.take(b"x", HELLO, 0.0)
    assert [type(message).__name__ for _, message in brain.proceed(0.0)] == ["Welcome", "Settings"]


def test_an_answer_that_was_cut_is_a_lower_bound() -> None:
    """Reason ``length`` and ``abort`` are recorded and learnt as censored, ``stop`` as exact."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    reasons = {"a": "stop", "b": "length", "c": "abort"}
    facts = [fact for name, reason in reasons.items() for fact in (arrived(name), finished(name, 30, reason))]
    brain.take(b"x", Facts(batch=1, facts=tuple(facts), oldest=1), 0.1)
    outcomes = [record for record in records(brain, Outcome) if isinstance(record, Outcome)]
    assert {outcome.request_id: outcome.censored for outcome in outcomes} == {"a": False, "b": True, "c": True}
    assert (brain.counts.completions, brain.counts.censored) == (3, 2)


def test_what_is_learnt_moves_what_is_waiting() -> None:
    """A request predicted by a young learner gets a new table when much more is known."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    [(_, first)] = brain.take(b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
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
    assert brain.take(b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1) == []


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
    brain.take(b"x", Facts(batch=1, facts=(), oldest=1), 101.0)
    assert brain.counts.unknown_connections == 1


def test_a_brain_that_is_behind_orders_every_request_and_learns_from_what_it_can() -> None:
    """Ends beyond what may wait are counted, not learnt; each request has its table and none is kept for ever."""
    brain = core(backlog=3)
    brain.take(b"x", HELLO, 0.0)
    ended: list[Outcome | None] = []
    brain.answers.on_finished = lambda _session, _request, _finished, outcome: ended.append(outcome)
    names = [f"r{number}" for number in range(8)]
    tables = brain.take(b"x", Facts(batch=1, facts=tuple(arrived(name) for name in names), oldest=1), 0.1)
    assert [table.request_id for _, table in tables if isinstance(table, IndexTable)] == names
    brain.take(b"x", Facts(batch=2, facts=tuple(finished(name) for name in names), oldest=2), 0.2)
    assert (brain.backlog, brain.counts.not_learnt, ended) == (3, 5, [None] * 5)
    assert not brain.sessions[0].requests
    while brain.backlog:
        brain.work(0.3)
    assert (brain.counts.completions, brain.counts.not_learnt, len(ended)) == (3, 5, 8)


def test_a_hurried_brain_puts_arrivals_off_and_comes_to_them_in_their_order() -> None:
    """They go by the prior until there is time; who is known already is told of at once, who has ended never."""
    brain = core(backlog=10)
    brain.take(b"x", HELLO, 0.0)
    brain.take(b"x", Facts(batch=1, facts=(arrived("known"),), oldest=1), 0.1)
    brain.arrivals.overloaded = True
    tables = brain.take(b"x", Facts(batch=2, facts=tuple(map(arrived, ("known", "a", "b", "c"))), oldest=2), 0.2)
    assert [table.request_id for _, table in tables if isinstance(table, IndexTable)] == ["known"]
    assert (brain.backlog, brain.counts.put_off, brain.counts.predictions) == (3, 3, 1)
    brain.take(b"x", Facts(batch=3, facts=(finished("b"),), oldest=3), 0.3)
    told = [message.request_id for _ in range(2) for _, message in brain.work(0.4) if isinstance(message, IndexTable)]
    assert (told, brain.counts.not_predicted, brain.counts.predictions) == (["a", "c"], 1, 3)
    brain.work(0.5)
    assert (brain.backlog, set(brain.sessions[0].requests)) == (0, {"known", "a", "c"})
    brain.take(b"x", Facts(batch=4, facts=(finished("a"), finished("known")), oldest=4), 0.6)
    while brain.backlog:
        brain.work(0.7)
    # Of those put off the short ones ended unseen, so the others would teach that answers are long.
    assert (brain.counts.completions, brain.counts.not_learnt) == (1, 0)


def test_what_is_put_off_is_done_once_and_only_for_engines_that_are_there() -> None:
    """An engine that comes back tells its arrivals again; one that stays away takes what waited with it."""
    brain = core(backlog=10)
    brain.take(b"x", HELLO, 0.0)
    brain.arrivals.overloaded = True
    brain.take(b"x", Facts(batch=1, facts=(arrived("a"), arrived("b")), oldest=1), 0.1)
    brain.lost(b"x", 0.2)
    assert brain.work(0.3) == []
    brain.arrivals.overloaded = False
    brain.take(b"y", HELLO, 0.4)
    brain.take(b"y", Facts(batch=2, facts=(arrived("a"), arrived("b")), oldest=2), 0.5)
    assert (brain.backlog, brain.counts.predictions, brain.counts.not_predicted) == (0, 2, 1)
    brain.arrivals.overloaded = True
    brain.take(b"y", Facts(batch=3, facts=(arrived("c"), arrived("d")), oldest=3), 0.6)
    brain.lost(b"y", 0.7)
    brain.tick(100.0)
    assert (brain.sessions, brain.backlog, brain.counts.not_predicted) == ([], 0, 3)


def test_a_hurried_brain_without_a_backlog_decides_at_once() -> None:
    """As in virtual time, where nothing is ever late."""
    brain = core()
    brain.take(b"x", HELLO, 0.0)
    brain.arrivals.overloaded = True
    [(_, table)] = brain.take(b"x", Facts(batch=1, facts=(arrived("a"),), oldest=1), 0.1)
    assert isinstance(table, IndexTable)
