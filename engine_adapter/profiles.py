"""Profiles: how long a step takes on a model and GPU, as a roofline, and how much KV cache there is.

A step reads all weights once, computes its prefill tokens, and reads the KV of what it attends to, so

    step seconds = base + prefill tokens·p + decoding sequences·d + KV tokens read·k

with ``base`` = weight bytes / effective memory bandwidth, ``p`` = 2·parameters / effective FLOP/s,
``k`` = KV bytes per token / effective memory bandwidth and ``d`` a small cost of sampling and bookkeeping.
The KV capacity is what 90 % of the GPU's memory leaves beside the weights and about 3 GB of activations.

==================  ==========  ===========  ===============  ==================  ================
profile             weights GB  KV B/token   bandwidth GB/s   FLOP/s (effective)  GPU memory GB
==================  ==========  ===========  ===============  ==================  ================
h800-qwen3-32b      65.5        262,144      3,350 · 0.6      990e12 · 0.47       96
a40-llama3.1-8b     16.1        131,072      696 · 1.0        150e12 · 0.6        48
==================  ==========  ===========  ===============  ==================  ================

KV bytes per token = 2 · layers · KV heads · head size · 2 bytes:
Qwen3-32B 2·64·8·128·2, Llama-3.1-8B 2·32·8·128·2.
Token budget and sequence limit are vLLM's own defaults for its API server on such a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from store.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Step times and sizes of one model on one GPU.

    >>> PROFILES["h800-qwen3-32b"].step_s(prefill_tokens=0, decode_seqs=1, kv_tokens=1000)
    0.03316
    >>> PROFILES["h800-qwen3-32b-24k"].kv_blocks
    1500
    """

    name: str
    base_s: float
    prefill_token_s: float
    decode_seq_s: float
    kv_token_s: float
    kv_tokens: int
    block_size_tokens: int = 16
    max_num_seqs: int
    token_budget: int
    max_model_len_tokens: int

    @property
    def kv_blocks(self) -> int:
        """KV blocks that requests can use."""
        return self.kv_tokens // self.block_size_tokens

    def step_s(self, *, prefill_tokens: int, decode_seqs: int, kv_tokens: int) -> float:
        """Seconds that a step takes; ``kv_tokens`` are those whose KV the step's attention reads."""
        return (
            self.base_s
            + prefill_tokens * self.prefill_token_s
            + decode_seqs * self.decode_seq_s
            + kv_tokens * self.kv_token_s
        )


def _h800(name: str, kv_tokens: int) -> Profile:
    return Profile(
        name=name,
        base_s=0.033,
        prefill_token_s=1.4e-4,
        decode_seq_s=3e-5,
        kv_token_s=1.3e-7,
        kv_tokens=kv_tokens,
        max_num_seqs=1024,
        token_budget=8192,
        max_model_len_tokens=16_384,
    )


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="a40-llama3.1-8b",
            base_s=0.023,
            prefill_token_s=1.8e-4,
            decode_seq_s=2e-5,
            kv_token_s=1.9e-7,
            kv_tokens=190_000,
            max_num_seqs=256,
            token_budget=2048,
            max_model_len_tokens=16_384,
        ),
        _h800("h800-qwen3-32b", 68_000),
        _h800("h800-qwen3-32b-24k", 24_000),
    )
}


def profile_named(name: str) -> Profile:
    """Look a profile up; raises `ConfigError` that lists the known ones.

    >>> profile_named("h100")
    Traceback (most recent call last):
    store.errors.ConfigError: unknown profile 'h100': choose one of a40-llama3.1-8b, h800-qwen3-32b, h800-qwen3-32b-24k
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise ConfigError(f"unknown profile {name!r}: choose one of {', '.join(sorted(PROFILES))}") from None
