"""What a caller may ask the control loop about one request: how it is described, and how the loop is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Annotated, TypeVar

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field

from controller.api.commands import Commands, Question
from controller.monitoring.live_state import Live
from store.bounds import MAX_PROMPT_TOKENS_SENT, bounded_name, packed_tokens
from store.records import Arrived

ANSWER_S = 1.0
"""Timeout in seconds of the control loop's answer; routers have shorter timeouts of their own."""

Answer = TypeVar("Answer")
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 32)]
ClientName = Annotated[str, Field(max_length=1000)]


class RequestDescription(BaseModel):
    """A request as a caller knows it before any engine has it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=1000)
    max_tokens: Tokens
    token_ids: list[TokenId] | None = Field(default=None, max_length=MAX_PROMPT_TOKENS_SENT)
    temperature: float = Field(default=1.0, ge=0.0, le=100.0)
    tenant: ClientName | None = None
    session: ClientName | None = None
    lora: ClientName | None = None
    expected_output_tokens: Tokens | None = None

    def arrived(self, now_s: float, token_ids: Sequence[int], prompt_tokens: int) -> Arrived:
        """The request as an engine would report its arrival, with the names that an engine would give it."""
        tenant, session, lora = (
            None if name is None else bounded_name(name) for name in (self.tenant, self.session, self.lora)
        )
        return Arrived(
            request_id="asked",
            arrival_s=now_s,
            prompt_tokens=prompt_tokens,
            token_ids=packed_tokens(tuple(token_ids)),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            tenant=tenant,
            session=session,
            lora=lora,
            expected_output_tokens=self.expected_output_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopQuestions:
    """Asks the control loop, which alone may touch the core."""

    live: Live
    commands: Commands
    clock: Callable[[], float]

    def answer(self, question: Question, answer: Future[Answer]) -> Answer:
        """What the loop answers to a question; 503 where nothing comes in time."""
        if self.live.live_snapshot is None or not self.commands.ask(question):
            raise unavailable("the controller is starting, or too many callers ask at once")
        try:
            return answer.result(timeout=ANSWER_S)
        except FutureTimeoutError:
            answer.cancel()
            raise unavailable(f"the control loop did not answer within {ANSWER_S:g} s") from None


def unavailable(what: str) -> HTTPException:
    """The error of a question that cannot be answered now."""
    return HTTPException(status_code=503, detail={"error": what, "remedy": "go on without it, and try again"})
