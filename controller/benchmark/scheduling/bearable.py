"""The load up to which a share of the requests meets its targets, for each policy at its best setting.

It is found by bisection (`controller.replay.plan.bearable_load`) for every setting that a benchmark would try.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean

from rich.table import Table

from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.run import RunSpec, run_policy
from controller.policy.baselines import ENGINE_ORDERS
from controller.replay.plan import bearable_load
from controller.reports.tables import text_table


@dataclass(frozen=True, slots=True, kw_only=True)
class BearableLoad:
    """A policy's best setting on one seed."""

    policy: str
    seed: int
    rps: float
    """Highest load in requests per second; 0 if the share is met at no load."""
    run: RunSpec
    """Its setting."""


def bearable_loads(result: BenchResult, share: float, *, timer: Callable[[], float]) -> list[BearableLoad]:
    """The loads at which ``share`` of the requests with targets meet them, policy by policy and seed by seed.

    Runs are those of a benchmark that was done, at other rates.
    """
    return [
        max(
            (_of_setting(policy, seed.seed, run, share, timer) for run in seed.settings[policy]),
            key=lambda one: one.rps,
        )
        for policy in result.spec.policies
        for seed in result.seeds
    ]


def bearable_table(found: list[BearableLoad], share: float) -> Table:
    """One row for each policy; the ratio to the best baseline is taken seed by seed."""
    policies = list(dict.fromkeys(one.policy for one in found))
    by_seed = {(one.policy, one.seed): one for one in found}
    seeds = sorted({one.seed for one in found})
    baselines = [policy for policy in policies if policy in ENGINE_ORDERS]
    rows = []
    for policy in policies:
        ours = [by_seed[policy, seed] for seed in seeds]
        best = [max((by_seed[baseline, seed].rps for baseline in baselines), default=0.0) for seed in seeds]
        ratios = [one.rps / theirs for one, theirs in zip(ours, best, strict=True) if theirs]
        settings = " ".join(f"{one.run.watermark:g},{one.run.token_budget or 'own'}" for one in ours)
        over = f"{fmean(ratios):.2f}" if ratios else "-"
        rows.append([policy, f"{fmean(one.rps for one in ours):.2f}", over, settings])
    headings = ["policy", "requests/s", "/ best baseline", "watermark, budget"]
    return text_table(f"requests/s up to which {share:.0%} meet their targets", headings, rows, left=1)


def _of_setting(policy: str, seed: int, run: RunSpec, share: float, timer: Callable[[], float]) -> BearableLoad:
    assert run.rate_rps is not None
    assert run.mix is not None, "requests have targets"
    rate_rps = run.rate_rps

    def attained(multiple: float) -> float:
        served = run_policy(replace(run, rate_rps=multiple * rate_rps, lives=False), timer).service
        assert served is not None
        return served.goodput

    return BearableLoad(policy=policy, seed=seed, rps=rate_rps * bearable_load(attained, share), run=run)
