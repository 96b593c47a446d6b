from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.ordering.step_shape import LARGEST_OVERHEAD, LEAST_CHUNK_TOKENS, OWN_SHAPE, ArrivalRate, shape_step
from store.records import StepCost

COST = StepCost(base_s=0.033, prefill_token_s=1.4e-4, budget_tokens=8192)


def delay_s(chunk_tokens: float, delayed: int, arrivals_per_s: float) -> float:
    """Seconds of delay per prompt token by the module's formula, computed term by term."""
    chunk_s = chunk_tokens * COST.prefill_token_s
    return delayed * COST.base_s / chunk_tokens + arrivals_per_s * COST.prefill_token_s * chunk_s / 2


@given(delayed=st.integers(0, 30), arrivals_per_s=st.floats(0.05, 20))
def test_the_chunk_has_the_least_delay_between_the_bounds(delayed: int, arrivals_per_s: float) -> None:
    """A single long prompt is cut where the delay of those who wait and of those who arrive is least together."""
    shape = shape_step([200_000], unplaced=delayed, decode_tokens=0, cost=COST, arrivals_per_s=arrivals_per_s)
    chunk = COST.budget_tokens if shape.chunk_tokens is None else shape.chunk_tokens
    here = delay_s(chunk, delayed + 1, arrivals_per_s)
    for other in (LEAST_CHUNK_TOKENS, chunk // 2, 2 * chunk, COST.budget_tokens):
        if COST.base_s / (LARGEST_OVERHEAD * COST.prefill_token_s) <= other <= COST.budget_tokens:
            assert here <= delay_s(other, delayed + 1, arrivals_per_s) * 1.001


@given(
    prompts=st.lists(st.integers(1, 200_000), max_size=30),
    unplaced=st.integers(0, 2000),
    decode_tokens=st.integers(0, 1024),
    arrivals_per_s=st.floats(0, 1000),
)
def test_bounds_stay_within_the_budget_and_leave_room_for_every_decoding_request(
    prompts: list[int], unplaced: int, decode_tokens: int, arrivals_per_s: float
) -> None:
    """A shaped step decodes everybody, makes progress with prompts, and never exceeds the engine's budget."""
    shape = shape_step(
        prompts, unplaced=unplaced, decode_tokens=decode_tokens, cost=COST, arrivals_per_s=arrivals_per_s
    )
    if shape == OWN_SHAPE:
        return
    assert shape.step_tokens is not None
    assert shape.chunk_tokens is not None
    assert decode_tokens + LEAST_CHUNK_TOKENS <= shape.step_tokens <= COST.budget_tokens
    assert LEAST_CHUNK_TOKENS <= shape.chunk_tokens <= COST.budget_tokens
    assert sum(prompts) > shape.chunk_tokens


@given(short=st.lists(st.integers(1, 400), min_size=1, max_size=5), arrivals_per_s=st.floats(0.5, 5))
def test_short_prompts_fit_into_the_step_beside_a_long_one(short: list[int], arrivals_per_s: float) -> None:
    """With the long prompt's chunk computed first, what is left of the step holds all short prompts."""
    shape = shape_step([120_000, *short], unplaced=0, decode_tokens=9, cost=COST, arrivals_per_s=arrivals_per_s)
    assert shape.step_tokens is not None
    assert shape.chunk_tokens is not None
    if 2 * sum(short) <= shape.step_tokens - 9:
        assert shape.step_tokens - 9 - shape.chunk_tokens >= sum(short)
    assert max(short) <= shape.chunk_tokens


def test_a_deep_queue_and_an_engine_without_arrivals_keep_the_engines_own_budget() -> None:
    """Where everybody waits for the long prompts, or nobody comes, smaller steps only cost time."""
    deep = shape_step([100_000], unplaced=5000, decode_tokens=9, cost=COST, arrivals_per_s=1.0)
    quiet = shape_step([100_000], unplaced=0, decode_tokens=9, cost=COST, arrivals_per_s=0.0)
    assert deep == quiet == OWN_SHAPE


def test_the_rate_is_that_of_the_latest_arrivals() -> None:
    """Old arrivals do not count, and a pause lowers the rate."""
    rate = ArrivalRate()
    assert rate.per_s(0.0) == 0.0
    for number in range(1000):
        rate.observe(number * 10.0)
    for number in range(64):
        rate.observe(10_000.0 + number)
    assert rate.per_s(10_063.0) == 1.0
    assert rate.per_s(10_126.0) == 0.5
