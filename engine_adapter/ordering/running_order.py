"""The order in which running requests are served and preempted, kept from step to step.

Between two steps few requests start or end and few keys change; when nothing changes, the order is returned as it is.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import compress, count, islice
from operator import attrgetter, is_not
from typing import Any, TypeVar

from engine_adapter.ordering.kv_memory import NO_HIT, PrefixHit
from engine_adapter.ordering.ordered_queue import Key
from store.records import IndexTable, Victims

GROWTH_UNITS = 1 << 16
"""Parts of a token in which growth is summed: whole numbers, whose sum stays exact however often it is updated."""

R = TypeVar("R")


@dataclass(slots=True, eq=False)
class Tracked:
    """The state that is kept of an unfinished request."""

    request_id: str
    priority: int
    arrival_s: float
    serial: int
    count: Callable[[], int]
    """Returns the output tokens that it has generated."""
    prompt_tokens: int = 0
    session_began_s: float = 0.0
    """Arrival of the first request of its session; its own without one."""
    account: Any = None
    """The `engine_adapter.ordering.tenant_shares.Account` that it is charged to; None where no shares are kept."""
    charged_s: float | None = None
    """Engine-seconds that it was charged when it first started; None before that."""
    sheds: bool = False
    """Whether its client prefers an early error once its targets are lost."""
    first_token_s: float | None = None
    standing: int = 0
    """Whether it is about to miss its targets, as in `engine_adapter.ordering.promises`; 0 without targets."""
    standing_until_s: float = math.inf
    """When that changes next."""
    paced: bool = False
    """Whether a step is kept short for its sake."""
    attained_tokens: int = 0
    """Output tokens when it was last looked up."""
    table: IndexTable | None = None
    next_change_tokens: float = math.inf
    entry: int = 0
    """The entry of its table that held when it was last looked up."""
    due: int = 0
    """Time of `engine_adapter.ordering.token_calendar` at which it is looked at again."""
    key: Key = (0, 0, 0.0, 0.0, 0)
    index_s: float = 0.0
    growth_tokens: float = 0.0
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

    def without_table(self) -> Tracked:
        """A state of the same request as if nothing had been decided about it yet."""
        kept = ("request_id", "priority", "arrival_s", "serial", "count", "prompt_tokens", "session_began_s")
        fresh = Tracked(*(getattr(self, name) for name in kept))
        fresh.sheds, fresh.first_token_s, fresh.impossible = self.sheds, self.first_token_s, self.impossible
        return fresh


class RunningOrder:
    """The running requests in order, with their `Tracked` states.

    Under the rule ``last`` the order is that of the keys, and under ``later`` too, until memory runs short
    (`spare_oldest`); under ``cheapest`` the request with the most tokens to recompute comes first. A request in prefill
    comes after those of its class that decode: a long prompt uses what they leave of the step's token budget, and its
    preemption costs least.

    The order among those that decode matters only where one of them may be preempted or be left out of a step. It is
    therefore restored when `settle` asks for it, not in every step: that would touch each running request.
    """

    def __init__(self, find: Callable[[str], Tracked], left: Callable[[Tracked], None] = lambda _tracked: None) -> None:
        self.entries: list[Tracked] = []
        """States of the running requests; those that decode first, unless there are several classes."""
        self.filling: list[Tracked] = []
        """Those of ``entries`` that are in prefill, in order."""
        self._find = find
        self._left = left
        self._active: list[Any] = []
        """The engine's requests of ``entries``, in the same order."""
        self._decoding = 0
        """Number of ``entries`` that decode; they come first where there is one class only."""
        self._classes: Counter[int] = Counter()
        """Number of ``entries`` of each class."""
        self._mixed = False
        """Whether there was more than one class at the last step."""
        self._growth_units = 0
        self._rule: Victims = "last"
        self._settled = True

    @property
    def growth_tokens(self) -> float:
        """Sum of the running requests' expected growth."""
        return self._growth_units / GROWTH_UNITS

    @property
    def classes(self) -> Collection[int]:
        """The strict classes of the running requests."""
        return self._classes.keys()

    def regrown(self, former_tokens: float, growth_tokens: float) -> None:
        """Record that a running request's expected growth has changed."""
        self._growth_units += _units(growth_tokens) - _units(former_tokens)

    def rekeyed(self, former: Key, key: Key) -> None:
        """Record a running request's new key; under ``cheapest`` only its class matters."""
        if self._rule != "cheapest" or former[0] != key[0]:
            self._settled = False

    def follow(self, active: list[R], rule: Victims) -> list[R]:
        """Take over who runs now; return them with those that decode before those in prefill, which are in order."""
        if rule != self._rule:
            self._rule, self._settled = rule, False
        if self.filling or active != self._active:
            self._follow(active)
            self._place_filling()
        return self._active.copy()

    def settle(self) -> list[Any]:
        """Put all in order, and return them.

        Decoding requests are assumed to gain tokens at the same rate, so their order is kept under ``cheapest`` too.
        """
        if not self._settled:
            self._settled = True
            decoding = [entry for entry in self.entries if not entry.filling]
            decoding.sort(key=self._place)
            self.entries = decoding + self.filling
            if len(self._classes) > 1:
                self.entries.sort(key=_priority)
            self._active = [entry.running for entry in self.entries]
        return self._active.copy()

    def spare_oldest(self) -> list[Any]:
        """Put the request of the lowest class that arrived first before the others of its class; return all.

        The last in the order is one that is expected to go on longest, and under its index alone the same request would
        be preempted each time. Whoever has waited longest therefore keeps its place to the end.
        """
        decoding = [entry for entry in self.entries if not entry.filling]
        if len(decoding) > 1:
            lowest = decoding[-1].priority
            oldest = min((entry for entry in decoding if entry.priority == lowest), key=_arrival)
            decoding.remove(oldest)
            others = (place for place, entry in enumerate(decoding) if entry.priority == lowest)
            decoding.insert(next(others, len(decoding)), oldest)
            self.entries = decoding + self.filling
            if len(self._classes) > 1:
                self.entries.sort(key=_priority)
            self._active = [entry.running for entry in self.entries]
            self._settled = False
        return self._active.copy()

    def keep(self, count: int) -> None:
        """Keep only the first ``count`` requests."""
        for entry in self.entries[count:]:
            self._leave(entry)
        del self.entries[count:], self._active[count:]
        self._decoding = min(self._decoding, count)

    def _follow(self, active: list[R]) -> None:
        """Remove the requests that have gone, and append those that are new, which alone are looked up by id.

        The engine keeps the order that it was given. Nothing of ours is touched for a request that stays: at hundreds
        of requests most of the time of a step would go into fetching them from memory.
        """
        before = self._active
        number = 0
        while (number := _first_change(before, active, number)) < len(before):
            del before[number]
            self._leave(self.entries.pop(number))
            self._decoding -= number < self._decoding
        for request in active[number:]:
            entry = self._find(request.request_id)  # type: ignore[attr-defined]
            entry.running = request
            self._growth_units += _units(entry.growth_tokens)
            self._classes[entry.priority] += 1
            self._fill(entry)
            self.entries.append(entry)
            before.append(request)

    def _leave(self, entry: Tracked) -> None:
        entry.running = None
        entry.attained_tokens = entry.count()
        self._growth_units -= _units(entry.growth_tokens)
        self._classes[entry.priority] -= 1
        if not self._classes[entry.priority]:
            del self._classes[entry.priority]
        self._left(entry)

    def _fill(self, entry: Tracked) -> None:
        if not entry.filling:
            entry.filling = True
            self.filling.append(entry)

    def _place_filling(self) -> None:
        """Put those that decode since the last step behind the others that do, and those in prefill at the end."""
        filled = self._filled()
        self.filling.sort(key=self._place)
        if self._mixed or len(self._classes) > 1:
            self._mixed = len(self._classes) > 1
            placed = [entry for entry in self.entries if not entry.filling]
            self._decoding, self._settled = len(placed), False
            self.entries, self._active = placed, [entry.running for entry in placed]
        else:
            del self.entries[self._decoding :], self._active[self._decoding :]
            self._decoding += len(filled)
            self._settled = self._settled and not filled
            self._append(filled)
        self._append(self.filling)

    def _append(self, entries: list[Tracked]) -> None:
        self.entries += entries
        self._active += [entry.running for entry in entries]

    def _place(self, entry: Tracked) -> Any:  # noqa: ANN401 - a key to sort by
        return _dearest_first(entry) if self._rule == "cheapest" else entry.key

    def _filled(self) -> list[Tracked]:
        """Remove from ``filling`` the requests that have gone or now decode; return the latter."""
        filled = []
        for entry in self.filling:
            entry.filling = _lacks_tokens(entry)
            if entry.running is not None and not entry.filling:
                filled.append(entry)
        self.filling = [entry for entry in self.filling if entry.filling]
        return filled


_arrival = attrgetter("arrival_s", "serial")
_priority = attrgetter("priority")


def _dearest_first(entry: Tracked) -> tuple[int, int, int]:
    """Sort by class, then by tokens to recompute, descending."""
    return entry.priority, -entry.running.num_computed_tokens, entry.serial


def _first_change(before: list[Any], now: list[Any], start: int) -> int:
    """Return the first place from ``start`` on where two lists have different objects; the shorter length without one."""
    changed = map(is_not, islice(before, start, None), islice(now, start, None))
    return next(compress(count(start), changed), min(len(before), len(now)))


def _units(tokens: float) -> int:
    return round(tokens * GROWTH_UNITS)


def _lacks_tokens(entry: Tracked) -> bool:
    """Whether a running request has more to compute than its next token."""
    running = entry.running
    return running is not None and running.num_tokens - running.num_computed_tokens > 1
