"""The router's decision and the outlook behind it, against their definitions worked out step by step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.monitoring.wait_forecast import GROWTH_TOKENS, expected_wait_s, outlook
from engine_adapter.routing.ranking import NEAR, NEAR_S, SETTLING_S, Ledger, Sent, Silence, ranked
from engine_adapter.routing.request_size import DEFAULT_MAX_TOKENS, described, head_and_tail
from store.http_routing import EngineForecast

running = st.lists(st.tuples(st.floats(0, 500), st.integers(1, 400)), max_size=8)
waiting = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 400), st.floats(0, 9)), max_size=8)
forecasts = st.lists(
    st.builds(
        EngineForecast,
        engine_id=st.sampled_from("abcdef"),
        wait_s=st.floats(0, 100),
        run_s=st.floats(0.01, 100),
        cost_s=st.floats(0, 5),
        behind=st.integers(0, 20),
        need_tokens=st.integers(1, 500),
        demand_tokens=st.integers(0, 5000),
        kv_tokens=st.integers(500, 3000),
    ),
    min_size=1,
    max_size=6,
    unique_by=lambda forecast: forecast.engine_id,
)
sent = st.lists(
    st.builds(Sent, st.just(0.0), st.sampled_from("abcdefg"), st.floats(0, 20), st.integers(0, 900)), max_size=6
)


@given(
    runs=running,
    waits=waiting,
    kv_tokens=st.integers(100, 1500),
    places=st.integers(1, 10),
    index_s=st.floats(0, 5),
    need=st.integers(1, 400),
    step_s=st.floats(0.01, 0.2),
)
def test_the_wait_is_that_of_a_queue_served_in_order(  # noqa: PLR0917 - what an engine is made of
    runs: list[tuple[float, int]],
    waits: list[tuple[float, int, float]],
    kv_tokens: int,
    places: int,
    index_s: float,
    need: int,
    step_s: float,
) -> None:
    """Brute force: end those who run one by one, the least remainder first, until all before it and itself fit."""
    ahead = [wait for wait in waits if wait[0] <= index_s]
    left = sorted(runs)
    expected = 0.0
    while True:
        held = sum(tokens + min(GROWTH_TOKENS, round(remaining)) for remaining, tokens in left)
        asked = sum(tokens for _, tokens, _ in ahead) + need
        if held + asked <= kv_tokens and len(left) + len(ahead) + 1 <= places:
            break
        if not left:
            expected += sum(cost_s for _, _, cost_s in ahead)
            break
        remaining, _ = left.pop(0)
        expected = remaining * step_s
    engine = outlook(kv_tokens=kv_tokens, places=places, running=runs, waiting=waits)
    assert expected_wait_s(engine, index_s=index_s, need_tokens=need, step_s=step_s) == pytest.approx(expected)


@given(engines=forecasts, unseen=sent)
def test_the_first_is_as_good_as_the_best_and_has_the_most_room(
    engines: list[EngineForecast], unseen: list[Sent]
) -> None:
    """Every engine once; the first is near the least expected delay, and of those near it the least asked for."""
    order = ranked(engines, unseen)
    assert sorted(e.engine_id for e in order) == sorted(e.engine_id for e in engines)
    delay = {e.engine_id: _delay_s(e, unseen) for e in engines}
    room = {e.engine_id: _share(e, unseen) for e in engines}
    limit_s = min(delay.values()) * (1 + NEAR) + NEAR_S
    near = [engine_id for engine_id, delay_s in delay.items() if delay_s <= limit_s]
    assert order[0].engine_id in near
    assert room[order[0].engine_id] == min(room[engine_id] for engine_id in near)
    far = [delay[e.engine_id] for e in order[len(near) :]]
    assert far == sorted(far)
    assert all(delay_s > limit_s for delay_s in far)


@given(engines=forecasts)
def test_requests_sent_at_once_do_not_all_go_to_one_engine(engines: list[EngineForecast]) -> None:
    """What was sent and is not seen yet counts: equal engines take turns."""
    equal = [structs.replace(engines[0], engine_id=name, demand_tokens=0) for name in "ab"]
    unseen: list[Sent] = []
    for _ in range(10):
        first = ranked(equal, unseen)[0]
        unseen.append(Sent(0.0, first.engine_id, first.cost_s, first.need_tokens))
    assert sum(one.engine_id == "a" for one in unseen) == 5


def test_what_was_sent_is_forgotten_when_the_controller_has_seen_it() -> None:
    """A forecast of half a second later has it, and the ledger keeps a bounded number."""
    ledger = Ledger()
    for number in range(10_000):
        ledger.record(Sent(float(number), "a", 1.0, 1))
    assert len(ledger.unseen(0.0)) == 4_096
    assert [one.time_s for one in ledger.unseen(9_999.0 + SETTLING_S)] == [9_999.0]
    assert ledger.unseen(9_999.1 + SETTLING_S) == []


def test_a_silent_controller_is_asked_again_after_a_pause() -> None:
    """Not by every request, each of which would wait for it."""
    silence = Silence(pause_s=2.0)
    assert silence.asks(0.0)
    silence.failed(1.0)
    assert [silence.asks(now_s) for now_s in (1.0, 2.9, 3.0)] == [False, False, True]


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20_000))
def test_of_a_long_prompt_head_and_tail_are_told(token_ids: list[int]) -> None:
    """As the engine tells them, so that the forecast is that of the same request there."""
    told = head_and_tail(tuple(token_ids))
    assert len(told) == min(len(token_ids), 8_192)
    assert told[:100] == tuple(token_ids[:100])
    assert told[-100:] == tuple(token_ids[-100:])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["prompt", "messages", "content", "max_tokens", "prompt_token_ids", "temperature", "user"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_call_is_described_or_left_alone(argument: object) -> None:
    """Whatever clients send: an order with sound numbers, or none; never an error."""
    order = described("m", (argument,), {})
    if order is not None:
        assert order.prompt_tokens >= 1
        assert order.max_tokens >= 1
        assert 0.0 <= order.temperature <= 100.0


def test_the_usual_calls_are_understood() -> None:
    """Completions with text or ids, chats, and request objects of a server."""

    class Chat:
        def __init__(self) -> None:
            self.messages = [{"role": "user", "content": "x" * 40}, {"role": "user", "content": [{"type": "image"}]}]
            self.max_tokens = None
            self.max_completion_tokens = 7

    assert [
        (order.prompt_tokens, order.max_tokens, order.token_ids)
        for order in (
            described("m", ({"prompt": "x" * 9},), {}),
            described("m", ("ignored", {"prompt": [5, 6], "max_tokens": 3}), {}),
            described("m", (Chat(),), {}),
        )
        if order is not None
    ] == [(3, DEFAULT_MAX_TOKENS, None), (2, 3, (5, 6)), (10, 7, None)]
    assert described("m", (), {}) is None


def _delay_s(engine: EngineForecast, unseen: list[Sent]) -> float:
    burden_s = sum(one.cost_s for one in unseen if one.engine_id == engine.engine_id)
    return engine.wait_s + engine.run_s + burden_s + engine.cost_s * engine.behind


def _share(engine: EngineForecast, unseen: list[Sent]) -> float:
    tokens = sum(one.need_tokens for one in unseen if one.engine_id == engine.engine_id)
    return (engine.demand_tokens + engine.need_tokens + tokens) / engine.kv_tokens
