"""Beliefs after a restart: the history's answers are taught again, in the order in which they were taught before."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from controller.core.core import Core
from online_learning.features.prompt_features import DIMENSIONS
from online_learning.length_learner import Features, Observation
from store.history.reader import RecordedAnswer, learning_history, next_answer

log = logging.getLogger(__name__)

REHEARSED_ANSWERS = 1_000
"""Answers, the latest, that are predicted again too, so that calibration and its guard know of the time before."""


def rebuild(core: Core, store: Path, limit: int) -> int:
    """Teach the latest ``limit`` answers of a history; returns how many there were.

    A learner is a function of what it was taught, in that order, so that its beliefs are then those of the process
    that recorded them, bit for bit, while that had been taught no more than ``limit`` answers and the history lost no
    prediction under pressure; beyond, as nearly as the learner forgets.
    """
    return learn_again(core, learning_history(store, limit), next_answer=next_answer(store))


def learn_again(core: Core, past_answers: Iterable[RecordedAnswer], *, next_answer: int) -> int:
    """Teach answers of the past, oldest first; returns how many could be taught.

    ``next_answer`` is the number that the next answer will have.
    One that makes the learner fail is left out, logged by its kind: a controller that cannot start serves nobody.
    """
    pupil = _Pupil(core)
    waiting: deque[RecordedAnswer] = deque()
    for answer in past_answers:
        if len(answer.features) < 4 * DIMENSIONS:
            continue  # It was recorded by a release with other features.
        waiting.append(answer)
        if len(waiting) > REHEARSED_ANSWERS:
            pupil.learn(waiting.popleft(), rehearse=False)
    for past in waiting:
        pupil.learn(past, rehearse=True)
    core.number_answers_from(next_answer)
    return pupil.learnt


class _Pupil:
    """Teaches a brain, whatever its learner raises."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._logged: set[str] = set()
        self.learnt = 0

    def learn(self, answer: RecordedAnswer, *, rehearse: bool) -> None:
        """Teach one answer, after predicting it if asked for."""
        lesson = _lesson(answer)
        try:
            if rehearse:
                self._core.rehearse(*lesson)
            self._core.teach(*lesson, answer=answer.answer)
        except Exception as error:  # No answer of the past may keep the controller from starting.
            kind = type(error).__name__
            if kind not in self._logged:
                self._logged.add(kind)
                log.exception("an answer of the past cannot be learnt again and is left out")
            return
        self.learnt += 1


def _lesson(answer: RecordedAnswer) -> tuple[Features, str, Observation]:
    features = np.frombuffer(answer.features, dtype="<f4")
    return features, answer.model, Observation(answer.output_tokens, censored=answer.censored)
