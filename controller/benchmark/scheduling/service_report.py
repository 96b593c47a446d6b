"""The table of service levels of a benchmark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean

from rich.table import Table

from controller.benchmark.scheduling.result import BenchResult
from controller.policy.baselines import ENGINE_ORDERS
from controller.reports.service_figures import ClassFigures, ServiceFigures
from controller.reports.tables import text_table
from store.service_levels import TARGETS


def service_table(result: BenchResult) -> Table:
    """One row for each policy: goodput, attainment and what was missed; means over the seeds."""
    title = f"service levels ({result.spec.mix}), the engine's own orders at the settings of the best goodput"
    return text_table(title, service_headings(result), service_rows(result), left=1)


def service_headings(result: BenchResult) -> list[str]:
    """The table's headings."""
    asked, batch = _classes(result)
    return [
        "policy",
        "goodput",
        *(["/ best baseline"] if _baselines(result) else []),
        *asked,
        *(target.upper() for target in TARGETS),
        "ITL P99 / target",
        *(f"{name} makespan s" for name in batch),
        "TTLT mean s",
        "missed most",
        "why most",
        "watermark, budget",
    ]


def service_rows(result: BenchResult) -> list[list[str]]:
    """Its rows."""
    return [[policy, *_cells(result, policy)] for policy in result.spec.policies]


def over_best_baseline(result: BenchResult, policy: str) -> float | None:
    """A policy's goodput over that of the best baseline on the same seed, the mean over the seeds; None without a baseline."""
    baselines = [result.service_of(baseline) for baseline in _baselines(result)]
    if not baselines:
        return None
    best = [max(figures.goodput for figures in of_seed) for of_seed in zip(*baselines, strict=True)]
    ours = [figures.goodput for figures in result.service_of(policy)]
    return fmean(
        our / their if their else float(our == their) or float("inf") for our, their in zip(ours, best, strict=True)
    )


def _cells(result: BenchResult, policy: str) -> list[str]:
    figures = result.service_of(policy)
    asked, batch = _classes(result)
    over = over_best_baseline(result, policy)
    return [
        _mean(figures, lambda one: one.goodput, "{:.3f}"),
        *([] if over is None else [f"{over:.2f}"]),
        *(_mean_of_class(figures, name, lambda one: one.goodput, "{:.3f}") for name in asked),
        *(_mean_text([one.all.attainment.get(target) for one in figures], "{:.3f}") for target in TARGETS),
        _mean(figures, lambda one: one.paced_itl_p99, "{:.2f}"),
        *(_mean_of_class(figures, name, lambda one: one.makespan_s, "{:.0f}") for name in batch),
        _mean(figures, lambda one: one.all.mean_ttlt_s, "{:.1f}"),
        _most(one.all.missed for one in figures),
        _most(one.all.causes for one in figures),
        _settings(result, policy),
    ]


def _baselines(result: BenchResult) -> list[str]:
    return [policy for policy in result.spec.policies if policy in ENGINE_ORDERS]


def _classes(result: BenchResult) -> tuple[list[str], list[str]]:
    """Names of the classes with targets and of those without."""
    classes = result.service_of(result.spec.policies[0])[0].classes
    asked = [name for name, figures in classes.items() if figures.asked]
    return asked, [name for name in classes if name not in asked]


def _mean(figures: Iterable[ServiceFigures], value: Callable[[ServiceFigures], float | None], form: str) -> str:
    return _mean_text([value(one) for one in figures], form)


def _mean_of_class(
    figures: Iterable[ServiceFigures], name: str, value: Callable[[ClassFigures], float | None], form: str
) -> str:
    return _mean_text([value(one.classes[name]) for one in figures if name in one.classes], form)


def _mean_text(values: Sequence[float | None], form: str) -> str:
    known = [value for value in values if value is not None]
    return form.format(fmean(known)) if known else "-"


def _most(counted: Iterable[Mapping[str, int]]) -> str:
    """The most frequent name and its share, summed over the seeds."""
    total: Counter[str] = Counter()
    for of_seed in counted:
        total.update(of_seed)
    return "".join(f"{name} {count / total.total():.0%}" for name, count in total.most_common(1)) or "-"


def _settings(result: BenchResult, policy: str) -> str:
    chosen = [seed.policies[policy].chosen for seed in result.seeds]
    return " ".join(f"{trial.figures.watermark:g},{trial.token_budget or 'own'}" for trial in chosen)
