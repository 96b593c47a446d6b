"""The specification of a benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from controller.benchmark.scheduling.run import BenchEngine
from controller.benchmark.scheduling.service_mix import mix_named
from controller.policy.ablations import ABLATION_NAMES
from controller.policy.baselines import BENCH_POLICY_NAMES
from controller.policy.policies import Objective, Schedule
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.virtual_time.simulated_scheduler import Scheduling
from engine_adapter.workloads.arrivals import arrival_plan
from store.errors import ConfigError

SYNTHETIC = "synthetic"
"""Name of the built-in workload."""

WATERMARKS = (0.0, 0.01, 0.02, 0.05, 0.1)
"""Static watermarks that an expert would try; vLLM's default comes first."""

BUDGETS = (512, 2_048, 8_192)
"""Token budgets that an expert would try where requests have targets."""

DEFAULT_POLICIES = ("fcfs", "sagesched-paper", "sage", "srpt-oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchSpec:
    """Settings of a benchmark; raises `ConfigError` and `BadInputError` for invalid ones."""

    workload: Path | str = SYNTHETIC
    """A workload file, or the name of a built-in one."""
    profile: str = "h800-qwen3-32b-24k"
    load: float = 1.05
    """Arrival rate over the capacity of first come, first served."""
    requests: int = 600
    warmup: int = 1000
    seeds: tuple[int, ...] = (1,)
    policies: tuple[str, ...] = DEFAULT_POLICIES
    engine: BenchEngine = "simulated"
    prefix_caching: bool = True
    """Whether the engine computes equal prompt prefixes once, as vLLM does by default."""
    arrivals: str = "own"
    """In the format of `engine_adapter.workloads.arrivals.arrival_plan`."""
    tuned: bool = False
    """Whether baselines get their best static watermark."""
    budgets: tuple[int, ...] = ()
    """In a tuned benchmark, token budgets tried beside the profile's for policies that leave the order to the engine."""
    mix: str | None = None
    """Service classes that the requests are in, of `MIXES`, by whose goodput the best run is chosen; None for none."""
    fair_tenants: bool = False
    """Whether tenants share the engine by equal weights under `sage`, and how fairly they did is measured."""
    scheduling: Scheduling = "fcfs"
    """The engine's own order under policies that order, which then know that classes matter to the operator."""
    objective: Objective = "balanced"
    """The objective of `sage`."""
    schedule: Schedule = field(default_factory=Schedule)
    """The settings of `sage` except its objective."""

    def __post_init__(self) -> None:
        profile_named(self.profile)
        arrival_plan(self.arrivals)
        if self.mix is not None:
            mix_named(self.mix)
        if not 0.0 < self.load < 100.0:
            raise ConfigError(f"load is {self.load}: give a share of capacity above 0, such as 1.05")
        if self.requests < 10:
            raise ConfigError(f"requests is {self.requests}: give 10 or more, so that figures mean something")
        if self.warmup < 0:
            raise ConfigError(f"warmup is {self.warmup}: give 0 or more")
        _require_distinct("policies", self.policies)
        _require_distinct("seeds", self.seeds)
        if min(self.seeds) < 0:
            raise ConfigError(f"seed is {min(self.seeds)}: give 0 or more")
        for name in self.policies:
            if name not in (known := BENCH_POLICY_NAMES + ABLATION_NAMES):
                raise ConfigError(f"unknown policy {name!r}: choose one of {', '.join(known)}")
        if self.budgets and min(self.budgets) < 1:
            raise ConfigError(f"a token budget is {min(self.budgets)}: give 1 or more")


def _require_distinct(name: str, values: Sequence[object]) -> None:
    if not values:
        raise ConfigError(f"{name} are empty: give at least one, such as {'fcfs,sage' if name == 'policies' else '1'}")
    if len(set(values)) < len(values):
        raise ConfigError(f"{name} {','.join(map(str, values))} name one twice: name each once")
