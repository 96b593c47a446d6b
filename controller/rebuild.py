"""Beliefs after a restart: the history's answers are taught again, in the order in which they were taught before."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np

from controller.core import Core
from online_learning.features import DIMENSIONS
from online_learning.prompt import Features, Observation
from store.reader import PastAnswer, learning_history

REHEARSED_ANSWERS = 1_000
"""Answers, the latest, that are predicted again too, so that calibration and its guard know of the time before."""


def rebuild(core: Core, store: Path, limit: int) -> int:
    """Teach the latest ``limit`` answers of a history; returns how many there were.

    A learner is a function of what it was taught, in that order, so that its beliefs are then those of the process
    that recorded them, bit for bit, while that had been taught no more than ``limit`` answers and the history lost no
    prediction under pressure; beyond, as nearly as the learner forgets.
    """
    waiting: deque[PastAnswer] = deque()
    answers = 0
    for answer in learning_history(store, limit):
        if len(answer.features) < 4 * DIMENSIONS:
            continue  # It was recorded by a release with other features.
        answers += 1
        waiting.append(answer)
        if len(waiting) > REHEARSED_ANSWERS:
            past = waiting.popleft()
            core.teach(*_lesson(past), answer=past.answer)
    for past in waiting:
        lesson = _lesson(past)
        core.rehearse(*lesson)
        core.teach(*lesson, answer=past.answer)
    return answers


def _lesson(answer: PastAnswer) -> tuple[Features, str, Observation]:
    features = np.frombuffer(answer.features, dtype="<f4")
    return features, answer.model, Observation(answer.output_tokens, censored=answer.censored)
