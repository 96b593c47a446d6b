"""The border with engines: whatever comes in a frame, the controller reads it or counts it, and goes on."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controller.core.core import Core, CoreConfig
from controller.policy.policies import policy_named
from engine_adapter.agent.agent import Agent
from engine_adapter.transport.damaged_batches import readable_part
from engine_adapter.transport.link import DirectLink
from online_learning.evaluation.global_learner import GlobalLearner
from store.bounds import MAX_PROMPT_TOKENS_SENT
from store.errors import ProtocolError
from store.records import (
    PROTOCOL,
    Arrived,
    EngineRules,
    Facts,
    Finished,
    FirstToken,
    Goodbye,
    Heartbeat,
    Hello,
    Preempted,
    Settings,
    Snapshot,
    decode_controller_message,
    decode_engine_message,
    encode,
)

HELLO = Hello(
    engine_id="e",
    session_id="s",
    model="m",
    engine="simulated",
    engine_version="1",
    kv_blocks=100,
    block_size_tokens=16,
    max_num_seqs=8,
    token_budget=100,
    max_model_len_tokens=100,
    prefix_caching=False,
    started_s=1.0,
)
ARRIVED = Arrived(
    request_id="r", arrival_s=1.0, prompt_tokens=2, token_ids=b"\x01\0\0\0\x02\0\0\0", max_tokens=9, temperature=1.0
)
PRIMITIVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=20),
    st.binary(max_size=20),
)
VALUES = st.recursive(
    PRIMITIVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
TYPES = ["Hello", "Facts", "Snapshot", "Goodbye", "Welcome", "Settings", "IndexTable", "Arrived", "Nothing"]


def read(frame: bytes) -> None:
    for decode in (decode_engine_message, decode_controller_message):
        try:
            decode(frame)
        except ProtocolError as error:
            assert str(error)


@settings(max_examples=400, deadline=None)
@given(st.one_of(st.binary(max_size=300), VALUES.map(msgspec.msgpack.encode)), st.sampled_from(TYPES), VALUES)
def test_any_bytes_are_a_message_or_a_protocol_error(raw: bytes, kind: str, value: Any) -> None:
    """Of our version and of others; msgpack of anything; our own types with anything in their fields."""
    for version in (bytes((PROTOCOL,)), b"\x00", b"\xff", b""):
        read(version + raw)
    fields = value if isinstance(value, dict) else {"facts": value, "batch": value, "mode": value}
    read(bytes((PROTOCOL,)) + msgspec.msgpack.encode({"type": kind} | fields))


def test_a_frame_that_breaks_off_or_has_a_wrong_byte() -> None:
    """Every cut and every byte of a message."""
    whole = encode(Facts(batch=1, facts=(ARRIVED,), oldest=1))
    for place in range(len(whole)):
        read(whole[:place])
        for bit in range(8):
            read(whole[:place] + bytes((whole[place] ^ (1 << bit),)) + whole[place + 1 :])
    read(bytes((PROTOCOL,)) + b"\x91" * 100_000)
    read(bytes((PROTOCOL,)) + b"\xdd\xff\xff\xff\xff")
    read(bytes((PROTOCOL,)) + b"\xc6\xff\xff\xff\xff" + b"x")


def damaged_batch(*facts: Any) -> bytes:
    """A frame with a batch of these facts and whole ones around them."""
    around = msgspec.to_builtins(ARRIVED, builtin_types=(bytes,))
    batch = {"type": "Facts", "batch": 7, "facts": [around, *facts, around], "oldest": 3}
    return bytes((PROTOCOL,)) + msgspec.msgpack.encode(batch)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["Arrived", "FirstToken", "Preempted", "Finished", "Nothing"]), VALUES)
def test_a_batch_costs_no_more_than_the_facts_that_cannot_be_read(kind: str, value: Any) -> None:
    """Whatever stands in the place of a fact: the batch has its number, and the facts around it."""
    fields = msgspec.to_builtins(ARRIVED, builtin_types=(bytes,))
    fields |= value if isinstance(value, dict) else dict.fromkeys(fields, value)
    for fact in (value, fields | {"type": kind}):
        frame = damaged_batch(fact)
        try:
            decode_engine_message(frame)
        except ProtocolError:
            part = readable_part(frame)
            assert part is not None
            assert (part.batch, part.oldest, part.damaged) == (7, 3, 1)
            assert (part.facts[0], part.facts[-1]) == (ARRIVED, ARRIVED)
            assert len(part.facts) in (2, 3)
            assert decode_engine_message(encode(part)) == part


@pytest.mark.parametrize(
    ("field", "value", "mended"),
    [
        ("cached_prompt_tokens", -1, 0),
        ("output_tokens", 1 << 60, 1 << 53),
        ("preemptions", math.nan, 0),
        ("preemptions", 0.5, None),
        ("expected_cached_tokens", -7, 0),
        ("time_s", -1.0, None),
        ("request_id", 1000 * "x", None),
        ("reason", "tired", None),
    ],
)
def test_a_count_out_of_its_range_is_put_into_it_and_nothing_else_is_made_up(
    field: str, value: Any, mended: int | None
) -> None:
    """A moment that cannot be orders nothing, and so its fact is left out."""
    end = msgspec.to_builtins(
        Finished(
            request_id="r",
            time_s=2.0,
            reason="stop",
            arrival_s=1.0,
            prompt_tokens=1,
            output_tokens=1,
            max_tokens=1,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
        )
    )
    part = readable_part(damaged_batch(end | {field: value}))
    assert part is not None
    found = [getattr(fact, field) for fact in part.facts if isinstance(fact, Finished)]
    assert found == ([] if mended is None else [mended])


def test_a_temperature_that_is_no_number_reaches_no_learner() -> None:
    """It is put into its range where the frame is read."""
    part = readable_part(
        encode(Facts(batch=1, facts=(msgspec.structs.replace(ARRIVED, temperature=math.nan),), oldest=1))
    )
    assert part is not None
    assert (part.damaged, [fact.temperature for fact in part.facts if isinstance(fact, Arrived)]) == (1, [0.0])


WHOLE = st.one_of(st.integers(-3, 300), st.sampled_from([2**31, 2**62, -(2**62)]))
TIMES = st.one_of(st.floats(0.0, 1e10), st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 1e300, 0.0]))
NAMES = st.one_of(st.sampled_from(["r", "q", ""]), st.text(max_size=5))
FACTS = st.one_of(
    st.builds(
        Arrived,
        request_id=NAMES,
        arrival_s=TIMES,
        prompt_tokens=WHOLE,
        token_ids=st.binary(max_size=10).map(lambda words: 4 * words),
        max_tokens=WHOLE,
        temperature=TIMES,
        priority=WHOLE,
        attained_tokens=WHOLE,
        resent=st.booleans(),
    ),
    st.builds(FirstToken, request_id=NAMES, time_s=TIMES, scheduled_s=TIMES, cached_prompt_tokens=WHOLE),
    st.builds(Preempted, request_id=NAMES, time_s=TIMES, lost_tokens=WHOLE, attained_tokens=WHOLE),
    st.builds(
        Finished,
        request_id=NAMES,
        time_s=TIMES,
        reason=st.sampled_from(["stop", "length", "abort", "error"]),
        arrival_s=TIMES,
        prompt_tokens=WHOLE,
        output_tokens=WHOLE,
        max_tokens=WHOLE,
        cached_prompt_tokens=WHOLE,
        preemptions=WHOLE,
        recomputed_tokens=WHOLE,
        scheduled_s=TIMES,
        first_token_s=TIMES,
        expected_cached_tokens=WHOLE,
    ),
)
SNAPSHOTS = st.builds(
    Snapshot,
    time_s=TIMES,
    waiting=WHOLE,
    running=WHOLE,
    kv_blocks_used=WHOLE,
    kv_blocks=WHOLE,
    mode=st.just("on"),
    steps=WHOLE,
    step_s=TIMES,
    prefill_tokens=WHOLE,
    decode_tokens=WHOLE,
    kv_tokens_read=WHOLE,
    preemptions=WHOLE,
    recomputed_tokens=WHOLE,
)
HELLOS = st.builds(
    Hello,
    engine_id=NAMES,
    session_id=NAMES,
    model=NAMES,
    engine=st.just("simulated"),
    engine_version=NAMES,
    kv_blocks=WHOLE,
    block_size_tokens=WHOLE,
    max_num_seqs=WHOLE,
    token_budget=WHOLE,
    max_model_len_tokens=WHOLE,
    prefix_caching=st.booleans(),
    started_s=TIMES,
)
MESSAGES = st.one_of(
    st.builds(Facts, batch=WHOLE, facts=st.lists(FACTS, max_size=5).map(tuple), oldest=WHOLE),
    SNAPSHOTS,
    HELLOS,
    st.builds(Goodbye, time_s=TIMES),
)


def test_tokens_that_are_cut_or_too_many_and_an_answer_of_none_are_refused() -> None:
    """Where their frame is decoded, so that they trouble nobody but their engine."""
    whole = msgspec.to_builtins(ARRIVED, builtin_types=(bytes,))
    for wrong in ({"token_ids": b"\x01\0\0"}, {"token_ids": bytes(4 * MAX_PROMPT_TOKENS_SENT + 4)}, {"max_tokens": 0}):
        frame = bytes((PROTOCOL,)) + msgspec.msgpack.encode(
            {"type": "Facts", "batch": 1, "oldest": 1, "facts": [whole | wrong]}
        )
        with pytest.raises(ProtocolError, match=r"token_ids|max_tokens"):
            decode_engine_message(frame)


def a_core() -> Core:
    config = CoreConfig(controller_id="c", mode="on", hash_key=b"k", lease_s=1.0)
    return Core(learner=GlobalLearner(), policy=policy_named("sage"), config=config, now_s=0.0, timer=lambda: 0.0)


@settings(max_examples=300, deadline=None)
@given(st.lists(MESSAGES, max_size=8))
def test_well_formed_nonsense_hurts_no_other_engine(messages: list[Any]) -> None:
    """NaN, negative and huge numbers in any order: the other engine's request still gets its table."""
    core = a_core()
    core.handle(b"other", msgspec.structs.replace(HELLO, engine_id="good", session_id="good", model="good"), 1.0)
    core.handle(b"bad", HELLO, 1.0)
    for message in messages:
        try:
            core.handle(b"bad", decode_engine_message(encode(message)), 1.0)
        except ProtocolError:
            continue
    core.tick(2.0)
    core.drain_messages()
    core.handle(b"other", Facts(batch=1, facts=(ARRIVED,), oldest=1), 2.0)
    answers = core.drain_messages()
    tables = [message for connection, message in answers if connection == b"other"]
    assert [table.request_id for table in tables] == ["r"]
    assert all(math.isfinite(value) for table in tables for value in (*table.index_s, *table.growth_tokens))


def test_a_stranger_before_its_greeting_is_only_counted() -> None:
    """Facts over a connection that never said hello are of nobody."""
    core = a_core()
    core.handle(b"unknown", Facts(batch=1, facts=(ARRIVED,), oldest=1), 1.0)
    assert core.drain_messages() == []
    assert core.counts.unknown_connections == 1


def test_the_session_of_another_engine_cannot_be_taken_over() -> None:
    """A greeting under another name with the same session is refused, and the session goes on."""
    core = a_core()
    core.handle(b"first", HELLO, 1.0)
    core.drain_messages()
    core.handle(b"second", msgspec.structs.replace(HELLO, engine_id="thief"), 1.0)
    assert core.drain_messages() == []
    assert core.counts.unknown_connections == 1
    assert [session.connection for session in core.sessions] == [b"first"]
    core.handle(b"third", HELLO, 2.0)
    assert core.drain_messages() != []


def test_the_engine_is_not_hurt_by_nonsense_of_a_controller() -> None:
    """Before a greeting, twice, or of unfinished business: nothing raises."""
    nonsense = Settings(revision=1, mode="on", lease_s=math.nan, rules=EngineRules(boost_per_s=math.nan))
    agent = Agent(hello=HELLO, link=DirectLink(lambda _message: [Heartbeat(time_s=math.nan, settings=nonsense)]))
    for now_s in (1.0, 2.0, 0.5, 1e12):
        agent.poll(now_s)
    assert agent.mode(1e12) == "off"
