"""What around the controller is amiss: its endpoint, its history's files, its clock, its open files, its engines' names."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from controller.core.sessions import Session
from engine_adapter.transport.link import HubTrouble
from store.history.writer_stats import WriterStats
from store.http_api import DegradedKind, DegradedState

NEAR_LIMIT = 0.8
"""Share of the open files of the process from which on it is said."""

REPLACED_S = 600.0
"""Time for which it is said that the history's files were removed or replaced, after they are in their place again."""

BEHIND_S = 4.0
"""Time without a commit, while entries wait for one, from which on it is said; there are two a second otherwise."""

LOGGED_HERE: frozenset[DegradedKind] = frozenset({"name_shared", "history_behind", "files_near_limit", "clock_ahead"})
"""States of which nothing but their report tells the log."""

_FILES = Path("/proc/self/fd")
_MOST_FILES = 1 << 20


def surrounding_states(
    troubles: Mapping[HubTrouble, str], store: WriterStats, sessions: Sequence[Session], now_s: float
) -> Iterator[DegradedState]:
    """All that is amiss around the controller at present."""
    for kind, text in troubles.items():
        yield DegradedState(kind=kind, text=text)
    yield from _of_store(store, now_s)
    yield from _of_names(sessions)
    yield from _of_files(open_files(), open_files_limit())


def open_files() -> int:
    """Files and sockets that this process has open."""
    try:
        return len(os.listdir(_FILES))  # noqa: PTH208 - a list of names is wanted, four times a second
    except OSError:
        return 0


def open_files_limit() -> int:
    """How many it may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if 0 <= soft < _MOST_FILES else _MOST_FILES


def raise_open_files_limit() -> int:
    """Let this process have as many files open as the system lets it; returns the number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if 0 <= hard < _MOST_FILES else _MOST_FILES
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return open_files_limit()


def _of_store(store: WriterStats, now_s: float) -> Iterator[DegradedState]:
    if store.replaced_s is not None and (store.last_error is not None or now_s - store.replaced_s < REPLACED_S):
        now = f"It is not written now: {store.last_error}." if store.last_error else "It is written again."
        text = (
            f"{now} What was not written yet is kept, and by engines, and is written as soon as it can be. Sealed files that "
            "were removed are gone: put them back from a copy and their rows are back within seconds."
        )
        yield DegradedState(kind="history_replaced", text=text)
    if store.last_error is None and store.waiting_since_s is not None and now_s - store.waiting_since_s > BEHIND_S:
        text = (
            "The history is written too slowly: nothing has become durable for seconds, and entries wait. Engines keep their "
            "order and all facts that are not acknowledged; the latest requests are missing from pages and SQL meanwhile. See "
            "what else uses the disk."
        )
        yield DegradedState(kind="history_behind", text=text)
    if store.refused:
        text = (
            f"The history's queue was full: {store.refused:,} facts were refused, and none is acknowledged any more. Restart "
            "the controller: engines send again what they keep."
        )
        yield DegradedState(kind="history_behind", text=text)
    if store.clock_ahead_s is not None:
        text = (
            f"The clock is {store.clock_ahead_s / 86_400:.0f} days beyond the newest row of the history. Nothing is deleted "
            "by age until rows with the present time are there. If the clock is wrong, set it and restart the controller."
        )
        yield DegradedState(kind="clock_ahead", text=text)


def _of_names(sessions: Sequence[Session]) -> Iterator[DegradedState]:
    """Engines that are connected under one name."""
    connected = sorted((s for s in sessions if s.connected), key=lambda s: s.hello.engine_id)
    for name, group in groupby(connected, key=lambda s: s.hello.engine_id):
        count = len(list(group))
        if count > 1:
            text = (
                f"{count} engines are connected as {name!r}. Each has its own order; metrics, figures and replays mix them. "
                "Give each a name of its own (SAGESCHED_ENGINE_ID)."
            )
            yield DegradedState(kind="name_shared", text=text)


def _of_files(files: int, limit: int) -> Iterator[DegradedState]:
    if files > NEAR_LIMIT * limit:
        text = (
            f"{files} of {limit} files and sockets are open; beyond the limit nothing can be written and no engine connects. "
            "Raise the limit (ulimit -n, LimitNOFILE), and see who connects."
        )
        yield DegradedState(kind="files_near_limit", text=text)
