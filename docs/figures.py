"""The measured tables of the documents: made again from workloads that a reader has, and held against what stands there.

``make figures`` fails when a document says otherwise; ``make figures ARGS=--write`` writes them. A table stands between
``<!-- figures: NAME -->`` and ``<!-- end: NAME -->``; its numbers may differ by `TOLERANCE`, as those of another machine do.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from controller.benchmark.prediction.study import study_workload
from controller.benchmark.scheduling.benchmark import run_benches
from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.service_mix import DEFAULT_MIX
from controller.benchmark.scheduling.spec import BUDGETS, SYNTHETIC, BenchSpec
from controller.reports.latency_summary import PolicyFigures
from engine_adapter.workloads.made import made
from engine_adapter.workloads.parquet import write_parquet

ROOT = Path(__file__).parents[1]
TOLERANCE = 0.03
"""Relative difference of two numbers that are taken for the same, beside half a unit of the last digit."""
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")

ORDERS = {
    "fcfs": "vLLM's own (FCFS)",
    "sage": "SageSched, `balanced` (default)",
    "sage-mean": "SageSched, `mean`",
    "sage-tail": "SageSched, `tail`",
}
MADE = {"azure-conv": 1.05, "burstgpt": 1.05, "heavy-tail": 1.15}
"""Kinds of made workloads, and the load."""
PROMISED = ("azure-conv", "azure-code", "burstgpt", "mooncake")
LOADS = (0.9, 1.2, 1.5)
OWN_ORDERS = ("fcfs", "priority")


def gain() -> str:
    """The orders on the built-in workload."""
    spec = BenchSpec(load=1.15, requests=1500, warmup=1500, seeds=(1, 2, 3), policies=tuple(ORDERS))
    [result] = _run([spec])
    rows = [
        f"| {ORDERS[name]} | {' | '.join(_seconds(value) for value in _row(figures))} |"
        for name, figures in result.figures.items()
    ]
    head = "| order | mean TTFT | P99 TTFT | P50 TTLT | mean TTLT | P99 TTLT | longest TTLT |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *rows])


def made_workloads() -> str:
    """FCFS and the default on made workloads."""
    with tempfile.TemporaryDirectory() as folder:
        specs = []
        for kind, load in MADE.items():
            file = Path(folder) / f"{kind}.parquet"
            write_parquet(file, made(kind, requests=4000, seed=1).rows, {})
            specs.append(BenchSpec(workload=file, load=load, requests=1000, warmup=1000, policies=("fcfs", "sage")))
        results = _run(specs)
    rows = [
        f"| `{kind}`, load {load:g} | "
        + " | ".join(
            f"{_seconds(getattr(result.figures['fcfs'], name))} | {_seconds(getattr(result.figures['sage'], name))}"
            for name in ("mean_ttft_s", "mean_ttlt_s", "p99_ttlt_s")
        )
        + " |"
        for (kind, load), result in zip(MADE.items(), results, strict=True)
    ]
    head = (
        "| workload | mean TTFT, FCFS | SageSched | mean TTLT, FCFS | SageSched | P99 TTLT, FCFS | SageSched |\n"
        "|---|---|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def service_levels() -> str:
    """Shares of requests that meet their targets on made workloads, against the better of vLLM's own orders."""
    with tempfile.TemporaryDirectory() as folder:
        specs = []
        for kind in PROMISED:
            file = Path(folder) / f"{kind}.parquet"
            write_parquet(file, made(kind, requests=4000, seed=1).rows, {})
            specs += [
                BenchSpec(
                    workload=file,
                    profile="h800-qwen3-32b",
                    load=load,
                    requests=1000,
                    warmup=1000,
                    seeds=(1, 2, 3),
                    policies=(*OWN_ORDERS, "sage"),
                    tuned=True,
                    budgets=BUDGETS,
                    mix=DEFAULT_MIX,
                )
                for load in LOADS
            ]
        cells = [_goodputs(result) for result in _run(specs)]
    rows = [
        f"| `{kind}` | {' | '.join(cells[len(LOADS) * place : len(LOADS) * (place + 1)])} |"
        for place, kind in enumerate(PROMISED)
    ]
    return "\n".join(
        [f"| workload | {' | '.join(f'load {load:g}' for load in LOADS)} |", f"|---|{'---|' * len(LOADS)}", *rows]
    )


def predictions() -> str:
    """Learners side by side on the built-in workload."""
    study = study_workload(
        SYNTHETIC,
        requests=4000,
        warmup=1000,
        seed=1,
        requests_per_token=0.0,
        ablation=False,
        clock=time.perf_counter,
        progress=lambda _done: None,
    )
    rows = [
        f"| {name} | {quality.kendall_tau:.3f} | {quality.crps_tokens:.1f} | {quality.log_score:.3f} | "
        f"{quality.coverage_50:.3f} / {quality.coverage_90:.3f} |"
        for name, quality in study.result.learners.items()
    ]
    return "\n".join(["| learner | τ | CRPS | log score | 50 / 90% |", "|---|---|---|---|---|", *rows])


def _goodputs(result: BenchResult) -> str:
    """Goodput of ours and of the better baseline, by seed."""
    shares = []
    for seed in result.seeds:
        goodput = {name: run.chosen.service.goodput for name, run in seed.policies.items() if run.chosen.service}
        shares.append(f"{goodput['sage']:.2f} / {max(goodput[name] for name in OWN_ORDERS):.2f}")
    return ", ".join(shares)


TABLES: dict[str, tuple[str, Callable[[], str]]] = {
    "gain": ("README.md", gain),
    "made-workloads": ("docs/benchmark.md", made_workloads),
    "service-levels": ("docs/service_levels.md", service_levels),
    "predictions": ("docs/learning.md", predictions),
}
"""Document and maker of each table."""


def differences(stands: str, found: str) -> Iterator[str]:
    """The lines of two tables that say something else.

    >>> list(differences("| a | 10.1 |", "| a | 10.2 |")), list(differences("| a | 10 |", "| a | 12 |"))
    ([], ['| a | 10 | should be | a | 12 |'])
    """
    for before, after in zip_longest(stands.strip().splitlines(), found.strip().splitlines(), fillvalue="(no line)"):
        numbers = [NUMBER.findall(line) for line in (before, after)]
        if NUMBER.sub("", before) != NUMBER.sub("", after) or not all(map(_alike, *numbers)):
            yield f"{before} should be {after}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write the tables; the exit code is 1 if a document says otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the tables instead of checking them")
    parser.add_argument("tables", nargs="*", help=f"of {', '.join(TABLES)}; all without any")
    options = parser.parse_args(arguments)
    wrong = 0
    for name in options.tables or TABLES:
        document, make = TABLES[name]
        wrong += _checked(name, ROOT / document, make(), write=options.write)
    return 1 if wrong else 0


def _checked(name: str, document: Path, found: str, *, write: bool) -> bool:
    text = document.read_text()
    begin, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
    before, _, rest = text.partition(begin)
    stands, marked, after = rest.partition(end)
    if not marked:
        sys.stderr.write(f"{document} has no table between {begin} and {end}\n")
        return True
    if write:
        document.write_text(f"{before}{begin}\n{found}\n{end}{after}")
        return False
    wrong = list(differences(stands, found))
    sys.stdout.write(f"{document}, {name}: {'as measured' if not wrong else 'not as measured'}\n")
    for line in wrong:
        sys.stderr.write(f"  {line}\n")
    return bool(wrong)


def _alike(before: str, after: str) -> bool:
    unit = 10.0 ** -len(before.partition(".")[2])
    return abs(float(before) - float(after)) <= max(TOLERANCE * abs(float(after)), 1.001 * unit)


def _run(specs: list[BenchSpec]) -> list[BenchResult]:
    return run_benches(specs, timer=time.perf_counter, processes=os.cpu_count() or 1)


def _row(figures: PolicyFigures) -> tuple[float, ...]:
    return (
        *(figures.mean_ttft_s, figures.p99_ttft_s, figures.p50_ttlt_s),
        *(figures.mean_ttlt_s, figures.p99_ttlt_s, figures.max_ttlt_s),
    )


def _seconds(value: float) -> str:
    """Three digits that matter.

    >>> _seconds(0.91), _seconds(17.72), _seconds(146.6)
    ('0.9', '17.7', '147')
    """
    return f"{value:.0f}" if value >= 100.0 else f"{value:.1f}"


if __name__ == "__main__":
    sys.exit(main())
