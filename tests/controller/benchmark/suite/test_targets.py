"""The targets of the suite on made-up figures: each rule is broken alone, and a good result breaks none."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.benchmark.scheduling.group_figures import GroupFigures
from controller.benchmark.scheduling.result import Trial
from controller.benchmark.suite.cases import Case, Kind
from controller.benchmark.suite.measured import Measured, Series, label, ratio
from controller.benchmark.suite.targets import PROMISES, Check, checks, domination
from controller.reports.latency_summary import PartFigures, PolicyFigures

FIGURES = PolicyFigures(
    mean_ttlt_s=10.0,
    p50_ttlt_s=5.0,
    p90_ttlt_s=20.0,
    p99_ttlt_s=40.0,
    max_ttlt_s=50.0,
    mean_ttft_s=5.0,
    p99_ttft_s=20.0,
    mean_tpot_s=0.05,
    throughput_tokens_per_s=1000.0,
    makespan_s=100.0,
    preemptions=3.0,
    recompute_tax=0.02,
    prefix_hit_share=0.5,
    watermark=0.0,
    wall_s=1.0,
)
PART = PartFigures(
    requests=10,
    mean_ttlt_s=10.0,
    p99_ttlt_s=40.0,
    mean_ttft_s=0.5,
    p99_ttft_s=0.9,
    max_ttft_s=3.0,
    mean_tpot_s=0.05,
    makespan_s=100.0,
    tokens_per_s=500.0,
)
PARTS = ("short", "long", "class 0", "class 10", "tenant small", "tenant small-alone", "tenant large")
GROUPS = GroupFigures(jain_index=0.95, session_mean_s=75.0)
CASE = Case(family="made-up", place="24k", load=1.15)


def trial(
    variant: str, parts: dict[str, PartFigures] | None = None, groups: GroupFigures = GROUPS, **changes: float
) -> Trial:
    """A run with other figures than the usual ones."""
    return Trial(
        variant=variant,
        token_budget=None,
        figures=replace(FIGURES, **changes),
        parts=dict.fromkeys(PARTS, PART) | (parts or {}),
        groups=groups,
    )


def measured(
    case: Case = CASE,
    *,
    default: Trial | None = None,
    mean: Trial | None = None,
    tail: Trial | None = None,
    baselines: dict[str, Trial] | None = None,
) -> Measured:
    """A case in which we are good: the mean is three quarters of stock's and every target is met, but for the changes."""
    theirs = {
        "fcfs": trial(
            "fcfs",
            mean_ttlt_s=14.0,
            max_ttlt_s=60.0,
            p99_ttft_s=20.0,
            mean_ttft_s=8.0,
            groups=replace(GROUPS, session_mean_s=100.0),
        ),
        "sagesched-paper/a": trial("sagesched-paper/a", mean_ttlt_s=9.5, p99_ttlt_s=60.0, max_ttlt_s=90.0),
        "priority": trial("priority", mean_ttlt_s=14.0),
        **(baselines or {}),
    }
    return Measured(
        case=case,
        engine="simulated",
        ours={
            "balanced": (default or trial("sage-balanced"),),
            "mean": (mean or trial("sage-mean", mean_ttlt_s=9.0),),
            "tail": (tail or trial("sage-tail", mean_ttlt_s=12.0, p99_ttlt_s=39.0),),
        },
        baselines={name: (baseline,) for name, baseline in theirs.items()},
        best={
            "fcfs": (theirs["fcfs"],),
            "sagesched-paper": (theirs["sagesched-paper/a"],),
            "priority": (theirs["priority"],),
        },
    )


def missed(one: Measured) -> list[str]:
    """Names of the targets that are missed."""
    return [check.name for check in checks(one) if not check.passed]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_a_good_result_passes(kind: Kind) -> None:
    """Nothing is missed where every figure is within its limit, whatever the traffic is made of."""
    one = measured(replace(CASE, kind=kind))
    assert missed(one) == []
    assert [check.name for check in checks(one)] != []


BROKEN = {
    "never dominated": {
        "baselines": {"sagesched-paper/b": trial("sagesched-paper/b", mean_ttlt_s=9.6, p99_ttlt_s=38.0)}
    },
    "mean over best baseline": {"default": trial("o", mean_ttlt_s=12.0), "mean": trial("m", mean_ttlt_s=9.6)},
    "mean over stock": {
        "default": trial("o", mean_ttlt_s=10.0),
        "baselines": {"fcfs": trial("fcfs", mean_ttlt_s=9.7, p99_ttlt_s=41.0)},
        "tail": trial("t", mean_ttlt_s=8.0),
    },
    "tokens/s over stock": {"default": trial("o", throughput_tokens_per_s=985.0)},
    "longest over paper": {"default": trial("o", max_ttlt_s=73.0)},
    "P50 over paper": {"default": trial("o", p50_ttlt_s=6.6)},
    "recompute tax": {"default": trial("o", recompute_tax=0.051)},
    "objective mean: mean over best baseline": {"mean": trial("m", mean_ttlt_s=9.9)},
    "objective mean: P99 over paper": {"mean": trial("m", mean_ttlt_s=9.0, p99_ttlt_s=61.0)},
    "objective tail: P99 over FCFS": {"tail": trial("t", mean_ttlt_s=12.0, p99_ttlt_s=42.5)},
    "objective tail: mean over FCFS": {"tail": trial("t", mean_ttlt_s=12.7)},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_result_that_breaks_one_rule_misses_that_one_alone(name: str) -> None:
    """For each target of every case."""
    assert missed(measured(**BROKEN[name])) == [name]  # type: ignore[arg-type]


OF_KIND = {
    "P99 TTFT over stock": ("prefix", trial("o", p99_ttft_s=24.5)),
    "mean TTFT over stock": ("sessions", trial("o", mean_ttft_s=6.0)),
    "prefix hits over stock": ("sessions", trial("o", prefix_hit_share=0.49)),
    "mean TTFT of short prompts, s": (
        "long-prompts",
        trial("o", parts={"short": replace(PART, mean_ttft_s=0.7), "long": PART}),
    ),
    "mean TTLT of long prompts over stock": (
        "long-prompts",
        trial("o", parts={"short": PART, "long": replace(PART, mean_ttlt_s=11.6)}),
    ),
    "mean TPOT over stock": ("long-prompts", trial("o", mean_tpot_s=0.056)),
    "longest TTFT of the first class, s": (
        "classes",
        trial("o", parts={"class 0": replace(PART, max_ttft_s=7.0), "class 10": PART}),
    ),
    "mean time of a session over stock": ("sessions", trial("o", groups=replace(GROUPS, session_mean_s=81.0))),
    "TTLT of the small tenant beside the large one over alone": (
        "tenants",
        trial("o", parts={"tenant small": replace(PART, mean_ttlt_s=20.1)}),
    ),
    "tokens/s of the large tenant over stock": (
        "tenants",
        trial("o", parts={"tenant large": replace(PART, tokens_per_s=470.0)}),
    ),
    "Jain's index while both tenants wait": ("backlog", trial("o", groups=replace(GROUPS, jain_index=0.89))),
    "P99 TTFT of the first class, s": (
        "interactive",
        trial("o", parts={"class 0": replace(PART, p99_ttft_s=1.1)}),
    ),
    "makespan of the batch over stock": (
        "interactive",
        trial("o", parts={"class 10": replace(PART, makespan_s=106.0)}),
    ),
}


@pytest.mark.parametrize("name", OF_KIND)
def test_each_kind_of_traffic_has_targets_of_its_own(name: str) -> None:
    """They are missed where the traffic is of that kind, and asked of no other."""
    kind, default = OF_KIND[name]
    assert missed(measured(replace(CASE, kind=kind), default=default)) == [name]  # type: ignore[arg-type]
    assert missed(measured(default=default)) == []


def test_a_class_that_waits_counts_by_the_first_class_alone() -> None:
    """The class that goes first is the one with the lowest number, whatever the others wait."""
    parts = {"class 20": replace(PART, max_ttft_s=900.0), "class -1": PART}
    assert missed(measured(replace(CASE, kind="classes"), default=trial("o", parts=parts))) == []


@pytest.mark.parametrize("kind", sorted(PROMISES))
def test_where_some_go_before_others_nothing_else_is_asked(kind: Kind) -> None:
    """Neither a baseline's mean nor its tail counts, which those pay who may wait."""
    baselines = {"fcfs": trial("fcfs", mean_ttlt_s=1.0, p99_ttlt_s=1.0)}
    assert missed(measured(replace(CASE, kind=kind), baselines=baselines)) == []


def test_a_baseline_with_a_lower_mean_and_a_longer_tail_does_not_dominate() -> None:
    """Both must be lower by more than 3%."""
    ours: Series = (trial("o"),)
    assert domination(ours, {"a": (trial("a", mean_ttlt_s=1.0, p99_ttlt_s=39.0),)})[0] == pytest.approx(40.0 / 39.0)
    assert domination(ours, {"a": (trial("a", mean_ttlt_s=9.75, p99_ttlt_s=1.0),)})[0] < 1.0 / 0.97


@given(st.floats(0.5, 2.0), st.floats(0.5, 2.0))
def test_domination_is_what_it_says(mean: float, tail: float) -> None:
    """A baseline whose mean and P99 are these shares of ours dominates if and only if both are below 0.97."""
    baseline = trial("a", mean_ttlt_s=10.0 * mean, p99_ttlt_s=40.0 * tail)
    closest, whose = domination((trial("o"),), {"a": (baseline,)})
    assert whose == "a"
    if min(abs(mean - 0.97), abs(tail - 0.97)) > 1e-9:
        assert (closest > 1.0 / 0.97) == (mean < 0.97 and tail < 0.97)


def test_every_form_of_a_baseline_may_dominate() -> None:
    """The paper's best form by the mean may be harmless while another of its forms is better than us in both."""
    baselines = {
        "sagesched-paper/a": trial("sagesched-paper/a", mean_ttlt_s=8.5, p99_ttlt_s=60.0, max_ttlt_s=90.0),
        "sagesched-paper/b": trial("sagesched-paper/b", mean_ttlt_s=9.0, p99_ttlt_s=35.0),
    }
    one = measured(baselines=baselines)
    (check,) = [check for check in checks(one) if check.name == "never dominated"]
    assert (check.against, check.passed) == ("sagesched-paper/b", False)


def test_targets_that_make_no_sense_are_not_asked() -> None:
    """The longest wait is compared in overload alone, ``tail`` up to load 1.15, and its mean where a queue stands."""
    names = {load: {check.name for check in checks(measured(replace(CASE, load=load)))} for load in (0.5, 1.0, 1.3)}
    assert "longest over paper" not in names[0.5] | names[1.0]
    assert "longest over paper" in names[1.3]
    assert not [name for name in names[1.3] if name.startswith("objective tail")]
    idle = {"fcfs": trial("fcfs", mean_ttlt_s=14.0, mean_ttft_s=0.1)}
    assert "objective tail: mean over FCFS" not in {check.name for check in checks(measured(baselines=idle))}
    batch = {check.name for check in checks(measured(replace(CASE, kind="batch", arrivals="at-once")))}
    assert not batch & {"longest over paper", "objective tail: P99 over FCFS"}


def test_ratios_are_taken_seed_by_seed() -> None:
    """The mean of the ratios, not the ratio of the means; two zeros are equal."""
    ours = (trial("o", mean_ttlt_s=1.0), trial("o", mean_ttlt_s=30.0))
    theirs = (trial("r", mean_ttlt_s=2.0), trial("r", mean_ttlt_s=20.0))
    assert ratio(ours, theirs, "mean_ttlt_s") == pytest.approx(1.0)
    nothing = (trial("o", preemptions=0.0),)
    assert ratio(nothing, nothing, "preemptions") == 1.0
    assert ratio((trial("o"),), nothing, "preemptions") == float("inf")


def test_how_bad_a_check_is_compares_targets_of_both_senses() -> None:
    """Above 1 it fails, in whichever direction its limit lies."""
    high = Check(name="a", value=1.1, limit=1.0)
    low = Check(name="b", value=0.9, limit=0.99, sense="at least")
    assert (high.passed, low.passed) == (False, False)
    assert (high.badness, low.badness) == (pytest.approx(1.1), pytest.approx(1.1))
    assert Check(name="c", value=0.0, limit=0.99, sense="at least").badness == float("inf")


def test_a_form_of_a_baseline_is_named_with_what_is_not_default() -> None:
    """Watermark and token budget, where they were tuned."""
    tuned = replace(trial("fcfs", watermark=0.02), token_budget=512)
    assert (label(trial("fcfs")), label(tuned)) == ("fcfs", "fcfs watermark 0.02 budget 512")
