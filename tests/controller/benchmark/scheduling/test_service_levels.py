import json
import time
from collections import Counter
from dataclasses import replace

import pytest
from rich.console import Console

from controller.benchmark.scheduling.bearable import BearableLoad, bearable_loads
from controller.benchmark.scheduling.benchmark import run_bench
from controller.benchmark.scheduling.inter_token_times import InterTokenTimes
from controller.benchmark.scheduling.result import BenchResult
from controller.benchmark.scheduling.run import RunSpec, run_policy
from controller.benchmark.scheduling.service_mix import MIXES, in_classes, mix_named, told
from controller.benchmark.scheduling.service_report import over_best_baseline, service_table
from controller.benchmark.scheduling.spec import BenchSpec
from controller.cli.main import run
from controller.reports.service_figures import ServedRequest, service_figures
from engine_adapter.transport.link import NoLink
from engine_adapter.virtual_time.engine import CompletedRequest, Step, TraceRequest, serve
from engine_adapter.virtual_time.profiles import profile_named
from engine_adapter.virtual_time.simulated_engine import SimulatedEngine
from store.errors import ConfigError
from store.records import FinishReason, Targets

CHAT = ("chat", Targets(ttft_s=2.0, tpot_s=0.1))
AGENT = ("agents", Targets(e2e_s=30.0))
BATCH = ("batch", None)


def ended(
    request_id: str, *, ttft_s: float, ttlt_s: float, tokens: int = 11, reason: FinishReason = "stop"
) -> CompletedRequest:
    """A request that arrived at second 5."""
    return CompletedRequest(
        request_id=request_id,
        arrival_s=5.0,
        scheduled_s=5.0 + (ttft_s - 0.5 if ttft_s < 2.5 else 0.0),
        first_token_s=5.0 + ttft_s,
        finished_s=5.0 + ttlt_s,
        prompt_tokens=5,
        output_tokens=tokens,
        reason=reason,
        preemptions=0,
        recomputed_tokens=0,
    )


def test_goodput_is_the_share_of_requests_with_targets_that_met_all_of_theirs() -> None:
    """Each target has its own attainment, a request without targets is not asked, and one without its end misses."""
    figures = service_figures(
        [
            ServedRequest(ended("good", ttft_s=2.0, ttlt_s=3.0), *CHAT),
            ServedRequest(ended("late", ttft_s=2.1, ttlt_s=3.0), *CHAT),
            ServedRequest(ended("slow", ttft_s=1.0, ttlt_s=2.1), *CHAT),
            ServedRequest(ended("both", ttft_s=3.0, ttlt_s=9.0), *CHAT),
            ServedRequest(ended("gone", ttft_s=0.6, ttlt_s=0.7, reason="abort"), *CHAT),
            ServedRequest(ended("job", ttft_s=29.0, ttlt_s=30.0), *AGENT),
            ServedRequest(ended("free", ttft_s=500.0, ttlt_s=600.0), *BATCH),
        ]
    )
    assert (figures.all.requests, figures.all.asked, figures.goodput) == (7, 6, 2 / 6)
    assert figures.all.attainment == {"ttft": 2 / 5, "tpot": 2 / 5, "e2e": 1.0}
    assert figures.all.missed == {"ttft": 1, "tpot": 1, "ttft+tpot": 2}
    assert figures.all.causes == {"queued": 1, "prefill": 1, "paced": 1, "shed": 1}
    assert figures.classes["chat"].goodput == pytest.approx(1 / 5)
    assert figures.classes["agents"].goodput == pytest.approx(1.0)
    assert figures.classes["batch"].goodput is None
    assert figures.classes["batch"].makespan_s == pytest.approx(600.0)


def requests(count: int) -> list[TraceRequest]:
    """Requests of a prompt of 30 tokens and an answer of 20, all at once."""
    return [
        TraceRequest(
            request_id=f"request-{number}",
            arrival_s=0.0,
            token_ids=tuple(range(30 * number, 30 * number + 30)),
            max_tokens=20,
            true_output_tokens=20,
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("name", MIXES)
def test_the_classes_of_a_mix_have_their_shares_and_each_request_always_the_same(name: str) -> None:
    """By its id and the seed, whatever else is served."""
    mix = mix_named(name)
    assert sum(one.share for one in mix) == pytest.approx(1.0)
    classed = in_classes(requests(4_000), mix, 7)
    counts = Counter(request.service_class for request in classed)
    assert all(counts[one.name] / 4_000 == pytest.approx(one.share, abs=0.03) for one in mix)
    assert in_classes(requests(4_000)[::-1], mix, 7) == classed[::-1]
    if len(mix) > 1:
        assert in_classes(requests(4_000), mix, 8) != classed


def test_each_policy_is_told_what_it_can_use() -> None:
    """Ours the targets; vLLM's order by priority the class's priority; all others, and ours without targets, neither."""
    mix = mix_named("chat-agents-batch")
    classed = in_classes(requests(50), mix, 1)
    priorities = {"chat": 0, "agents": 1, "batch": 2}
    assert told(classed, mix, "sage") == told(classed, mix, "sage-without-index") == classed
    by_priority = told(classed, mix, "priority")
    assert [request.priority for request in by_priority] == [priorities[one.service_class or ""] for one in classed]
    assert {request.targets for request in by_priority} == {None}
    for policy in ("fcfs", "fcfs-gated", "sagesched-paper/10-buckets", "sage-without-targets"):
        assert told(classed, mix, policy) == requests(50)


def test_an_unknown_mix_is_named_with_those_that_there_are() -> None:
    """Before anything runs."""
    with pytest.raises(ConfigError, match=r"'best'.*chat-agents-batch"):
        BenchSpec(mix="best")


@pytest.mark.parametrize("kv_blocks", [200, 24])
def test_inter_token_times_are_those_between_the_tokens_of_paced_requests(kv_blocks: int) -> None:
    """Together they last from first to last token of each; a preemption may hide one token of its request."""
    small = {"kv_tokens": 16 * kv_blocks, "max_model_len_tokens": 60, "token_budget": 40}
    profile = replace(profile_named("h800-qwen3-32b-24k"), **small)
    served = requests(12)
    times = InterTokenTimes({request.request_id: 0.5 for request in served[::2]})
    totals = serve(SimulatedEngine(profile, link=NoLink(), prefix_caching=False), served, on_step=times.add)
    paced = [one for one in totals.completed if int(one.request_id.removeprefix("request-")) % 2 == 0]
    preemptions = sum(one.preemptions for one in paced)
    assert (preemptions > 0) == (kv_blocks == 24)
    assert 0 <= sum(one.output_tokens - 1 for one in paced) - times.count <= preemptions
    lasted_s = sum(one.finished_s - one.first_token_s for one in paced)
    seen_s = (times.mean_over_target or 0.0) * times.count * 0.5
    assert 0.8 * lasted_s < seen_s < 1.001 * lasted_s
    assert preemptions or seen_s == pytest.approx(lasted_s, rel=1e-5)


def test_the_p99_of_inter_token_times_is_over_the_target() -> None:
    """A step of a second among steps of 0.1 s, one in fifty, with a target of 0.2 s; requests without one are not looked at."""
    times = InterTokenTimes({"paced": 0.2})
    assert times.p99_over_target is None
    for number in range(100):
        duration_s = 1.0 if number % 50 == 49 else 0.1
        times.add(Step(start_s=float(number), duration_s=duration_s, scheduled_tokens={"paced": 1, "other": 1}))
    assert times.p99_over_target == pytest.approx((1.0 + 1.0 - 0.1) / 0.2)


TUNED = BenchSpec(
    profile="h800-qwen3-32b",
    load=1.1,
    requests=60,
    warmup=40,
    seeds=(1, 2),
    policies=("fcfs", "priority", "sage", "sage-without-targets"),
    mix="chat-agents-batch",
    tuned=True,
    budgets=(512, 8_192),
)


@pytest.fixture(scope="module")
def tuned() -> BenchResult:
    """A small benchmark of service levels."""
    return run_bench(TUNED, timer=time.perf_counter)


def test_the_engines_own_orders_stand_at_their_best_goodput(tuned: BenchResult) -> None:
    """Over five watermarks and the budgets that are not the profile's own already; ours run once."""
    for seed in tuned.seeds:
        for name, result in seed.policies.items():
            assert len(result.tried) == (10 if name in {"fcfs", "priority"} else 1)
            goodputs = [trial.service.goodput for trial in result.tried if trial.service]
            assert result.best.service is not None
            assert result.best.service.goodput == max(goodputs)
            assert {trial.token_budget for trial in result.tried} <= {None, 512}


def test_the_report_has_service_levels_in_table_and_json(tuned: BenchResult) -> None:
    """Goodput by policy and class, the ratio to the best baseline on each seed, and nothing of it without a mix."""
    console = Console(width=300)
    with console.capture() as capture:
        console.print(service_table(tuned))
    assert "goodput" in capture.get()
    baselines = [
        max(seed.policies[name].chosen.service.goodput for name in ("fcfs", "priority")) for seed in tuned.seeds
    ]  # type: ignore[union-attr]
    ours = [figures.goodput for figures in tuned.service_of("sage")]
    ratios = [our / baseline for our, baseline in zip(ours, baselines, strict=True)]
    assert over_best_baseline(tuned, "sage") == pytest.approx(sum(ratios) / 2)
    of_seed = json.loads(json.dumps(tuned.as_json()))["by_seed"][0]["policies"]["sage"]
    assert of_seed["service"]["goodput"] == ours[0]
    assert set(of_seed["service"]["classes"]) == {"chat", "agents", "batch"}


def test_the_load_that_is_borne_is_the_best_over_the_settings(tuned: BenchResult) -> None:
    """At it the share meets its targets, and no other setting bears more."""

    def borne(settings: tuple[RunSpec, ...]) -> BearableLoad:
        seed = replace(tuned.seeds[0], settings={"fcfs": settings})
        few = replace(tuned, spec=replace(tuned.spec, policies=("fcfs",)), seeds=(seed,))
        (found,) = bearable_loads(few, 0.7, timer=time.perf_counter)
        return found

    settings = tuned.seeds[0].settings["fcfs"][:2]
    found = borne(settings)
    assert (found.policy, found.seed) == ("fcfs", 1)
    assert found.rps == max(borne((setting,)).rps for setting in settings)
    served = run_policy(replace(found.run, rate_rps=found.rps), time.perf_counter).service
    assert served is not None
    assert served.goodput >= 0.7


@pytest.mark.parametrize("flags", [["--bears", "0.9"], ["--slo", "--bears", "1"]])
def test_a_share_that_makes_no_sense_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In one line, before anything runs."""
    assert run(["bench", "--requests", "20", *flags]) == 2
    assert "--bears" in capsys.readouterr().err
