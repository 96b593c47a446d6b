"""Forecasts for a request on each engine: its wait for memory and a slot, from the predictions of the requests before it.

A request starts when a slot is free and KV memory for it and for those before it in the order.
Running requests free their memory when they end, the one with the shortest expected remainder first.
The wait is the time until enough of them have ended, each at its expected remainder; waiting requests that go before
it add their costs once all running requests have ended.
Prompt tokens in the prefix cache, found or expected, are neither needed nor freed: others hold them.
The estimate ignores later arrivals and answers that end sooner or later than expected.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate

from controller.core.predictor import EnginePrediction
from controller.monitoring.live_state import EngineView, LiveSnapshot, RequestView
from controller.policy.policies import DEFAULT_GATE
from store.http_routing import EngineForecast, RouteForecast

GROWTH_TOKENS = DEFAULT_GATE.horizon_tokens
"""Horizon of the growth that admission reserves memory for."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """The state of an engine from which waits are forecast."""

    free_tokens: int
    """KV memory in tokens that no request holds, less the reserve for the growth of running requests."""
    free_places: int
    demand_tokens: int
    """KV memory in tokens that running requests hold and waiting requests need."""
    waiting_index_s: tuple[float, ...]
    """Indices of the waiting requests, lowest first."""
    waiting_need_tokens: tuple[int, ...]
    """Cumulative KV memory in tokens that the first 0, 1, 2, ... of them need."""
    waiting_cost_s: tuple[float, ...]
    """Cumulative costs of the first 0, 1, 2, ... of them in engine-seconds."""
    ending_tokens: tuple[float, ...]
    """Expected remainders of the running requests in tokens, the shortest first."""
    freed_tokens: tuple[int, ...]
    """Cumulative KV memory in tokens that is free once the first 0, 1, 2, ... of them have ended."""


def outlook(
    *,
    kv_tokens: int,
    places: int,
    running: Iterable[tuple[float, int]],
    waiting: Iterable[tuple[float, int, float]],
) -> Outlook:
    """Build the outlook of an engine.

    Args:
        kv_tokens: KV memory of the engine in tokens.
        places: number of requests that it runs at once.
        running: pairs of expected remaining tokens and KV tokens held.
        waiting: triples of index, KV tokens needed at first, and cost in engine-seconds.
    """
    runs = sorted(running)
    waits = sorted(waiting)
    held = sum(tokens for _, tokens in runs)
    growth = sum(min(GROWTH_TOKENS, round(remaining)) for remaining, _ in runs)
    return Outlook(
        free_tokens=kv_tokens - held - growth,
        free_places=places - len(runs),
        demand_tokens=held + sum(tokens for _, tokens, _ in waits),
        waiting_index_s=tuple(index_s for index_s, _, _ in waits),
        waiting_need_tokens=tuple(accumulate((tokens for _, tokens, _ in waits), initial=0)),
        waiting_cost_s=tuple(accumulate((cost_s for _, _, cost_s in waits), initial=0.0)),
        ending_tokens=tuple(remaining for remaining, _ in runs),
        freed_tokens=tuple(
            accumulate((tokens + min(GROWTH_TOKENS, round(remaining)) for remaining, tokens in runs), initial=0)
        ),
    )


def expected_wait_s(engine: Outlook, *, index_s: float, need_tokens: int, step_s: float) -> float:
    """Seconds until a request with this index gets its memory and a slot.

    >>> full = outlook(kv_tokens=1000, places=8, running=[(100.0, 400), (50.0, 500)], waiting=[(1.0, 300, 2.0)])
    >>> [expected_wait_s(full, index_s=index_s, need_tokens=100, step_s=0.1) for index_s in (0.5, 1.5)]
    [5.0, 5.0]
    >>> expected_wait_s(full, index_s=1.5, need_tokens=400, step_s=0.1)
    10.0
    """
    ahead = bisect_right(engine.waiting_index_s, index_s)
    tokens = engine.waiting_need_tokens[ahead] + need_tokens - engine.free_tokens
    places = ahead + 1 - engine.free_places
    ended = max(0, places, bisect_left(engine.freed_tokens, tokens))
    if ended == 0:
        return 0.0
    if ended <= len(engine.ending_tokens):
        return engine.ending_tokens[ended - 1] * step_s
    last_s = engine.ending_tokens[-1] * step_s if engine.ending_tokens else 0.0
    return last_s + engine.waiting_cost_s[ahead]


def engine_forecast(
    engine_id: str, engine: Outlook, kv_tokens: int, request: EnginePrediction, prompt: int
) -> EngineForecast:
    """Forecast for a request with a prompt of ``prompt`` tokens on an engine."""
    need = prompt - request.cached_tokens + min(GROWTH_TOKENS, round(request.mean_tokens))
    return EngineForecast(
        engine_id=engine_id,
        wait_s=expected_wait_s(engine, index_s=request.index_s, need_tokens=need, step_s=request.step_s),
        run_s=request.mean_tokens * request.step_s,
        cost_s=request.cost_s,
        behind=len(engine.waiting_index_s) - bisect_right(engine.waiting_index_s, request.index_s),
        need_tokens=need,
        demand_tokens=engine.demand_tokens,
        kv_tokens=kv_tokens,
        cached_tokens=request.cached_tokens,
        saved_s=request.saved_s,
    )


class Outlooks:
    """The outlooks of the latest live snapshot, each computed once and only on demand."""

    def __init__(self) -> None:
        self._of: tuple[LiveSnapshot, dict[str, Outlook]] | None = None

    def forecast(
        self, live_snapshot: LiveSnapshot, predicted_on: Mapping[str, EnginePrediction], prompt_tokens: int
    ) -> RouteForecast:
        """Forecasts for a request on each connected engine with a prediction, by engine id."""
        if self._of is None or self._of[0] is not live_snapshot:
            self._of = (live_snapshot, {})
        known = self._of[1]
        forecasts = []
        for view in live_snapshot.engines:
            engine_id = view.hello.engine_id
            if not view.connected or engine_id not in predicted_on:
                continue
            if engine_id not in known:
                known[engine_id] = outlook_of(view)
            forecasts.append(
                engine_forecast(engine_id, known[engine_id], kv_tokens_of(view), predicted_on[engine_id], prompt_tokens)
            )
        return RouteForecast(time_s=live_snapshot.time_s, engines=tuple(forecasts))


def kv_tokens_of(view: EngineView) -> int:
    """KV memory of an engine."""
    return view.hello.kv_blocks * view.hello.block_size_tokens


def outlook_of(view: EngineView, places: Mapping[str, float] | None = None) -> Outlook:
    """The outlook of an engine in a live snapshot; ``places`` are the waiting requests' in the order, by default their indices."""
    running = {request.request_id for request in view.detailed.running_requests} if view.detailed else set()
    runs, waits = [], []
    for request in view.requests:
        held = request.arrived.prompt_tokens - request.cached_tokens + request.attained_tokens
        remaining = _remaining_tokens(request)
        if request.arrived.request_id in running:
            runs.append((remaining, held))
        else:
            place = request.index_s if places is None else places.get(request.arrived.request_id, request.index_s)
            waits.append((place, held + min(GROWTH_TOKENS, round(remaining)), request.cost_s))
    return outlook(kv_tokens=kv_tokens_of(view), places=view.hello.max_num_seqs, running=runs, waiting=waits)


def _remaining_tokens(request: RequestView) -> float:
    if not request.attained_tokens:
        return request.predicted.mean_tokens
    return max(0.0, request.predicted.given(request.attained_tokens).mean_tokens - request.attained_tokens)
