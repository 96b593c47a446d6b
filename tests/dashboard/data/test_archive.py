import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dashboard.data import prompts_archive
from dashboard.data.archive import ArchiveTrouble, Traffic, holds_prompts, read, read_settings, read_traffic
from dashboard.data.predictions_archive import PredictionsPast, read_predictions
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.http_api import BANDS_PER_DECADE
from store.http_requests import LatenciesView
from store.reading.latencies import read_latencies
from store.reading.scope import BUCKETS_SHOWN, Part, Scope
from store.records import Finished


def latencies(path: Path, scope: Scope) -> LatenciesView:
    found = read(path, partial(read_latencies, scope=scope))
    assert isinstance(found, LatenciesView)
    return found


def traffic(path: Path, scope: Scope) -> Traffic:
    found = read_traffic(path, scope)
    assert isinstance(found, Traffic)
    return found


def predictions(path: Path, scope: Scope) -> PredictionsPast:
    found = read_predictions(path, scope)
    assert isinstance(found, PredictionsPast)
    return found


def test_the_whole_history_is_summed(recorded: Path) -> None:
    """Every request is counted once, in its bucket, by how it ended and by its lengths."""
    whole = traffic(recorded, Scope())
    counts = {name: rows for name, _, rows in whole.rows}
    assert counts["requests"] == counts["completions"] == counts["predictions"] == 300
    assert {reason for _, reason, _ in whole.finished} == {"stop"}
    assert sum(count for *_, count in whole.finished) == 300
    assert whole.newest_s == 1_767_225_600.0
    for cells, tokens in ((whole.prompts, 100), (whole.outputs, 40), (whole.limits, 512)):
        assert sum(cell.requests for cell in cells) == 300
        assert {cell.band for cell in cells} == {math.floor(BANDS_PER_DECADE * math.log10(tokens))}


def test_latencies_are_summed_in_their_buckets(recorded: Path) -> None:
    """Percentiles, heatmaps and phases are of the same requests; one token takes the time after the first over the others."""
    whole = latencies(recorded, Scope())
    busy = [row for row in whole.ttlt if row.requests]
    assert sum(row.requests for row in busy) == whole.whole == 300
    assert all(row.p50_s is not None and 2.0 <= row.p50_s <= 8.0 for row in busy)
    assert {row.p50_s for row in whole.ttft} == {1.0}
    assert all(1 / 39 <= row.p50_s <= 7.01 / 39 for row in whole.tpot if row.p50_s is not None)
    for cells in (whole.ttft_heat, whole.ttlt_heat, whole.tpot_heat):
        assert sum(cell.requests for cell in cells) == 300
    assert {cell.band for cell in whole.ttft_heat} == {0}
    assert {row.queue_s for row in whole.phases} == {0.5}
    assert {row.prefill_s for row in whole.phases} == {0.5}


def test_predictions_are_judged_over_time(recorded: Path) -> None:
    """Score, coverage and experts' weights by bucket, what changed, and the latest outcomes one by one."""
    past = predictions(recorded, Scope())
    assert {row.crps_tokens for row in past.quality} == {3.0}
    assert {row.within_90 for row in past.quality} == {1.0}
    assert sum(row.within_50 or 0 for row in past.quality) / len(past.quality) == pytest.approx(0.5, abs=0.05)
    for start_s in {start_s for start_s, _, _ in past.weights}:
        shares = {name: weight for at_s, name, weight in past.weights if at_s == start_s}
        assert shares == {"cluster": pytest.approx(0.7), "global": pytest.approx(0.3)}
    assert [(event.kind, event.model, event.cluster) for event in past.events] == [
        ("merged", None, 4),
        ("drift", "qwen3-32b", 1),
    ]
    assert past.events[0].what == "into cluster 1"
    assert len(past.points) == 300
    assert {(point.p10_tokens, point.p50_tokens, point.pit) for point in past.points} == {(10, 40, 0.5)}
    assert [event.kind for event in predictions(recorded, Scope(model="small")).events] == ["merged"]


def test_a_range_counts_back_from_the_newest_request(recorded: Path) -> None:
    """Old history is as readable as fresh: no clock is asked."""
    last = latencies(recorded, Scope(600.0))
    assert last.whole == 121
    assert len(last.ttlt) <= BUCKETS_SHOWN + 2
    assert len(predictions(recorded, Scope(600.0)).points) == 121


def test_an_empty_history_has_tables_and_no_rows(empty_history: Path) -> None:
    """Nothing recorded is no trouble."""
    nothing = traffic(empty_history, Scope())
    assert nothing.newest_s is None
    assert nothing.rows
    assert all(rows == 0 for _, _, rows in nothing.rows)
    assert latencies(empty_history, Scope()).newest_s is None
    assert predictions(empty_history, Scope()).newest_s is None


def test_a_missing_or_broken_history_is_a_value(tmp_path: Path) -> None:
    """The page says what is the matter instead of failing."""
    absent = read_traffic(tmp_path / "nowhere", Scope())
    assert isinstance(absent, ArchiveTrouble)
    assert absent.kind == "absent"
    (tmp_path / "catalog.duckdb").write_bytes(b"no database")
    assert isinstance(read_traffic(tmp_path, Scope()), ArchiveTrouble)


def test_a_scope_with_an_end_shows_nothing_that_came_later(recorded: Path) -> None:
    """Requests, predictions and events alike; when the last request before its end ended is known also where none did."""
    end_s = 1_767_225_600.0
    past = Scope(span_s=300.0, until_s=end_s - 600.0)
    assert sum(count for *_, count in traffic(recorded, past).finished) == 61
    assert latencies(recorded, past).whole == len(predictions(recorded, past).points) == 61
    assert latencies(recorded, past).newest_s == end_s - 600.0
    assert [event.kind for event in predictions(recorded, past).events] == ["drift"], "clusters were merged later"
    later = latencies(recorded, Scope(span_s=300.0, until_s=end_s + 7200.0))
    assert (later.whole, later.newest_s, later.until_s) == (0, end_s, end_s + 7200.0)


@pytest.mark.parametrize("clock", [time.time, lambda: 1e11])
def test_one_clock_that_is_years_ahead_moves_no_range(
    clock: Callable[[], float], recorded: Path, tmp_path: Path
) -> None:
    """An engine's or, for a while, the controller's: it counts in no chart; where all is ahead it is believed."""
    end_s, ahead_s = 1_767_225_600.0, 1e11
    alone = tmp_path / "alone"
    finished = Finished(
        request_id="ahead",
        time_s=ahead_s,
        reason="stop",
        arrival_s=ahead_s - 3.0,
        prompt_tokens=100,
        output_tokens=40,
        max_tokens=512,
        cached_prompt_tokens=0,
        preemptions=0,
        recomputed_tokens=0,
        scheduled_s=ahead_s - 2.5,
        first_token_s=ahead_s - 2.0,
    )
    for path in (recorded, alone):
        with HistoryWriter(path, clock=clock) as writer:
            writer.append([Entry(engine_id="engine-2", session_id="u", batch=1, record=finished)])
    for scope in (Scope(), Scope(span_s=600.0)):
        found = latencies(recorded, scope)
        assert (found.newest_s, found.until_s) == (end_s, end_s)
        assert found.whole == (300 if scope.span_s is None else 121)
        assert max(cell.time_s for cell in found.ttft_heat) <= end_s
    assert latencies(alone, Scope()).newest_s == ahead_s


def test_a_history_that_cannot_be_read_whole_may_hold_prompts(recorded: Path, tmp_path: Path) -> None:
    """One that is not there holds none."""
    assert not holds_prompts(tmp_path / "none")
    assert not holds_prompts(recorded)
    segment = next((recorded / "segments" / "arrivals").rglob("*.parquet"))
    segment.write_bytes(b"PAR1 rotten")
    assert holds_prompts(recorded)


@pytest.mark.slow
def test_engine_and_model_narrow_what_is_summed(recorded: Path) -> None:
    """One in ten was served by the second engine, whose model is another."""
    for scope in (Scope(engine_id="engine-1"), Scope(model="small"), Scope(engine_id="engine-1", model="small")):
        assert sum(count for *_, count in traffic(recorded, scope).finished) == 30
        assert latencies(recorded, scope).whole == len(predictions(recorded, scope).points) == 30
    assert latencies(recorded, Scope(engine_id="engine-0", model="small")).newest_s is None


@pytest.mark.parametrize(
    ("part", "requests"),
    [
        (Part("class", "0"), 300),
        (Part("class", "7"), 0),
        (Part("tenant", "none"), 300),
        (Part("model", "small"), 30),
        (Part("cluster", "1"), 300),
        (Part("cluster", "2"), 0),
        (Part("engine", "engine-1"), 30),
    ],
)
def test_a_part_of_the_requests_can_be_looked_at_alone(recorded: Path, part: Part, requests: int) -> None:
    """The table of all parts stays whole beside it."""
    found = latencies(recorded, Scope(part=part))
    assert found.whole == sum(cell.requests for cell in found.ttlt_heat) == requests
    assert len(found.parts) == 7


def test_latency_is_parted_by_engine_class_tenant_model_and_cluster(recorded: Path) -> None:
    """Every request is in one part of each kind."""
    whole = latencies(recorded, Scope())
    assert {(part.by, part.name): part.requests for part in whole.parts} == {
        ("engine", "engine-0"): 270,
        ("engine", "engine-1"): 30,
        ("class", "0"): 300,
        ("tenant", "none"): 300,
        ("model", "qwen3-32b"): 270,
        ("model", "small"): 30,
        ("cluster", "1"): 300,
    }


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
    assert [what for _, what in detail.changes] == ["took in cluster 4"]
    assert len(detail.samples) == prompts_archive.SAMPLES
    assert detail.samples[0]["Actual output"] == 40
    assert (large.prompt_tokens, large.tenant, large.tenant_share) == (100.0, "no tenant", 1.0)
    assert detail.samples[0]["Prompt (token ids)"] is None
