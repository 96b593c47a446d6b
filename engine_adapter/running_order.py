"""The running requests in the order in which they are served and give way, kept from step to step.

Between two steps few requests start or end and few keys change; most often nothing does, and then nothing is touched.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from engine_adapter.ordered_queue import Key
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
    ran_in_step: int = 0
    promoted_steps: int = 0
    """Steps for which it still goes first."""
    running: Any = None
    """The engine's own request while it is among the running of the last plan."""


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

    def unsettle(self) -> None:
        """The key of somebody who runs has changed."""
        self._settled = False

    def settle(self, active: list[R], rule: Victims) -> list[R]:
        """Put the engine's running requests in order."""
        if self._settled and not self.filling and rule == self._rule and active == self._active:
            return self._active.copy()
        self._follow(active)
        self._rule, self._settled = rule, True
        self.entries.sort(key=_key if rule == "last" else _dearest_first)
        self.filling = [entry for entry in self.filling if _lacks_tokens(entry)]
        if self.filling:
            filling = {id(entry) for entry in self.filling}
            self.entries.sort(key=lambda entry: (entry.priority, id(entry) in filling))
        self._active = [entry.running for entry in self.entries]
        return self._active.copy()

    def keep(self, count: int) -> None:
        """Only so many from the first on go on running."""
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
                self.filling.append(entry)
            entries.append(entry)
        for entry in before:
            entry.running = None
        self.entries = entries


_key = attrgetter("key")


def _dearest_first(entry: Tracked) -> tuple[int, bool, int, int]:
    """By class, then who must not give way, then by what would have to be computed again."""
    return entry.priority, entry.key[1] != FIRST, -entry.running.num_computed_tokens, entry.serial


def _lacks_tokens(entry: Tracked) -> bool:
    """Whether a running request has more to compute than its next token."""
    running = entry.running
    return running is not None and running.num_tokens - running.num_computed_tokens > 1
