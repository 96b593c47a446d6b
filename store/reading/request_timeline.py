"""The facts of one request's timeline, put together from the history; what can be said of it is made of these alone.

The controller puts the same facts together from what it remembers of the last minutes, so that a request can be
explained before the history shows it; `joined` makes one timeline of the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any, Literal, TypeAlias, TypeVar

import duckdb
import msgspec

from store.reading import request_timeline_sql
from store.records import FinishReason, Mode, PreemptionCause

MOMENTS_LIMIT = 1500
"""Snapshots of a timeline that are looked at; a longer timeline is looked at more coarsely."""
RIVALS_LIMIT = 2000
CHOICES_LIMIT = 100
LOSSES_LIMIT = 500
ORDERS_LIMIT = 200

State: TypeAlias = Literal["waiting", "running", "ended", "unknown"]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts of a timeline."""


class Predicted(Piece, frozen=True, kw_only=True):
    """What was believed of the output length at the arrival."""

    time_s: float
    cluster: int | None
    mean_tokens: float
    p10_tokens: int
    p25_tokens: int
    p50_tokens: int
    p75_tokens: int
    p90_tokens: int
    p95_tokens: int
    p99_tokens: int
    evidence: float
    """Effective number of past answers behind it."""
    experts: dict[str, float]
    """Weight of each expert."""

    @property
    def quantiles(self) -> tuple[tuple[float, int], ...]:
        """Pairs of probability and output tokens, ascending."""
        return (
            (0.1, self.p10_tokens),
            (0.25, self.p25_tokens),
            (0.5, self.p50_tokens),
            (0.75, self.p75_tokens),
            (0.9, self.p90_tokens),
            (0.95, self.p95_tokens),
            (0.99, self.p99_tokens),
        )


class Choice(Piece, frozen=True, kw_only=True):
    """An index table that was published."""

    time_s: float
    policy: str
    reason: str
    cost_s: float
    """Expected cost of the whole request in engine-seconds."""
    index_s: float
    """Index at the output tokens attained then."""
    attained_tokens: tuple[int, ...]
    table_index_s: tuple[float, ...]
    patience_s: float | None = None
    """Time of waiting after which nobody of its class passes it any more; None for none."""


class Loss(Piece, frozen=True, kw_only=True):
    """A preemption."""

    time_s: float
    lost_tokens: int
    attained_tokens: int
    cause: PreemptionCause


class Verdict(Piece, frozen=True, kw_only=True):
    """How the prediction turned out."""

    pit: float
    crps_tokens: float
    within_50: bool
    within_90: bool
    censored: bool


class Moment(Piece, frozen=True, kw_only=True):
    """A snapshot of the engine, and where the request stood in it."""

    time_s: float
    waiting: int
    running: int
    kv_blocks_used: int
    kv_blocks: int
    admission_limit: int | None
    reserved_blocks: int
    mode: Mode
    fallback: str | None
    ahead: int | None
    """Requests before it in the queue; None when it is not at the head of the queue that snapshots tell of."""
    head_prompt_tokens: int | None
    """Prompt of the first in the queue, where known."""
    attained_tokens: int | None
    """Output tokens so far; None when it is not running."""


class Rival(Piece, frozen=True, kw_only=True):
    """A request that was given its first place while this one waited."""

    request_id: str
    arrival_s: float
    scheduled_s: float
    prompt_tokens: int
    priority: int
    index_s: float | None
    """Its index at no output tokens when it was started; None when no table had been decided."""
    patience_s: float | None = None
    """Bound on its waiting in the same table; None for none."""


class Order(Piece, frozen=True, kw_only=True):
    """Settings that were sent to the engine."""

    time_s: float
    reason: str
    mode: Mode
    boost_per_s: float | None
    gate_horizon_tokens: int | None


class Shift(Piece, frozen=True, kw_only=True):
    """A drift of the request's cluster."""

    time_s: float
    before_mean_tokens: float
    after_mean_tokens: float


class RequestTimeline(Piece, frozen=True, kw_only=True):
    """All that is recorded of one request; None stands for what is not known (yet)."""

    request_id: str
    engine_id: str
    session_id: str
    known_until_s: float
    """The facts reach up to here."""
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    model: str | None = None
    block_size_tokens: int | None = None
    max_num_seqs: int | None = None
    temperature: float | None = None
    priority: int | None = None
    tenant: str | None = None
    lora: str | None = None
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    reason: FinishReason | None = None
    output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    recomputed_tokens: int | None = None
    predicted: Predicted | None = None
    verdict: Verdict | None = None
    choices: tuple[Choice, ...] = ()
    losses: tuple[Loss, ...] = ()
    moments: tuple[Moment, ...] = ()
    rivals: tuple[Rival, ...] = ()
    orders: tuple[Order, ...] = ()
    """The settings in force at the arrival, then every change."""
    shifts: tuple[Shift, ...] = ()
    other_sessions: int = 0
    """Other sessions of engines that knew a request of this name."""

    @property
    def started_s(self) -> float | None:
        """When it was first given a place: as told, or else as first seen running."""
        if self.scheduled_s is not None:
            return self.scheduled_s
        return next((moment.time_s for moment in self.moments if moment.attained_tokens is not None), None)

    @property
    def until_s(self) -> float:
        """When it ended, or up to when it is known."""
        return self.known_until_s if self.finished_s is None else self.finished_s

    @property
    def state(self) -> State:
        """Where it stands at the end of what is known."""
        if self.finished_s is not None:
            return "ended"
        last = self.moments[-1] if self.moments else None
        if last is not None and last.attained_tokens is not None:
            return "running"
        return "waiting" if last is not None or self.started_s is None else "unknown"


def read_timeline(
    connection: duckdb.DuckDBPyConnection, request_id: str, session_id: str | None = None
) -> RequestTimeline | None:
    """The timeline of a request from a history that `store.history.reader.open_history` opened; None when none is of that name.

    Where several sessions of engines had a request of the name, the latest is taken unless ``session_id`` says which.
    """
    sessions = _rows(connection, request_timeline_sql.SESSIONS, request_id=request_id)
    chosen = [row for row in sessions if session_id in {None, row["session_id"]}]
    if not chosen:
        return None
    key = {"request_id": request_id, "session_id": chosen[0]["session_id"]}
    known = chosen[0] | {"request_id": request_id, "other_sessions": len(sessions) - 1}
    for query in (request_timeline_sql.ARRIVAL, request_timeline_sql.FIRST_STEP, request_timeline_sql.COMPLETION):
        known |= {name: value for name, value in _one(connection, query, **key).items() if value is not None}
    known |= _one(connection, request_timeline_sql.ENGINE, session_id=key["session_id"])
    return _assembled(connection, key, known)


def joined(earlier: RequestTimeline | None, later: RequestTimeline | None) -> RequestTimeline | None:
    """One timeline of two accounts of it, of which the later one is right where they differ."""
    if earlier is None or later is None or earlier.session_id != later.session_id:
        return later or earlier
    scalars = {
        name: getattr(earlier, name) if getattr(later, name) is None else getattr(later, name)
        for name in RequestTimeline.__struct_fields__
    }
    lists = {
        name: _united(getattr(earlier, name), getattr(later, name), key)[:limit]
        for name, (key, limit) in _LISTS.items()
    }
    return RequestTimeline(**scalars | lists | {"other_sessions": max(earlier.other_sessions, later.other_sessions)})


def _assembled(connection: duckdb.DuckDBPyConnection, key: dict[str, str], known: dict[str, Any]) -> RequestTimeline:
    since_s = known["arrival_s"]
    latest_s = connection.execute(request_timeline_sql.LATEST, {"session_id": key["session_id"]}).fetchall()[0][0]
    until_s = known.get("finished_s") or max(latest_s or since_s, since_s)
    span = {"since_s": since_s, "until_s": until_s}
    predicted = _one(connection, request_timeline_sql.PREDICTED, **key)
    facts = known | {
        "known_until_s": until_s,
        "predicted": predicted | {"experts": dict(predicted["experts"] or ())} if predicted else None,
        "verdict": _one(connection, request_timeline_sql.VERDICT, **key) or None,
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
    rivals = _rows(connection, request_timeline_sql.RIVALS, **key, **started, limit=RIVALS_LIMIT)
    return msgspec.structs.replace(timeline, rivals=tuple(msgspec.convert(rivals, list[Rival])))


def _rows(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float | str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = connection.sql(query, params=parameters).to_arrow_table().to_pylist()
    return rows


def _one(connection: duckdb.DuckDBPyConnection, query: str, **parameters: float | str) -> dict[str, Any]:
    rows = _rows(connection, query, **parameters)
    return rows[0] if rows else {}


PieceType = TypeVar("PieceType", bound=Piece)


def _united(
    earlier: Iterable[PieceType], later: Iterable[PieceType], key: Callable[[PieceType], Hashable]
) -> tuple[PieceType, ...]:
    by_key: dict[Any, PieceType] = {key(piece): piece for piece in (*earlier, *later)}
    return tuple(by_key[name] for name in sorted(by_key))


_LISTS: dict[str, tuple[Callable[[Any], Hashable], int]] = {
    "choices": (lambda choice: choice.time_s, CHOICES_LIMIT),
    "losses": (lambda loss: loss.time_s, LOSSES_LIMIT),
    "moments": (lambda moment: moment.time_s, 2 * MOMENTS_LIMIT),
    "rivals": (lambda rival: (rival.scheduled_s, rival.request_id), RIVALS_LIMIT),
    "orders": (lambda order: order.time_s, ORDERS_LIMIT),
    "shifts": (lambda shift: shift.time_s, ORDERS_LIMIT),
}
"""What tells the pieces of each list apart, and how many are kept."""
