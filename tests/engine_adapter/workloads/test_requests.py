from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.workloads.arrivals import ArrivalPlan, all_at_zero
from engine_adapter.workloads.requests import (
    DEFAULT_MAX_TOKENS,
    SYNTHETIC,
    Workload,
    WorkloadRow,
    bench_trace,
    fitting,
    planned_arrivals,
    request_stream,
    sample,
    split,
    to_requests,
    with_arrivals,
)
from store.errors import WorkloadError


def row(number: int, **changes: object) -> WorkloadRow:
    plain = WorkloadRow(
        task="t", model="m", prompt=f"question {number}", prompt_len_tokens=20, response_len_tokens=number + 1
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


PLAIN = Workload(name="plain", rows=tuple(row(number) for number in range(50)))
TIMED = Workload(
    name="timed",
    rows=tuple(row(number, prompt=None, arrival_s=float(number**2)) for number in reversed(range(50))),
)


@given(requests=st.integers(1, 50), seed=st.integers(0, 2**32))
def test_a_sample_is_without_replacement_and_depends_on_the_seed_alone(requests: int, seed: int) -> None:
    """As many rows as asked for, each at most once, the same for the same seed; a larger sample goes on."""
    drawn = sample(PLAIN, requests, seed)
    assert len(drawn) == requests
    assert max(Counter(drawn.rows).values()) == 1
    assert set(drawn.rows) <= set(PLAIN.rows)
    assert drawn == sample(PLAIN, requests, seed)
    assert sample(PLAIN, 50, seed).rows[:requests] == drawn.rows


def test_a_sample_shuffles() -> None:
    """Another seed gives another order of the same rows."""
    assert sample(PLAIN, 50, 1).rows != sample(PLAIN, 50, 2).rows
    assert set(sample(PLAIN, 50, 1).rows) == set(PLAIN.rows)


def test_a_sample_of_a_trace_is_a_window_in_order_of_time() -> None:
    """Arrivals of a trace keep their neighbours; seeds start in different places."""
    starts = set()
    for seed in range(8):
        times_s = [one.arrival_s for one in sample(TIMED, 10, seed).rows]
        root = int(np.sqrt(times_s[0] or 0.0))
        assert times_s == [float((root + step) ** 2) for step in range(10)]
        starts.add(root)
    assert len(starts) > 3


def test_a_split_gives_the_first_rows_and_the_next() -> None:
    """Nothing is in both."""
    warmup, measured = split(PLAIN, warmup=20, measured=25)
    assert tuple(warmup) == PLAIN.rows[:20]
    assert tuple(measured) == PLAIN.rows[20:45]


def test_more_rows_than_there_are_and_none_at_all_are_refused() -> None:
    """The message says how many there are."""
    with pytest.raises(WorkloadError, match="plain has 50 rows and 51 were asked for"):
        sample(PLAIN, 51, 0)
    with pytest.raises(WorkloadError, match="plain has 50 rows and 60 were asked for"):
        split(PLAIN, warmup=30, measured=30)
    with pytest.raises(WorkloadError, match="0 requests"):
        sample(PLAIN, 0, 0)
    with pytest.raises(WorkloadError, match="no row of workload plain fits into 20 tokens"):
        fitting(PLAIN, tokens=20)


def test_what_would_never_fit_is_left_out() -> None:
    """Prompt and answer together decide."""
    assert fitting(PLAIN, tokens=30).rows == PLAIN.rows[:10]


def test_a_work_has_its_rows_lengths_and_a_limit_that_tells_nothing() -> None:
    """Prompt length exact, answer's length kept for the device, one limit for all that bring none."""
    rows = (row(0), row(900, client="c", priority=-1), row(3, max_tokens=16), row(4, prompt=None))
    works = to_requests(rows, [0.0, 1.0, 2.0, 3.0], seed=1)
    assert [len(work.token_ids) for work in works] == [20] * 4
    assert [work.true_output_tokens for work in works] == [1, 901, 4, 5]
    assert [work.max_tokens for work in works] == [DEFAULT_MAX_TOKENS, DEFAULT_MAX_TOKENS, 16, DEFAULT_MAX_TOKENS]
    assert [work.arrival_s for work in works] == [0.0, 1.0, 2.0, 3.0]
    assert (works[1].tenant, works[1].priority) == ("c", -1)
    assert len({work.request_id for work in works}) == 4


def test_token_ids_follow_what_is_known_of_the_prompt() -> None:
    """The same text gives the same ids whatever the seed; hashes share prefixes; nothing known shares nothing."""
    unknown = row(0, prompt=None, prompt_len_tokens=600)
    rows = (row(7), unknown, unknown, replace(unknown, block_hashes=(4, 5)), replace(unknown, block_hashes=(4, 6)))
    works = to_requests(rows, all_at_zero(5), seed=1)
    again = to_requests(rows, all_at_zero(5), seed=2)
    assert works[0].token_ids == again[0].token_ids
    assert works[1].token_ids != again[1].token_ids
    assert works[1].token_ids[:16] != works[2].token_ids[:16]
    assert works[3].token_ids[:512] == works[4].token_ids[:512]
    assert works[3].token_ids[512:] != works[4].token_ids[512:]


def test_arrivals_can_be_exchanged_without_touching_the_rest() -> None:
    """So that capacity and load are measured on the same works."""
    works = to_requests(PLAIN.rows, all_at_zero(50), seed=1)
    moved = with_arrivals(works, [float(number) for number in range(50)])
    assert [work.arrival_s for work in moved] == list(range(50))
    assert with_arrivals(moved, all_at_zero(50)) == works


def test_a_rate_is_drawn_or_stretched_from_the_works_own_times() -> None:
    """A trace keeps its shape unless a variation is asked for; works without times are drawn."""
    timed = to_requests(TIMED.rows[::-1], [one.arrival_s or 0.0 for one in TIMED.rows[::-1]], seed=1)
    stretched_s = planned_arrivals(timed, ArrivalPlan(), rate_rps=2.0, seed=0)
    assert stretched_s.tolist() == pytest.approx([number**2 / 49 / 2 for number in range(50)])
    drawn_s = planned_arrivals(timed, ArrivalPlan("gamma"), rate_rps=2.0, seed=0)
    plain = to_requests(PLAIN.rows, all_at_zero(50), seed=1)
    assert drawn_s.tolist() == planned_arrivals(plain, ArrivalPlan(), rate_rps=2.0, seed=0).tolist()
    assert drawn_s.tolist() != planned_arrivals(plain, ArrivalPlan(), rate_rps=2.0, seed=1).tolist()


def test_bench_works_of_a_file_are_a_warm_up_and_a_measured_part(
    tmp_path: Path, write_parquet: Callable[[Workload, Path], None]
) -> None:
    """Each row once, ids unique, all at zero, the same for the same arguments."""
    write_parquet(PLAIN, tmp_path / "plain.parquet")
    bench = bench_trace(tmp_path / "plain.parquet", requests=30, warmup=20, seed=3)
    assert (len(bench.warmup), len(bench.measured), bench.timed) == (20, 30, False)
    assert len({work.request_id for work in bench.warmup + bench.measured}) == 50
    assert sorted(work.true_output_tokens for work in bench.warmup + bench.measured) == list(range(1, 51))
    assert {work.arrival_s for work in bench.warmup + bench.measured} == {0.0}
    assert [one.response_len_tokens for one in bench.measured_rows] == [w.true_output_tokens for w in bench.measured]
    assert bench == bench_trace(str(tmp_path / "plain.parquet"), requests=30, warmup=20, seed=3)


def test_bench_works_of_a_trace_keep_its_times_from_zero(
    tmp_path: Path, write_parquet: Callable[[Workload, Path], None]
) -> None:
    """The measured part starts at its own zero."""
    write_parquet(TIMED, tmp_path / "timed.parquet")
    bench = bench_trace(tmp_path / "timed.parquet", requests=30, warmup=20, seed=3)
    assert bench.timed
    assert [work.arrival_s for work in bench.measured] == [float(n**2 - 20**2) for n in range(20, 50)]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_built_in_workloads_need_no_file(name: str) -> None:
    """By name, repeatable, with texts, and within a cache when asked."""
    bench = bench_trace(name, requests=40, warmup=60, seed=5, kv_tokens=500)
    assert (len(bench.warmup), len(bench.measured)) == (60, 40)
    assert bench == bench_trace(name, requests=40, warmup=60, seed=5, kv_tokens=500)
    assert bench != bench_trace(name, requests=40, warmup=60, seed=6, kv_tokens=500)
    assert max(len(work.token_ids) + work.true_output_tokens for work in bench.warmup + bench.measured) <= 500


def test_the_drifting_workload_drifts_in_the_middle_of_the_measured_part() -> None:
    """Before that it is the plain one."""
    plain, drifting = (bench_trace(name, requests=400, warmup=100, seed=5) for name in ("synthetic", "synthetic:drift"))
    assert drifting.warmup == plain.warmup
    assert drifting.measured[:200] == plain.measured[:200]
    assert drifting.measured[200:] != plain.measured[200:]


def test_bench_works_refuse_what_cannot_be() -> None:
    """No requests, a negative warm-up, a cache that holds nothing."""
    for requests, warmup in ((0, 5), (5, -1)):
        with pytest.raises(WorkloadError, match=f"{requests} requests after {warmup} of warm-up"):
            bench_trace("synthetic", requests=requests, warmup=warmup, seed=0)
    with pytest.raises(WorkloadError, match="exceed 5 KV tokens"):
        bench_trace("synthetic", requests=5, warmup=0, seed=0, kv_tokens=5)


@pytest.mark.slow
def test_an_endless_stream_of_works_keeps_its_rate_and_its_order() -> None:
    """Ids are unique, times never fall, the mean rate is right, the same seed gives the same works."""
    works = list(islice(request_stream(seed=3, rate_rps=8.0), 3000))
    times_s = [work.arrival_s for work in works]
    assert times_s == sorted(times_s)
    assert len({work.request_id for work in works}) == 3000
    assert 3000 / times_s[-1] == pytest.approx(8.0, rel=0.06)
    assert list(islice(request_stream(seed=3, rate_rps=8.0), 300)) == works[:300]
    assert list(islice(request_stream(seed=4, rate_rps=8.0), 300)) != works[:300]
