"""What is adapted to an engine: the gate's reserve, the boost's time scale, and the prices of its steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from controller.core.engine_tuning import BoostTuner, EngineTuning, GateTuner, RecomputePrice, TuningLimits
from controller.core.step_time import StepPrices
from controller.policy.policy import DEFAULT_PREFILL_TOKEN_S, Tuning
from store.records import EngineRules, Finished, Gate, Preempted, Preemption, Settings, Snapshot

LIMITS = TuningLimits()
RULES = EngineRules(gate=Gate(horizon_tokens=32), boost_per_s=0.01)
SETTINGS = Settings(revision=1, mode="on", lease_s=2.0, rules=RULES)


def snapshot(
    number: int, *, waiting: int = 5, used: int = 950, preemptions: int = 0, recomputed: int = 0, running: int = 40
) -> Snapshot:
    """A tenth of a second in which three steps of 33 ms computed 200 tokens beside the recomputed ones."""
    return Snapshot(
        time_s=0.1 * number,
        waiting=waiting,
        running=running,
        kv_blocks_used=used,
        kv_blocks=1000,
        mode="on",
        steps=3,
        step_s=0.1,
        prefill_tokens=80 + recomputed,
        decode_tokens=120,
        kv_tokens_read=3 * 16 * used,
        preemptions=preemptions,
        recomputed_tokens=recomputed,
    )


def finished(number: int, response_s: float) -> Finished:
    """An answer that ended this time after its arrival, of which it waited for half."""
    return Finished(
        request_id=f"r{number}",
        time_s=number + response_s,
        reason="stop",
        arrival_s=float(number),
        prompt_tokens=10,
        output_tokens=100,
        max_tokens=1000,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
        scheduled_s=number + response_s / 2,
        first_token_s=number + response_s / 2,
    )


def after(seconds: int, *, tax: float, idle: float, waiting: int = 5, exchange: float = 1.0) -> GateTuner:
    """A tuner that saw so many seconds of such an engine, with a preemption of 400 tokens at random moments."""
    chance = random.Random(3)
    tuner = GateTuner(exchange=exchange)
    rate = tax * 200 / (400 * (1.0 - tax))
    for number in range(10 * seconds):
        preempted = chance.random() < rate
        tuner.observe(
            snapshot(
                number,
                waiting=waiting,
                used=round(1000 * (1.0 - idle)),
                preemptions=int(preempted),
                recomputed=400 * preempted,
            )
        )
        if number % 100 == 99:
            tuner.move()
    return tuner


def test_more_is_reserved_where_tokens_are_computed_again() -> None:
    """With a tax far above the idle share the margin rises to its bound, and no further."""
    assert after(120, tax=0.2, idle=0.02).margin > 1.2
    assert after(2000, tax=0.2, idle=0.02).margin == LIMITS.highest_margin


def test_less_is_reserved_where_memory_lies_idle() -> None:
    """Without preemption and with idle memory under a queue the margin falls to its bound, and no further."""
    assert after(120, tax=0.0, idle=0.2).margin < 0.8
    assert after(2000, tax=0.0, idle=0.2).margin == LIMITS.lowest_margin


def test_nothing_moves_where_both_cost_the_same_and_where_nobody_waits() -> None:
    """At the balance the noise of single preemptions moves nothing; without a queue idle memory costs nothing."""
    assert after(1000, tax=0.05, idle=0.05).margin == 1.0
    assert after(1000, tax=0.0, idle=0.5, waiting=0).margin == 1.0


def test_the_exchange_says_what_idle_memory_is_worth() -> None:
    """Where a token computed again counts less, the same engine reserves less."""
    less, more = after(900, tax=0.1, idle=0.02, exchange=40.0), after(900, tax=0.1, idle=0.02)
    assert less.margin < 1.0 < more.margin


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(0, 1000), st.integers(0, 9)), max_size=300)
)
def test_the_margin_stays_in_its_bounds_and_moves_in_small_steps(rows: list[tuple[int, int, int, int]]) -> None:
    """Whatever is measured."""
    tuner = GateTuner(exchange=1.0)
    for number, (preemptions, recomputed, used, waiting) in enumerate(rows):
        tuner.observe(snapshot(number, waiting=waiting, used=used, preemptions=preemptions, recomputed=recomputed))
        before = tuner.margin
        reason = tuner.move()
        assert LIMITS.lowest_margin <= tuner.margin <= LIMITS.highest_margin
        assert max(tuner.margin / before, before / tuner.margin) <= LIMITS.largest_step * (1 + 1e-9)
        assert (reason is None) == (tuner.margin == before)


def test_the_boost_follows_the_time_from_arrival_to_end() -> None:
    """γ times the mean time is the scale, whatever the engine's speed and the queue's depth; single answers do not move it."""
    for response_s in (2.0, 20.0, 200.0):
        tuner = BoostTuner(scale=0.2, boost_per_s=0.01)
        assert tuner.move() is None
        for number in range(400):
            tuner.record(finished(number, response_s * (0.5 + number % 2)))
        tuner.move()
        assert tuner.boost_per_s * response_s == pytest.approx(0.2, rel=0.25)
        assert tuner.move() is None, "it has moved already"
        tuner.record(finished(401, 50 * response_s))
        assert tuner.move() is None, "one answer is no time scale"


def test_an_engine_s_own_part_goes_into_its_settings() -> None:
    """Margin and γ are the engine's, the rest the operator's; what is not tuned stays as it is."""
    tuned = EngineTuning(Tuning(gate_exchange=1.0, boost_scale=0.2, boost_per_s=0.01))
    for number in range(3000):
        tuned.observe(snapshot(number, used=700))
        tuned.record(finished(number, 2.0))
    reasons = tuned.due(300.0)
    assert len(reasons) == 2
    assert tuned.due(300.1) == [], "the tick is slow"
    rules = tuned.applied(SETTINGS).rules
    assert rules.gate is not None
    assert rules.gate.horizon_tokens == 32
    assert rules.gate.margin < 1.0
    assert rules.boost_per_s == pytest.approx(0.1)
    fixed = EngineTuning(Tuning(gate_exchange=None, boost_scale=None))
    for number in range(3000):
        fixed.observe(snapshot(number, used=700))
        fixed.record(finished(number, 2.0))
    assert fixed.due(300.0) == []
    assert fixed.applied(SETTINGS) == SETTINGS == EngineTuning(None).applied(SETTINGS)


def test_what_runs_out_is_dear() -> None:
    """Under a queue the fuller of memory and slots has price 1, the other less; without a queue both have."""
    prices = StepPrices()
    for number in range(1000):
        prices.observe(snapshot(number, waiting=0, used=10))
    assert prices.weights(64) == (1.0, 1.0)
    for number in range(1000, 3000):
        prices.observe(snapshot(number, used=400, running=64))
    memory, slots = prices.weights(64)
    assert slots == 1.0
    assert memory == pytest.approx(0.16, abs=0.01)
    memory, slots = prices.weights(1024)
    assert memory == 1.0
    assert slots < 0.05


def test_step_times_are_learned_from_snapshots() -> None:
    """The coefficients that made the steps come out; before there is anything to fit, a typical prefill is assumed."""
    chance = random.Random(5)
    prices = StepPrices()
    assert prices.prefill_token_s == DEFAULT_PREFILL_TOKEN_S
    for number in range(400):
        prefill, decode, kv = chance.randrange(900), chance.randrange(60, 200), chance.randrange(10_000, 70_000)
        step_s = 3 * 0.033 + prefill * 1.4e-4 + decode * 3e-5 + kv * 1.3e-7
        prices.observe(
            Snapshot(
                time_s=0.1 * number,
                waiting=1,
                running=40,
                kv_blocks_used=900,
                kv_blocks=1000,
                mode="on",
                steps=3,
                step_s=step_s,
                prefill_tokens=prefill,
                decode_tokens=decode,
                kv_tokens_read=kv,
                preemptions=0,
                recomputed_tokens=0,
            )
        )
    prices.fit()
    assert prices.model is not None
    assert prices.model.base_s == pytest.approx(0.033, rel=0.01)
    assert prices.prefill_token_s == pytest.approx(1.4e-4, rel=0.01)
    assert prices.model.kv_token_s == pytest.approx(1.3e-7, rel=0.01)


def test_a_new_engine_s_step_times_do_not_wait_for_the_slow_tick() -> None:
    """Two seconds of snapshots are enough for the first fit; it is repeated whenever there are twice as many."""
    chance = random.Random(5)
    tuned = EngineTuning(Tuning(gate_exchange=None, boost_scale=None, shapes=True), budget_tokens=2048)
    assert tuned.due(0.0) == [], "nothing has been measured"
    told = {}
    for number in range(1, 91):
        prefill, decode, kv = chance.randrange(900), chance.randrange(60, 200), chance.randrange(10_000, 70_000)
        base_s = 0.033 if number <= 20 else 0.066
        sums = {"prefill_tokens": prefill, "decode_tokens": decode, "kv_tokens_read": kv}
        tuned.observe(structs.replace(snapshot(number), step_s=3 * base_s + prefill * 1.4e-4, **sums))
        if tuned.due(0.1 * number):
            step = tuned.applied(SETTINGS).rules.step
            assert step is not None
            told[number] = step
    assert list(told) == [20, 40], "the engine became slower after the first fit, and the second learns it"
    assert told[20].base_s == pytest.approx(0.033, rel=0.01)
    assert told[20].prefill_token_s == pytest.approx(1.4e-4, rel=0.01)


def preempted(number: int, lost_tokens: int) -> Preempted:
    """A request lost so much."""
    return Preempted(request_id=f"r{number}", time_s=float(number), lost_tokens=lost_tokens, attained_tokens=10)


def test_what_the_prefix_cache_keeps_costs_nothing_again() -> None:
    """A lost token costs its prefill, times the share of lost tokens that were really computed again."""
    price = RecomputePrice()
    assert price.move(1e-4) is not None
    for number in range(200):
        price.record(preempted(number, 400))
        price.observe(snapshot(number, recomputed=100))
    assert price.move(1e-4) is not None
    assert price.token_s == pytest.approx(0.25e-4, rel=0.02)
    assert price.move(1.1e-4) is None, "small changes are left alone"


def test_the_price_goes_into_the_settings_of_a_policy_that_preempts() -> None:
    """And with it a reason; without preemption there is no price."""
    preempts = EngineTuning(Tuning(gate_exchange=None, boost_scale=None, preempts=True))
    rules = structs.replace(RULES, preemption=Preemption(token_s=9.0, hysteresis=0.5))
    settings = structs.replace(SETTINGS, rules=rules)
    assert preempts.applied(settings) == settings
    (reason,) = preempts.due(0.0)
    assert "a lost token costs" in reason
    priced = preempts.applied(settings).rules.preemption
    assert priced == Preemption(token_s=DEFAULT_PREFILL_TOKEN_S, hysteresis=0.5)
