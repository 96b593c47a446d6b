"""The suite on the command line: what it lists, refuses, runs and writes."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from controller.benchmark.scheduling.spec import WATERMARKS
from controller.benchmark.suite.cases import BUDGETS, CASES, LOADS, SHORT_CASES, Kind, cases_of_file, selected
from controller.benchmark.suite.suite import SuiteSpec, run_suite, wanted
from controller.cli.main import run

SMALL = ["suite", "--requests", "60", "--warmup", "40", "--quiet", "--processes", "1"]


def test_every_case_has_a_name_of_its_own_and_can_be_run() -> None:
    """Names tell cases apart, and each makes a benchmark that is accepted."""
    assert len({case.name for case in CASES}) == len(CASES)
    for case in (*CASES, *SHORT_CASES, *cases_of_file("mix.parquet")):
        spec = case.spec(seeds=(1,), engine="simulated", tuned=True)
        assert spec.load == case.load
        assert set(spec.policies) >= {"fcfs", "fcfs-gated", "sagesched-paper", "sage-balanced"}
        assert ("sage-mean" in spec.policies) == case.objectives


def test_deep_overload_has_thousands_of_requests() -> None:
    """From load 1.3 on; what is short is short."""
    assert all((case.requests == 4_000) == (case.load >= 1.3) for case in CASES)
    assert {case.kind for case in CASES} == set(get_args(Kind))
    assert all(case.requests <= 1_000 for case in SHORT_CASES)


def test_the_cases_can_be_listed_and_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    """By their name, by group and by family, and by load; nothing runs."""
    assert run(["suite", "--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in CASES]
    assert run(["suite", "--list", "--cases", "plain-68k,batch-24k,heavy-tail-24k@1.5"]) == 0
    expected = {f"plain-68k@{load:g}" for load in LOADS} | {"batch-24k", "heavy-tail-24k@1.5"}
    assert set(capsys.readouterr().out.split()) == expected
    assert run(["suite", "--list", "--cases", "bursts", "--loads", "0.8,2"]) == 0
    assert capsys.readouterr().out.split() == ["bursts-24k@0.8", "bursts-24k@2"]
    assert run(["suite", "--list", "--workload", "logs/mix.parquet", "--loads", "0.9"]) == 0
    assert capsys.readouterr().out.split() == ["mix-24k@0.9", "mix-68k@0.9"]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cases", "plane-24k"], "plain-24k"),
        (["--loads", "0.7"], "0.7"),
        (["--loads", "much"], "much"),
        (["--seeds", "one"], "one"),
        (["--short", "--workload", "mix.parquet"], "--workload"),
        (["--json", "/nowhere/x.json"], "/nowhere/x.json"),
        (["--workload", "nowhere.parquet", "--loads", "0.9"], "nowhere.parquet"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused_by_name(
    flags: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and code 2; a case that does not exist is answered with those that are near."""
    assert run([*SMALL, *flags]) == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_prints_and_writes_every_case_baseline_and_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ratios to every baseline, who comes closest, the worst of each target; code 1 where a target is missed."""
    files = ["--json", f"{tmp_path}/s.json", "--html", f"{tmp_path}/s.html"]
    code = run([*SMALL, "--cases", "plain-24k@0.9,plain-24k@1.15,batch-24k", "--seeds", "1,2", *files])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "s.json").read_text())
    assert [case["case"] for case in report["cases"]] == ["plain-24k@0.9", "plain-24k@1.15", "batch-24k"]
    missed = [check for case in report["cases"] for check in case["checks"] if not check["passed"]]
    assert report["failed"] == len(missed)
    assert code == (1 if missed else 0)
    for case in report["cases"]:
        assert set(case["ratios"]) == {
            "fcfs",
            "fcfs-gated",
            *(f"sagesched-paper/{form}" for form in ("200-tokens", "10-buckets")),
            *(f"sagesched-paper/{form}/preemptive" for form in ("200-tokens", "10-buckets")),
        }
        assert len(case["by_seed"]["sage-balanced"]) == 2
        assert case["ratios"]["fcfs"]["mean_ttlt_s"] > 0.0
        assert f"{case['case']}: " in printed
    assert {worst["name"] for worst in report["worst"]} == {
        check["name"] for case in report["cases"] for check in case["checks"]
    }
    assert "our default, case by case" in printed
    assert "worst of each target" in printed
    assert "targets are missed" in printed
    page = (tmp_path / "s.html").read_text(encoding="utf-8")
    assert page.count("plotly-graph-div") >= 2
    assert page.count("<table>") == 2 + 2 * 3
    assert 'src="https' not in page


def test_both_engines_share_the_work() -> None:
    """VLLM's scheduler serves one load of each kind, on the first seed; the simulated engine serves everything."""
    spec = SuiteSpec(cases=selected(CASES, ["plain-24k", "batch-24k", "prefix-8k-68k"]), seeds=(4, 5), engine="both")
    engines = {
        engine: [(case.name, bench.seeds) for case, bench in wanted(spec) if bench.engine == engine]
        for engine in ("simulated", "vllm")
    }
    assert engines["simulated"] == [(case.name, (4, 5)) for case in spec.cases]
    assert engines["vllm"] == [("plain-24k@1.15", (4,)), ("batch-24k", (4,)), ("prefix-8k-68k@1.05", (4,))]


@pytest.mark.slow
def test_the_suite_depends_on_its_spec_alone() -> None:
    """The same figures from one process and from two, but for the time that a run took."""
    (case,) = [case for case in SHORT_CASES if case.name == "plain-24k@1.15"]
    spec = SuiteSpec(cases=(replace(case, requests=60, warmup=40),), seeds=(3,))
    alone, beside = (
        run_suite(spec, timer=time.perf_counter, processes=processes).as_json()["cases"][0] for processes in (1, 2)
    )
    for part in ("ratios", "checks", "figures"):
        assert alone[part] == beside[part]


@pytest.mark.slow
def test_tuned_baselines_run_at_every_watermark_and_fcfs_at_every_budget() -> None:
    """Each is a baseline of its own; ours runs once."""
    (case,) = [case for case in CASES if case.name == "plain-24k@1"]
    spec = SuiteSpec(cases=(replace(case, requests=40, warmup=0),), seeds=(1,), tuned=True)
    (one,) = run_suite(spec, timer=lambda: 0.0).measured
    fcfs = [name for name in one.baselines if name.startswith("fcfs") and not name.startswith("fcfs-gated")]
    assert len(fcfs) == len(WATERMARKS) * (1 + len(BUDGETS))
    assert len([name for name in one.baselines if name.startswith("sagesched-paper")]) == 4 * len(WATERMARKS)
    assert [name for name in one.baselines if name.startswith("fcfs-gated")] == ["fcfs-gated"]
    assert one.tuned_fcfs[0].figures.mean_ttlt_s == min(one.baselines[name][0].figures.mean_ttlt_s for name in fcfs)
