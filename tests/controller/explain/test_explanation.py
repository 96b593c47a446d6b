"""Explanations of the requests of a small simulated run with a real history, checked against what the engine did."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.explain.explanation import explain
from controller.explain.lookup import Explainer, recorded_timeline
from controller.explain.wait_causes import order_at, order_value
from engine_adapter.ordering.ordering import Ordering
from store.errors import BadInputError
from store.history.reader import open_history
from store.history.writer import HistoryWriter
from store.http_requests import Choice, CompetingRequest, Explanation, Loss, Moment, Order, Overtaker, RequestTimeline
from store.reading.request_timeline import read_timeline
from store.records import EngineRules, IndexTable, Settings, Targets

Start = Callable[..., Any]
Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, serve_small: Serve) -> Any:
    return serve_small(tmp_path_factory.mktemp("explained") / "history")


def text(explanation: Explanation, about: str) -> str:
    return " ".join(sentence.text for sentence in explanation.sentences if sentence.about == about)


@pytest.mark.slow
def test_overtakers_are_those_that_the_engine_served_first_though_they_came_later(run: Any) -> None:
    """For every request exactly the others that arrived later and had their first place earlier."""
    passed = 0
    with open_history(run.store) as connection:
        for name, life in run.lives.items():
            facts = read_timeline(connection, name)
            assert facts is not None
            named = {overtaker.request_id for overtaker in explain(facts).overtakers}
            assert named == {
                other.request_id
                for other in run.lives.values()
                if other.arrival_s > life.arrival_s and other.scheduled_s <= life.scheduled_s
            }
            passed += len(named)
    assert passed > len(run.lives)


@pytest.mark.slow
def test_a_reason_is_named_only_where_the_record_bears_it(run: Any) -> None:
    """Class where the class is lower, index where the order value under the recorded boost is lower."""
    reasons = set()
    for name in run.lives:
        facts = run.recorded(name)
        priorities = {other.request_id: other.priority for other in facts.competing}
        for other in explain(facts).overtakers:
            reasons.add(other.why)
            own_class = facts.priority or 0
            if other.why == "class":
                assert priorities[other.request_id] < own_class
            elif other.why == "index":
                assert priorities[other.request_id] == own_class
                assert _value(facts, other) < _own_value(facts, other)
    assert {"class", "index"} <= reasons


def _value(facts: RequestTimeline, other: Overtaker) -> float:
    order = order_at(facts, other.scheduled_s)
    assert order is not None
    assert other.index_s is not None
    return order_value(other.arrival_s, other.index_s, order.boost_per_s)


def _own_value(facts: RequestTimeline, other: Overtaker) -> float:
    order = order_at(facts, other.scheduled_s)
    assert order is not None
    assert other.own_index_s is not None
    return order_value(facts.arrival_s, other.own_index_s, order.boost_per_s)


@pytest.mark.slow
def test_a_request_is_explained_alike_before_and_after_its_rows_are_sealed(run: Any, tmp_path: Path) -> None:
    """The writer's own reader finds the same facts while nothing, a part and all of it is sealed."""
    half = len(run.entries) // 2
    with HistoryWriter(tmp_path / "h", seal_interval_s=3600.0) as writer:
        explainer = Explainer(writer.reader(), lambda: 0.0)
        assert explainer.timeline("r0") is None
        writer.append(run.entries[:half])
        assert writer.flush(20.0)
        assert writer.verify(20.0), "which seals what there is"
        writer.append(run.entries[half:])
        assert writer.flush(20.0)
        assert 0 < writer.stats.sealed_rows < sum(writer.stats.rows.values())
        partly = {name: explainer.timeline(name) for name in list(run.lives)[::14]}
        assert writer.verify(20.0)
        sealed = {name: explainer.timeline(name) for name in partly}
    for name, timeline in partly.items():
        assert timeline == sealed[name] == run.recorded(name)


def test_waits_add_up_to_the_wait(run: Any) -> None:
    """The causes share the whole time before the first place, but for what no snapshot tells of."""
    for name, life in run.lives.items():
        explanation = explain(run.recorded(name))
        told_s = sum(part.span_s for part in explanation.waits)
        waited_s = life.scheduled_s - life.arrival_s
        assert told_s <= waited_s + 1e-9
        assert told_s >= waited_s - 0.2
    causes = {part.cause for name in run.lives for part in explain(run.recorded(name)).waits}
    assert {"gate", "slots"} & causes


def test_preemptions_are_told_with_what_they_cost(run: Any) -> None:
    """Every request that the engine preempted has a sentence with its lost tokens, no other has one."""
    with open_history(run.store) as connection:
        lost = dict(
            connection.execute("SELECT request_id, sum(lost_tokens) FROM preemptions GROUP BY request_id").fetchall()
        )
    assert lost
    for name, life in run.lives.items():
        said = text(explain(run.recorded(name)), "preemptions")
        assert ("never preempted" in said) == (name not in lost) == (life.preemptions == 0)
        if life.preemptions == 1:
            assert f"{lost[name]:,} computed tokens" in said
            assert f"{life.recomputed_tokens:,} tokens were computed again" in said


def test_numbers_in_sentences_are_recorded_ones(run: Any) -> None:
    """Prompt, limit, quantiles, output and the way it ended are those of the engine."""
    for name, life in list(run.lives.items())[::5]:
        facts = run.recorded(name)
        explanation = explain(facts)
        assert facts.predicted is not None
        assert f"prompt of {life.prompt_tokens:,} tokens" in text(explanation, "arrival")
        assert f"at most {facts.predicted.p50_tokens:,} in half" in text(explanation, "prediction")
        assert f"with {life.output_tokens:,} output tokens" in text(explanation, "end")
        how = {"stop": "the model ended", "length": "reached the limit", "abort": "client went away"}[life.reason]
        assert how in text(explanation, "end")
        assert ("was cut" in text(explanation, "outcome")) == (life.reason != "stop")
        assert "Mode on was in force" in text(explanation, "mode")
    assert run.lives["r40"].reason == "abort"


@pytest.mark.slow
def test_in_shadow_the_engine_is_said_to_have_served_its_own_order(tmp_path: Path, serve_small: Serve) -> None:
    """Decisions are recorded then, and do not count as reasons."""
    shadow = serve_small(tmp_path / "shadow", mode="shadow")
    for name in list(shadow.lives)[::10]:
        explanation = explain(shadow.recorded(name))
        assert "it decided nothing" in text(explanation, "mode")
        assert not any(overtaker.why in {"index", "prior"} for overtaker in explanation.overtakers)


def test_an_unknown_request_is_bad_input_with_a_remedy(run: Any, tmp_path: Path) -> None:
    """Also where there is no history at all."""
    with pytest.raises(BadInputError, match=r"no request 'nobody' in history .*: `sagesched sql"):
        recorded_timeline(run.store, "nobody")
    with pytest.raises(BadInputError, match="holds no history"):
        recorded_timeline(tmp_path / "nowhere", "r1")


@pytest.fixture
def waiting() -> RequestTimeline:
    """A request in class 0 that waits behind others, known to a moment 10 s after its arrival."""
    moments = [
        Moment(
            time_s=100.0 + second,
            waiting=5,
            running=4,
            kv_blocks_used=90,
            kv_blocks=100,
            admission_limit=None,
            reserved_blocks=0,
            mode="on",
            fallback=None,
            ahead=2,
            head_prompt_tokens=32,
            attained_tokens=None,
        )
        for second in range(10)
    ]
    return RequestTimeline(
        request_id="w",
        engine_id="e",
        session_id="s",
        known_until_s=110.0,
        arrival_s=100.0,
        prompt_tokens=64,
        max_tokens=100,
        block_size_tokens=16,
        max_num_seqs=4,
        priority=0,
        moments=tuple(moments),
    )


def _with(life: RequestTimeline, **changes: Any) -> RequestTimeline:
    return replace(life, moments=tuple(replace(moment, **changes) for moment in life.moments))


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"running": 4}, "slots"),
        ({"running": 3, "kv_blocks_used": 99}, "memory"),
        ({"running": 3, "admission_limit": 3}, "gate"),
        ({"running": 3, "admission_limit": 4}, "step"),
        ({"running": 3, "ahead": 0, "kv_blocks_used": 97}, "memory"),
    ],
)
def test_what_holds_the_queue_is_told_from_the_snapshots(
    waiting: RequestTimeline, changes: dict[str, Any], cause: str
) -> None:
    """Slots before memory before gate; the first in line's own prompt decides whether memory sufficed."""
    explanation = explain(_with(waiting, **changes))
    assert [(part.cause, part.behind) for part in explanation.waits] == [(cause, changes.get("ahead", 2) > 0)]
    assert sum(part.span_s for part in explanation.waits) == pytest.approx(10.0, abs=1.0)
    assert explanation.state == "waiting"
    assert "It has waited 10 s and has not started yet." in text(explanation, "wait")


def _competing(**changes: Any) -> CompetingRequest:
    other = CompetingRequest(
        request_id="x", arrival_s=103.0, scheduled_s=105.0, prompt_tokens=9, priority=0, index_s=1.0
    )
    return replace(other, **changes)


@pytest.mark.parametrize(
    ("other", "own_index_s", "changes", "why"),
    [
        (_competing(priority=-1), 0.1, {}, "class"),
        (_competing(), 2.0, {}, "index"),
        (_competing(), 0.5, {}, "unexplained"),
        (_competing(priority=1), 2.0, {}, "unexplained"),
        (_competing(index_s=None), 2.0, {}, "prior"),
        (_competing(), None, {}, "prior"),
        (_competing(), 2.0, {"mode": "shadow"}, "engine"),
        (_competing(), 2.0, {"mode": "off", "fallback": "the controller was silent"}, "engine"),
    ],
)
def test_why_a_later_request_went_first(
    waiting: RequestTimeline, other: CompetingRequest, own_index_s: float | None, changes: dict[str, Any], why: str
) -> None:
    """Each reason from the facts that bear it, and "unexplained" where none does."""
    choice = Choice(
        time_s=100.1,
        policy="sage",
        reason="arrival",
        cost_s=1.0,
        index_s=own_index_s or 0.0,
        attained_tokens=(0,),
        table_index_s=(own_index_s or 0.0,),
    )
    order = Order(time_s=1.0, reason="start", mode="on", boost_per_s=None, gate_horizon_tokens=None)
    choices = () if own_index_s is None else (choice,)
    life = replace(_with(waiting, **changes), competing=(other,), choices=choices, orders=(order,))
    explanation = explain(life)
    assert [overtaker.why for overtaker in explanation.overtakers] == [why]
    assert "Before it, one request that arrived later started. That was" in text(explanation, "queue")
    if "fallback" in changes:
        assert "fallen back to its own order (the controller was silent)" in text(explanation, "mode")


@given(
    arrivals_s=st.tuples(st.floats(0.0, 50.0), st.floats(0.0, 50.0)),
    indices_s=st.tuples(st.floats(0.001, 50.0), st.floats(0.001, 50.0)),
    boost_per_s=st.none() | st.floats(0.001, 1.0),
)
def test_the_order_value_is_the_one_that_the_engine_sorts_by(
    arrivals_s: tuple[float, float], indices_s: tuple[float, float], boost_per_s: float | None
) -> None:
    """With every index and boost, the explanation's value is the engine's own."""
    ordering = Ordering(block_size_tokens=16, max_num_seqs=4)
    ordering.configure(Settings(revision=1, mode="on", lease_s=1.0, rules=EngineRules(boost_per_s=boost_per_s)))
    for name, arrival_s, index_s in zip("ab", arrivals_s, indices_s, strict=True):
        ordering.track(name, priority=0, arrival_s=arrival_s)
        table = IndexTable(request_id=name, attained_tokens=(0,), index_s=(index_s,), growth_tokens=(0.0,))
        assert ordering.put(table)
        assert ordering.key(name)[2] == order_value(arrival_s, index_s, boost_per_s)


def test_nothing_is_made_up_where_nothing_is_recorded() -> None:
    """Only an end is known: no mode, no cause, no prediction is claimed."""
    life = RequestTimeline(
        request_id="b",
        engine_id="e",
        session_id="s",
        known_until_s=3.0,
        arrival_s=1.0,
        prompt_tokens=5,
        max_tokens=9,
        scheduled_s=2.0,
        finished_s=3.0,
        reason="error",
        output_tokens=0,
    )
    explanation = explain(life)
    assert "The message of its arrival was lost" in text(explanation, "arrival")
    assert "No prediction" in text(explanation, "prediction")
    assert "not recorded" in text(explanation, "wait")
    assert text(explanation, "mode") == ""
    assert text(explanation, "outcome") == ""


def test_facts_survive_json(run: Any) -> None:
    """What the API sends is what the command line reads."""
    life = run.recorded("r3")
    assert msgspec.json.decode(msgspec.json.encode(life), type=RequestTimeline) == life
    explanation = explain(life)
    assert msgspec.json.decode(msgspec.json.encode(explanation), type=Explanation) == explanation


@pytest.mark.slow
def test_a_request_is_explained_while_it_waits_runs_and_after(start_controller: Start, tmp_path: Path) -> None:
    """Over HTTP, before the history shows anything of it; an unknown one is a 404 with a remedy."""
    running = start_controller(store={"path": tmp_path / "history", "seal_interval_s": 3600.0})
    engine = running.connect()
    engine.submit("cmpl/odd id", output_tokens=400)

    def told() -> dict[str, Any]:
        answer = running.client.get("/api/explain/cmpl%2Fodd%20id")
        return dict(answer.json()) if answer.status_code == 200 else {}

    engine.step_until(lambda: told().get("explanation", {}).get("state") == "running")
    facts = running.client.get("/api/requests/cmpl%2Fodd%20id").json()
    assert (facts["request_id"], facts["prompt_tokens"], facts["finished_s"]) == ("cmpl/odd id", 50, None)
    assert facts["predicted"]["p10_tokens"] <= facts["predicted"]["p90_tokens"]
    engine.engine.abort("cmpl/odd id")
    engine.step_until(lambda: told()["explanation"]["state"] == "ended")
    sentences = [sentence["text"] for sentence in told()["explanation"]["sentences"]]
    assert any(re.search("client went away", sentence) for sentence in sentences)
    missing = running.client.get("/api/explain/nobody")
    assert missing.status_code == 404
    assert set(missing.json()) == {"error", "remedy"}


def test_what_was_promised_and_where_the_time_went_is_said(waiting: RequestTimeline) -> None:
    """Queue, prompt, decoding and preemption add up to the whole; a target that was missed is named with by how much."""
    running = _with(waiting, attained_tokens=1)
    losses = (Loss(time_s=104.5, lost_tokens=9, attained_tokens=3, cause="memory"),)
    ended = replace(
        running, scheduled_s=101.0, first_token_s=102.5, finished_s=108.0, reason="stop", output_tokens=11,
        preemptions=1, itl_max_s=0.5, itl_p99_s=0.5, losses=losses, service_class="chat", account="shop", session="talk",
        targets=Targets(ttft_s=2.0, tpot_s=1.0, e2e_s=7.5),
    )  # fmt: skip
    said = text(explain(ended), "service")
    assert "It is of service class chat, and is charged to shop, with TTFT 2 s, TPOT 1 s, end to end 7.5 s." in said
    assert "It belongs to session talk." in said
    assert (
        "Of its 8 s it spent 1 s in the queue, 1.5 s computing its prompt, 5 s decoding and "
        "500 ms without a place after being preempted."
    ) in said
    assert (
        "It missed its TTFT target by 500 ms and its end-to-end target by 500 ms: without its time in the queue" in said
    )


def test_what_nobody_promised_is_judged_by_what_is_assumed(waiting: RequestTimeline) -> None:
    """An unfinished request is told how late it is; one whose client left early does not count."""
    said = text(explain(waiting), "service")
    assert (
        "It is in no service class; it is judged by the targets that are assumed then: TTFT 2 s, TPOT 100 ms." in said
    )
    assert "Its first token is late by 8 s." in said
    early = replace(waiting, targets=Targets(e2e_s=30.0))
    assert "Its end is due within 20 s." in text(explain(early), "service")
    left = replace(waiting, finished_s=101.0, reason="abort", output_tokens=0)
    assert "It does not count: its client left before the first token." in text(explain(left), "service")
