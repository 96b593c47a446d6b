"""Rebuilds the learner after a restart: the answers in the history are taught again, in their order."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from controller.core.core import Core
from online_learning.features.prompt_features import DIMENSIONS
from online_learning.length_learner import Observation
from store.history.reader import RecordedAnswer, learning_history, next_answer

log = logging.getLogger(__name__)

REHEARSED_ANSWERS = 1_000
"""Number of latest answers that are predicted as well, so that calibration and its guard continue."""


def rebuild(core: Core, store: Path, limit: int) -> int:
    """Teach the latest ``limit`` answers of a history; returns their number.

    A learner is a function of the answers that it was taught, in their order. Its predictions are those of the process
    that wrote the history, bit for bit, if that had been taught at most ``limit`` answers and the history lost no
    prediction under pressure; otherwise they differ by what the learner has not forgotten yet.
    """
    return learn_again(core, learning_history(store, limit), next_answer=next_answer(store))


def learn_again(core: Core, past_answers: Iterable[RecordedAnswer], *, next_answer: int) -> int:
    """Teach recorded answers, oldest first; returns the number that could be taught.

    ``next_answer`` is the number that the next answer will have.
    An answer on which the learner fails is left out and logged once for each kind of error: a controller must start.
    """
    logged: set[str] = set()
    taught = 0
    for answer, is_recent in _in_order(past_answers):
        features = np.frombuffer(answer.features, dtype="<f4")
        observation = Observation(answer.output_tokens, answer.censored, answer.surprises)
        try:
            if is_recent:
                core.rehearse(features, answer.model, observation)
            core.teach(features, answer.model, observation, answer=answer.answer)
        except Exception as error:  # No recorded answer may keep the controller from starting.
            kind = type(error).__name__
            if kind not in logged:
                logged.add(kind)
                log.exception("a recorded answer cannot be learned and is left out")
        else:
            taught += 1
    core.number_answers_from(next_answer)
    return taught


def _in_order(past_answers: Iterable[RecordedAnswer]) -> Iterator[tuple[RecordedAnswer, bool]]:
    """The answers whose features the learner can use, and whether each is among the latest."""
    latest: deque[RecordedAnswer] = deque()
    for answer in past_answers:
        if len(answer.features) < 4 * DIMENSIONS:
            continue  # It was recorded by a release with other features.
        latest.append(answer)
        if len(latest) > REHEARSED_ANSWERS:
            yield latest.popleft(), False
    yield from ((answer, True) for answer in latest)
