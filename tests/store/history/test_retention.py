from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.history.reader import open_history
from store.history.retention import KEPT_TABLES, Retention, outlived, trusted_now_s
from store.history.writer import HistoryWriter

DAY_S = 86_400.0
NOW_S = 100 * DAY_S


class Piece(NamedTuple):
    table_name: str
    bytes: int
    first_received_s: float
    last_received_s: float


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """Segments of several tables, short and long."""
    tables = st.sampled_from(["arrivals", "completions", "outcomes", "snapshots", "engines"])
    starts, lengths = st.floats(0.0, NOW_S), st.sampled_from([0.0, 100.0, DAY_S, 5 * DAY_S])
    found = draw(st.lists(st.tuples(tables, st.integers(1, 1_000), starts, lengths), max_size=40))
    return [Piece(table, size, first, min(first + length, NOW_S)) for table, size, first, length in found]


@given(pieces(), st.floats(0.01, 150.0), st.integers(0, 20_000))
def test_retention_keeps_whole_requests_within_the_limits(active: list[Piece], days: float, limit_bytes: int) -> None:
    """What stays fits; of what arrived in it nothing later is given up; no arrival goes before an older one."""
    gone = outlived(active, NOW_S, Retention(days=days, bytes=limit_bytes, grace_s=0.0))
    lost = set(map(id, gone))
    kept = [piece for piece in active if id(piece) not in lost]
    assert not any(piece.table_name in KEPT_TABLES for piece in gone)
    assert sum(piece.bytes for piece in kept if piece.table_name not in KEPT_TABLES) <= limit_bytes
    arrivals = [piece for piece in kept if piece.table_name == "arrivals"]
    assert all(piece.last_received_s >= NOW_S - days * DAY_S for piece in arrivals)
    since_s = min((piece.first_received_s for piece in arrivals), default=NOW_S + 1.0)
    for piece in gone:
        if piece.table_name == "arrivals":
            assert all(piece.last_received_s <= other.last_received_s for other in arrivals)
        else:
            assert piece.last_received_s < since_s, "something of a request that is kept"


@given(pieces(), st.floats(0.01, 150.0))
def test_what_is_young_stays_where_there_is_room(active: list[Piece], days: float) -> None:
    """Nothing goes by age before its time."""
    gone = outlived(active, NOW_S, Retention(days=days, bytes=1 << 40, grace_s=0.0))
    assert all(piece.last_received_s < NOW_S - days * DAY_S for piece in gone)


def test_arrivals_that_were_merged_do_not_outlive_the_ends_of_their_requests() -> None:
    """A segment of arrivals as long as ten of ends: either all of them stay, or none that is older than what arrived."""
    arrivals = [Piece("arrivals", 500, 0.0, 100.0), Piece("arrivals", 100, 100.0, 110.0)]
    ends = [Piece("completions", 100, 10.0 * number, 10.0 * number + 10.0) for number in range(11)]
    for limit_bytes in (1_699, 1_200, 700):
        gone = outlived([*arrivals, *ends], 110.0, Retention(days=1.0, bytes=limit_bytes, grace_s=0.0))
        assert gone == [arrivals[0], *ends[:9]]
    assert outlived([*arrivals, *ends], 110.0, Retention(days=1.0, bytes=1_700, grace_s=0.0)) == []


def test_a_clock_far_beyond_the_newest_row_is_not_believed_until_rows_have_come_under_it_for_a_day() -> None:
    """Then it was a pause, not a fault; within three days of the newest row it is believed at once."""
    old = Piece("arrivals", 1, 0.0, 10 * DAY_S)
    month_s = 30 * DAY_S
    assert trusted_now_s([], NOW_S, month_s) == NOW_S
    assert trusted_now_s([old], 12 * DAY_S, month_s) == 12 * DAY_S
    assert trusted_now_s([old], 42 * DAY_S, month_s) == 10 * DAY_S
    young = Piece("snapshots", 1, 42 * DAY_S, 42.5 * DAY_S)
    assert trusted_now_s([old, young], 42.5 * DAY_S, month_s) == 10 * DAY_S
    assert trusted_now_s([old, young], 43.1 * DAY_S, month_s) == 43.1 * DAY_S
    assert trusted_now_s([old, young], 11 * DAY_S, month_s) == 11 * DAY_S, "the clock was set right again"


def test_a_clock_that_is_set_while_rows_come_deletes_nothing_either() -> None:
    """The segment of that moment has rows of both clocks: no gap lies between it and its neighbours."""
    year_s, keep = 365 * DAY_S, Retention(days=30.0, bytes=1 << 40, grace_s=0.0)
    days = [Piece("arrivals", 1, day * DAY_S, (day + 1) * DAY_S) for day in range(10)]
    both = Piece("arrivals", 1, 10 * DAY_S, 10 * DAY_S + year_s)
    ahead_s = 10 * DAY_S + year_s + 60.0
    trusted_s = trusted_now_s([*days, both], ahead_s, keep.seconds)
    assert trusted_s == 10 * DAY_S
    assert outlived([*days, both], trusted_s, keep) == []
    after_s = 45 * DAY_S
    since = [Piece("arrivals", 1, day * DAY_S, (day + 1) * DAY_S) for day in range(10, 45)]
    ends = [Piece("completions", 1, day * DAY_S, (day + 1) * DAY_S) for day in range(45)]
    segments = [*days, both, *since, *ends]
    assert trusted_now_s(segments, after_s, keep.seconds) == after_s, "the clock was set right again"
    gone = outlived(segments, after_s, keep)
    assert both in gone
    assert [piece for piece in since if piece in gone] == since[:4]
    assert [piece for piece in ends if piece in gone] == ends[:13]


def test_days_in_a_row_are_no_gap_however_short_the_retention() -> None:
    """A day's rows are one segment once it is over, which is longer than half a day's retention."""
    days = [Piece("arrivals", 1, day * DAY_S, (day + 1) * DAY_S) for day in range(3)]
    assert trusted_now_s(days, 3 * DAY_S + 60.0, 0.5 * DAY_S) == 3 * DAY_S + 60.0


@pytest.mark.slow
def test_a_start_with_a_wrong_clock_deletes_nothing(tmp_path: Path, make: Any) -> None:
    """32 days ahead, with facts recorded under that clock; with the right one everything is there and is said to be well."""
    now_s = NOW_S

    def written(batch: int) -> HistoryWriter:
        clock: Callable[[], float] = lambda: now_s  # noqa: E731 - its value is of this call
        writer = HistoryWriter(tmp_path, seal_interval_s=0.0, clock=clock, timer=clock)
        writer.open()
        writer.append([make.entry(make.first_token(f"r{batch}"), batch)])
        assert writer.turn()
        return writer

    written(1)._finish()
    now_s = NOW_S + 32 * DAY_S
    ahead = written(2)
    assert ahead.stats.clock_ahead_s == pytest.approx(32 * DAY_S)
    now_s += 3_600.0
    assert ahead.turn()
    ahead._finish()
    now_s = NOW_S + 60.0
    right = written(3)
    assert right.stats.clock_ahead_s is None
    right._finish()
    with open_history(tmp_path) as history:
        names = history.execute("SELECT request_id FROM first_tokens ORDER BY ALL").fetchall()
    assert names == [("r1",), ("r2",), ("r3",)]
