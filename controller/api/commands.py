"""Commands and questions from other threads to the control loop, which alone may touch the core."""

from __future__ import annotations

import queue
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeAlias

from controller.core.core import Core
from controller.core.predictor import EnginePrediction
from store.entries import Credential, ModeSwitched
from store.http_routing import LengthForecast
from store.records import Arrived, Mode, Settings

WAITING_COMMANDS = 16
WAITING_QUESTIONS = 256
QUESTIONS_PER_TURN = 16
"""Largest number of questions answered in one turn of the loop, because engines must not wait for routers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Switch all engines to a mode; answered with the settings then in force."""

    mode: Mode
    reason: str
    who: str | None = None
    credential: Credential
    address: str
    answer: Future[Settings] = field(default_factory=Future)

    def switched(self, before: Mode, now_s: float) -> ModeSwitched:
        """The command as the audit trail records it."""
        return ModeSwitched(
            time_s=now_s,
            before=before,
            mode=self.mode,
            reason=self.reason,
            who=self.who,
            credential=self.credential,
            address=self.address,
        )


@dataclass(frozen=True, slots=True)
class PredictOn:
    """A router's question: the prediction for a request on each engine of a model."""

    model: str
    arrived: Arrived
    answer: Future[dict[str, EnginePrediction]] = field(default_factory=Future)

    def reply(self, core: Core) -> None:
        """Answer it."""
        self.answer.set_result(core.predict_on(self.model, self.arrived))


@dataclass(frozen=True, slots=True)
class PredictLength:
    """The question how long an answer will be; None where the model is not known."""

    model: str
    arrived: Arrived
    answer: Future[LengthForecast | None] = field(default_factory=Future)

    def reply(self, core: Core) -> None:
        """Answer it."""
        self.answer.set_result(core.predict_length(self.model, self.arrived))


Question: TypeAlias = PredictOn | PredictLength


class Commands:
    """Two bounded queues: commands and questions; ``wake`` is called when something is in them, from any thread.

    >>> commands = Commands()
    >>> commands.offer(SetMode(mode="off", reason="example", credential="token", address="127.0.0.1"))
    True
    >>> [command.mode for command in commands.drain()]
    ['off']
    """

    def __init__(self, wake: Callable[[], None] = lambda: None) -> None:
        self._wake = wake
        self._queue: queue.Queue[SetMode] = queue.Queue(maxsize=WAITING_COMMANDS)
        self._questions: queue.Queue[Question] = queue.Queue(maxsize=WAITING_QUESTIONS)

    def offer(self, command: SetMode) -> bool:
        """Queue a command; False when the queue is full."""
        try:
            self._queue.put_nowait(command)
        except queue.Full:
            return False
        self._wake()
        return True

    def drain(self) -> list[SetMode]:
        """Remove and return the queued commands, oldest first."""
        commands: list[SetMode] = []
        while not self._queue.empty():
            commands.append(self._queue.get_nowait())
        return commands

    def ask(self, question: Question) -> bool:
        """Queue a question; False when the queue is full."""
        try:
            self._questions.put_nowait(question)
        except queue.Full:
            return False
        self._wake()
        return True

    def questions(self) -> list[Question]:
        """Remove and return questions to answer now, oldest first, without those whose caller has given up."""
        found: list[Question] = []
        while len(found) < QUESTIONS_PER_TURN and not self._questions.empty():
            question = self._questions.get_nowait()
            if question.answer.set_running_or_notify_cancel():
                found.append(question)
        return found
