"""Who is next, who gives way and how many may start: the one pure code path that every engine applies.

The controller publishes an index table for each request (`store.records.IndexTable`).
`Ordering` holds the tables of the unfinished requests, follows their attained tokens,
and turns both into a total order and an admission limit.
A step costs look-ups and one sort; every formula is evaluated when a table or the settings arrive.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from store.records import Gate, IndexTable, Settings

Key = tuple[int, float, float, int]
"""Strict class, ordering value, arrival, serial number; the lowest key is served first and no two are equal."""


class Schedulable(Protocol):
    """What ordering and gate read of an engine's request; vLLM's ``Request`` has these names."""

    request_id: str
    num_computed_tokens: int

    @property
    def num_tokens(self) -> int:
        """Prompt tokens and output tokens so far: what must be computed before the next token."""
        ...


R = TypeVar("R", bound=Schedulable)


@dataclass(frozen=True, slots=True)
class Plan(Generic[R]):
    """What the engine does before its next step."""

    waiting: list[R]
    """The queue, first to be admitted first."""
    running: list[R]
    """The running requests, first to give way last."""
    admission_limit: int | None
    """Requests that may be active in the next step; None without a gate."""
    reserved_blocks: int
    """KV blocks held back for the growth of what is running."""


@dataclass(slots=True)
class _Tracked:
    """One unfinished request."""

    priority: int
    arrival_s: float
    serial: int
    attained_tokens: int
    table: IndexTable | None
    next_change_tokens: float = math.inf
    values: tuple[float, ...] = ()
    key: Key = (0, 0.0, 0.0, 0)
    growth_tokens: float = 0.0


def boost_s(index_s: float, boost_per_s: float) -> float:
    """Time by which a request of this index may overtake an older one: b(s) = -(1/γ)·ln(1 - e^(-γ·s)).

    Source: Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1" (2024), γ-Boost.

    >>> boost_s(0.0, 0.01)
    inf
    >>> round(boost_s(1.0, 0.01), 1), round(boost_s(1000.0, 0.01), 4)
    (461.0, 0.0045)
    """
    if index_s <= 0.0:
        return math.inf
    return -math.log(-math.expm1(-boost_per_s * index_s)) / boost_per_s


class Ordering:
    """Order and gate over the unfinished requests of one engine."""

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._tracked: dict[str, _Tracked] = {}
        self._prior: IndexTable | None = None
        self._gate: Gate | None = None
        self._boost_per_s: float | None = None
        self._serial = 0

    @property
    def has_prior(self) -> bool:
        """Whether every request has an index, if only that of the prior."""
        return self._prior is not None

    @property
    def tables_held(self) -> int:
        """Unfinished requests that have a table of their own."""
        return sum(tracked.table is not None for tracked in self._tracked.values())

    def configure(self, settings: Settings) -> None:
        """Take over gate and boost."""
        self._gate = settings.gate
        if settings.boost_per_s != self._boost_per_s:
            self._boost_per_s = settings.boost_per_s
            self._place_all()

    def put(self, table: IndexTable) -> bool:
        """Take over an index table; False when it is about a request that is not here (any more)."""
        if table.request_id is None:
            self._prior = table
            self._place_all()
            return True
        tracked = self._tracked.get(table.request_id)
        if tracked is None:
            return False
        tracked.table = table
        self._place(tracked)
        return True

    def forget_tables(self) -> None:
        """Forget every table and the prior, as after an error in one of them."""
        self._prior = None
        for tracked in self._tracked.values():
            tracked.table = None
        self._place_all()

    def track(self, request_id: str, *, priority: int, arrival_s: float) -> None:
        """A request entered the engine."""
        self._serial += 1
        tracked = _Tracked(priority, arrival_s, self._serial, attained_tokens=0, table=None)
        self._tracked[request_id] = tracked
        self._place(tracked)

    def attain(self, request_id: str, attained_tokens: int) -> None:
        """A request has generated so many output tokens."""
        tracked = self._tracked[request_id]
        tracked.attained_tokens = attained_tokens
        if attained_tokens >= tracked.next_change_tokens:
            self._look_up(tracked)

    def attained_tokens(self, request_id: str) -> int:
        """Output tokens that a tracked request has generated."""
        return self._tracked[request_id].attained_tokens

    def forget(self, request_id: str) -> None:
        """A request left the engine."""
        self._tracked.pop(request_id, None)

    def key(self, request_id: str) -> Key:
        """Where a tracked request stands; lower is served first."""
        return self._tracked[request_id].key

    def plan(self, *, waiting: Iterable[R], running: Iterable[R], free_blocks: int) -> Plan[R]:
        """Order both sets and say how many requests may be active in the next step."""
        tracked = self._tracked

        def key(request: R) -> Key:
            return tracked[request.request_id].key

        queue = sorted(waiting, key=key)
        active = sorted(running, key=key)
        if self._gate is None or not queue:
            return Plan(queue, active, None, 0)
        reserved = self._reserve_blocks(active)
        admitted = self._admit(queue, free_blocks - reserved, must_admit=not active)
        return Plan(queue, active, len(active) + admitted, math.ceil(reserved))

    def _reserve_blocks(self, running: list[R]) -> float:
        """KV blocks that what is running will likely take: the rest of its prompt, then its growth."""
        assert self._gate is not None
        unfilled = 0
        growth = 0.0
        for request in running:
            unfilled += max(0, request.num_tokens - request.num_computed_tokens)
            growth += self._tracked[request.request_id].growth_tokens
        return (unfilled + self._gate.margin * growth) / self._block_size_tokens

    def _admit(self, queue: list[R], room_blocks: float, *, must_admit: bool) -> int:
        """How many from the head fit; nobody overtakes a head that does not, and an idle engine starts one."""
        assert self._gate is not None
        admitted = 0
        for request in queue:
            growth = self._gate.margin * self._tracked[request.request_id].growth_tokens
            need = math.ceil(request.num_tokens / self._block_size_tokens) + growth / self._block_size_tokens
            if need > room_blocks and not (must_admit and admitted == 0):
                break
            room_blocks -= need
            admitted += 1
        return admitted

    def _place_all(self) -> None:
        for tracked in self._tracked.values():
            self._place(tracked)

    def _place(self, tracked: _Tracked) -> None:
        """Evaluate the formulas once for a request's whole table."""
        table = tracked.table or self._prior
        if table is None:
            tracked.values = ()
            tracked.next_change_tokens = math.inf
            tracked.key = (tracked.priority, tracked.arrival_s, tracked.arrival_s, tracked.serial)
            tracked.growth_tokens = 0.0
            return
        boost_per_s = self._boost_per_s
        if boost_per_s is None:
            tracked.values = table.index_s
        else:
            tracked.values = tuple(tracked.arrival_s - boost_s(index, boost_per_s) for index in table.index_s)
        self._look_up(tracked)

    def _look_up(self, tracked: _Tracked) -> None:
        table = tracked.table or self._prior
        assert table is not None
        entry = bisect_right(table.attained_tokens, tracked.attained_tokens) - 1
        tracked.growth_tokens = table.growth_tokens[entry]
        tracked.key = (tracked.priority, tracked.values[entry], tracked.arrival_s, tracked.serial)
        following = entry + 1
        tracked.next_change_tokens = (
            table.attained_tokens[following] if following < len(table.attained_tokens) else math.inf
        )
