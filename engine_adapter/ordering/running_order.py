"""The running requests in the order in which they are served and give way, kept from step to step.

Between two steps few requests start or end and few keys change; most often nothing does, and then nothing is touched.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from engine_adapter.ordering.ordered_queue import Key
from store.records import IndexTable, Victims

FIRST = -math.inf
"""Ordering value of a request that nobody of its class may pass."""

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Tracked:
    """One unfinished request."""

    request_id: str
    priority: int
    arrival_s: float
    serial: int
    attained_tokens: int
    table: IndexTable | None
    next_change_tokens: float = math.inf
    key: Key = (0, 0.0, 0.0, 0)
    index_s: float = 0.0
    growth_tokens: float = 0.0
    overdue: bool = False
    """Its patience is over: nobody of its class passes it any more."""
    running: Any = None
    """The engine's own request while it is among the running of the last plan."""
    filling: bool = False
    """Whether it runs and its prompt, or what it had lost, is not yet computed."""


class RunningOrder:
    """Who runs, in order, and what is known of each.

    Under the rule ``last`` the order is that of the keys; under ``cheapest`` who has most to compute again stands first.
    Whose tokens are still being computed stands behind those of its class that decode: a long prompt takes
    what they leave of the step's token budget, and has least to lose.
    """

    def __init__(self, find: Callable[[str], Tracked]) -> None:
        self.entries: list[Tracked] = []
        """What is known of the running, in their order."""
        self.filling: list[Tracked] = []
        """Those of them whose prompts, or what they had lost, are not yet computed."""
        self._find = find
        self._active: list[Any] = []
        self._rule: Victims = "last"
        self._settled = True

    def rekeyed(self, former: Key, key: Key) -> None:
        """Somebody who runs has another key; under ``cheapest`` it matters only whether it may be passed."""
        if self._rule == "last" or former[0] != key[0] or (former[1] == FIRST) != (key[1] == FIRST):
            self._settled = False

    def settle(self, active: list[R], rule: Victims) -> list[R]:
        """Put the engine's running requests in order.

        Those that decode are taken to gain tokens alike, so that under ``cheapest`` too their order stays.
        """
        anew = not self._settled or rule != self._rule
        if not anew and not self.filling and active == self._active:
            return self._active.copy()
        self._follow(active)
        self._rule, self._settled = rule, True
        self.entries = self._in_order(_key if rule == "last" else _dearest_first, anew=anew)
        self._active = [entry.running for entry in self.entries]
        return self._active.copy()

    def keep(self, count: int) -> None:
        """Only the first ``count`` go on running."""
        for entry in self.entries[count:]:
            entry.running = None
        del self.entries[count:]
        self._active = self._active[:count]

    def _follow(self, active: list[R]) -> None:
        """Find what is known of the running; looked up by their names are only those who were not there before."""
        entries: list[Tracked] = []
        before = iter(self.entries)
        for request in active:
            for entry in before:
                if entry.running is request:
                    break
                entry.running = None
            else:
                entry = self._find(request.request_id)  # type: ignore[attr-defined]
                entry.running = request
                self._fill(entry)
            entries.append(entry)
        for entry in before:
            entry.running = None
        self.entries = entries

    def _fill(self, entry: Tracked) -> None:
        if not entry.filling:
            entry.filling = True
            self.filling.append(entry)

    def _in_order(self, place: Callable[[Tracked], Any], *, anew: bool) -> list[Tracked]:
        """All in order; unless ``anew``, those that decode were in order before."""
        decoding = [entry for entry in self.entries if not entry.filling]
        for entry in self._filled():
            if anew:
                decoding.append(entry)
            else:
                insort(decoding, entry, key=place)
        if anew:
            decoding.sort(key=place)
        self.filling.sort(key=place)
        entries = decoding + self.filling
        if len({entry.priority for entry in (*decoding[:1], *decoding[-1:], *self.filling)}) > 1:
            entries.sort(key=_priority)
        return entries

    def _filled(self) -> list[Tracked]:
        """Take out who decodes from now on, and who has gone."""
        filled = []
        for entry in self.filling:
            entry.filling = _lacks_tokens(entry)
            if entry.running is not None and not entry.filling:
                filled.append(entry)
        self.filling = [entry for entry in self.filling if entry.filling]
        return filled


_key = attrgetter("key")
_priority = attrgetter("priority")


def _dearest_first(entry: Tracked) -> tuple[int, bool, int, int]:
    """By class, then who must not give way, then by what would have to be computed again."""
    return entry.priority, entry.key[1] != FIRST, -entry.running.num_computed_tokens, entry.serial


def _lacks_tokens(entry: Tracked) -> bool:
    """Whether a running request has more to compute than its next token."""
    running = entry.running
    return running is not None and running.num_tokens - running.num_computed_tokens > 1
