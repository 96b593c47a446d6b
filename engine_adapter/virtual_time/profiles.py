"""Profiles: roofline step times and KV cache size of a model on a GPU.

A step reads all weights once, computes its prefill tokens, and reads the KV of all tokens that it attends to, so

    step seconds = base + prefill tokens·p + decoding sequences·d + KV tokens read·k

    base = weight bytes / (memory bandwidth · share that is reached)
    p    = 2 · parameters / (FLOP/s · share that is reached)
    k    = KV bytes of a token / (memory bandwidth · share that is reached)
    KV tokens = (0.9 · GPU memory - weight bytes - activations) / KV bytes of a token

where KV bytes of a token = 2 · layers · KV heads · head size · 2 bytes, 0.9 is vLLM's ``--gpu-memory-utilization``,
and ``d`` is a small cost of sampling and bookkeeping, which no data sheet gives.
`roofline` computes a profile in this way from the published figures in `MODELS` and `GPUS`.

===================  =======================================  ===========================================
profile              reached share of bandwidth and of FLOP/s  KV tokens
===================  =======================================  ===========================================
h800-qwen3-32b       0.6 and 0.47                             68,000: what 96 GB leave, as in SageSched's set-up
h800-qwen3-32b-24k   the same                                 24,000: 6.3 GB, as where others share the GPU
h800-qwen3-32b-480k  the same                                 480,000: 126 GB, as where the weights lie elsewhere
a40-llama3.1-8b      1.0 and 0.6                              190,000: what 48 GB leave
===================  =======================================  ===========================================

The shares, and activations of 3 GB on the H800 and 2 GB on the A40, are assumptions in the usual range, not measurements; nothing here was measured on such a GPU.
Token budget and sequence limit are vLLM 0.32's own defaults for its API server: 8,192 and 1,024 on a GPU of
70 GiB and more, 2,048 and 256 on a smaller one. The context is limited to 16,384 tokens.
``h800-qwen3-32b-480k`` is made for long prompts, of a GPU that does not exist: a context of 131,072 tokens, 256 sequences.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from store.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """Published figures of a GPU."""

    bandwidth_bytes_per_s: float
    flops_per_s: float
    """Dense bfloat16 on tensor cores."""
    memory_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Published figures of a model in bfloat16."""

    parameters: float
    layers: int
    kv_heads: int
    head_size: int

    @property
    def weight_bytes(self) -> float:
        """Memory of the weights."""
        return 2.0 * self.parameters

    @property
    def kv_token_bytes(self) -> int:
        """Keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2


GPUS = {
    "h800": Gpu(bandwidth_bytes_per_s=3.35e12, flops_per_s=990e12, memory_bytes=96e9),
    "a40": Gpu(bandwidth_bytes_per_s=696e9, flops_per_s=149.7e12, memory_bytes=48e9),
}
"""NVIDIA's data sheets (H800 SXM as H100 SXM, without sparsity); 96 GB and 48 GB are the sizes of SageSched's set-up."""

MODELS = {
    "qwen3-32b": ModelShape(parameters=32.76e9, layers=64, kv_heads=8, head_size=128),
    "llama3.1-8b": ModelShape(parameters=8.03e9, layers=32, kv_heads=8, head_size=128),
}
"""The models' own configuration files."""


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
        """Return a step's duration in seconds; ``kv_tokens`` are the tokens whose KV its attention reads."""
        return (
            self.base_s
            + prefill_tokens * self.prefill_token_s
            + decode_seqs * self.decode_seq_s
            + kv_tokens * self.kv_token_s
        )


def roofline(
    name: str,
    model: ModelShape,
    gpu: Gpu,
    *,
    bandwidth_share: float,
    compute_share: float,
    decode_seq_s: float,
    activation_bytes: float,
    kv_tokens: int | None = None,
) -> Profile:
    """Compute a profile from published figures, as in this module's docstring; ``kv_tokens`` overrides the cache size.

    Step times are rounded to two digits: the assumed shares are no more exact.
    """
    bandwidth = gpu.bandwidth_bytes_per_s * bandwidth_share
    room_bytes = 0.9 * gpu.memory_bytes - model.weight_bytes - activation_bytes
    large = gpu.memory_bytes >= 70 * 2**30
    return Profile(
        name=name,
        base_s=_two_digits(model.weight_bytes / bandwidth),
        prefill_token_s=_two_digits(2.0 * model.parameters / (gpu.flops_per_s * compute_share)),
        decode_seq_s=decode_seq_s,
        kv_token_s=_two_digits(model.kv_token_bytes / bandwidth),
        kv_tokens=kv_tokens or int(_two_digits(room_bytes / model.kv_token_bytes)),
        max_num_seqs=1024 if large else 256,
        token_budget=8192 if large else 2048,
        max_model_len_tokens=16_384,
    )


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")


def _h800(name: str, kv_tokens: int | None = None) -> Profile:
    return roofline(
        name,
        MODELS["qwen3-32b"],
        GPUS["h800"],
        bandwidth_share=0.6,
        compute_share=0.47,
        decode_seq_s=3e-5,
        activation_bytes=3e9,
        kv_tokens=kv_tokens,
    )


PROFILES: dict[str, Profile] = {
    profile.name: profile
    for profile in (
        roofline(
            "a40-llama3.1-8b",
            MODELS["llama3.1-8b"],
            GPUS["a40"],
            bandwidth_share=1.0,
            compute_share=0.6,
            decode_seq_s=2e-5,
            activation_bytes=2e9,
        ),
        _h800("h800-qwen3-32b"),
        _h800("h800-qwen3-32b-24k", 24_000),
        replace(_h800("h800-qwen3-32b-480k", 480_000), max_num_seqs=256, max_model_len_tokens=131_072),
    )
}


def profile_named(name: str) -> Profile:
    """Return the profile of this name; raise `ConfigError`, which lists the known ones, if there is none.

    >>> profile_named("h100")
    Traceback (most recent call last):
    store.errors.ConfigError: unknown profile 'h100': choose one of a40-llama3.1-8b, h800-qwen3-32b, h800-qwen3-32b-24k, h800-qwen3-32b-480k
    """
    try:
        return PROFILES[name]
    except KeyError:
        raise ConfigError(f"unknown profile {name!r}: choose one of {', '.join(sorted(PROFILES))}") from None
