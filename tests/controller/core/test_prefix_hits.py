"""What engines are expected to have in their prefix caches, and what follows for cost, forecast and routing."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.core.in_process import InProcessController
from controller.core.prefix_hits import HEAD_TOKENS, MOST_HEADS, PrefixHits
from controller.monitoring.live_state import Live
from controller.monitoring.wait_forecast import Outlooks
from controller.policy.cost import CostModel
from controller.policy.policies import policy_named
from controller.policy.policy import RequestFacts
from engine_adapter.routing.ranking import ranked
from engine_adapter.virtual_time.engine import TraceRequest, serve
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.features.prompt_features import DIMENSIONS
from store.history.writer_stats import WriterStats
from store.http_routing import RouteForecast
from store.records import Arrived

PROFILE = PROFILES["h800-qwen3-32b-24k"]
PREFIX = tuple(range(4_000))


def _ids(first: int, tokens: int = 100) -> bytes:
    return np.arange(first, first + tokens, dtype="<u4").tobytes()


def test_what_a_head_found_is_expected_of_the_next_with_it() -> None:
    """A shared prefix is as long in a longer prompt, and cut in a shorter one."""
    hits = PrefixHits()
    for _ in range(20):
        hits.record(_ids(0), 1_000, 800)
        hits.record(_ids(5_000), 1_000, 0)
    assert hits.expected_tokens(_ids(0), 1_000) == 800
    assert hits.expected_tokens(_ids(0), 2_000) == 800
    assert hits.expected_tokens(_ids(0), 500) == 400
    assert hits.expected_tokens(_ids(5_000), 1_000) == 0


def test_a_new_head_finds_what_new_heads_found_and_an_unknown_prompt_what_all_did() -> None:
    """A head that is popular says nothing of another."""
    hits = PrefixHits()
    hits.record(_ids(0), 1_000, 0)
    for _ in range(200):
        hits.record(_ids(0), 1_000, 900)
    assert hits.expected_tokens(_ids(9_000), 1_000) == 0
    assert 850 < hits.expected_tokens(b"", 1_000) <= 900


def test_it_fades() -> None:
    """An engine that lost its cache is believed within some hundred requests."""
    hits = PrefixHits()
    for _ in range(300):
        hits.record(_ids(0), 1_000, 900)
    for _ in range(300):
        hits.record(_ids(0), 1_000, 0)
    assert hits.expected_tokens(_ids(0), 1_000) < 5


def test_prompts_without_tokens_find_nothing() -> None:
    """An engine that reports nothing but such prompts gets predictions all the same."""
    hits = PrefixHits()
    hits.record(b"", 0, 0)
    assert hits.expected_tokens(b"", 100) == 0


def test_heads_are_bounded() -> None:
    """The one that came longest ago is forgotten."""
    hits = PrefixHits()
    for number in range(MOST_HEADS + 10):
        hits.record(_ids(100 * number), 1_000, 500 if number == 0 else 0)
    assert len(hits._heads) == MOST_HEADS
    assert hits.expected_tokens(_ids(0), 1_000) < 500


@given(
    found=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5_000), st.floats(0.0, 1.0)), max_size=80),
    prompt_tokens=st.integers(1, 5_000),
    head=st.integers(0, 4),
)
def test_at_least_a_token_is_computed_and_nothing_is_expected_where_nothing_was_found(
    found: list[tuple[int, int, float]], prompt_tokens: int, head: int
) -> None:
    """Whatever came; without hits the expectation is exactly 0."""
    hits, none = PrefixHits(), PrefixHits()
    for of_head, tokens, share in found:
        hits.record(_ids(1_000 * of_head, HEAD_TOKENS), tokens, int(share * tokens))
        none.record(_ids(1_000 * of_head, HEAD_TOKENS), tokens, 0)
    assert 0 <= hits.expected_tokens(_ids(1_000 * head), prompt_tokens) < prompt_tokens
    assert none.expected_tokens(_ids(1_000 * head), prompt_tokens) == 0


def test_cached_tokens_are_held_and_not_computed() -> None:
    """They save their prefill and no memory."""
    lengths = np.array([0, 1, 50])
    model = CostModel(kv_token_step_s=0.25, slot_step_s=0.5, prefill_token_s=0.125)
    saved = model.total_s(100, lengths) - model.total_s(100, lengths, cached_tokens=80)
    assert saved.tolist() == [0.0, 10.0, 10.0]


class Fleet:
    """Two engines of one model: ``a`` serves prompts that share a prefix, ``b`` others."""

    def __init__(self, *, prefix_caching: bool) -> None:
        self.controller = InProcessController(GlobalLearner(), policy_named("sage"))
        self.core = self.controller.core
        for name, prefix in (("a", PREFIX), ("b", None)):
            engine = self._engine(name, prefix_caching=prefix_caching)
            serve(engine, [self._request(name, number, prefix) for number in range(12)])

    def _engine(self, name: str, *, prefix_caching: bool) -> SimulatedEngine:
        link = self.controller.link(lambda: engine.now_s)
        engine = SimulatedEngine(PROFILE, link=link, engine_id=name, session_id=name, prefix_caching=prefix_caching)
        return engine

    @staticmethod
    def _request(name: str, number: int, prefix: tuple[int, ...] | None) -> TraceRequest:
        own = tuple(range(10_000 + 5_000 * number, 10_100 + 5_000 * number))
        head = prefix or tuple(range(100_000 + 5_000 * number, 104_000 + 5_000 * number))
        return TraceRequest(
            request_id=f"{name}{number}",
            arrival_s=3.0 * number,
            token_ids=head + own,
            max_tokens=100,
            true_output_tokens=30,
        )

    def forecast(self, prompt: tuple[int, ...]) -> RouteForecast:
        """What a router is told of a prompt."""
        arrived = Arrived(
            request_id="route",
            arrival_s=100.0,
            prompt_tokens=len(prompt),
            token_ids=np.array(prompt, dtype="<u4").tobytes(),
            max_tokens=100,
            temperature=1.0,
        )
        predicted_on = self.core.predict_on(PROFILE.name, arrived)
        live = Live()
        live.publish(self.core, store=WriterStats(), loop={}, now_s=100.0)
        assert live.live_snapshot is not None
        return Outlooks().forecast(live.live_snapshot, predicted_on, arrived.prompt_tokens)


SHARED = (*PREFIX, *range(900_000, 900_100))
OTHER = tuple(range(700_000, 704_100))


def test_the_engine_that_has_the_prefix_is_preferred() -> None:
    """Less memory and less prefill; for another prompt both are alike."""
    fleet = Fleet(prefix_caching=True)
    forecast = fleet.forecast(SHARED)
    with_prefix, without = forecast.engines
    assert 3_500 < with_prefix.cached_tokens <= 4_000
    assert without.cached_tokens == 0
    assert with_prefix.need_tokens == without.need_tokens - with_prefix.cached_tokens
    assert with_prefix.saved_s > 0.1
    assert with_prefix.cost_s < without.cost_s
    assert [engine.engine_id for engine in ranked(forecast.engines)] == ["a", "b"]
    assert [engine.engine_id for engine in ranked(forecast.engines[::-1])] == ["a", "b"]
    assert [engine.cached_tokens for engine in fleet.forecast(OTHER).engines] == [0, 0]


def test_a_long_wait_outweighs_a_short_prefill() -> None:
    """The prefix is worth the prefill that it saves, not more."""
    here, there = Fleet(prefix_caching=True).forecast(SHARED).engines
    crowded = structs.replace(here, wait_s=20.0 + 10.0 * here.saved_s)
    assert [engine.engine_id for engine in ranked([crowded, there])] == ["b", "a"]


def test_without_prefix_caching_nothing_is_expected() -> None:
    """Need, cost and table are those of the whole prompt, to the last digit."""
    fleet = Fleet(prefix_caching=False)
    for engine in fleet.forecast(SHARED).engines:
        session = fleet.controller.session(engine.engine_id)
        facts = RequestFacts(request_id="route", prompt_tokens=len(SHARED), max_tokens=100)
        predicted = fleet.core._state.predictor._forecasts([np.zeros(DIMENSIONS, np.float32)], PROFILE.name)[0][
            0
        ].distribution
        assert engine.cost_s == policy_named("sage").assess(facts, predicted.cut(100), session.engine).cost_s
        assert (engine.cached_tokens, engine.saved_s) == (0, 0.0)


def test_a_waiting_request_needs_what_is_not_cached() -> None:
    """Its expectation goes into its cost, and what it found at its first token into the memory that it frees."""
    fleet = Fleet(prefix_caching=True)
    engine = fleet._engine("c", prefix_caching=True)
    serve(engine, [fleet._request("c", number, PREFIX) for number in range(12)])
    session = fleet.controller.session("c")
    engine.submit(fleet._request("c", 40, PREFIX))
    while not session.requests:
        engine.step()
    (request,) = session.requests.values()
    assert 3_500 < request.cached_tokens <= 4_000
    whole = RequestFacts(request_id="c40", prompt_tokens=len(request.arrived.token_ids) // 4, max_tokens=100)
    assert request.cost_s < policy_named("sage").assess(whole, request.predicted, session.engine).cost_s
