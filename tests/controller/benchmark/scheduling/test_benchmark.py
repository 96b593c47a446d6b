import dataclasses
import json
import multiprocessing
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from controller.benchmark.scheduling.benchmark import run_bench, run_benches
from controller.benchmark.scheduling.report import bench_table, write_html
from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.run import TIMELINE_POINTS, parts_of
from controller.benchmark.scheduling.spec import WATERMARKS, BenchSpec
from controller.policy.policies import POLICY_NAMES
from controller.reports.latency_summary import figures
from engine_adapter.virtual_time.engine import CompletedRequest, Totals, TraceRequest, capacity_rps
from store.errors import ConfigError, WorkloadError

pytestmark = pytest.mark.slow

OVERLOAD = BenchSpec(load=1.5, requests=600, warmup=600, seeds=(3,), policies=POLICY_NAMES)
JSON_KEYS = {
    "workload",
    "profile",
    "load",
    "seed",
    "requests",
    "tuned",
    "objective",
    "capacity_rps",
    "versions",
    "policies",
}
FIGURE_KEYS = {
    "mean_ttlt_s",
    "p50_ttlt_s",
    "p90_ttlt_s",
    "p99_ttlt_s",
    "max_ttlt_s",
    "mean_ttft_s",
    "p99_ttft_s",
    "mean_tpot_s",
    "throughput_tokens_per_s",
    "makespan_s",
    "preemptions",
    "recompute_tax",
    "prefix_hit_share",
    "watermark",
    "wall_s",
}


def bench(spec: BenchSpec) -> BenchResult:
    """Run it with the real clock for what it took."""
    return run_bench(spec, timer=time.perf_counter)


def life(
    number: int, arrival_s: float, first_token_s: float, finished_s: float, output_tokens: int = 11
) -> CompletedRequest:
    """A request that was served."""
    return CompletedRequest(
        request_id=str(number),
        arrival_s=arrival_s,
        scheduled_s=arrival_s,
        first_token_s=first_token_s,
        finished_s=finished_s,
        prompt_tokens=5,
        output_tokens=output_tokens,
        reason="stop",
        preemptions=0,
        recomputed_tokens=0,
    )


@pytest.fixture(scope="module")
def overloaded() -> BenchResult:
    """All policies on the built-in workload with more coming in than FCFS can serve."""
    return bench(OVERLOAD)


def test_the_report_has_the_keys_that_scripts_rely_on(overloaded: BenchResult) -> None:
    """The JSON is what the design says, for every policy, and is plain JSON."""
    report = json.loads(json.dumps(overloaded.as_json()))
    assert set(report) >= JSON_KEYS
    assert list(report["policies"]) == list(POLICY_NAMES)
    assert all(set(figures) == FIGURE_KEYS for figures in report["policies"].values())
    assert report["capacity_rps"] > 0.0


def test_every_policy_serves_every_request_whole(overloaded: BenchResult) -> None:
    """No policy looks good by leaving something out: the same requests, the same answers, no life twice."""
    served = {
        name: sorted((life.request_id, life.arrival_s, life.output_tokens) for life in run.completed)
        for name, run in overloaded.runs.items()
    }
    assert len({request_id for request_id, _, _ in served["fcfs"]}) == OVERLOAD.requests
    assert all(lives == served["fcfs"] for lives in served.values())


def test_under_overload_sage_beats_first_come_first_served(overloaded: BenchResult) -> None:
    """The point of it all, with a margin well below what is usual, and without wasting work on recomputation."""
    fcfs, sage = overloaded.figures["fcfs"], overloaded.figures["sage"]
    assert sage.mean_ttlt_s < 0.8 * fcfs.mean_ttlt_s
    assert sage.recompute_tax < 0.8 * fcfs.recompute_tax
    assert sage.mean_ttft_s < fcfs.mean_ttft_s


def test_at_low_load_nothing_gets_worse() -> None:
    """Where nothing queues, ordering and gate cost nothing."""
    result = bench(BenchSpec(load=0.4, requests=300, warmup=300, seeds=(5,), policies=("fcfs", "sage")))
    assert result.figures["sage"].mean_ttlt_s <= 1.01 * result.figures["fcfs"].mean_ttlt_s
    assert result.figures["sage"].p99_ttlt_s <= 1.01 * result.figures["fcfs"].p99_ttlt_s


def test_a_seed_decides_everything(overloaded: BenchResult) -> None:
    """The same spec gives the same figures, alone or beside other policies, here or in processes of their own."""
    spec = dataclasses.replace(OVERLOAD, policies=("sage", "fcfs"))
    again = run_bench(spec, timer=time.perf_counter, processes=2)
    for name in spec.policies:
        assert again.runs[name].completed == overloaded.runs[name].completed
        assert again.runs[name].timeline == overloaded.runs[name].timeline
    assert again.capacity_rps == overloaded.capacity_rps


def test_another_seed_gives_another_workload(overloaded: BenchResult) -> None:
    """Seeds are not ignored."""
    other = bench(dataclasses.replace(OVERLOAD, seeds=(4,), policies=("fcfs",)))
    assert other.figures["fcfs"].mean_ttlt_s != overloaded.figures["fcfs"].mean_ttlt_s


def test_the_timeline_is_bounded_and_in_order(overloaded: BenchResult) -> None:
    """Plots get the whole run in a bounded number of moments."""
    for run in overloaded.runs.values():
        times_s = [moment.time_s for moment in run.timeline]
        assert times_s == sorted(times_s)
        assert len(times_s) < 2 * TIMELINE_POINTS
        assert times_s[-1] > 0.9 * run.figures.makespan_s
        assert all(0.0 <= moment.kv_share <= 1.0 for moment in run.timeline)


def test_progress_counts_the_requests_of_all_runs() -> None:
    """Whoever waits sees how far the whole is: it only grows, and ends where it said it would."""
    told: list[tuple[int, int]] = []
    spec = BenchSpec(requests=30, warmup=0, policies=("sage", "fcfs"))
    run_bench(spec, timer=time.perf_counter, progress=lambda *report: told.append(report))
    assert {total for _, total in told} == {90}, "the capacity and two policies"
    assert told == sorted(told)
    assert told[-1] == (90, 90)


TUNED = BenchSpec(load=1.2, requests=200, warmup=200, seeds=(3, 4), policies=("fcfs", "sage"), tuned=True)


@pytest.fixture(scope="module")
def tuned() -> BenchResult:
    """A baseline at its best and us as we are, on two seeds."""
    return run_bench(TUNED, timer=time.perf_counter, processes=2)


def test_a_tuned_baseline_has_its_best_watermark_and_we_are_never_tuned(tuned: BenchResult) -> None:
    """All watermarks were tried on every seed, the best by mean TTLT stands for the baseline, and ours is vLLM's default."""
    for seed in tuned.seeds:
        tried = seed.policies["fcfs"].tried
        assert tuple(trial.figures.watermark for trial in tried) == WATERMARKS
        assert seed.policies["fcfs"].best.figures.mean_ttlt_s == min(trial.figures.mean_ttlt_s for trial in tried)
        assert [trial.figures.watermark for trial in seed.policies["sage"].tried] == [0.0]
    assert tuned.as_json()["tuned"] is True


def test_watermarks_make_a_difference(tuned: BenchResult) -> None:
    """The sweep reaches the engine: no two watermarks come out the same where memory is short."""
    tried = tuned.seeds[0].policies["fcfs"].tried
    assert len({trial.figures.mean_ttlt_s for trial in tried}) == len(WATERMARKS)


def test_tuned_load_is_relative_to_what_tuned_first_come_first_served_does(tuned: BenchResult) -> None:
    """The capacity is that of the watermark under which first come, first served does most, so never less than stock's."""
    stock = bench(dataclasses.replace(TUNED, tuned=False, policies=("fcfs",)))
    for seed, as_it_comes in zip(tuned.seeds, stock.seeds, strict=True):
        assert seed.capacity_rps >= as_it_comes.capacity_rps
        assert as_it_comes.capacity_watermark == 0.0


def test_several_seeds_are_reported_as_means_with_what_lies_behind_them(tuned: BenchResult) -> None:
    """A mean is the mean of what each seed gives alone, the spread encloses it, and ratios are taken seed by seed."""
    alone = [bench(dataclasses.replace(TUNED, seeds=(seed,))) for seed in TUNED.seeds]
    for policy in TUNED.policies:
        means = [result.figures[policy].mean_ttlt_s for result in alone]
        spread = tuned.spread(policy, "mean_ttlt_s")
        assert (spread.mean, spread.lowest, spread.highest) == (np.mean(means), min(means), max(means))
        assert tuned.figures[policy].mean_ttlt_s == spread.mean
    ratios = [result.figures["sage"].p99_ttlt_s / result.figures["fcfs"].p99_ttlt_s for result in alone]
    assert tuned.ratio("sage", "fcfs", "p99_ttlt_s").mean == pytest.approx(np.mean(ratios))
    report = json.loads(json.dumps(tuned.as_json("fcfs")))
    assert report["seeds"] == [3, 4]
    assert [seed["policies"]["sage"]["mean_ttlt_s"] for seed in report["by_seed"]] == [
        result.figures["sage"].mean_ttlt_s for result in alone
    ]
    assert report["ratios"]["fcfs"]["mean_ttlt_s"] == {"mean": 1.0, "lowest": 1.0, "highest": 1.0}


def test_where_all_requests_are_of_one_class_priority_is_first_come_first_served() -> None:
    """The engine's own order by classes, so that it is a baseline of its own only where there are several."""
    result = bench(BenchSpec(load=6.0, requests=300, warmup=0, policies=("fcfs", "priority")))
    fcfs, priority = (result.seeds[0].policies[name].best for name in ("fcfs", "priority"))
    assert fcfs.completed == priority.completed
    assert fcfs.figures.preemptions > 0


def test_a_batch_under_priority_is_served_to_its_end() -> None:
    """Of requests that arrived at one moment the first is the victim, as in vLLM, so that a step may compute nothing."""
    result = bench(BenchSpec(arrivals="at-once", requests=300, warmup=0, policies=("priority",)))
    assert len(result.runs["priority"].completed) == 300
    assert result.runs["priority"].figures.preemptions > 0


def test_a_tuned_engine_of_its_own_order_tries_token_budgets_as_well() -> None:
    """Each with each watermark, and the budget reaches the engine; other baselines keep the profile's."""
    spec = BenchSpec(load=1.2, requests=60, warmup=0, policies=("fcfs", "ssjf"), tuned=True, budgets=(256,))
    tried = bench(spec).seeds[0].policies["fcfs"].tried
    assert [(trial.figures.watermark, trial.token_budget) for trial in tried] == [
        (watermark, budget) for watermark in WATERMARKS for budget in (None, 256)
    ]
    assert tried[0].figures.mean_ttft_s != tried[1].figures.mean_ttft_s
    assert {trial.token_budget for trial in bench(spec).seeds[0].policies["ssjf"].tried} == {None}


def test_without_lives_the_figures_are_the_same() -> None:
    """A thousand runs fit into memory: what is left out is each request's life and the engine's state over time."""
    spec = BenchSpec(requests=60, warmup=0, policies=("fcfs",))
    (whole,), (figures_alone,) = (run_benches([spec], timer=lambda: 0.0, lives=lives) for lives in (True, False))
    assert whole.figures == figures_alone.figures
    assert whole.capacity_rps == figures_alone.capacity_rps
    assert not figures_alone.runs["fcfs"].completed
    assert whole.runs["fcfs"].parts == figures_alone.runs["fcfs"].parts


def test_a_run_that_two_benchmarks_share_is_done_once() -> None:
    """A sweep over loads measures the capacity of a seed once."""
    served: list[tuple[int, int]] = []
    specs = [BenchSpec(load=load, requests=30, warmup=0, policies=("fcfs",)) for load in (0.5, 1.0)]
    complete: list[int] = []
    low, high = run_benches(
        specs,
        timer=time.perf_counter,
        progress=lambda *report: served.append(report),
        on_result=lambda number, _result: complete.append(number),
    )
    assert complete == [0, 1], "each is reported when it is complete"
    assert served[-1] == (90, 90), "one capacity and two loads"
    assert low.capacity_rps == high.capacity_rps
    assert low.figures["fcfs"].makespan_s > high.figures["fcfs"].makespan_s


def test_what_fails_in_another_process_is_told_here_and_ends_them_all() -> None:
    """Bad input that only a run finds comes out as the same error, and no process is left behind."""
    before = set(multiprocessing.active_children())
    with pytest.raises(WorkloadError, match="nowhere"):
        run_bench(BenchSpec(workload="nowhere.parquet", seeds=(1, 2)), timer=time.perf_counter, processes=2)
    assert set(multiprocessing.active_children()) == before


def test_the_table_and_the_page_show_every_policy(overloaded: BenchResult, tmp_path: Path) -> None:
    """What people read has the same figures as the JSON, and the page needs no network."""
    console = Console(width=300, record=True, file=None, quiet=True)
    console.print(bench_table(overloaded))
    page_path = tmp_path / "report.html"
    write_html([overloaded], page_path, "fcfs")
    page = page_path.read_text(encoding="utf-8")
    for policy, policy_figures in overloaded.figures.items():
        assert policy in page
        assert f"{policy_figures.mean_ttlt_s:.2f}" in page
    assert page.count("plotly-graph-div") >= 6
    assert 'src="https' not in page


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 50), st.floats(0, 50)), min_size=1, max_size=40))
def test_the_figures_are_those_of_the_lives(spans: list[tuple[float, float, float]]) -> None:
    """Means, percentiles and spans come out as defined."""
    lives = [
        life(number, arrival, arrival + wait, arrival + wait + decode)
        for number, (arrival, wait, decode) in enumerate(spans)
    ]
    totals = Totals(steps=1, computed_tokens=100, recomputed_tokens=25, preemptions=7, completed=lives)
    found = figures(totals)
    ttlt_s = [wait + decode for _, wait, decode in spans]
    assert found.mean_ttlt_s == pytest.approx(np.mean(ttlt_s), abs=1e-9)
    assert found.max_ttlt_s == pytest.approx(max(ttlt_s), abs=1e-9)
    assert found.mean_ttft_s == pytest.approx(np.mean([wait for _, wait, _ in spans]), abs=1e-9)
    assert found.mean_tpot_s == pytest.approx(np.mean([decode / 10 for _, _, decode in spans]), abs=1e-9)
    assert found.p50_ttlt_s <= found.p90_ttlt_s <= found.p99_ttlt_s <= found.max_ttlt_s
    assert (found.preemptions, found.recompute_tax) == (7, 0.25)


def test_parts_are_short_and_long_prompts_and_classes_where_there_are_several() -> None:
    """A class's longest TTFT is its own, and where all are alike there are no parts."""
    requests = [
        TraceRequest(
            request_id=f"r{number}",
            arrival_s=0.0,
            token_ids=(1,) * prompt_tokens,
            max_tokens=20,
            true_output_tokens=11,
            priority=priority,
        )
        for number, (prompt_tokens, priority) in enumerate([(10, 0), (1_999, 5), (2_000, 5)])
    ]
    lives = [
        dataclasses.replace(
            life(n, 0.0, 1.0 + n, 10.0), prompt_tokens=len(request.token_ids), request_id=request.request_id
        )
        for n, request in enumerate(requests)
    ]
    parts = parts_of(lives, requests)
    assert {name: part.requests for name, part in parts.items()} == {"short": 2, "long": 1, "class 0": 1, "class 5": 2}
    assert parts["class 5"].max_ttft_s == 3.0
    assert parts["class 5"].mean_ttft_s == 2.5
    assert parts["short"].mean_ttlt_s == 10.0
    assert parts_of(lives[:1], requests) == {}


def test_capacity_leaves_out_the_start_and_the_stragglers() -> None:
    """A slow beginning and one endless answer do not change what is served at full backlog."""
    steady = [life(n, 0.0, 1.0, 50.0 + 0.25 * n) for n in range(101)]
    assert capacity_rps(steady) == pytest.approx(4.0)
    late = [*steady[:-1], life(100, 0.0, 1.0, 5000.0)]
    assert capacity_rps(late) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"profile": "h100"}, "h100"),
        ({"load": 0.0}, "load"),
        ({"load": float("nan")}, "load"),
        ({"requests": 3}, "requests"),
        ({"warmup": -1}, "warmup"),
        ({"policies": ("lifo",)}, "lifo"),
        ({"policies": ()}, "policies"),
        ({"policies": ("sage", "sage")}, "twice"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "twice"),
        ({"seeds": (-1,)}, "-1"),
        ({"budgets": (0,)}, "token budget"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_name(changes: dict[str, object], named: str) -> None:
    """Bad input is told at once, before anything runs."""
    with pytest.raises(ConfigError, match=named):
        BenchSpec(**changes)  # type: ignore[arg-type]


def test_a_workload_that_is_not_there_is_refused() -> None:
    """The file's name is in the message."""
    with pytest.raises(WorkloadError, match=r"nowhere\.parquet"):
        bench(BenchSpec(workload="nowhere.parquet", requests=10))
