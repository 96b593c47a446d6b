"""The result of a benchmark, by seed and over the seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from statistics import fmean
from typing import TYPE_CHECKING, Any

from controller.benchmark.scheduling.group_figures import GroupFigures
from controller.benchmark.scheduling.run import PolicyRun, RunSpec
from controller.reports.latency_summary import PartFigures, PolicyFigures
from controller.reports.service_figures import ServiceFigures

if TYPE_CHECKING:
    from controller.benchmark.scheduling.spec import BenchSpec

COMPARED = ("mean_ttlt_s", "p99_ttlt_s", "mean_ttft_s", "throughput_tokens_per_s")
"""Figures with reported ratios to another policy."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, lowest and highest of a figure over the seeds."""

    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One variant of a policy at one watermark and token budget."""

    variant: str
    token_budget: int | None
    """Tokens in a step; None for the profile's."""
    figures: PolicyFigures
    parts: dict[str, PartFigures]
    service: ServiceFigures | None = None
    groups: GroupFigures = field(default_factory=GroupFigures)


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyResult:
    """A policy on one seed: its best run, and all its runs."""

    best: PolicyRun
    chosen: Trial
    """The settings and figures of the best run."""
    tried: tuple[Trial, ...]

    @classmethod
    def of(cls, runs: Mapping[RunSpec, PolicyRun]) -> PolicyResult:
        """Choose the run with the highest goodput where there are targets, then the lowest mean TTLT.

        Of equal ones it is the first, which has vLLM's default.
        """
        tried = [
            Trial(
                variant=run.name,
                token_budget=spec.token_budget,
                figures=run.figures,
                parts=run.parts,
                service=run.service,
                groups=run.groups,
            )
            for spec, run in runs.items()
        ]
        best, chosen = min(zip(runs.values(), tried, strict=True), key=lambda pair: _badness(pair[1]))
        return cls(best=best, chosen=chosen, tried=tuple(tried))


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """All policies on one seed."""

    seed: int
    capacity_rps: float
    capacity_watermark: float
    """Watermark of first come, first served at this capacity."""
    policies: dict[str, PolicyResult]
    """In the given order."""
    settings: dict[str, tuple[RunSpec, ...]] = field(default_factory=dict)
    """The runs that were tried of each policy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured."""

    spec: BenchSpec
    workload: str
    versions: dict[str, str]
    seeds: tuple[SeedResult, ...]

    @property
    def requests(self) -> int:
        """Measured requests of each seed."""
        return self.spec.requests

    @property
    def capacity_rps(self) -> float:
        """Mean over the seeds."""
        return fmean(seed.capacity_rps for seed in self.seeds)

    @property
    def left_out_share(self) -> float:
        """Share of the workload's rows that are too long for the profile and were never drawn."""
        return next(iter(self.runs.values())).left_out_share

    @property
    def runs(self) -> dict[str, PolicyRun]:
        """Each policy's best run on the first seed, for plots of one run."""
        return {name: result.best for name, result in self.seeds[0].policies.items()}

    @property
    def figures(self) -> dict[str, PolicyFigures]:
        """Each policy's figures, means over the seeds."""
        return {name: _mean(self.by_seed(name)) for name in self.spec.policies}

    def by_seed(self, policy: str) -> list[PolicyFigures]:
        """A policy's figures, seed by seed."""
        return [seed.policies[policy].best.figures for seed in self.seeds]

    def spread(self, policy: str, figure: str) -> Spread:
        """One figure of a policy over the seeds."""
        return _spread([float(getattr(figures, figure)) for figures in self.by_seed(policy)])

    def ratio(self, policy: str, against: str, figure: str) -> Spread:
        """Ratio of a policy's figure to another policy's, seed by seed; two zeros have the ratio 1."""
        pairs = zip(self.by_seed(policy), self.by_seed(against), strict=True)
        return _spread([_ratio(getattr(ours, figure), getattr(theirs, figure)) for ours, theirs in pairs])

    def service_of(self, policy: str) -> list[ServiceFigures]:
        """How many of a policy's requests met their targets, seed by seed; empty without service classes."""
        trials = [seed.policies[policy].chosen for seed in self.seeds]
        return [trial.service for trial in trials if trial.service is not None]

    def as_json(self, against: str | None = None) -> dict[str, Any]:
        """The report as plain values, with the keys that docs and scripts rely on.

        ``policies`` has means over the seeds; what lies behind them is in ``spread``, ``seeds`` and ``by_seed``.
        ``against`` adds the ratios to that policy.
        """
        report = {
            **self._what(),
            "seed": self.seeds[0].seed,
            "seeds": [seed.seed for seed in self.seeds],
            "capacity_rps": self.capacity_rps,
            "versions": self.versions,
            "policies": {name: asdict(figures) for name, figures in self.figures.items()},
            "spread": {
                name: {one.name: asdict(self.spread(name, one.name)) for one in fields(PolicyFigures)}
                for name in self.spec.policies
            },
            "by_seed": [_seed_json(seed) for seed in self.seeds],
        }
        if against is not None:
            report["against"] = against
            report["ratios"] = {
                name: {figure: asdict(self.ratio(name, against, figure)) for figure in COMPARED}
                for name in self.spec.policies
            }
        return report

    def _what(self) -> dict[str, Any]:
        spec = self.spec
        return {
            "workload": self.workload,
            "profile": spec.profile,
            "load": spec.load,
            "requests": spec.requests,
            "warmup": spec.warmup,
            "engine": spec.engine,
            "prefix_caching": spec.prefix_caching,
            "arrivals": spec.arrivals,
            "left_out_share": self.left_out_share,
            "tuned": spec.tuned,
            "objective": spec.objective,
            "mix": spec.mix,
        }


def _badness(trial: Trial) -> tuple[float, float]:
    return -trial.service.goodput if trial.service else 0.0, trial.figures.mean_ttlt_s


def _seed_json(seed: SeedResult) -> dict[str, Any]:
    return {
        "seed": seed.seed,
        "capacity_rps": seed.capacity_rps,
        "capacity_watermark": seed.capacity_watermark,
        "policies": {name: _policy_json(result) for name, result in seed.policies.items()},
    }


def _policy_json(result: PolicyResult) -> dict[str, Any]:
    tried = [_trial_json(trial) for trial in result.tried]
    return {**_trial_json(result.chosen), "tried": tried if len(tried) > 1 else []}


def _trial_json(trial: Trial) -> dict[str, Any]:
    service = {"goodput": trial.service.goodput, **asdict(trial.service)} if trial.service else None
    return {
        "variant": trial.variant,
        "token_budget": trial.token_budget,
        **asdict(trial.figures),
        **({"service": service} if service else {}),
    }


def _mean(figures: list[PolicyFigures]) -> PolicyFigures:
    """Means over the seeds; a single seed's own figures, with its whole numbers whole."""
    if len(figures) == 1:
        return figures[0]
    means: Mapping[str, Any] = {
        one.name: fmean(getattr(of_seed, one.name) for of_seed in figures) for one in fields(PolicyFigures)
    }
    return PolicyFigures(**means)


def _spread(values: list[float]) -> Spread:
    return Spread(fmean(values), min(values), max(values))


def _ratio(ours: float, theirs: float) -> float:
    if ours == theirs:
        return 1.0
    return ours / theirs if theirs else float("inf")
