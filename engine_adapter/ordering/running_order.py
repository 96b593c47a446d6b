"""The order in which running requests are served and preempted, kept from step to step.

Between two steps few requests start or end and few keys change; when nothing changes, the order is returned as it is.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from engine_adapter.ordering.kv_memory import NO_HIT, PrefixHit
from engine_adapter.ordering.ordered_queue import Key
from store.records import IndexTable, Victims

FIRST = -math.inf
"""Ordering value of a request that no other of its class may overtake."""

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Tracked:
    """The state that is kept of an unfinished request."""

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
    """It has reached its bound on waiting: no other of its class may overtake it."""
    impossible: bool = False
    """The engine can never serve it: every other goes before it."""
    hit: PrefixHit = NO_HIT
    """What its latest look-up in the prefix cache found while it waited."""
    hit_due_step: int = 0
    """Step from which it may be looked up again; 0 before the first look-up."""
    running: Any = None
    """The engine's request object while it is among the running ones of the last plan."""
    filling: bool = False
    """Whether it runs and its prompt, or what a preemption discarded, is not yet computed."""


class RunningOrder:
    """The running requests in order, with their `Tracked` states.

    Under the rule ``last`` the order is that of the keys; under ``cheapest`` the request with the most tokens to
    recompute comes first. A request in prefill comes after those of its class that decode: a long prompt uses what they
    leave of the step's token budget, and its preemption costs least.
    """

    def __init__(self, find: Callable[[str], Tracked]) -> None:
        self.entries: list[Tracked] = []
        """States of the running requests, in order."""
        self.filling: list[Tracked] = []
        """Those of ``entries`` that are in prefill."""
        self._find = find
        self._active: list[Any] = []
        self._rule: Victims = "last"
        self._settled = True

    def rekeyed(self, former: Key, key: Key) -> None:
        """Record a running request's new key; under ``cheapest`` only its class and whether it is first matter."""
        if self._rule == "last" or former[0] != key[0] or (former[1] == FIRST) != (key[1] == FIRST):
            self._settled = False

    def settle(self, active: list[R], rule: Victims) -> list[R]:
        """Put the engine's running requests in order.

        Decoding requests are assumed to gain tokens at the same rate, so their order is kept under ``cheapest`` too.
        """
        unsorted = not self._settled or rule != self._rule
        if not unsorted and not self.filling and active == self._active:
            return self._active.copy()
        self._follow(active)
        self._rule, self._settled = rule, True
        self.entries = self._in_order(_key if rule == "last" else _dearest_first, unsorted=unsorted)
        self._active = [entry.running for entry in self.entries]
        return self._active.copy()

    def keep(self, count: int) -> None:
        """Keep only the first ``count`` requests."""
        for entry in self.entries[count:]:
            entry.running = None
        del self.entries[count:]
        self._active = self._active[:count]

    def _follow(self, active: list[R]) -> None:
        """Update ``entries`` to the running requests; only those that were not running before are looked up by id."""
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

    def _in_order(self, place: Callable[[Tracked], Any], *, unsorted: bool) -> list[Tracked]:
        """Return all entries in order; unless ``unsorted``, the decoding ones are in order already."""
        decoding = [entry for entry in self.entries if not entry.filling]
        for entry in self._filled():
            if unsorted:
                decoding.append(entry)
            else:
                insort(decoding, entry, key=place)
        if unsorted:
            decoding.sort(key=place)
        self.filling.sort(key=place)
        entries = decoding + self.filling
        if len({entry.priority for entry in (*decoding[:1], *decoding[-1:], *self.filling)}) > 1:
            entries.sort(key=_priority)
        return entries

    def _filled(self) -> list[Tracked]:
        """Remove from ``filling`` the requests that have gone or now decode; return the latter."""
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
    """Sort by class, then requests that must not be preempted first, then by tokens to recompute, descending."""
    return entry.priority, entry.key[1] != FIRST, -entry.running.num_computed_tokens, entry.serial


def _lacks_tokens(entry: Tracked) -> bool:
    """Whether a running request has more to compute than its next token."""
    running = entry.running
    return running is not None and running.num_tokens - running.num_computed_tokens > 1
