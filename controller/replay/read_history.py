"""Reads the runs of engines from a history in the form in which they can be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import msgspec
from msgspec.structs import replace

from controller.core.prediction_records import RECORDED_PERCENTILES
from controller.core.step_time import StepSample
from controller.replay.recorded_run import BusyPart, EngineSizes, RecordedMessage, RecordedRequest, RecordedRun
from controller.replay.window import attained_at
from store.errors import BadInputError
from store.history.columns import record_of
from store.reading import replay_sql
from store.records import EngineRules, IndexTable, Mode, Settings, Targets

SAMPLES = 4_000
FEWEST_REQUESTS = 20
"""Smallest number of requests of a run."""
PART_S = 0.5
"""Seconds over which the pace of the host is averaged, unless that were more than `PARTS` parts."""
PARTS = 4_000
SHORTEST_MODE_S = 5.0
"""A mode that was in force for less, such as a fallback while the controller restarts, does not end a run."""
UNBOUNDED_S = 1e12
LEASE_S = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a history by arrival, engine and model; None is no bound."""

    since_s: float | None = None
    until_s: float | None = None
    engine_id: str | None = None
    model: str | None = None
    last: int = 2_000
    """Largest number of requests; the latest are kept."""

    def described(self) -> str:
        """The slice as flags of the command line."""
        flags = {
            "--since": moment(self.since_s),
            "--until": moment(self.until_s),
            "--engine": self.engine_id,
            "--model": self.model,
        }
        return " ".join(f"{flag} {value}" for flag, value in flags.items() if value is not None)


def moment(time_s: float | None) -> str | None:
    """A moment as text, UTC.

    >>> moment(0.0)
    '1970-01-01T00:00:00'
    """
    return None if time_s is None else datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def read_runs(connection: duckdb.DuckDBPyConnection, part: Slice) -> list[RecordedRun]:
    """The runs that requests of the slice arrived in, each with at least `FEWEST_REQUESTS` of them.

    Raises:
        BadInputError: there are too few, or no such engine or model.
    """
    _require_known(connection, "engine_id", part.engine_id)
    _require_known(connection, "model", part.model)
    span = _span(connection, part)
    found = _rows(connection, replay_sql.RUNS, **span)
    enough = [(row, _run(connection, row, span)) for row in found if row["requests"] >= FEWEST_REQUESTS]
    runs = [_with_messages(connection, run, row) for row, run in enough if run is not None]
    if not runs:
        most = max((row["requests"] for row in found), default=0)
        where = f" with {part.described()}" if part.described() else ""
        raise BadInputError(
            f"history{where} has {most} ended requests of one engine's run: at least {FEWEST_REQUESTS} are needed; "
            "choose a wider slice or let the controller run longer"
        )
    return runs


def read_latest_run(connection: duckdb.DuckDBPyConnection, *, last: int, fewest: int) -> RecordedRun | None:
    """The latest ``last`` completed requests of the busiest engine, without the messages that it received.

    None if fewer than ``fewest`` of the latest requests ended there.
    """
    recent = _rows(connection, replay_sql.RUNS, **_span(connection, Slice(last=2 * last)))
    busiest = max(recent, key=lambda row: row["requests"], default=None)
    if busiest is None or busiest["requests"] < fewest:
        return None
    since = _rows(connection, replay_sql.MODE_SINCE, session_id=busiest["session_id"], shortest_s=SHORTEST_MODE_S)
    span = _span(connection, Slice(since_s=since[0]["since_s"], engine_id=busiest["engine_id"], last=last))
    run = _run(connection, busiest, span)
    return run if run is not None and sum(request.counted for request in run.requests) >= fewest else None


def _require_known(connection: duckdb.DuckDBPyConnection, column: str, value: str | None) -> None:
    known = [name for (name,) in connection.execute(f"SELECT DISTINCT {column} FROM engines ORDER BY 1").fetchall()]
    if not known:
        raise BadInputError("history knows no engine: let one connect to a controller with this --store first")
    if value is not None and value not in known:
        thing = column.removesuffix("_id")
        raise BadInputError(f"unknown {thing} {value!r}: the history knows {', '.join(known)}")


def _span(connection: duckdb.DuckDBPyConnection, part: Slice) -> dict[str, Any]:
    """Bounds of the arrivals, narrowed to the latest ones; engine and model."""
    about = {"engine_id": part.engine_id, "model": part.model}
    since_s = -UNBOUNDED_S if part.since_s is None else part.since_s
    until_s = UNBOUNDED_S if part.until_s is None else part.until_s
    bounds = {"since_s": since_s, "until_s": until_s}
    first = _rows(connection, replay_sql.SPAN, **bounds, **about, limit=part.last - 1)
    return {**about, "since_s": first[0]["arrival_s"] if first else since_s, "until_s": until_s}


def _run(connection: duckdb.DuckDBPyConnection, row: dict[str, Any], span: dict[str, Any]) -> RecordedRun | None:
    """A run with its requests; None if it has none, as its engine says that they ended before they arrived."""
    bounds = {"session_id": row["session_id"], "last_s": row["last_s"]}
    started = _rows(connection, replay_sql.RUNNING, session_id=row["session_id"], since_s=span["since_s"])
    since_s = span["since_s"]
    begin_s = started[0]["time_s"] if started else since_s
    counted = {"since_s": since_s, "until_s": span["until_s"]}
    requests = [
        _request(request) for request in _rows(connection, replay_sql.REQUESTS, **bounds, **counted, begin_s=begin_s)
    ]
    if not requests:
        return None
    first_s = min(request.arrival_s for request in requests)
    shares = _rows(connection, replay_sql.MODE_SHARES, **bounds, since_s=since_s)
    steps = _rows(connection, replay_sql.STEPS, **bounds, since_s=first_s, limit=SAMPLES)
    pace = msgspec.convert(
        _rows(connection, replay_sql.PACE, **bounds, since_s=first_s, part_s=PART_S, limit=PARTS), tuple[BusyPart, ...]
    )
    return RecordedRun(
        engine_id=row["engine_id"],
        session_id=row["session_id"],
        model=row["model"],
        sizes=msgspec.convert(row, EngineSizes),
        requests=tuple(_under_way(requests, started)),
        samples=tuple(msgspec.convert(steps, list[StepSample])),
        since_s=begin_s if first_s < begin_s else None,
        last_s=row["last_s"] if any(request.finished_s is None for request in requests) else None,
        rules=_rules(connection, row["session_id"], max(first_s, begin_s)),
        gap_s=max(0.0, sum(part.elapsed_s - part.step_s for part in pace)) / max(1, sum(part.steps for part in pace)),
        pace=pace,
        modes={share["mode"]: share["share"] for share in shares},
    )


def _under_way(requests: Sequence[RecordedRequest], started: Sequence[dict[str, Any]]) -> Iterator[RecordedRequest]:
    """The requests, those that had arrived when the span began with what they had attained."""
    since_s = started[0]["time_s"] if started else -UNBOUNDED_S
    ran = {running["request_id"]: running["attained_tokens"] for one in started for running in one["running_requests"]}
    for request in requests:
        if request.arrival_s >= since_s:
            yield request
            continue
        attained = ran.get(request.request_id, attained_at(request, since_s))
        yield replace(request, attained_tokens=attained, running=request.request_id in ran)


def _rules(connection: duckdb.DuckDBPyConnection, session_id: str, time_s: float) -> EngineRules | None:
    """What was in force at a time; None if the engine had no settings of its own by then."""
    sent = _rows(connection, replay_sql.ORDERS, session_id=session_id, last_s=time_s)
    own = [order for order in sent if order["session_id"] == session_id]
    return record_of(EngineRules, own[-1]) if own else None


def _with_messages(connection: duckdb.DuckDBPyConnection, run: RecordedRun, row: dict[str, Any]) -> RecordedRun:
    first_s = min(request.arrival_s for request in run.requests)
    bounds = {"session_id": row["session_id"], "last_s": row["last_s"], "first_s": first_s}
    return replace(run, messages=tuple(_messages(connection, bounds)))


def _request(row: dict[str, Any]) -> RecordedRequest:
    tokens = row.pop("tokens")
    percentiles = [percent / 100 for percent in RECORDED_PERCENTILES]
    targets = Targets(**{name: row.pop(f"targets_{name}") for name in ("ttft_s", "tpot_s", "e2e_s")})
    quantiles = tuple(zip(percentiles, tokens or (), strict=False))
    found = msgspec.convert(row, RecordedRequest)
    return replace(found, quantiles=quantiles, targets=None if targets == Targets() else targets)


def _messages(connection: duckdb.DuckDBPyConnection, bounds: dict[str, Any]) -> Iterator[RecordedMessage]:
    """Settings and tables by time; settings first, as they are in force when a table comes."""
    tables = (
        RecordedMessage(time_s=row.pop("time_s"), message=msgspec.convert(row, IndexTable))
        for row in _rows(connection, replay_sql.TABLES, **bounds)
    )
    yield from sorted([*_settings(connection, bounds), *tables], key=lambda recorded: recorded.time_s)


def _settings(connection: duckdb.DuckDBPyConnection, bounds: dict[str, Any]) -> Iterator[RecordedMessage]:
    """The sent settings, with the mode that the engine reported to be in force, fallbacks included."""
    span = {name: value for name, value in bounds.items() if name != "first_s"}
    orders = [row for row in _rows(connection, replay_sql.ORDERS, **span) if not row["mode_only"]]
    changes: list[tuple[float, Mode | None, dict[str, Any] | None]] = [
        *((order["time_s"], None, order) for order in orders),
        *((row["time_s"], row["mode"], None) for row in _rows(connection, replay_sql.MODES, **bounds)),
    ]
    mode: Mode = "off"
    order: dict[str, Any] | None = None
    for revision, (time_s, new_mode, new_order) in enumerate(sorted(changes, key=lambda change: change[0]), 1):
        mode, order = new_mode or mode, new_order or order
        if order is not None:
            rules = record_of(EngineRules, order)
            settings = Settings(revision=revision, mode=mode, lease_s=LEASE_S, rules=rules)
            yield RecordedMessage(time_s=time_s, message=settings)


def _rows(connection: duckdb.DuckDBPyConnection, query: str, **parameters: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - whatever SQL takes
    wanted = {name: value for name, value in parameters.items() if f"${name}" in query}
    rows: list[dict[str, Any]] = connection.sql(query, params=wanted).to_arrow_table().to_pylist()
    return rows
