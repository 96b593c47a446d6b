"""Reads the runs of engines from a history in the form in which they can be replayed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import duckdb
import msgspec
from msgspec.structs import replace

from controller.core.prediction_records import RECORDED_PERCENTILES
from controller.core.step_time import StepSample
from controller.replay.recorded_run import EngineSizes, RecordedMessage, RecordedRequest, RecordedRun
from store.errors import BadInputError
from store.history.columns import record_of
from store.reading import replay_sql
from store.records import EngineRules, IndexTable, Mode, Settings, Targets

SAMPLES = 4_000
FEWEST_REQUESTS = 20
"""Smallest number of requests of a run."""
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
    runs = [
        _with_messages(connection, _run(connection, row, span), row)
        for row in found
        if row["requests"] >= FEWEST_REQUESTS
    ]
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
    span = _span(connection, Slice(engine_id=busiest["engine_id"], last=last))
    return _run(connection, busiest, span)


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


def _run(connection: duckdb.DuckDBPyConnection, row: dict[str, Any], span: dict[str, Any]) -> RecordedRun:
    bounds = {"session_id": row["session_id"], "last_s": row["last_s"]}
    requests = _rows(connection, replay_sql.REQUESTS, **bounds, since_s=span["since_s"], until_s=span["until_s"])
    first_s = min(request["arrival_s"] for request in requests)
    shares = _rows(connection, replay_sql.MODE_SHARES, **bounds, since_s=span["since_s"])
    steps = _rows(connection, replay_sql.STEPS, **bounds, since_s=first_s, limit=SAMPLES)
    return RecordedRun(
        engine_id=row["engine_id"],
        session_id=row["session_id"],
        model=row["model"],
        sizes=msgspec.convert(row, EngineSizes),
        requests=tuple(_request(request) for request in requests),
        samples=tuple(msgspec.convert(steps, list[StepSample])),
        gap_s=_rows(connection, replay_sql.GAP, **bounds, since_s=first_s)[0]["gap_s"],
        modes={share["mode"]: share["share"] for share in shares},
    )


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
