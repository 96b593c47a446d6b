"""How fast the history takes requests in, seals them and answers: ``python tests/store/bench_store.py --requests 100000``.

Each request is six records: arrival, prediction, decision, first token, completion, outcome.
"""

# ruff: noqa: T201 - it prints what it measures

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from store.entries import Decision, EngineSeen, Entry, Outcome, Prediction, StoreRecord
from store.history.reader import learning_history, open_history
from store.history.writer import HistoryWriter
from store.reading.example_queries import USEFUL_QUERIES
from store.records import Arrived, Finished, FirstToken, Hello

HELLO = Hello(
    engine_id="engine",
    session_id="session",
    model="model",
    engine="simulated",
    engine_version="1",
    kv_blocks=1500,
    block_size_tokens=16,
    max_num_seqs=256,
    token_budget=2048,
    max_model_len_tokens=32768,
    prefix_caching=True,
    started_s=0.0,
)
STEPS = tuple(range(0, 600, 10))
INDEX_S = tuple(0.1 * step for step in STEPS)
GROWTH_TOKENS = tuple(1.0 + 0.01 * step for step in STEPS)
AD_HOC = {
    "count of requests": "SELECT count(*) FROM requests",
    "mean ttlt over requests": "SELECT avg(ttlt_s) FROM requests",
    "ten slowest requests": "FROM requests ORDER BY ttlt_s DESC LIMIT 10",
    "requests of the last minute": "SELECT * FROM requests WHERE arrival_s > (SELECT max(arrival_s) - 60 FROM arrivals)",
}


def life(number: int) -> list[StoreRecord]:
    """The records of one request."""
    name, arrival_s = f"chatcmpl-{number:012x}", 1.7e9 + number / 20
    facts = {"request_id": name, "prompt_tokens": 200, "max_tokens": 1024, "arrival_s": arrival_s}
    quantiles = {f"p{p}_tokens": 4 * p for p in (10, 25, 50, 75, 90, 95, 99)}
    return [
        Arrived(**facts, token_ids=bytes(800), temperature=0.6),
        Prediction(
            request_id=name,
            time_s=arrival_s,
            cluster=number % 32,
            features=number.to_bytes(8, "little") * 32,
            prompt_hash=f"{number:032x}",
            mean_tokens=210.0,
            evidence=30.0,
            experts={"global": 0.2, "cluster": 0.8},
            predict_s=1e-4,
            **quantiles,
        ),
        Decision(
            request_id=name,
            time_s=arrival_s,
            policy="sage",
            reason="arrival",
            cost_s=1.0,
            index_s=0.3,
            attained_tokens=STEPS,
            table_index_s=INDEX_S,
            growth_tokens=GROWTH_TOKENS,
        ),
        FirstToken(request_id=name, time_s=arrival_s + 0.3, scheduled_s=arrival_s + 0.1, cached_prompt_tokens=0),
        Finished(
            **facts,
            time_s=arrival_s + 5 + number % 7,
            reason="stop",
            output_tokens=100 + number % 300,
            cached_prompt_tokens=0,
            preemptions=0,
            recomputed_tokens=0,
            scheduled_s=arrival_s + 0.1,
            first_token_s=arrival_s + 0.3,
        ),
        Outcome(
            request_id=name,
            time_s=arrival_s + 5,
            output_tokens=100 + number % 300,
            censored=False,
            cluster=1,
            pit=0.5,
            crps_tokens=40.0,
            log_score=5.0,
            within_50=True,
            within_90=True,
            answer=number,
        ),
    ]


def main() -> None:
    """Write, close, ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--store", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.store or Path(folder) / "history"
        fill(path, arguments.requests)
        ask(path)


def fill(path: Path, requests: int) -> None:
    """Append as fast as the writer takes it, and say how fast that was."""
    began_s = time.perf_counter()
    waited_s = 0.0
    commits, seals = [], []
    writer = HistoryWriter(path, queue_limit=100_000).start()
    writer.append(
        [
            Entry(
                engine_id="engine",
                session_id="session",
                batch=None,
                record=EngineSeen(time_s=0.0, event="connected", hello=HELLO),
            )
        ]
    )
    for first in range(0, requests, 100):
        entries = [
            Entry(engine_id="engine", session_id="session", batch=first + 1 if is_fact else None, record=record)
            for number in range(first, first + 100)
            for record in life(number)
            for is_fact in [isinstance(record, Arrived | FirstToken | Finished)]
        ]
        writer.append(entries)
        stats = writer.stats
        commits.append(stats.commit_s)
        seals.append(stats.seal_s)
        if stats.queued > 20_000:
            paused_s = time.perf_counter()
            assert writer.flush(60.0)
            waited_s += time.perf_counter() - paused_s
    assert writer.flush(60.0)
    wall_s = time.perf_counter() - began_s
    closing_s = time.perf_counter()
    writer.close()
    stats = writer.stats
    rows = sum(stats.rows.values())
    print(
        f"rows {rows}, {rows / wall_s:,.0f}/s with making the records; waited for the writer {waited_s:.1f} of {wall_s:.1f} s"
    )
    print(
        f"commit longest {max(commits):.3f} s; seal longest {max(seals):.3f} s; close {time.perf_counter() - closing_s:.2f} s"
    )
    used = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"dropped {stats.dropped}, refused {stats.refused}, segments {stats.segments}, {used / rows:.1f} bytes/row")
    print("live file", (path / "live.duckdb").stat().st_size >> 20, "MiB")


def ask(path: Path) -> None:
    """Time every useful query and some others."""
    useful = {query.title: query.statement for query in USEFUL_QUERIES}
    with open_history(path) as connection:
        for name, query in (useful | AD_HOC).items():
            began_s = time.perf_counter()
            rows = connection.sql(query).to_arrow_table().num_rows
            print(f"{time.perf_counter() - began_s:8.3f} s  {name}: {rows} rows")
    began_s = time.perf_counter()
    count = sum(1 for _ in learning_history(path, 20_000))
    print(f"{time.perf_counter() - began_s:8.3f} s  learning history: {count} answers")


if __name__ == "__main__":
    main()
