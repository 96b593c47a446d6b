"""Asks every now and then, in a process of low priority, what the last requests would have taken under FCFS."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from controller.live import Live


class GainWatch:
    """Keeps the newest comparison; `answer` may be read from any thread."""

    def __init__(self, live: Live, clock: Callable[[], float]) -> None:
        self._live = live
        self._clock = clock
        self._stopping = threading.Event()
        self.answer: dict[str, Any] = {"status": "warming up", "method": "", "computed_s": None, "requests": 0}

    def start(self) -> None:
        """Begin to compare."""

    def stop(self) -> None:
        """End it, and the process that is at it."""
        self._stopping.set()
