"""What a controller remembers over a restart: its learner's state, kept in a file, and completed from the history.

The rest of the history is learned while the controller already serves. The file is written by a child process, a copy of
this one as it was at that moment, so that the control loop goes on; and once more at the end. It takes its name only when
the history holds all that it knows.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from msgspec import structs

from controller.core.core import Core
from controller.service.learner_file import FILE, Manifest, UnusableStateError, content_of, packed, unpacked
from controller.service.warm_start import HistoryReading, Relearning
from online_learning.plain_state import UnknownStateError
from store.atomic_file import replace_file
from store.errors import StoreError
from store.history.reader import next_answer
from store.history.writer import HistoryWriter
from store.http_api import DegradedState

log = logging.getLogger(__name__)

WORTH_ANSWERS = 1_000
"""New answers for which the file is written: fewer are learned again in half a second."""

MANY_ANSWERS = 10_000
"""New answers for which it is written soon: learning them again takes five seconds."""

KEEP_S = 600.0
KEEP_SOON_S = 60.0
"""Least time between two writings, and between two with many new answers."""

LONGEST_WRITING_S = 120.0
_WAIT_S = 0.05
_CHILD_NICE = 10
_FIRST_FILE = 3
"""Descriptors from here on are not the child's: the locks and sockets among them must end with the parent."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """A child that writes the file, and what it knows."""

    child: int
    next_answer: int
    position: int
    """Of the history, at which it holds all that the file knows."""
    since_s: float


class Memory:
    """The learner's state over restarts; for the control loop's thread.

    Args:
        core: what learns.
        store: folder of the history, beside which the file lies.
        manifest: for whom written states are good.
        relearning: what is still to be learned from the history.
    """

    def __init__(self, core: Core, store: Path, manifest: Manifest, relearning: Relearning) -> None:
        self._core = core
        self._file = store / FILE
        self._manifest = manifest
        self._relearning = relearning
        self._kept_answers = manifest.next_answer
        self._kept_s: float | None = None
        self._is_sound = True
        self._writing: _Writing | None = None
        self._finished: _Writing | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether there is something of the past to be learned now."""
        return self._relearning.can_go_on

    def learn(self, now_s: float) -> None:
        """Learn a slice of the past."""
        self._relearning.learn(now_s)

    def learn_for(self, seconds: float, timer: Callable[[], float], now_s: float) -> None:
        """Learn what there is time for before the controller serves, where the file has spared it most."""
        until_s = timer() + (seconds if self._kept_answers else 0.0)
        while not self._relearning.is_over and timer() < until_s:
            self._relearning.learn(now_s, timeout_s=_WAIT_S)

    def states(self) -> Iterator[DegradedState]:
        """That the past is still being learned."""
        if not self._relearning.is_over:
            text = (
                f"{self._relearning.taught} answers of the past are learned again so far. Requests are ordered by what is "
                "known, answers of now are learned after those of the past; it ends by itself."
            )
            yield DegradedState(kind="learning_past", text=text)

    def keep(self, position: int, durable: int, now_s: float) -> None:
        """Write the file when it is time; ``position`` is the history's end, ``durable`` what of it is on the disk."""
        if self._finished is not None and durable >= self._finished.position:
            self._put_in_place(self._finished)
        if self._writing is not None:
            self._look_after(self._writing, now_s)
        elif self.is_due(now_s):
            self._kept_s = now_s
            self._fork(position, now_s)

    def distrust(self) -> None:
        """Write no file any more: the learner has failed, and a restart learns from the history what came since the last."""
        self._is_sound = False

    def stop(self) -> None:
        """Leave the rest of the past."""
        self._relearning.stop()

    def finish(self, history: HistoryWriter) -> None:
        """Write the file for the last time, after the history was closed."""
        self.stop()
        if self._writing is not None:
            os.kill(self._writing.child, signal.SIGKILL)
            os.waitpid(self._writing.child, 0)
        stats = history.stats
        if self._has_news(WORTH_ANSWERS) and stats.durable_position >= stats.position:
            try:
                self._write(self._file)
            except (OSError, UnknownStateError) as error:
                log.warning("the learner's state is not kept, the history is: %s", error)
        self._next_file.unlink(missing_ok=True)

    @property
    def _next_file(self) -> Path:
        return self._file.with_suffix(".next")

    def _has_news(self, answers: int) -> bool:
        return (
            self._is_sound and self._relearning.is_whole and self._core.past.next_answer - self._kept_answers >= answers
        )

    def is_due(self, now_s: float) -> bool:
        """Whether it is time for a child, whose fork takes some milliseconds."""
        if self._kept_s is None:
            self._kept_s = now_s
        if self._writing is not None or self._finished is not None:
            return False
        waited_s = now_s - self._kept_s
        return (waited_s >= KEEP_SOON_S and self._has_news(MANY_ANSWERS)) or (
            waited_s >= KEEP_S and self._has_news(WORTH_ANSWERS)
        )

    def _fork(self, position: int, now_s: float) -> None:
        """Let a copy of this process write; of its threads only this one goes on there."""
        try:
            child = os.fork()
        except OSError as error:
            log.warning("the learner's state is not kept for now: %s", error)
            return
        if child == 0:
            self._be_the_child()
        self._writing = _Writing(child, self._core.past.next_answer, position, now_s)

    def _be_the_child(self) -> None:
        code = 1
        try:
            gc.disable()
            os.closerange(_FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
            os.nice(_CHILD_NICE)
            self._write(self._next_file)
            code = 0
        finally:
            os._exit(code)

    def _write(self, file: Path) -> None:
        manifest = structs.replace(self._manifest, next_answer=self._core.past.next_answer)
        replace_file(file, packed(manifest, self._core.past.written()), mode=0o600)

    def _look_after(self, writing: _Writing, now_s: float) -> None:
        ended, status = os.waitpid(writing.child, os.WNOHANG)
        if not ended:
            if now_s - writing.since_s > LONGEST_WRITING_S:
                os.kill(writing.child, signal.SIGKILL)
            return
        self._writing = None
        if status == 0:
            self._finished = writing
        else:
            log.warning("the learner's state could not be written, it is tried again later (status %d)", status)

    def _put_in_place(self, written: _Writing) -> None:
        self._finished = None
        try:
            self._next_file.replace(self._file)
        except OSError as error:
            log.warning("the learner's state is not kept for now: %s", error)
        else:
            self._kept_answers = written.next_answer


def open_memory(
    create: Callable[[], Core],
    store: Path,
    manifest: Manifest,
    *,
    limit: int,
    history: HistoryWriter,
    verify_s: float,
) -> tuple[Core, Memory]:
    """A core that knows what the file holds, and the rest of whose past is being read.

    Args:
        create: makes a core that has learned nothing.
        store: folder of the history.
        manifest: for whom a file must be good.
        limit: answers at most that are learned from the history; 0 lets the file be, too.
        history: its writer, which leaves out what is damaged.
        verify_s: seconds for that.
    """
    core = create()
    following = _next_answer(store)
    first = 0
    if limit and following is not None:
        try:
            first = _take_over(core, store, structs.replace(manifest, next_answer=following))
        except UnusableStateError as error:
            log.warning("the learner's state in %s is not used, its history is learned again: %s", store / FILE, error)
            core = create()
    reading = HistoryReading(store, limit, first=first, next_answer=following, verify=lambda: history.verify(verify_s))
    relearning = Relearning(core, reading)
    relearning.start()
    return core, Memory(core, store, structs.replace(manifest, next_answer=first), relearning)


def _take_over(core: Core, store: Path, ours: Manifest) -> int:
    """Let a core know what the file holds; returns the number of the first answer that it does not know."""
    content = content_of(store / FILE)
    if content is None:
        return 0
    manifest, state = unpacked(content, ours)
    try:
        core.past.restore(state)
    except UnknownStateError as error:
        raise UnusableStateError(f"it does not fit ({error})") from error
    if core.past.next_answer != manifest.next_answer:
        raise UnusableStateError("its manifest is not its own")
    log.info("the learner knows the first %d answers from %s", manifest.next_answer, store / FILE)
    return manifest.next_answer


def _next_answer(store: Path) -> int | None:
    try:
        return next_answer(store)
    except StoreError:
        return None
