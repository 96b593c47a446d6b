from __future__ import annotations

import datetime as dt
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.errors import StoreError
from store.history.reader import open_history
from store.history.retention import KEPT_TABLES
from store.history.segments import FAN_IN, Segment, hour_name, merges
from store.reading.sandbox import run_sql

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
NOON_S = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC).timestamp()


def files(path: Path) -> set[str]:
    return {str(file.relative_to(path)) for file in path.rglob("*.parquet*")}


def names(path: Path) -> list[str]:
    with open_history(path) as connection:
        return [name for (name,) in connection.sql("SELECT request_id FROM first_tokens").fetchall()]


def write_one(history: Any, live: Any, make: Any, name: str, now_s: float) -> None:
    """A segment of one row, which no catalog lists yet."""
    history.write(now_s, make.entry(make.first_token(name)))
    live._segments.seal(now_s)
    live._stale = True


@pytest.mark.slow
def test_small_segments_become_few_and_readers_never_notice(hands: Callable[..., Any], make: Any) -> None:
    """Compaction keeps every row and its order, a reader from before goes on reading, and old files go after the grace."""
    history = hands(grace_s=60.0)
    live = history.open(NOON_S)
    for n in range(FAN_IN - 1):
        write_one(history, live, make, f"{n}", NOON_S + n)
    live.maintain(NOON_S + FAN_IN)
    before = open_history(history.folder.path)
    old_files = files(history.folder.path)
    assert len(old_files) == FAN_IN - 1
    for n in range(FAN_IN - 1, 2 * FAN_IN):
        write_one(history, live, make, f"{n}", NOON_S + n)
        live._segments.compact(NOON_S + n)
    live.maintain(NOON_S + 2 * FAN_IN)
    everything = [f"{n}" for n in range(2 * FAN_IN)]
    assert names(history.folder.path) == everything
    assert live.segment_count() == 2
    assert before.sql("SELECT request_id FROM first_tokens").fetchall() == [
        (name,) for name in everything[: FAN_IN - 1]
    ]
    live.maintain(NOON_S + 1000.0)
    assert files(history.folder.path).isdisjoint(old_files)
    assert len(files(history.folder.path)) == 2
    assert names(history.folder.path) == everything
    before.close()


def test_a_folder_that_is_named_like_a_partition_changes_no_row(hands: Callable[..., Any], make: Any) -> None:
    """Sealed, merged and read rows are those that were written, where DuckDB would read columns from the path."""
    history = hands("request_id=zz/engine_id=42/history")
    live = history.open(NOON_S)
    everything = [f"{n}" for n in range(FAN_IN)]
    for n, name in enumerate(everything):
        write_one(history, live, make, name, NOON_S + n)
        live._segments.compact(NOON_S + n)
    live.maintain(NOON_S + FAN_IN)
    assert live.segment_count() == 1
    assert names(history.folder.path) == everything
    relative = run_sql(history.folder.path, "SELECT DISTINCT engine_id FROM first_tokens").to_pylist()
    assert relative == [{"engine_id": make.entry(make.first_token("0")).engine_id}]


@pytest.mark.slow
def test_hours_and_days_that_are_over_become_one_segment(hands: Callable[..., Any], make: Any) -> None:
    """A history over days has one segment for each of them and few for today."""
    history = hands(grace_s=0.0)
    live = history.open(NOON_S)
    expected = []
    for day in range(3):
        for hour in range(3):
            for n in range(3):
                name, now_s = f"{day}-{hour}-{n}", NOON_S + day * DAY_S + hour * HOUR_S + n
                write_one(history, live, make, name, now_s)
                expected.append(name)
    live.maintain(NOON_S + 2 * DAY_S + 2 * HOUR_S + 9.0)
    assert names(history.folder.path) == expected
    live.maintain(NOON_S + 2 * DAY_S + 2 * HOUR_S + 10.0)
    assert {Path(file).parent.name for file in files(history.folder.path)} == {
        "20260301",
        "20260302",
        "20260303-12",
        "20260303-13",
        "20260303-14",
    }
    assert live.segment_count() == 2 + 2 + 3


@pytest.mark.slow
def test_old_history_goes_but_engines_stay(hands: Callable[..., Any], make: Any) -> None:
    """After the retention a request is gone from the views and then from the disk; the engine's model is still known."""
    history = hands(days=2.0, grace_s=60.0)
    live = history.open(NOON_S)
    history.write(NOON_S, make.entry(make.engine()), make.entry(make.first_token("old"), 1))
    live.maintain(NOON_S)
    write_one(history, live, make, "new", NOON_S + DAY_S)
    live.maintain(NOON_S + DAY_S)
    assert names(history.folder.path) == ["old", "new"]
    live.maintain(NOON_S + 2.5 * DAY_S)
    assert names(history.folder.path) == ["new"]
    live.maintain(NOON_S + 2.5 * DAY_S + 61.0)
    assert {file.split("/")[1] for file in files(history.folder.path)} == {"engines", "first_tokens"}
    with open_history(history.folder.path) as connection:
        assert connection.sql("SELECT model FROM engines").fetchall() == [("m",)]
        assert connection.sql("FROM sealed_batches").fetchall() == []


@pytest.mark.slow
def test_a_history_never_grows_beyond_its_size(hands: Callable[..., Any], make: Any) -> None:
    """The listed segments stay within the limit and the newest survive."""
    history = hands(limit_bytes=12_000, grace_s=0.0)
    live = history.open(NOON_S)
    for n in range(40):
        write_one(history, live, make, f"{n}", NOON_S + n * HOUR_S)
    live.maintain(NOON_S + 50 * HOUR_S)
    live.maintain(NOON_S + 50 * HOUR_S + 1.0)
    kept = names(history.folder.path)
    assert sum((history.folder.path / file).stat().st_size for file in files(history.folder.path)) <= 12_000
    assert kept == [f"{n}" for n in range(40 - len(kept), 40)]
    assert len(kept) > 1


@pytest.mark.slow
def test_the_live_file_does_not_grow_with_the_history(hands: Callable[..., Any], make: Any) -> None:
    """Space of rows that were sealed is used again."""
    history = hands()
    live = history.open(NOON_S)
    sizes = []
    for n in range(8):
        history.write(NOON_S + n, *(make.entry(make.prediction(f"{n}-{k}")) for k in range(2_000)))
        live.maintain(NOON_S + n)
        sizes.append(history.folder.live.stat().st_size)
    assert sizes[-1] <= 1.5 * sizes[3]


def test_remnants_of_an_interrupted_seal_are_removed(hands: Callable[..., Any], make: Any) -> None:
    """A segment that was written but not listed, and one half written, are gone after opening; nothing listed is."""
    history = hands()
    live = history.open(NOON_S)
    write_one(history, live, make, "a", NOON_S)
    history.write(NOON_S, make.entry(make.first_token("b")))
    history.close()
    (listed,) = files(history.folder.path)
    orphan = history.folder.path / listed.replace("000001", "000002")
    shutil.copy(history.folder.path / listed, orphan)
    half = orphan.with_name("000000000003.parquet.tmp")
    half.write_bytes(b"PAR1 and no more")
    history.open(NOON_S + 1.0, writer="another")
    assert not orphan.exists()
    assert not half.exists()
    assert names(history.folder.path) == ["a", "b"]


@pytest.mark.slow
def test_a_history_without_its_live_file_is_refused_and_left_alone(hands: Callable[..., Any], make: Any) -> None:
    """A lost live file does not make the segments look like rubbish to be removed."""
    history = hands()
    live = history.open(NOON_S)
    write_one(history, live, make, "a", NOON_S)
    write_one(history, live, make, "b", NOON_S)
    live.maintain(NOON_S)
    history.close()
    kept = files(history.folder.path)
    aside = history.folder.path.parent / "aside"
    history.folder.live.rename(aside)
    with pytest.raises(StoreError, match=r"live.duckdb is new: restore"):
        history.open(NOON_S)
    assert files(history.folder.path) == kept
    history.folder.live.unlink(missing_ok=True)
    aside.rename(history.folder.live)
    history.open(NOON_S)
    assert names(history.folder.path) == ["a", "b"]


def test_a_chunk_written_again_after_an_unclear_error_is_there_once(hands: Callable[..., Any], make: Any) -> None:
    """The writer may repeat a commit whose fate it does not know, also over a reopened file."""
    history = hands()
    history.open(NOON_S, writer="w")
    history.write(NOON_S, make.entry(make.first_token("a"), 1))
    history.close()
    live = history.open(NOON_S, writer="w")
    assert live.position == 1
    history._position = 0
    history.write(NOON_S, make.entry(make.first_token("a"), 1))
    live.maintain(NOON_S + 1.0)
    assert names(history.folder.path) == ["a"]


moments = st.integers(0, 40 * 24).map(lambda hours: NOON_S + hours * HOUR_S)


@st.composite
def listings(draw: st.DrawFn) -> list[Segment]:
    """What may be listed at some time: fresh segments of several tables, hours and sizes."""
    return [
        Segment(
            sequence=number,
            table_name=draw(st.sampled_from(("first_tokens", "outcomes", "engines"))),
            path=f"segments/t/{hour_name(received_s)}/{number}.parquet",
            level=draw(st.integers(0, 2)),
            schema_version=1,
            rows=draw(st.integers(1, 9)),
            bytes=draw(st.integers(1, 1000)),
            first_received_s=received_s,
            last_received_s=received_s,
        )
        for number, received_s in enumerate(draw(st.lists(moments, max_size=60)))
    ]


@given(listings())
def test_compaction_comes_to_rest_with_few_segments(active: list[Segment]) -> None:
    """Merging until nothing is left to merge keeps every row, and leaves few segments for each table and day."""
    now = hour_name(NOON_S + 41 * DAY_S)
    rows = {
        table: sum(s.rows for s in active if s.table_name == table) for table in ("first_tokens", "outcomes", "engines")
    }
    number = len(active)
    for _ in range(10):
        found = merges(active, now)
        if not found:
            break
        for merge in found:
            assert {source.table_name for source in merge.sources} == {merge.table_name}
            active = [segment for segment in active if segment not in merge.sources]
            active.append(
                Segment(
                    number,
                    merge.table_name,
                    f"segments/t/{merge.folder}/{number}.parquet",
                    merge.level,
                    1,
                    sum(s.rows for s in merge.sources),
                    1,
                    merge.sources[0].first_received_s,
                    merge.sources[-1].last_received_s,
                )
            )
            number += 1
    assert not merges(active, now)
    for table, expected in rows.items():
        left = [segment for segment in active if segment.table_name == table]
        assert sum(segment.rows for segment in left) == expected
        folders = [segment.folder[:8] for segment in left]
        assert len(folders) == len(set(folders))
        assert table not in KEPT_TABLES or len(folders) <= 1
