"""Profiles are what hardware and model figures give."""

import pytest

from engine_adapter.profiles import GPUS, MODELS, PROFILES, roofline

DERIVED = {
    "h800-qwen3-32b": ("qwen3-32b", "h800", 0.6, 0.47),
    "h800-qwen3-32b-24k": ("qwen3-32b", "h800", 0.6, 0.47),
    "a40-llama3.1-8b": ("llama3.1-8b", "a40", 1.0, 0.6),
}


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_follows_from_published_figures(name: str) -> None:
    """Each rounded constant is within 5 % of its derivation with the shares that the docstring names."""
    model, gpu, bandwidth_share, compute_share = DERIVED[name]
    profile = PROFILES[name]
    found = roofline(MODELS[model], GPUS[gpu], bandwidth_share=bandwidth_share, compute_share=compute_share)
    assert profile.base_s == pytest.approx(found.base_s, rel=0.05)
    assert profile.prefill_token_s == pytest.approx(found.prefill_token_s, rel=0.05)
    assert profile.kv_token_s == pytest.approx(found.kv_token_s, rel=0.05)
    if name.endswith("-24k"):
        assert profile.kv_tokens < found.kv_tokens, "a smaller cache than there is room for"
        assert profile.kv_tokens * MODELS[model].kv_token_bytes == pytest.approx(6.3e9, rel=0.01)
    else:
        assert profile.kv_tokens == pytest.approx(found.kv_tokens, rel=0.05)
