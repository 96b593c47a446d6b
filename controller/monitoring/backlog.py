"""The work that waits on an engine: the engine-seconds that its unfinished requests are still expected to need.

An engine-second is the whole engine for a second. Where requests wait, an engine is full and serves one a second, so that
this is about the time until those that are there now have been served; an engine with little to do is sooner done.
"""

from __future__ import annotations

from controller.monitoring.live_state import EngineView, RequestView
from controller.policy.cost import CostModel, hybrid_cost


def backlog_s(view: EngineView) -> float | None:
    """Expected engine-seconds of an engine's unfinished requests; those beyond a live snapshot's bound count as these.

    None where the controller does not follow them, as in mode ``off``.
    """
    if not view.requests:
        return None if view.snapshot is not None and view.snapshot.mode == "off" else 0.0
    prices = hybrid_cost(view.engine)
    return sum(_left_s(request, prices) for request in view.requests) * view.unfinished / len(view.requests)


def _left_s(request: RequestView, prices: CostModel) -> float:
    """Expected cost of a request from the tokens that it has, as `CostModel.total_s` gives it for each length."""
    attained, prompt = request.attained_tokens, request.arrived.prompt_tokens
    left = request.predicted.given(attained) if attained else request.predicted
    tokens = float(left.mass @ left.lengths) - attained
    held = 0.5 * (float(left.mass @ (left.lengths * left.lengths)) - attained * attained) + prompt * tokens
    prefill = 0 if attained else prompt - request.cached_tokens
    return float(prices.kv_token_step_s * held + prices.slot_step_s * tokens + prices.prefill_token_s * prefill)
