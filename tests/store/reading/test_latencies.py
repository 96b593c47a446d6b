from __future__ import annotations

from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.bounds import MAX_NAME
from store.http_api import BANDS_PER_DECADE
from store.http_requests import LatenciesView
from store.reading.latencies import Window, read_finished, read_latencies
from store.reading.scope import Scope

TABLES = """
CREATE TABLE engines (session_id VARCHAR, engine_id VARCHAR, model VARCHAR);
CREATE TABLE arrivals (session_id VARCHAR, request_id VARCHAR, arrival_s DOUBLE, priority BIGINT, tenant VARCHAR);
CREATE TABLE predictions (
    session_id VARCHAR, request_id VARCHAR, received_s DOUBLE, time_s DOUBLE, cluster BIGINT, p10_tokens BIGINT,
    p50_tokens BIGINT, p90_tokens BIGINT
);
CREATE TABLE outcomes (session_id VARCHAR, request_id VARCHAR, time_s DOUBLE, cluster BIGINT, pit DOUBLE);
CREATE TABLE completions (
    engine_id VARCHAR, session_id VARCHAR, request_id VARCHAR, time_s DOUBLE, reason VARCHAR, arrival_s DOUBLE,
    prompt_tokens BIGINT, output_tokens BIGINT, max_tokens BIGINT, scheduled_s DOUBLE, first_token_s DOUBLE
);
"""


def ended(time_s: float, **changes: Any) -> tuple[Any, ...]:
    """A row of ``completions`` of a request that ended then; its latencies are given as they are to be found."""
    found = {"reason": "stop", "ttlt_s": 1.0, "queue_s": None, "ttft_s": None, "tokens": 10} | changes
    arrival_s = time_s - found["ttlt_s"]
    moments_s = (None if found[name] is None else arrival_s + found[name] for name in ("queue_s", "ttft_s"))
    name = f"r{len(str(changes))}-{time_s}-{changes}"
    return ("e", "s", name, time_s, found["reason"], arrival_s, 5, found["tokens"], 99, *moments_s)


def history(*rows: tuple[Any, ...]) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute(TABLES)
    connection.execute("INSERT INTO engines VALUES ('s', 'e', 'm')")
    if rows:
        connection.executemany(f"INSERT INTO completions VALUES (?{', ?' * 10})", rows)
    return connection


def latencies(*rows: tuple[Any, ...], until_s: float = 10.0, width_s: float = 10.0) -> LatenciesView:
    with history(*rows) as connection:
        return read_latencies(connection, Scope(), Window(0.0, until_s, width_s))


@pytest.mark.slow
@given(st.lists(st.floats(0.001, 1e4), min_size=1, max_size=50))
def test_percentiles_of_one_bucket_are_those_of_its_requests(latencies_s: list[float]) -> None:
    """One bucket holds all: its percentiles are the sample's own."""
    found = latencies(*(ended(5.0, ttlt_s=latency_s) for latency_s in latencies_s), until_s=5.0)
    (row,) = found.ttlt
    assert row.requests == len(latencies_s) == found.whole
    assert [row.p50_s, row.p90_s, row.p99_s] == pytest.approx(
        np.quantile(latencies_s, [0.5, 0.9, 0.99]), rel=1e-5, abs=1e-5
    )


def test_aborted_requests_have_no_time_to_last_token_but_one_to_first() -> None:
    """An abort says nothing of how long an answer takes."""
    found = latencies(ended(9.5, ttft_s=0.5, ttlt_s=9.0, reason="abort"), until_s=9.5)
    assert [(row.requests, row.p50_s) for row in found.ttlt] == [(0, None)]
    assert found.ttft[0].p50_s == 0.5
    assert (found.whole, found.cut) == (0, 1)


def test_what_is_sent_of_latencies_is_bounded_whatever_names_are_recorded() -> None:
    """Twenty parts of a kind, each with a name of bounded length, also where a history holds tenants of a megabyte."""
    with history(*(ended(9.0, tokens=number) for number in range(60))) as connection:
        connection.execute(
            "INSERT INTO arrivals SELECT 's', request_id, arrival_s, 0, request_id || repeat('t', 1000000) FROM completions"
        )
        found = read_latencies(connection, Scope(), Window(0.0, 10.0, 10.0))
    tenants = [part.name for part in found.parts if part.by == "tenant"]
    assert len(set(tenants)) == 20
    assert max(len(name) for name in tenants) <= MAX_NAME
    assert len(msgspec.json.encode(found)) < 64 << 10


def test_where_nothing_ended_there_is_no_bucket() -> None:
    """A chart then says so in words."""
    found = latencies()
    assert (found.ttft, found.ttlt, found.phases, found.parts, found.whole) == ((), (), (), (), 0)


@pytest.mark.slow
@given(st.lists(st.tuples(st.floats(0.0, 500.0), st.none() | st.floats(-1.0, 0.0) | st.floats(1e-9, 1e4)), max_size=60))
def test_a_heatmap_counts_every_positive_value_in_its_band(values: list[tuple[float, float | None]]) -> None:
    """A value lies between the edges of its band, a request in the bucket in which it ended."""
    rows = [("e", "s", f"{n}", time_s, "stop", 0.0, 5, 9, 9, None, ttft_s) for n, (time_s, ttft_s) in enumerate(values)]
    found = latencies(*rows, until_s=500.0, width_s=60.0).ttft_heat
    assert sum(cell.requests for cell in found) == sum(
        value is not None and np.float32(value) > 0.0 for _, value in values
    )
    for cell in found:
        low, high = (10.0 ** (band / BANDS_PER_DECADE) for band in (cell.band, cell.band + 1))
        inside = [
            value
            for time_s, value in values
            if value is not None
            and cell.time_s <= time_s < cell.time_s + 60.0
            and low * (1 - 1e-6) <= value < high * (1 + 1e-6)
        ]
        assert len(inside) >= cell.requests


def test_phases_sum_to_the_time_to_the_last_token() -> None:
    """Aborted requests, and those whose time in the queue is not known, do not count; an empty bucket has none."""
    first, gap, last = latencies(
        ended(1.0, queue_s=1.0, ttft_s=1.5, ttlt_s=4.0),
        ended(2.0, queue_s=3.0, ttft_s=3.5, ttlt_s=8.0, reason="length"),
        ended(3.0, queue_s=99.0, ttft_s=99.0, ttlt_s=99.0, reason="abort"),
        ended(25.0, queue_s=0.0, ttft_s=0.5, ttlt_s=1.0),
        until_s=25.0,
    ).phases
    assert (first.queue_s, first.prefill_s, first.decode_s) == (2.0, 0.5, 3.5)
    assert gap.decode_s is None
    assert last.time_s == 20.0


def test_finished_requests_come_with_what_was_first_predicted_of_them() -> None:
    """The latest up to the limit, oldest first; what was not recorded is None."""
    with history(*(ended(float(second)) for second in range(1, 6))) as connection:
        (name,) = connection.execute("SELECT request_id FROM completions WHERE time_s = 4.0").fetchall()[0]
        connection.execute("INSERT INTO arrivals VALUES ('s', ?, 3.0, 2, 't')", [name])
        for received_s in (8.0, 3.0):
            connection.execute(
                "INSERT INTO predictions VALUES ('s', ?, $2, 3.0, 7, 1, $2, 9)".replace("?", "$1"), [name, received_s]
            )
        connection.execute("INSERT INTO outcomes VALUES ('s', ?, 4.0, 7, 0.25)", [name])
        found = read_finished(connection, Scope(), 0.0, 3)
        assert read_finished(connection, Scope(model="another"), 0.0, 3) == ()
        assert [point.time_s for point in read_finished(connection, Scope(), 4.5, 3)] == [5.0]
    assert [point.time_s for point in found] == [3.0, 4.0, 5.0]
    predicted = found[1]
    assert (predicted.priority, predicted.tenant, predicted.cluster, predicted.p50_tokens) == (2, "t", 7, 3)
    assert (predicted.pit, predicted.ttlt_s, predicted.reason) == (0.25, 1.0, "stop")
    assert (found[0].p50_tokens, found[0].pit, found[0].tenant) == (None, None, None)
