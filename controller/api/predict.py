"""``POST /api/predict``: the predicted length of a request's answer, for endpoint pickers and routers of others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import Field, model_validator

from controller.api.commands import PredictLength
from controller.api.prompt_tokenizer import PromptTokenizer
from controller.api.questions import LoopQuestions, RequestDescription, Tokens
from controller.api.route import TOO_FEW
from controller.monitoring.live_state import Live
from store.http_routing import LengthForecast

MODELS_NAMED = 5


class Predict(RequestDescription):
    """Body of ``POST /api/predict``: a prompt as token ids, as text, or by its length alone."""

    prompt_tokens: Tokens | None = None
    """Length of the whole prompt where ``token_ids`` are its head and tail, or where there are none."""
    text: str | None = Field(default=None, min_length=1, max_length=1 << 20)

    @model_validator(mode="after")
    def _check_prompt(self) -> Predict:
        if (self.text is not None) and (self.token_ids is not None or self.prompt_tokens is not None):
            raise ValueError("text is given beside token_ids or prompt_tokens: give one of them")
        if self.text is None and self.token_ids is None and self.prompt_tokens is None:
            raise ValueError(
                "no prompt is given: give token_ids, text, or prompt_tokens where only its length is known"
            )
        if self.prompt_tokens is not None and len(self.token_ids or ()) > self.prompt_tokens:
            raise ValueError(TOO_FEW)
        return self


def add_predict(api: FastAPI, loop: LoopQuestions, guard: Any, tokenizer: PromptTokenizer) -> None:
    """Add the path."""

    @api.post("/api/predict", tags=["control"], dependencies=[guard])
    def predict(order: Predict) -> LengthForecast:
        """Predict the output length of a request, wherever it will be served; read-only."""
        token_ids: Sequence[int] = order.token_ids or ()
        if order.text is not None:
            token_ids = tokenizer.token_ids(order.text)
        prompt_tokens = order.prompt_tokens or max(1, len(token_ids))
        question = PredictLength(order.model, order.arrived(loop.clock(), token_ids, prompt_tokens))
        predicted = loop.answer(question, question.answer)
        if predicted is None:
            raise _unknown(order.model, loop.live)
        return predicted


def _unknown(model: str, live: Live) -> HTTPException:
    """A misspelt name must not get the lengths of other models."""
    snapshot = live.live_snapshot
    served = sorted({engine.hello.model for engine in snapshot.engines}) if snapshot else []
    here = ", ".join(served[:MODELS_NAMED]) or "none"
    return HTTPException(
        status_code=404,
        detail={
            "error": f"model {model!r:.200} is not known: no engine serves it, and no answer of it was learnt",
            "remedy": f"give a model by the name that its engines serve it under; connected now: {here}",
        },
    )
