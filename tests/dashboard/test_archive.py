from pathlib import Path

import pytest

from dashboard import prompts_archive
from dashboard.archive import BUCKETS_SHOWN, Archive, ArchiveTrouble, Scope, read_archive, read_settings


def archive(answer: object) -> Archive:
    assert isinstance(answer, Archive)
    return answer


def test_the_whole_history_is_summed(recorded: Path) -> None:
    """Every request is counted once, in its bucket, with its latencies."""
    whole = archive(read_archive(recorded, Scope()))
    counts = {name: rows for name, _, rows in whole.rows}
    assert counts["requests"] == counts["completions"] == counts["predictions"] == 300
    assert sum(count for _, count in whole.finished) == 300
    assert whole.newest_s == 1_767_225_600.0
    busy = [row for row in whole.ttlt if row.requests]
    assert all(row.p50_s is not None and 2.0 <= row.p50_s <= 8.0 for row in busy)
    assert {row.p50_s for row in whole.ttft} == {1.0}
    assert {row.within_90 for row in whole.coverage} == {1.0}
    assert sum(row.within_50 or 0 for row in whole.coverage) / len(whole.coverage) == pytest.approx(0.5, abs=0.05)


def test_a_range_counts_back_from_the_newest_request(recorded: Path) -> None:
    """Old history is as readable as fresh: no clock is asked."""
    last = archive(read_archive(recorded, Scope(600.0)))
    assert sum(count for _, count in last.finished) == 121
    assert len(last.finished) <= BUCKETS_SHOWN + 2


def test_an_empty_history_has_tables_and_no_rows(empty_history: Path) -> None:
    """Nothing recorded is no trouble."""
    nothing = archive(read_archive(empty_history, Scope()))
    assert nothing.newest_s is None
    assert nothing.rows
    assert all(rows == 0 for _, _, rows in nothing.rows)


def test_a_missing_or_broken_history_is_a_value(tmp_path: Path) -> None:
    """The page says what is the matter instead of failing."""
    absent = read_archive(tmp_path / "nowhere", Scope())
    assert isinstance(absent, ArchiveTrouble)
    assert absent.kind == "absent"
    (tmp_path / "catalog.duckdb").write_bytes(b"no database")
    assert isinstance(read_archive(tmp_path, Scope()), ArchiveTrouble)


def test_engine_and_model_narrow_what_is_summed(recorded: Path) -> None:
    """One in ten was served by the second engine, whose model is another."""
    for scope in (Scope(engine_id="engine-1"), Scope(model="small"), Scope(engine_id="engine-1", model="small")):
        narrow = archive(read_archive(recorded, scope))
        assert sum(count for _, count in narrow.finished) == 30
    assert archive(read_archive(recorded, Scope(engine_id="engine-0", model="small"))).newest_s is None


def test_latency_is_parted_by_class_tenant_model_and_cluster(recorded: Path) -> None:
    """Every request is in one part of each kind; one token takes the time after the first over the others."""
    whole = archive(read_archive(recorded, Scope()))
    assert {(part.by, part.name): part.requests for part in whole.parts} == {
        ("class", "0"): 300, ("tenant", "none"): 300, ("model", "qwen3-32b"): 270, ("model", "small"): 30,
        ("cluster", "1"): 300,
    }  # fmt: skip
    assert all(1 / 39 <= row.p50_s <= 7 / 39 for row in whole.tpot if row.p50_s is not None)


def test_settings_are_told_with_their_reasons(recorded: Path) -> None:
    """Of all engines, or of the one that is asked for."""
    everywhere, one = read_settings(recorded, None, None, 50), read_settings(recorded, "engine-1", None, 50)
    assert not isinstance(everywhere, ArchiveTrouble)
    assert not isinstance(one, ArchiveTrouble)
    assert {row["Why"] for row in everywhere} == {"reserve more on engine-0", "reserve more on engine-1"}
    assert [(row["Engine"], row["Margin"]) for row in one] == [("engine-1", 1.15)]


def test_prompt_clusters_have_size_lengths_drift_weights_and_samples(recorded: Path) -> None:
    """Parted by model; a prompt that was not stored is not shown."""
    found = prompts_archive.read_prompts(recorded, Scope())
    assert isinstance(found, prompts_archive.Prompts)
    large, small = found.clusters
    assert (large.model, large.answers, large.drifts, large.last_drift) == ("qwen3-32b", 270, 1, "90 to 40 tokens")
    assert (small.model, small.answers, small.drifts) == ("small", 30, 0)
    assert large.quantiles == [40.0] * 6
    assert [(*rest, round(weight, 9)) for *rest, weight in found.weights] == [
        (model, 1, name, weight)
        for model in ("qwen3-32b", "small")
        for name, weight in (("cluster", 0.7), ("global", 0.3))
    ]
    detail = prompts_archive.read_cluster(recorded, Scope(), "qwen3-32b", 1)
    assert isinstance(detail, prompts_archive.ClusterDetail)
    assert sum(answers for _, answers in detail.lengths) == 270
    assert len(detail.drifts) == 1
    assert len(detail.samples) == prompts_archive.SAMPLES
    assert detail.samples[0]["Features"] == [0.1, 0.2, 0.3, 0.4]
    assert detail.samples[0]["Prompt (token ids)"] is None
