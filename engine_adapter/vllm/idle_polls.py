"""Polls while vLLM does not call its scheduler: an idle vLLM would otherwise say and hear nothing before its next request."""

from __future__ import annotations

import threading
from collections.abc import Callable

IDLE_POLL_S = 0.25
"""Time without a step after which the timer polls: a greeting and its answer take two polls."""

_CONNECTS_S = 0.05
"""Time in which a local socket connects."""


class IdlePolls:
    """A thread that calls ``poll`` every `IDLE_POLL_S` until it is stopped.

    Args:
        poll: Returns at once while steps are made; must be safe beside the thread that makes them, and must not raise.
    """

    def __init__(self, poll: Callable[[], None]) -> None:
        self._poll = poll
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sagesched-idle", daemon=True)

    def start(self) -> None:
        """Begin to poll, shortly from now."""
        self._thread.start()

    def stop(self) -> None:
        """Poll no more; a poll that is under way is not waited for."""
        self._stopping.set()

    def _run(self) -> None:
        if self._stopping.wait(_CONNECTS_S):
            return
        self._poll()
        while not self._stopping.wait(IDLE_POLL_S):
            self._poll()
