"""Assembles the timeline of one request from the history; explanations are derived from it alone."""

from __future__ import annotations

from typing import Any

import duckdb
import msgspec

from store.bounds import bounded_request_id, id_in_engine
from store.http_requests import CompetingRequest, RequestTimeline
from store.reading import request_timeline_sql

MOMENTS_LIMIT = 1500
"""Largest number of snapshots in a timeline; a longer timeline is sampled more coarsely."""
COMPETING_LIMIT = 2000
CHOICES_LIMIT = 100
LOSSES_LIMIT = 500
ORDERS_LIMIT = 200

TABLES = (
    "arrivals", "promises", "first_tokens", "completions", "preemptions", "engines", "predictions", "decisions", "outcomes",
    "snapshots", "settings_history", "drift_events",
)  # fmt: skip
"""Tables that record a request."""


def read_timeline(
    connection: duckdb.DuckDBPyConnection, request_id: str, session_id: str | None = None
) -> RequestTimeline | None:
    """The timeline of a request from a history that `store.history.reader.open_history` opened; None when none is of that name.

    ``request_id`` is the engine's id of the request, or the id of the answer that its client got: of several choices the
    latest is taken. Either may be whole or cut as in the history.
    Where several sessions of engines had a request of the name, the latest is taken unless ``session_id`` says which.
    """
    request_id = _recorded_id(connection, request_id)
    sessions = _rows(connection, request_timeline_sql.SESSIONS, request_id=request_id)
    chosen = [row for row in sessions if session_id in {None, row["session_id"]}]
    if not chosen:
        return None
    key = {"request_id": request_id, "session_id": chosen[0]["session_id"]}
    known = chosen[0] | {"request_id": request_id, "other_sessions": len(sessions) - 1}
    for query in (
        request_timeline_sql.ARRIVAL,
        request_timeline_sql.PROMISED,
        request_timeline_sql.FIRST_STEP,
        request_timeline_sql.COMPLETION,
    ):
        known |= {name: value for name, value in _one(connection, query, **key).items() if value is not None}
    known |= _one(connection, request_timeline_sql.ENGINE, session_id=key["session_id"])
    return _assembled(connection, key, known)


def _recorded_id(connection: duckdb.DuckDBPyConnection, request_id: str) -> str:
    """The id under which a request is recorded, from its whole id in the engine or from the id that its client knows."""
    bounded = bounded_request_id(request_id)
    if _one(connection, request_timeline_sql.IS_RECORDED, request_id=bounded):
        return bounded
    found = _one(connection, request_timeline_sql.RECORDED_ID, of_client=id_in_engine(request_id))
    return str(found["request_id"]) if found else bounded


def _assembled(connection: duckdb.DuckDBPyConnection, key: dict[str, str], known: dict[str, Any]) -> RequestTimeline:
    since_s = known["arrival_s"]
    latest_s = connection.execute(request_timeline_sql.LATEST, {"session_id": key["session_id"]}).fetchall()[0][0]
    until_s = known.get("finished_s") or max(latest_s or since_s, since_s)
    span = {"since_s": since_s, "until_s": until_s}
    predicted = _one(connection, request_timeline_sql.PREDICTED, **key)
    facts = known | {
        "known_until_s": until_s,
        "predicted": predicted | {"experts": dict(predicted["experts"] or ())} if predicted else None,
        "scored": _one(connection, request_timeline_sql.SCORED, **key) or None,
        "choices": _rows(connection, request_timeline_sql.CHOICES, **key, limit=CHOICES_LIMIT),
        "losses": _rows(connection, request_timeline_sql.LOSSES, **key, limit=LOSSES_LIMIT),
        "moments": _rows(connection, request_timeline_sql.MOMENTS, **key, **span, limit=MOMENTS_LIMIT),
        "orders": _rows(
            connection, request_timeline_sql.ORDERS, session_id=key["session_id"], **span, limit=ORDERS_LIMIT
        ),
    }
    if predicted and predicted["cluster"] is not None and known.get("model"):
        about = {"model": known["model"], "cluster": predicted["cluster"]}
        facts["shifts"] = _rows(connection, request_timeline_sql.DRIFTS, **about, **span, limit=ORDERS_LIMIT)
    timeline = msgspec.convert(facts, RequestTimeline)
    started = {"since_s": since_s, "started_s": timeline.until_s if timeline.started_s is None else timeline.started_s}
    competing = _rows(connection, request_timeline_sql.COMPETING, **key, **started, limit=COMPETING_LIMIT)
    return msgspec.structs.replace(timeline, competing=tuple(msgspec.convert(competing, list[CompetingRequest])))


def _rows(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float | str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(query, params=parameters).to_arrow_table().to_pylist()
    return rows


def _one(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float | str) -> dict[str, Any]:
    rows = _rows(connection, query, **parameters)
    return rows[0] if rows else {}
