"""When room is made for requests that are crowded out, such as by the running requests of other LoRA adapters."""

from __future__ import annotations

import math

MAKE_ROOM_AFTER_S = 30.0
"""Seconds of waiting after which those that keep a request crowded out start no further ones, for as long again."""


class Crowding:
    """Follows how long the oldest request that is crowded out has waited, from plan to plan.

    Room is made while that time is from 1 to 2 units of `MAKE_ROOM_AFTER_S`, from 4 to 8, from 16 to 32 and so on. So it
    gets in at last, however long the answers are that keep it out, and nobody is held back for longer than half the time
    that it has waited.
    """

    def __init__(self) -> None:
        self._now_s = -math.inf
        self._oldest_s = self._next_oldest_s = math.inf

    def begin_step(self, now_s: float) -> None:
        """Begin a plan."""
        self._now_s = now_s
        self._oldest_s, self._next_oldest_s = self._next_oldest_s, math.inf

    def presses(self, arrival_s: float) -> bool:
        """Whether room is to be made in this plan for a request that is crowded out."""
        self._next_oldest_s = min(self._next_oldest_s, arrival_s)
        waited = (self._now_s - self._oldest_s) / MAKE_ROOM_AFTER_S
        return waited >= 1.0 and math.frexp(waited)[1] % 2 == 1 and self._now_s >= arrival_s + MAKE_ROOM_AFTER_S
