"""What a variant changes of a workload, and what it leaves alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.workloads.requests import bench_trace
from engine_adapter.workloads.rows import Workload, WorkloadRow
from engine_adapter.workloads.synthetic import MAX_RESPONSE_TOKENS, synthetic_stream
from engine_adapter.workloads.variants import VARIANTS, Variant, split_variant, varied
from store.errors import WorkloadError

WORKLOAD = Workload(name="synthetic", rows=tuple(islice(synthetic_stream(seed=2), 600)))
ROWS = WORKLOAD.rows


def lengths(rows: tuple[WorkloadRow, ...]) -> list[int]:
    return [row.response_len_tokens for row in rows]


@pytest.mark.slow
@given(variant=st.sampled_from(VARIANTS), seed=st.integers(0, 1000), drift_at=st.integers(0, 700))
def test_only_the_lengths_change_and_a_seed_decides(variant: Variant, seed: int, drift_at: int) -> None:
    """Prompts, times, classes and limits stay, no answer is empty, and the same arguments give the same rows."""
    found = varied(ROWS, variant, drift_at=drift_at, seed=seed)
    assert [replace(row, response_len_tokens=1) for row in found] == [
        replace(row, response_len_tokens=1) for row in ROWS
    ]
    assert min(lengths(found)) >= 1
    assert found == varied(ROWS, variant, drift_at=drift_at, seed=seed)


def test_without_a_signal_the_lengths_are_the_same_ones_elsewhere() -> None:
    """The distribution stays, and what a task tells of it goes."""
    found = varied(ROWS, "no-signal", drift_at=0, seed=1)
    assert sorted(lengths(found)) == sorted(lengths(ROWS))

    def spread(rows: tuple[WorkloadRow, ...]) -> float:
        """Of the tasks' mean log lengths, in which the signal lies."""
        tasks = {row.task for row in rows}
        means = [np.mean([np.log(row.response_len_tokens) for row in rows if row.task == task]) for task in tasks]
        return float(np.std(means))

    assert spread(found) < 0.4 * spread(ROWS)


def test_a_drift_begins_where_it_is_told_and_goes_both_ways() -> None:
    """Before, nothing changes; afterwards some tasks' answers double and the others' halve."""
    found = varied(ROWS, "drift", drift_at=300, seed=1)
    assert found[:300] == ROWS[:300]
    ratios = {
        row.task: round(after.response_len_tokens / row.response_len_tokens, 1)
        for row, after in zip(ROWS[300:], found[300:], strict=True)
        if row.response_len_tokens > 40
    }
    assert set(ratios.values()) == {0.5, 2.0}


def test_a_heavy_tail_makes_some_answers_much_longer_and_none_shorter() -> None:
    """One in twenty, up to what a model can answer at all."""
    before, after = np.array(lengths(ROWS)), np.array(lengths(varied(ROWS, "heavy-tail", drift_at=0, seed=1)))
    assert (after >= before).all()
    assert 0.02 < (after > before).mean() < 0.08
    assert (after / before).max() > 4.0
    assert after.max() <= MAX_RESPONSE_TOKENS


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_file_may_be_varied_and_still_fits(
    variant: Variant, tmp_path: Path, write_parquet: Callable[[Workload, Path], None]
) -> None:
    """By the file's name with the variant behind it; what must fit into the cache fits; long rows are told of."""
    write_parquet(WORKLOAD, tmp_path / "w.parquet")
    plain = bench_trace(tmp_path / "w.parquet", requests=100, warmup=50, seed=3, kv_tokens=900)
    found = bench_trace(f"{tmp_path}/w.parquet:{variant}", requests=100, warmup=50, seed=3, kv_tokens=900)
    assert found.name == f"w:{variant}"
    assert [work.token_ids for work in found.measured] == [work.token_ids for work in plain.measured]
    assert max(len(work.token_ids) + work.true_output_tokens for work in found.measured) <= 900
    assert found.left_out_share == plain.left_out_share > 0.0
    assert lengths(found.measured_rows) != lengths(plain.measured_rows)


def test_the_drift_of_a_file_comes_in_the_middle_of_what_is_measured(
    tmp_path: Path, write_parquet: Callable[[Workload, Path], None]
) -> None:
    """The warm-up and the first half are as they were."""
    write_parquet(WORKLOAD, tmp_path / "w.parquet")
    plain, found = (
        bench_trace(f"{tmp_path}/w.parquet{variant}", requests=100, warmup=50, seed=3) for variant in ("", ":drift")
    )
    assert found.warmup == plain.warmup
    assert found.measured[:50] == plain.measured[:50]
    assert all(
        a.true_output_tokens != b.true_output_tokens or a.true_output_tokens == 1
        for a, b in zip(found.measured[50:], plain.measured[50:], strict=True)
    )


def test_an_unknown_variant_is_refused_and_a_path_with_a_colon_is_none() -> None:
    """The choice is named; folders may have any name."""
    with pytest.raises(WorkloadError, match=r"'wave'.*heavy-tail"):
        split_variant("mix.parquet:wave")
    assert split_variant("/a:b/mix.parquet") == ("/a:b/mix.parquet", None)
