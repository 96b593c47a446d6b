"""What an engine keeps and sends is bounded in bytes, whatever its clients put into their requests."""

from __future__ import annotations

import tracemalloc
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_adapter.agent.outbox import Outbox, fact_bytes
from engine_adapter.transport.frames import MAX_FRAME_BYTES
from store.bounds import MAX_PROMPT_TOKENS_SENT, bounded_name, bounded_request_id, bounded_text
from store.errors import ProtocolError
from store.records import Arrived, EngineMessage, Facts, Finished, Targets, decode_engine_message, encode

NAMES = st.one_of(st.text(max_size=300), st.text(min_size=5, max_size=5).map(lambda text: 500 * text)).map(bounded_name)
COUNTS = st.integers(1, 1 << 40)
TIMES = st.floats(0.0, 1e11)
ARRIVALS = st.builds(
    Arrived,
    request_id=NAMES.map(bounded_request_id),
    arrival_s=TIMES,
    prompt_tokens=COUNTS,
    token_ids=st.integers(0, MAX_PROMPT_TOKENS_SENT).map(lambda tokens: bytes(4 * tokens)),
    max_tokens=COUNTS,
    temperature=st.floats(0.0, 2.0),
    priority=COUNTS,
    tenant=st.none() | NAMES,
    lora=st.none() | NAMES,
    session=st.none() | NAMES,
    service_class=st.none() | NAMES,
    targets=st.none() | st.just(Targets(ttft_s=0.1, tpot_s=0.1, e2e_s=0.1)),
    expected_output_tokens=st.none() | COUNTS,
)
ENDS = st.builds(
    Finished,
    request_id=NAMES.map(bounded_request_id),
    time_s=TIMES,
    reason=st.sampled_from(["stop", "length", "abort", "error"]),
    arrival_s=TIMES,
    prompt_tokens=COUNTS,
    output_tokens=COUNTS,
    max_tokens=COUNTS,
    cached_prompt_tokens=COUNTS,
    preemptions=COUNTS,
    recomputed_tokens=COUNTS,
    scheduled_s=TIMES,
    first_token_s=TIMES,
    expected_cached_tokens=COUNTS,
    itl_max_s=TIMES,
    itl_p99_s=TIMES,
    shed=st.none() | NAMES.map(bounded_text),
)


class Socket:
    """A link that encodes what it is given, as the real one does."""

    bad_frames = 0

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send(self, message: EngineMessage) -> bool:
        self.frames.append(encode(message))
        return True

    def receive(self) -> list[Any]:
        return []

    def close(self) -> None:
        self.frames.clear()

    def facts(self) -> list[Facts]:
        return [message for message in map(decode_engine_message, self.frames) if isinstance(message, Facts)]


def outbox(**bounds: Any) -> Outbox:
    usual = {"facts_per_batch": 256, "batch_bytes": 2 << 20, "retained_facts": 20_000, "retained_bytes": 64 << 20}
    return Outbox(**(usual | bounds), interval_s=0.1, resend_s=5.0, resend_limit_s=60.0)


def arrival(name: str, **more: Any) -> Arrived:
    fields = {"arrival_s": 1.0, "prompt_tokens": 1, "token_ids": b"", "max_tokens": 9, "temperature": 1.0} | more
    return Arrived(request_id=name, **fields)


@settings(max_examples=200, deadline=None)
@given(st.one_of(ARRIVALS, ENDS))
def test_a_fact_counts_for_no_less_than_its_encoding(fact: Arrived | Finished) -> None:
    """Whatever is in it."""
    assert len(encode(Facts(batch=1, facts=(fact,), oldest=1))) <= fact_bytes(fact)


def test_memory_is_bounded_as_it_says_while_there_is_no_controller() -> None:
    """Long names and long prompts: what the facts take is what is counted, and no more than the bound is kept."""
    kept = outbox(retained_bytes=4 << 20)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(3000):
        tenant = f"{number:06d}" + 200 * "ü"
        kept.add(arrival(f"r{number}", tenant=tenant, token_ids=bytes(4000), arrival_s=float(number)))
        kept.gather()
        kept.bound()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert kept.dropped == 3000 - len(kept)
    assert kept._retained_bytes <= 4 << 20
    assert taken < 1.1 * (4 << 20)
    assert len(kept) > 500


def test_batches_are_cut_by_bytes() -> None:
    """A burst of the longest prompts leaves in several frames, each far shorter than one that is refused."""
    box, socket = outbox(), Socket()
    for number in range(256):
        box.add(arrival(f"r{number}", token_ids=bytes(4 * MAX_PROMPT_TOKENS_SENT), tenant=256 * "𝄞"))
    box.gather()
    box.send(socket, 0.0)
    assert max(map(len, socket.frames)) <= (2 << 20) + 100 < MAX_FRAME_BYTES / 3
    assert [fact.request_id for facts in socket.facts() for fact in facts.facts] == [f"r{n}" for n in range(256)]
    assert [facts.batch for facts in socket.facts()] == list(range(1, 1 + len(socket.frames)))


def test_a_fact_without_an_encoding_holds_up_no_other() -> None:
    """It is left out and counted once, however often its batch is sent."""
    box, socket = outbox(), Socket()
    for name, priority in (("a", 0), ("b", 1 << 70), ("c", 0)):
        box.add(arrival(name, priority=priority))
    box.gather()
    box.send(socket, 0.0)
    box.send(socket, 100.0)
    assert [[fact.request_id for fact in facts.facts] for facts in socket.facts()] == [["a", "c"], ["a", "c"]]
    assert (box.dropped, len(box)) == (1, 2)
    box.release(1)
    assert (len(box), box._retained_bytes) == (0, 0)


def test_a_name_that_cannot_be_encoded_is_a_protocol_error() -> None:
    """And no other, so that it is caught where it is expected."""
    box, socket = outbox(), Socket()
    box.add(arrival("\ud800"))
    box.gather()
    box.send(socket, 0.0)
    assert (box.dropped, [facts.facts for facts in socket.facts()]) == (1, [()])
    try:
        encode(Facts(batch=1, facts=(arrival("\ud800"),), oldest=1))
    except ProtocolError as error:
        assert "has no encoding" in str(error)
