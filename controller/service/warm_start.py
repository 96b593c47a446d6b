"""Rebuilds the learner after a restart: the answers in the history are taught again, in their order."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

import numpy as np

from controller.core.core import Core
from online_learning.clustering.clusters import prepare
from online_learning.features.prompt_features import DIMENSIONS
from online_learning.length_learner import Observation
from store.errors import StoreError
from store.history.reader import RecordedAnswer, learning_history, next_answer

log = logging.getLogger(__name__)

REHEARSED_ANSWERS = 1_000
"""Number of latest answers that are predicted as well, so that calibration and its guard continue."""

SLICE_ANSWERS = 8
"""Answers taught between two looks for messages: less than five milliseconds."""

_CHUNK_ANSWERS = 500
_CHUNKS_READ_AHEAD = 8
_LOOK_S = 0.2
"""Seconds after which a reader that waits for room sees whether it is to stop."""


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
    """
    teacher = Teacher(core)
    for answer in past_answers:
        teacher.take(answer)
    while teacher.finish_one():
        pass
    core.past.release(next_answer)
    return teacher.taught


class Teacher:
    """Teaches a core recorded answers as they come, the oldest first; the latest are held back until `finish_one`.

    An answer on which the learner fails is left out and logged once for each kind of error: a controller must start.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._latest: deque[RecordedAnswer] = deque()
        self._logged: set[str] = set()
        self.taught = 0
        """Answers that could be taught."""

    def take(self, answer: RecordedAnswer, now_s: float = 0.0) -> None:
        """Take an answer in, and teach the oldest that is not among the latest any more."""
        if len(answer.features) < 4 * DIMENSIONS:
            return  # It was recorded by a release with other features.
        self._latest.append(answer)
        if len(self._latest) > REHEARSED_ANSWERS:
            self._teach(self._latest.popleft(), now_s, rehearsed=False)

    def finish_one(self, now_s: float = 0.0) -> bool:
        """Teach the oldest of the latest, once all were taken in; False when there is none left."""
        if not self._latest:
            return False
        self._teach(self._latest.popleft(), now_s, rehearsed=True)
        return True

    def _teach(self, answer: RecordedAnswer, now_s: float, *, rehearsed: bool) -> None:
        features = np.frombuffer(answer.features, dtype="<f4")
        observation = Observation(answer.output_tokens, answer.censored, answer.surprises)
        try:
            if rehearsed:
                self._core.rehearse(features, answer.model, observation, now_s)
            self._core.teach(features, answer.model, observation, answer=answer.answer)
        except Exception as error:  # No recorded answer may keep the controller from starting.
            kind = type(error).__name__
            if kind not in self._logged:
                self._logged.add(kind)
                log.exception("a recorded answer cannot be learned and is left out")
        else:
            self.taught += 1


class HistoryReading(threading.Thread):
    """Reads the answers of the past ahead of the loop that learns from them, which must not wait for a library either.

    Args:
        store: folder of the history.
        limit: answers at most, the latest.
        first: number of the first answer that is wanted.
        next_answer: number of the first answer that the history does not hold; None where it could not be read.
        verify: leaves damaged parts of the history out, after which reading goes on; may take minutes.
    """

    def __init__(
        self, store: Path, limit: int, *, first: int, next_answer: int | None, verify: Callable[[], object]
    ) -> None:
        super().__init__(name="history-reading", daemon=True)
        self.next_answer = next_answer
        self.failed = False
        """Whether a part could not be read, which is not learned."""
        self._store = store
        self._limit = limit
        self._first = first
        self._verify = verify
        self._chunks: queue.Queue[tuple[RecordedAnswer, ...] | None] = queue.Queue(_CHUNKS_READ_AHEAD)
        self._stopping = threading.Event()

    @property
    def is_needed(self) -> bool:
        """Whether there are answers to be read, as far as is known."""
        return self._limit > 0 and (self.next_answer is None or self.next_answer > self._first)

    def chunk(self, timeout_s: float) -> tuple[RecordedAnswer, ...] | None:
        """The next answers, None at the end; raises `queue.Empty` where there is nothing to be had yet."""
        return self._chunks.get(block=timeout_s > 0.0, timeout=timeout_s or None)

    @property
    def is_ahead(self) -> bool:
        """Whether there is something to be had."""
        return not self._chunks.empty()

    def stop(self) -> None:
        """Let the thread end soon."""
        self._stopping.set()

    def run(self) -> None:
        """Read all, from a damaged history what is left of it."""
        if not self._first and self.is_needed:
            prepare()
        for last in (False, True):
            try:
                self._read()
            except StoreError as error:
                if not last:
                    self._verify()
                    continue
                self.failed = True
                log.error("what else the history holds is not learned: %s", error)  # noqa: TRY400 - the text says all
            break
        self._put(None)

    def _read(self) -> None:
        if self.next_answer is None:
            self.next_answer = next_answer(self._store)
        answers = learning_history(self._store, self._limit, first=self._first)
        while self.is_needed and not self._stopping.is_set() and (chunk := tuple(islice(answers, _CHUNK_ANSWERS))):
            self._put(chunk)
            self._first = chunk[-1].answer + 1

    def _put(self, chunk: tuple[RecordedAnswer, ...] | None) -> None:
        while not self._stopping.is_set():
            try:
                self._chunks.put(chunk, timeout=_LOOK_S)
            except queue.Full:
                continue
            return


class Relearning:
    """Learning from the past in slices, while the controller already serves; answers of now wait behind it."""

    def __init__(self, core: Core, reading: HistoryReading) -> None:
        self._core = core
        self._reading = reading
        self._teacher = Teacher(core)
        self._at_hand: deque[RecordedAnswer] = deque()
        self._is_read = False
        self._is_stopped = False
        self.is_over = False
        """Whether all of the past was learned that could be read."""

    @property
    def is_whole(self) -> bool:
        """Whether all of the past was learned."""
        return self.is_over and not self._reading.failed

    @property
    def taught(self) -> int:
        """Answers taught so far."""
        return self._teacher.taught

    @property
    def can_go_on(self) -> bool:
        """Whether `learn` has something to do now."""
        return (
            not self.is_over
            and not self._is_stopped
            and (self._is_read or bool(self._at_hand) or self._reading.is_ahead)
        )

    def start(self) -> None:
        """Begin to read, and let answers of now wait, unless nothing is to be learned."""
        if self._reading.is_needed:
            self._core.past.hold()
        else:
            self._end()
        self._reading.start()

    def learn(self, now_s: float, *, timeout_s: float = 0.0) -> None:
        """Teach a slice; waits for the history at most for this time."""
        for _ in range(SLICE_ANSWERS):
            if not self._at_hand and not self._is_read:
                self._fetch(timeout_s)
            if self._at_hand:
                self._teacher.take(self._at_hand.popleft(), now_s)
            elif self._is_read and not self._teacher.finish_one(now_s):
                self._end()
                return

    def stop(self) -> None:
        """Leave the rest of the past; answers of now are learnt, unless the history's last number is not known yet."""
        self._reading.stop()
        if not self.is_over and not self._is_stopped and self._reading.next_answer is not None:
            self._core.past.release(self._reading.next_answer)
        self._is_stopped = True

    def _end(self) -> None:
        self.is_over = True
        self._core.past.release(self._reading.next_answer or 0)
        log.info("learned from %d recorded answers", self.taught)

    def _fetch(self, timeout_s: float) -> None:
        try:
            chunk = self._reading.chunk(timeout_s)
        except queue.Empty:
            return
        if chunk is None:
            self._is_read = True
        else:
            self._at_hand.extend(chunk)
