"""``python -m engine_adapter.vllm.probe`` checks the installed vLLM as an engine does at its start."""

from __future__ import annotations

import sys

from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import contract
from engine_adapter.vllm.probe.verdict import try_behaviours
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine


def main() -> int:
    """Print what does not hold, or that all does; return exit code 0 when the plugin would steer this vLLM."""
    violations = contract.check()
    if violations:
        sys.stdout.write("".join(f"{line}\n" for line in violations))
        sys.stdout.write(f"{contract.verdict(violations)}\n")
        return 1
    found = try_behaviours(VllmVirtualTimeEngine(_PROFILE, link=NoLink()).scheduler.vllm_config)
    sys.stdout.write(f"vLLM {contract.version()}: {found.text}\n" if found.steers else f"{found.text}\n")
    return 0 if found.steers else 1


_PROFILE = Profile(
    name="small",
    base_s=1.0,
    prefill_token_s=0.0,
    decode_seq_s=0.0,
    kv_token_s=0.0,
    kv_tokens=256,
    block_size_tokens=16,
    max_num_seqs=4,
    token_budget=64,
    max_model_len_tokens=128,
)

if __name__ == "__main__":
    sys.exit(main())
