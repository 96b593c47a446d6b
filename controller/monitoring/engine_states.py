"""What is amiss with single engines: with what they send, and with their clocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controller.core.sessions import Session
from store.http_api import DegradedState

REPORTED_S = 600.0
"""Seconds for which damage that an engine sent is still reported."""


def engine_states(sessions: Iterable[Session], now_s: float) -> Iterator[DegradedState]:
    """The states of all connected engines, one for each engine and kind."""
    for session in sessions:
        if session.connected:
            yield from _failing(session, now_s)
            yield from _damaged(session, now_s)


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
