"""The present at a glance: the verdict, latencies, demand and engines, from the live snapshot and the last quarter of an hour."""

from __future__ import annotations

from collections.abc import Sequence

from controller.monitoring.live_state import EngineView, LiveSnapshot
from controller.monitoring.present.demand import demand_text, present_demand
from controller.monitoring.present.pulse import BIN_S, Bin, EngineBin, chosen, latest, merged
from controller.monitoring.present.verdict import attained, findings
from engine_adapter.serving.latency_histogram import Latencies
from store.http_now import DemandNow, EngineNow, EngineState, LatencyNow, LatencyPoint, NowView, verdict_of
from store.rules import RULES

SPAN_S = 60.0
"""Span of the figures."""
BEFORE_S = 300.0
"""Span before it with which they are compared."""
RATE_S = 10.0
"""Span of tokens a second."""
BINS_IN_POINT = 6


def overview(
    snapshot: LiveSnapshot,
    bins: Sequence[Bin],
    *,
    engine_id: str | None = None,
    model: str | None = None,
    free_bytes: int | None,
    now_s: float,
) -> NowView:
    """What the API says of the present; figures are those of one engine, of one model's, or of all."""
    views = [
        view
        for view in snapshot.engines
        if engine_id in {None, view.hello.engine_id} and model in {None, view.hello.model}
    ]
    whole = engine_id is None and model is None
    names = None if whole else frozenset(view.hello.engine_id for view in views)
    return NowView(
        time_s=now_s,
        span_s=SPAN_S,
        verdict=verdict_of(findings(snapshot, bins, free_bytes=free_bytes, now_s=now_s)),
        ttft=_latency(bins, names, now_s, "ttft"),
        ttlt=_latency(bins, names, now_s, "ttlt"),
        attained=tuple(attained(bins, now_s)),
        demand=_demand(bins, names),
        engines=tuple(_engine(view, bins, now_s) for view in views),
        events=snapshot.events,
    )


def _latency(bins: Sequence[Bin], names: frozenset[str] | None, now_s: float, which: str) -> LatencyNow:
    recent = latest(bins, SPAN_S, now_s)
    before = [each for each in latest(bins, SPAN_S + BEFORE_S, now_s) if each not in recent]
    whole = _histogram(recent, names, which)
    points = [(group[-1].end_s, _histogram(group, names, which)) for group in _groups(bins)]
    return LatencyNow(
        requests=whole.count,
        p50_s=whole.quantile_s(0.5),
        p99_s=whole.quantile_s(0.99),
        before_p50_s=_histogram(before, names, which).quantile_s(0.5),
        points=tuple(LatencyPoint(end_s, part.quantile_s(0.5), part.quantile_s(0.99)) for end_s, part in points),
    )


def _groups(bins: Sequence[Bin]) -> list[Sequence[Bin]]:
    """Bins in groups that stay together as time goes on; the last may be incomplete."""
    first = next((place for place, each in enumerate(bins) if round(each.end_s / BIN_S) % BINS_IN_POINT == 1), 0)
    starts = range(first, len(bins), BINS_IN_POINT)
    return [group for group in (bins[:first], *(bins[at : at + BINS_IN_POINT] for at in starts)) if group]


def _histogram(bins: Sequence[Bin], names: frozenset[str] | None, which: str) -> Latencies:
    return merged(getattr(engine, which) for each in bins for engine in chosen(each, names))


def _demand(bins: Sequence[Bin], names: frozenset[str] | None) -> DemandNow | None:
    seen = present_demand(bins, names)
    if seen is None:
        return None
    return DemandNow(
        arrived_per_s=seen.arrived / seen.span_s,
        ended_per_s=seen.ended / seen.span_s,
        waiting=seen.waiting,
        grown_per_minute=seen.grown_per_minute,
        ratio=seen.ratio,
        text=demand_text(seen),
    )


def _engine(view: EngineView, bins: Sequence[Bin], now_s: float) -> EngineNow:
    hello, last = view.hello, view.snapshot if view.connected else None
    recent = [each.engines[hello.engine_id] for each in latest(bins, SPAN_S, now_s) if hello.engine_id in each.engines]
    rate = [each.engines[hello.engine_id] for each in latest(bins, RATE_S, now_s) if hello.engine_id in each.engines]
    ttft = merged(each.ttft for each in recent)
    return EngineNow(
        engine_id=hello.engine_id,
        model=hello.model,
        version=f"{hello.engine} {hello.engine_version}",
        state=_state(view, now_s),
        mode=last.mode if last else None,
        waiting=last.waiting if last else None,
        running=last.running if last else None,
        kv_share=last.kv_blocks_used / last.kv_blocks if last and last.kv_blocks else None,
        output_tokens_per_s=sum(each.output_tokens for each in rate) / RATE_S if last else None,
        ttft_p50_s=ttft.quantile_s(0.5),
        ttft_p99_s=ttft.quantile_s(0.99),
        preemptions_per_minute=_per_minute(recent) if last else None,
        last_seen_s=view.last_seen_s,
        idle_since_s=_idle_since_s(view, bins),
    )


def _per_minute(engines: Sequence[EngineBin]) -> float:
    return 60.0 * sum(each.preemptions for each in engines) / SPAN_S


def _idle_since_s(view: EngineView, bins: Sequence[Bin]) -> float | None:
    if view.snapshot is None or not view.snapshot.is_idle:
        return None
    ends = [each.end_s for each in bins if (engine := each.engines.get(view.hello.engine_id)) and engine.ended]
    return ends[-1] if ends else None


def _state(view: EngineView, now_s: float) -> EngineState:
    if not view.connected:
        return view.gone or "lost"
    if view.snapshot is None:
        return "connected"
    if RULES["engine_silent"].judge(now_s - view.last_seen_s) != "green":
        return "silent"
    if view.snapshot.fallback:
        return "fallback"
    return "idle" if view.snapshot.is_idle else view.snapshot.mode
