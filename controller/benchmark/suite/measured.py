"""What the suite measured of one case: our objectives and every baseline, seed by seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from controller.benchmark.scheduling.result import BenchResult, Trial
from controller.benchmark.suite.cases import OURS, STOCK, Case
from controller.policy.baselines import PAPER

Series: TypeAlias = tuple[Trial, ...]
"""One contender's runs, seed by seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A case's runs.

    Args:
        case: what was run.
        engine: whose scheduler served.
        ours: our runs by objective; ``balanced`` is the default.
        baselines: runs of each baseline, each variant, watermark and token budget of a baseline being one of its own.
        best: on each seed the form of a baseline with the lowest mean TTLT, by the baseline's name.
        bench: the benchmark behind them; None where the figures were not measured.
    """

    case: Case
    engine: str
    ours: Mapping[str, Series]
    baselines: Mapping[str, Series]
    best: Mapping[str, Series]
    bench: BenchResult | None = None

    @classmethod
    def of(cls, case: Case, result: BenchResult) -> Measured:
        """Sort a benchmark's runs."""
        baselines: dict[str, Series] = {}
        best: dict[str, Series] = {}
        for name in (policy for policy in result.spec.policies if policy not in OURS.values()):
            tried = [seed.policies[name].tried for seed in result.seeds]
            forms = list(zip(*tried, strict=True))
            baselines.update((label(form[0]), form) for form in forms)
            best[name] = tuple(min(trials, key=_mean_ttlt_s) for trials in tried)
        return cls(
            case=case,
            engine=result.spec.engine,
            ours={
                objective: tuple(seed.policies[policy].tried[0] for seed in result.seeds)
                for objective, policy in OURS.items()
                if policy in result.spec.policies
            },
            baselines=baselines,
            best=best,
            bench=result,
        )

    @property
    def name(self) -> str:
        """The case's name, with the engine unless the simulated one served."""
        return self.case.name if self.engine == "simulated" else f"{self.case.name} ({self.engine})"

    @property
    def default(self) -> Series:
        """Our default."""
        return self.ours["balanced"]

    @property
    def stock(self) -> Series:
        """First come, first served as vLLM has it by default."""
        return self.baselines[STOCK]

    @property
    def tuned_fcfs(self) -> Series:
        """First come, first served at its best of all that was tried."""
        return self.best[STOCK]

    @property
    def paper(self) -> Series:
        """The paper's policy in its best form."""
        return self.best[PAPER]


def label(trial: Trial) -> str:
    """Name of a form of a baseline: its variant, and watermark and token budget where they are not the default's."""
    watermark = f" watermark {trial.figures.watermark:g}" if trial.figures.watermark else ""
    budget = f" budget {trial.token_budget}" if trial.token_budget else ""
    return f"{trial.variant}{watermark}{budget}"


def ratio(ours: Series, theirs: Series, figure: str) -> float:
    """Mean over the seeds of our figure over theirs; 1 where both are 0."""
    return fmean(ratios(ours, theirs, figure))


def ratios(ours: Series, theirs: Series, figure: str) -> list[float]:
    """The same, seed by seed."""
    return [
        _quotient(getattr(our.figures, figure), getattr(their.figures, figure))
        for our, their in zip(ours, theirs, strict=True)
    ]


def part_ratio(ours: Series, theirs: Series, part: str, figure: str) -> float:
    """Mean over the seeds of our figure over theirs, of some of the requests."""
    return fmean(
        _quotient(getattr(our.parts[part], figure), getattr(their.parts[part], figure))
        for our, their in zip(ours, theirs, strict=True)
    )


def mean_of(series: Series, figure: str) -> float:
    """Mean over the seeds."""
    return fmean(float(getattr(trial.figures, figure)) for trial in series)


def part_mean(series: Series, part: str, figure: str) -> float:
    """Mean over the seeds of a figure of some of the requests."""
    return fmean(float(getattr(trial.parts[part], figure)) for trial in series)


def jain_index(series: Series) -> float | None:
    """Mean over the seeds in which all tenants waited at the same time; None if they never did."""
    found = [trial.groups.jain_index for trial in series if trial.groups.jain_index is not None]
    return fmean(found) if found else None


def session_ratio(ours: Series, theirs: Series) -> float:
    """Mean over the seeds of our mean time of a session over theirs; both have sessions."""
    pairs = [(our.groups.session_mean_s, their.groups.session_mean_s) for our, their in zip(ours, theirs, strict=True)]
    return fmean(our / their for our, their in pairs if our and their)


def _mean_ttlt_s(trial: Trial) -> float:
    return trial.figures.mean_ttlt_s


def _quotient(ours: float, theirs: float) -> float:
    if ours == theirs:
        return 1.0
    return ours / theirs if theirs else float("inf")
