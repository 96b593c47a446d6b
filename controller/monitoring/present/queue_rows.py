"""The unfinished requests for readers: in their order, each with when it is expected to start and to end, and why there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median

from msgspec import structs

from controller.monitoring.live_state import EngineView, LiveSnapshot, RequestView
from controller.monitoring.wait_forecast import GROWTH_TOKENS, Outlook, expected_wait_s, outlook_of
from store.http_api import QueueReason, QueueRow, QueueState


def queue_rows(live_snapshot: LiveSnapshot, *, engine_id: str | None, limit: int) -> tuple[QueueRow, ...]:
    """Unfinished requests: the waiting ones in the order in which they will be tried, then the running ones.

    An engine reports only the head of its queue; the requests after it follow by class, index and arrival.
    Engines that are gone have none. Under the limit every other has an equal share, of which running requests have half.
    """
    rows: list[QueueRow] = []
    engines = [
        engine for engine in live_snapshot.engines if engine.connected and engine_id in {None, engine.hello.engine_id}
    ]
    for place, engine in enumerate(engines):
        rows.extend(_rows_of(engine, engine.clock_s, (limit - len(rows)) // (len(engines) - place)))
    return tuple(rows)


def _rows_of(engine: EngineView, now_s: float, limit: int) -> Iterator[QueueRow]:
    named = engine.detailed
    running = {r.request_id for r in named.running_requests} if named else set()
    rank = {request_id: place for place, request_id in enumerate(named.queue)} if named else {}
    waiting: list[RequestView] = []
    served: list[RequestView] = []
    for view in engine.requests:
        (served if view.arrived.request_id in running else waiting).append(view)
    waiting.sort(
        key=lambda view: (
            rank.get(view.arrived.request_id, len(rank)),
            view.arrived.priority,
            view.index_s,
            view.arrived.arrival_s,
        )
    )
    shown = limit - min(len(served), limit // 2)
    yield from islice(_waiting(engine, waiting, now_s), shown)
    shown = min(shown, len(waiting))
    for position, view in enumerate(served[: limit - shown], shown):
        row = _row(position, "running", view, engine.hello.engine_id, now_s)
        yield structs.replace(row, ends_in_s=row.expected_remaining_tokens * engine.engine.base_s)


def _waiting(engine: EngineView, waiting: Sequence[RequestView], now_s: float) -> Iterator[QueueRow]:
    """The waiting requests, each behind those before it."""
    step_s = engine.engine.base_s
    places = {view.arrived.request_id: float(place) for place, view in enumerate(waiting)}
    ahead = outlook_of(engine, places) if waiting else None
    typical_s = median(view.index_s for view in waiting) if waiting else 0.0
    classes = {view.arrived.priority for view in waiting}
    for position, view in enumerate(waiting):
        assert ahead is not None
        row = _row(position, "waiting", view, engine.hello.engine_id, now_s)
        starts_in_s = _starts_in_s(row, view, ahead, step_s)
        run_s = row.expected_remaining_tokens * step_s + row.prompt_tokens * engine.engine.prefill_token_s
        yield structs.replace(
            row,
            starts_in_s=starts_in_s,
            ends_in_s=starts_in_s + run_s,
            because=_reason(row, engine, early=2 * position < len(waiting), typical_s=typical_s, classes=classes),
        )


def _starts_in_s(row: QueueRow, view: RequestView, ahead: Outlook, step_s: float) -> float:
    growth = min(GROWTH_TOKENS, round(row.expected_remaining_tokens))
    need = row.prompt_tokens - view.cached_tokens + row.attained_tokens + growth
    return expected_wait_s(ahead, index_s=row.position - 0.5, need_tokens=need, step_s=step_s)


def _reason(row: QueueRow, engine: EngineView, *, early: bool, typical_s: float, classes: set[int]) -> QueueReason:
    """The strongest reason for a place: its class, what it was promised, its length, or its wait."""
    if engine.snapshot is None or engine.snapshot.mode != "on":
        return "arrival"
    if len(classes) > 1 and row.priority == min(classes):
        return "priority"
    if row.targets is not None:
        return "target"
    if row.index_s <= typical_s:
        return "short"
    return "waited" if early else "long"


def _row(position: int, state: QueueState, view: RequestView, engine_id: str, now_s: float) -> QueueRow:
    arrived = view.arrived
    remaining = view.predicted.given(view.attained_tokens)
    return QueueRow(
        position=position,
        request_id=arrived.request_id,
        engine_id=engine_id,
        state=state,
        priority=arrived.priority,
        age_s=max(0.0, now_s - arrived.arrival_s),
        prompt_tokens=arrived.prompt_tokens,
        attained_tokens=view.attained_tokens,
        index_s=view.index_s,
        expected_remaining_tokens=max(0.0, remaining.mean_tokens - view.attained_tokens),
        p50_tokens=view.predicted.quantile(0.5),
        p90_tokens=view.predicted.quantile(0.9),
        cluster=view.cluster,
        service_class=view.promise.service_class,
        targets=view.promise.targets,
    )
