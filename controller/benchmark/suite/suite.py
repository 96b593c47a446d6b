"""Runs the suite: every case on every seed, with work that several policies and loads share done once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any, Literal, TypeAlias

from controller.benchmark.scheduling.benchmark import Progress, run_benches
from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.run import BenchEngine
from controller.benchmark.scheduling.spec import BenchSpec
from controller.benchmark.suite.cases import OURS, Case
from controller.benchmark.suite.measured import Measured, mean_of, ratio
from controller.benchmark.suite.targets import GATING, Check, checks

Engines: TypeAlias = Literal["simulated", "vllm", "both"]

SHOWN = (
    ("mean_ttlt_s", "mean"),
    ("p50_ttlt_s", "P50"),
    ("p99_ttlt_s", "P99"),
    ("max_ttlt_s", "longest"),
    ("mean_ttft_s", "TTFT mean"),
    ("p99_ttft_s", "TTFT P99"),
    ("throughput_tokens_per_s", "tokens/s"),
)
"""Figures whose ratios to every baseline are reported, with their headings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteSpec:
    """What is run."""

    cases: tuple[Case, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    engine: Engines = "simulated"
    tuned: bool = False
    """Whether baselines run at every watermark, and those that leave the order to the engine at every token budget."""
    short: bool = False
    """Whether only `GATING` checks decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """The worst result of one target over all cases."""

    check: Check
    case: str
    failed: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SuiteResult:
    """What was measured, and what was found of each target."""

    spec: SuiteSpec
    measured: tuple[Measured, ...]

    @property
    def checks(self) -> list[tuple[str, Check]]:
        """Every check with its case's name."""
        return [(one.name, check) for one in self.measured for check in checks(one)]

    @property
    def failed(self) -> list[tuple[str, Check]]:
        """The checks that fail and decide."""
        return [(name, check) for name, check in self.checks if not check.passed and self.decides(check)]

    def decides(self, check: Check) -> bool:
        """Whether the result depends on a check."""
        return not self.spec.short or check.name in GATING

    @property
    def worst(self) -> list[Worst]:
        """For each target its worst case, in the order of the targets."""
        by_name: dict[str, list[tuple[str, Check]]] = {}
        for name, check in self.checks:
            by_name.setdefault(check.name, []).append((name, check))
        return [_worst(found) for found in by_name.values()]

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "seeds": list(self.spec.seeds),
            "engine": self.spec.engine,
            "tuned": self.spec.tuned,
            "short": self.spec.short,
            "failed": len(self.failed),
            "worst": [
                {"case": worst.case, "failed": worst.failed, "of": worst.of, **_check_json(worst.check)}
                for worst in self.worst
            ],
            "cases": [_case_json(one) for one in self.measured],
        }


def run_suite(
    spec: SuiteSpec,
    *,
    timer: Callable[[], float],
    progress: Progress | None = None,
    processes: int = 1,
    on_case: Callable[[Measured], None] = lambda _measured: None,
) -> SuiteResult:
    """Run every case; ``on_case`` receives each as soon as it is complete.

    ``timer``, ``progress``, ``processes`` and errors are those of `run_benches`.
    """
    benches = list(wanted(spec))
    measured: dict[int, Measured] = {}

    def complete(number: int, result: BenchResult) -> None:
        measured[number] = Measured.of(benches[number][0], result)
        on_case(measured[number])

    run_benches(
        [bench for _, bench in benches],
        timer=timer,
        progress=progress,
        processes=processes,
        lives=False,
        on_result=complete,
    )
    return SuiteResult(spec=spec, measured=tuple(measured[number] for number in range(len(benches))))


def wanted(spec: SuiteSpec) -> Iterator[tuple[Case, BenchSpec]]:
    """Each case and its benchmark; on both engines, vLLM's has the cases that stand for the others, on the first seed."""
    first: BenchEngine = "vllm" if spec.engine == "vllm" else "simulated"
    for case in spec.cases:
        yield case, case.spec(seeds=spec.seeds, engine=first, tuned=spec.tuned)
    for case in spec.cases:
        if spec.engine == "both" and case.on_vllm:
            yield case, case.spec(seeds=spec.seeds[:1], engine="vllm", tuned=spec.tuned)


def sized(cases: Sequence[Case], *, requests: int | None, warmup: int | None) -> tuple[Case, ...]:
    """The cases with other numbers of measured and warm-up requests; None for their own."""
    return tuple(
        replace(
            case,
            requests=case.requests if requests is None else requests,
            warmup=case.warmup if warmup is None else warmup,
        )
        for case in cases
    )


def _worst(found: list[tuple[str, Check]]) -> Worst:
    case, check = max(found, key=lambda one: one[1].badness)
    return Worst(check=check, case=case, failed=sum(not check.passed for _, check in found), of=len(found))


def _check_json(check: Check) -> dict[str, Any]:
    return {**asdict(check), "passed": check.passed}


def _case_json(measured: Measured) -> dict[str, Any]:
    case = measured.case
    contenders = {**measured.baselines, **{OURS[objective]: series for objective, series in measured.ours.items()}}
    return {
        "case": measured.name,
        "workload": case.workload,
        "profile": case.profile,
        "arrivals": case.arrivals,
        "load": case.load,
        "requests": case.requests,
        "warmup": case.warmup,
        "engine": measured.engine,
        "figures": {
            contender: {figure: mean_of(series, figure) for figure in (*dict(SHOWN), "recompute_tax", "preemptions")}
            for contender, series in contenders.items()
        },
        "by_seed": {
            contender: [
                {"figures": asdict(trial.figures), "parts": {part: asdict(of) for part, of in trial.parts.items()}}
                for trial in series
            ]
            for contender, series in contenders.items()
        },
        "ratios": {
            baseline: {figure: ratio(measured.default, series, figure) for figure, _ in SHOWN}
            for baseline, series in measured.baselines.items()
        },
        "checks": [_check_json(check) for check in checks(measured)],
        "took_s": fmean(
            sum(trial.figures.wall_s for trial in seeds) for seeds in zip(*contenders.values(), strict=True)
        ),
    }
