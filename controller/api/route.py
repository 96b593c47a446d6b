"""``POST /api/route``: forecasts for a request on each engine of its model, for a router in front of them.

The control loop predicts the output length; the state of the engines comes from the latest `LiveSnapshot`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, ConfigDict, Field, model_validator

from controller.api.commands import Commands, PredictOn
from controller.monitoring.live_state import Live
from controller.monitoring.wait_forecast import Outlooks
from store.bounds import MAX_PROMPT_TOKENS_SENT
from store.http_routing import RouteForecast
from store.records import Arrived

ANSWER_S = 1.0
"""Timeout in seconds of the control loop's answer; routers have shorter timeouts of their own."""

TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]


class Route(BaseModel):
    """Body of ``POST /api/route``."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1000)
    prompt_tokens: int = Field(ge=1, le=10_000_000)
    max_tokens: int = Field(ge=1, le=10_000_000)
    token_ids: list[TokenId] | None = Field(default=None, max_length=MAX_PROMPT_TOKENS_SENT)
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    tenant: str | None = Field(default=None, max_length=1000)

    @model_validator(mode="after")
    def _check_length(self) -> Route:
        if len(self.token_ids or ()) > self.prompt_tokens:
            raise ValueError("token_ids are more than prompt_tokens: send the prompt, or its head and tail")
        return self

    def arrived(self, now_s: float) -> Arrived:
        """The request as an engine would report its arrival."""
        return Arrived(
            request_id="route",
            arrival_s=now_s,
            prompt_tokens=self.prompt_tokens,
            token_ids=np.asarray(self.token_ids or [], dtype="<u4").tobytes(),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            tenant=self.tenant,
        )


def add_route(api: FastAPI, live: Live, commands: Commands, clock: Callable[[], float], guard: Any) -> None:
    """Add the path."""
    outlooks = Outlooks()

    @api.post("/api/route", tags=["control"], dependencies=[guard])
    def route(order: Route) -> RouteForecast:
        """Forecast wait, run time, cost and memory of a request on each connected engine of its model; read-only."""
        live_snapshot = live.live_snapshot
        question = PredictOn(order.model, order.arrived(clock()))
        if live_snapshot is None or not commands.ask(question):
            raise _unavailable("the controller is starting, or too many routers ask at once")
        try:
            predicted_on = question.answer.result(timeout=ANSWER_S)
        except FutureTimeoutError:
            question.answer.cancel()
            raise _unavailable(f"the control loop did not answer within {ANSWER_S:g} s") from None
        return outlooks.forecast(live_snapshot, predicted_on, order.prompt_tokens)


def _unavailable(what: str) -> HTTPException:
    return HTTPException(status_code=503, detail={"error": what, "remedy": "route without it, and try again"})
