"""What is amiss with single engines, with what they send, and with clocks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from controller.core.sessions import Session
from store.http_api import DegradedState

REPORTED_S = 600.0
"""Seconds for which damage that an engine sent is still reported."""

CLOCK_OFF_S = 5.0
"""Seconds by which a clock may differ from another before it is reported."""


def engine_states(sessions: Iterable[Session], now_s: float) -> Iterator[DegradedState]:
    """The states of all connected engines, one for each engine and kind."""
    for session in sessions:
        if session.connected:
            yield from _failing(session, now_s)
            yield from _damaged(session, now_s)
            yield from _clock_off(session)


class RefusedFrames:
    """Frames that could not be read at all: whose they were is not known."""

    def __init__(self) -> None:
        self._count = 0
        self._last_s = -math.inf

    def states(self, count: int, now_s: float) -> Iterator[DegradedState]:
        """The state while some were refused lately; ``count`` is their number since the start."""
        if count > self._count:
            self._count, self._last_s = count, now_s
        if now_s - self._last_s < REPORTED_S:
            text = (
                f"{count} messages of engines could not be read since the start, the last one within {REPORTED_S / 60:.0f} minutes;"
                " they were dropped. The log names the first of each kind; an engine of another release must be brought to this"
                " one."
            )
            yield DegradedState(kind="frames_refused", text=text)


def _failing(session: Session, now_s: float) -> Iterator[DegradedState]:
    trouble = session.trouble
    if trouble.until_s is not None:
        text = (
            f"Engine {session.hello.engine_id} serves first come, first served, and no other engine does: the controller fails"
            f" on its messages. {trouble.last}. Order is tried again in {max(0.0, trouble.until_s - now_s):.0f} s; the log has"
            f" each kind of failure once, with its trace. {trouble.errors} failures on this engine."
        )
        yield DegradedState(kind="engine_failing", text=text)


def _damaged(session: Session, now_s: float) -> Iterator[DegradedState]:
    if session.damaged_s is not None and now_s - session.damaged_s < REPORTED_S:
        text = (
            f"{session.damaged_facts} facts of engine {session.hello.engine_id} could not be read as they were sent: they were"
            " left out, or recorded with the nearest count that is possible. The log names the first of each kind; all other"
            " facts are recorded."
        )
        yield DegradedState(kind="facts_damaged", text=text)


def _clock_off(session: Session) -> Iterator[DegradedState]:
    name, snapshot = session.hello.engine_id, session.snapshot
    if snapshot is not None and abs(snapshot.clock_off_s) > CLOCK_OFF_S:
        text = (
            f"The system clock of engine {name} was set by {snapshot.clock_off_s:+.0f} s since the engine started. Order, waits and"
            " durations go by a clock that never jumps; the moments that it records stay those of the old time until the engine"
            " is restarted."
        )
        yield DegradedState(kind="clock_off", text=text)
    elif abs(session.clock.s) > CLOCK_OFF_S:
        text = (
            f"The clock of engine {name} is {-session.clock.s:+.0f} s from the controller's. Order, waits and durations are not"
            " affected; moments of the two do not compare. Synchronise the clocks, then restart the one that is wrong."
        )
        yield DegradedState(kind="clock_off", text=text)


def own_clock_off(off_s: float) -> Iterator[DegradedState]:
    """The state of a controller whose system clock was set by ``off_s`` since it started."""
    if abs(off_s) > CLOCK_OFF_S:
        text = (
            f"The system clock of the controller was set by {off_s:+.0f} s since it started. Leases, waits and durations go by a"
            " clock that never jumps; the moments that it records stay those of the old time until it is restarted."
        )
        yield DegradedState(kind="clock_off", text=text)
