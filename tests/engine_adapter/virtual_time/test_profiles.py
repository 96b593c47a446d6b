"""Profiles are what hardware and model figures give."""

import pytest

from engine_adapter.virtual_time.profiles import MODELS, PROFILES

STEP_S = {
    "h800-qwen3-32b": (0.033, 1.4e-4, 3e-5, 1.3e-7),
    "h800-qwen3-32b-24k": (0.033, 1.4e-4, 3e-5, 1.3e-7),
    "h800-qwen3-32b-480k": (0.033, 1.4e-4, 3e-5, 1.3e-7),
    "a40-llama3.1-8b": (0.023, 1.8e-4, 2e-5, 1.9e-7),
}
SIZES = {
    "h800-qwen3-32b": (68_000, 1024, 8192),
    "h800-qwen3-32b-24k": (24_000, 1024, 8192),
    "h800-qwen3-32b-480k": (480_000, 256, 8192),
    "a40-llama3.1-8b": (190_000, 256, 2048),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_stays_what_recorded_figures_rest_on(name: str) -> None:
    """Changing it makes every recorded benchmark another one."""
    profile = PROFILES[name]
    assert (profile.base_s, profile.prefill_token_s, profile.decode_seq_s, profile.kv_token_s) == STEP_S[name]
    assert (profile.kv_tokens, profile.max_num_seqs, profile.token_budget) == SIZES[name]


def test_a_shared_gpu_has_a_cache_of_6_gb() -> None:
    """As the docstring has it, and less than the model has room for alone."""
    whole, shared = PROFILES["h800-qwen3-32b"], PROFILES["h800-qwen3-32b-24k"]
    assert shared.kv_tokens < whole.kv_tokens
    assert shared.kv_tokens * MODELS["qwen3-32b"].kv_token_bytes == pytest.approx(6.3e9, rel=0.01)
