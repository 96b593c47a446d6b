"""``POST /api/route``: forecasts for a request on each engine of its model, for a router in front of them.

The control loop predicts the output length; the state of the engines comes from the latest `LiveSnapshot`.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import model_validator

from controller.api.commands import PredictOn
from controller.api.questions import LoopQuestions, RequestDescription, Tokens
from controller.monitoring.wait_forecast import Outlooks
from store.http_routing import RouteForecast

TOO_FEW = "token_ids are more than prompt_tokens: send the prompt, or its head and tail"


class Route(RequestDescription):
    """Body of ``POST /api/route``."""

    prompt_tokens: Tokens

    @model_validator(mode="after")
    def _check_length(self) -> Route:
        if len(self.token_ids or ()) > self.prompt_tokens:
            raise ValueError(TOO_FEW)
        return self


def add_route(api: FastAPI, loop: LoopQuestions, guard: Any) -> None:
    """Add the path."""
    outlooks = Outlooks()

    @api.post("/api/route", tags=["control"], dependencies=[guard])
    def route(order: Route) -> RouteForecast:
        """Forecast wait, run time, cost and memory of a request on each connected engine of its model; read-only."""
        live_snapshot = loop.live.live_snapshot
        question = PredictOn(order.model, order.arrived(loop.clock(), order.token_ids or (), order.prompt_tokens))
        predicted_on = loop.answer(question, question.answer)
        assert live_snapshot is not None, "the loop is not asked before there is one"
        return outlooks.forecast(live_snapshot, predicted_on, order.prompt_tokens)
