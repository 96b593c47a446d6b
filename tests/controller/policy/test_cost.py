import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.policy.cost import CostModel, hybrid_cost, memory_cost
from controller.policy.policy import EngineFacts

ENGINE = EngineFacts(kv_tokens=24_000, block_size_tokens=16, max_num_seqs=128, base_s=0.033, prefill_token_s=1.4e-4)


@given(st.integers(1, 5000), st.integers(1, 2000))
def test_the_memory_cost_is_the_paper_s(prompt_tokens: int, output_tokens: int) -> None:
    """O²/2 + I·O token-steps are the KV tokens held after each generated token, summed, up to half a token a step."""
    held = sum(prompt_tokens + generated - 0.5 for generated in range(1, output_tokens + 1))
    cost_s = memory_cost(ENGINE).total_s(prompt_tokens, np.array([output_tokens]))[0]
    assert cost_s * ENGINE.kv_tokens / ENGINE.base_s == pytest.approx(held)


def test_the_whole_cache_for_one_step_costs_one_step() -> None:
    """Engine-seconds are what they say: holding everything for one step costs that step's time."""
    cost_s = memory_cost(ENGINE).total_s(ENGINE.kv_tokens, np.array([1]))[0]
    assert cost_s == pytest.approx(ENGINE.base_s, rel=1e-4)


@given(st.integers(0, 5000), st.lists(st.integers(0, 10_000), min_size=2, max_size=20, unique=True))
def test_cost_increases_strictly_with_the_answer(prompt_tokens: int, lengths: list[int]) -> None:
    """No token is free, so ages in cost are as distinct as ages in tokens."""
    for model in (memory_cost(ENGINE), hybrid_cost(ENGINE)):
        assert (np.diff(model.total_s(prompt_tokens, np.sort(np.array(lengths)))) > 0.0).all()


@given(st.integers(1, 5000), st.integers(1, 1000))
def test_prefill_is_paid_before_the_first_token_and_never_again(prompt_tokens: int, attained_tokens: int) -> None:
    """The first token carries the prompt's price; what remains after it carries none."""
    model = CostModel(kv_token_step_s=1e-6, slot_step_s=1e-4, prefill_token_s=1e-3)
    without = CostModel(kv_token_step_s=1e-6, slot_step_s=1e-4)
    tokens = np.array([0, attained_tokens, attained_tokens + 7])
    difference = model.total_s(prompt_tokens, tokens) - without.total_s(prompt_tokens, tokens)
    assert difference == pytest.approx([0.0, 1e-3 * prompt_tokens, 1e-3 * prompt_tokens])


def test_the_hybrid_cost_adds_slots_and_prefill_to_the_paper_s() -> None:
    """A short answer to a long prompt is dear by its prefill, many steps are dear by their slot."""
    tokens = np.array([100])
    extra_s = hybrid_cost(ENGINE).total_s(1000, tokens) - memory_cost(ENGINE).total_s(1000, tokens)
    assert extra_s[0] == pytest.approx(1000 * 1.4e-4 + 100 * 0.033 / 128)
