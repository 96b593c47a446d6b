"""The unfinished requests of an engine with their index tables, output tokens and keys.

A formula is evaluated only when a request's entry in its table, the table or the settings change.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable

from engine_adapter.ordering.boost import boost_s
from engine_adapter.ordering.class_headroom import ClassHeadroom
from engine_adapter.ordering.ordered_queue import Key
from engine_adapter.ordering.pace import Pace
from engine_adapter.ordering.promises import Promises
from engine_adapter.ordering.running_order import RunningOrder, Tracked
from engine_adapter.ordering.session_arrivals import CACHED_SHARE, SessionArrivals
from engine_adapter.ordering.step_shape import ArrivalRate
from engine_adapter.ordering.tenant_shares import TenantShares
from engine_adapter.ordering.token_calendar import TokenCalendar
from store.records import EngineRules, IndexTable, Settings

LAST_CLASS = 1 << 62
"""Class of requests that the engine can never serve: they go behind all others, whatever their own class."""

STANDING_UNITS = 12.0
"""Units of 1/γ by which urgent requests go before others and lost ones behind: more than any boost differs from another."""

SESSION_UNITS = 0.1
"""Units of 1/γ by which a turn may go before its own arrival for its session's sake."""

INDEX_UNIT_S = 1e9
"""The unit where the index alone orders, which has none: more than any index."""

LEAST_INDEX_SHARE = 0.01
"""Smallest share of its index that a request keeps when its whole prompt is cached."""


class IndexedRequests:
    """What is known of each unfinished request, and its key in the order."""

    def __init__(self) -> None:
        self._rules = EngineRules()
        self._serial = 0
        self._arrivals = ArrivalRate()
        self._sessions = SessionArrivals()
        self._begin()

    def _begin(self) -> None:
        """Begin without requests and tables."""
        self._tracked: dict[str, Tracked] = {}
        self._prior: IndexTable | None = None
        self._misplaced = False
        """Whether the prior or the rules have changed since all keys were set."""
        self._stood: dict[str, Key] = {}
        """Keys at the last plan of the waiting requests whose key has changed since."""
        self._order = RunningOrder(self._start, self._stop)
        self._aged: set[Tracked] = set()
        """Running requests that have reached another entry since their key was set: few steps read the keys of such."""
        self._calendar = TokenCalendar()
        self._tables_held = 0
        self._promises = Promises()
        self._pace = Pace()
        self._shares = TenantShares(self._move_all)
        self._headroom = ClassHeadroom()
        self.impossible = 0
        """Number of unfinished requests that the engine can never serve."""

    @property
    def has_prior(self) -> bool:
        """Whether every request has an index, at least that of the prior."""
        return self._prior is not None

    @property
    def tables_held(self) -> int:
        """Number of unfinished requests that have a table of their own."""
        return self._tables_held

    def configure(self, settings: Settings) -> None:
        """Apply the rules of these settings from now on."""
        former = self._rules
        if settings.rules.sessions != former.sessions:
            self._rank_aged()
        self._rules = settings.rules
        if (settings.rules.boost_per_s, settings.rules.by_arrival) != (former.boost_per_s, former.by_arrival):
            self._misplaced = True

    def put(self, table: IndexTable) -> bool:
        """Store an index table, or the prior when it names no request; False for an unknown or finished request."""
        if table.request_id is None:
            self._prior = table
            self._misplaced = True
            return True
        tracked = self._tracked.get(table.request_id)
        if tracked is None:
            return False
        if table.tenant is not None and tracked.account is None:
            self._rank_aged()  # The round of requests without an account may depend on a new one.
            tracked.index_s = table.index_s[0]
            self._shares.enter(tracked, table.tenant, table.weight)
        self._tables_held += tracked.table is None
        tracked.table = table
        self._place(tracked)
        return True

    def start_over(self) -> None:
        """Discard every table and the prior, and all that was made of them, after an error: it may be half done."""
        former = self._tracked
        self._begin()
        for tracked in former.values():
            self._enter(tracked.without_table())

    def track(
        self,
        request_id: str,
        *,
        priority: int,
        arrival_s: float,
        count: Callable[[], int] = int,
        prompt_tokens: int = 0,
        session: str | None = None,
        sheds: bool = False,
    ) -> None:
        """Start to track a request that entered the engine.

        Args:
            request_id: Its id.
            priority: Its strict class; the lowest goes first.
            arrival_s: When it arrived, by the engine's clock.
            count: Returns the output tokens that it has generated, at any time; by default it never has any.
            prompt_tokens: Length of its prompt.
            session: Its session, if it has one.
            sheds: Whether its client prefers an early error once its targets are lost.
        """
        self._serial += 1
        self._arrivals.observe(arrival_s)
        began_s = self._sessions.began_s(session, arrival_s)
        tracked = Tracked(request_id, priority, arrival_s, self._serial, count, prompt_tokens, began_s)
        tracked.sheds = sheds
        self._enter(tracked)

    def _enter(self, tracked: Tracked) -> None:
        """Take in a request that is new here; the queue has not seen its key."""
        self._tracked[tracked.request_id] = tracked
        if tracked.impossible:
            self.impossible += 1
        else:
            self._headroom.enter(tracked.priority, tracked.arrival_s)
        self._place(tracked)
        self._stood.pop(tracked.request_id, None)

    def first_token(self, request_id: str, time_s: float) -> None:
        """Record when a request generated its first output token."""
        tracked = self._tracked.get(request_id)
        if tracked is not None:
            tracked.first_token_s = time_s
            if self.promised(tracked):
                self._place(tracked)
                self._pace.follow(tracked)

    def take_shed(self) -> list[str]:
        """Return the requests that wait for their first place in vain and whose clients want to know, each once, as they came."""
        waiting = [request_id for request_id in self._promises.take_shed() if request_id in self._tracked]
        return sorted(waiting, key=lambda request_id: self._tracked[request_id].serial)

    def advance(self, most_tokens: int) -> None:
        """Follow the running requests after a step in which each has generated at most ``most_tokens``."""
        self._pace.advance(1)
        for tracked in self._calendar.advance(most_tokens):
            if tracked.running is not None:
                self._attain(tracked)

    def attained_tokens(self, request_id: str) -> int:
        """Return the output tokens that a tracked request has generated."""
        return self._tracked[request_id].count()

    def put_last(self, request_id: str) -> bool:
        """Put a request that the engine can never serve behind all others; False if that is known already."""
        tracked = self._tracked[request_id]
        if tracked.impossible:
            return False
        tracked.impossible = True
        self.impossible += 1
        self._headroom.leave(tracked.priority)
        self._move(tracked, tracked.key[2])
        return True

    def forget(self, request_id: str) -> None:
        """Stop tracking a request that left the engine."""
        tracked = self._tracked.pop(request_id, None)
        self._stood.pop(request_id, None)
        if tracked is not None:
            self._aged.discard(tracked)
            self.impossible -= tracked.impossible
            if not tracked.impossible:
                self._headroom.leave(tracked.priority)
            self._tables_held -= tracked.table is not None
            tracked.due, tracked.standing_until_s, tracked.paced = 0, math.inf, False
            self._shares.leave(tracked, self._rules.shares)
            tracked.count = int  # It holds the engine's request, and the state lives on until the next sweep.

    def key(self, request_id: str) -> Key:
        """Return the key of a tracked request; the lowest is served first."""
        self._place_all()
        self._rank_aged()
        self._shares.settle()
        return self._tracked[request_id].key

    def served_s(self, tenant: str) -> float:
        """Return the engine-seconds over its weight that a tenant was charged; 0 for an unknown one."""
        return self._shares.served_s(tenant)

    @staticmethod
    def promised(tracked: Tracked) -> bool:
        """Whether a request has targets."""
        return tracked.table is not None and tracked.table.targets is not None

    def _start(self, request_id: str) -> Tracked:
        """Follow the output tokens of a request that now runs; return its state."""
        tracked = self._tracked[request_id]
        self._attain(tracked)
        self._shares.started(tracked)
        if tracked.first_token_s is not None:
            self._pace.follow(tracked)
        return tracked

    def _stop(self, tracked: Tracked) -> None:
        """Follow a request that no longer runs, and perhaps waits again."""
        tracked.paced = False
        if tracked.request_id in self._tracked:
            if tracked in self._aged:
                self._rank(tracked)
            self._shares.stopped(tracked)

    def _attain(self, tracked: Tracked) -> None:
        """Look a running request up if it has reached the next entry of its table, and note when it may reach one."""
        tracked.attained_tokens = tracked.count()
        if tracked.attained_tokens >= tracked.next_change_tokens:
            self._enter_next(tracked)
            if self._can_wait(tracked):
                self._aged.add(tracked)
            else:
                self._rank(tracked)
        self._calendar.watch(tracked, tracked.next_change_tokens - tracked.attained_tokens)

    def _place_all(self) -> None:
        """Update all keys if the prior or the rules have changed: once in a step, however often they did."""
        if self._misplaced:
            self._misplaced = False
            for tracked in self._tracked.values():
                self._place(tracked)

    def _place(self, tracked: Tracked) -> None:
        """Update a request's key after its table, the prior or the boost has changed."""
        if tracked.table or self._prior:
            tracked.attained_tokens = tracked.count()
            self._look_up(tracked)
        else:
            tracked.next_change_tokens = math.inf
            tracked.index_s = 0.0
            self._grow(tracked, 0.0)
            self._move(tracked, tracked.arrival_s)
        if tracked.running is not None:
            self._calendar.watch(tracked, tracked.next_change_tokens - tracked.attained_tokens)

    def _look_up(self, tracked: Tracked) -> None:
        self._enter_next(tracked)
        self._rank(tracked)

    def _can_wait(self, tracked: Tracked) -> bool:
        """Whether a request's key can be set when it is read: it decodes, and nothing but its entry changes the key."""
        table = tracked.table or self._prior
        decodes = tracked.running is not None and not tracked.filling
        return decodes and table is not None and table.targets is None and self._shares.has_settled(tracked)

    def _rank_aged(self) -> None:
        """Set the keys that could wait."""
        for tracked in list(self._aged):
            self._rank(tracked)

    def _enter_next(self, tracked: Tracked) -> None:
        """Find the entry that holds at a request's tokens, and the growth that it expects."""
        table = tracked.table or self._prior
        if table is None:
            return
        steps = table.attained_tokens
        following = bisect_right(steps, tracked.attained_tokens)
        tracked.next_change_tokens = steps[following] if following < len(steps) else math.inf
        tracked.entry = following - 1
        self._grow(tracked, table.growth_tokens[tracked.entry])

    def _rank(self, tracked: Tracked) -> None:
        """Set a request's index, standing and key by its entry."""
        self._aged.discard(tracked)
        table = tracked.table or self._prior
        if table is None:
            return
        tracked.index_s = table.index_s[tracked.entry]
        if tracked.hit_due_step and not tracked.attained_tokens and self._rules.step is not None:
            saved_s = self._rules.step.prefill_token_s * (tracked.hit.tokens - table.cached_tokens)
            tracked.index_s = max(tracked.index_s - saved_s, LEAST_INDEX_SHARE * tracked.index_s)
        if table.targets is not None:
            self._promises.judge(tracked, self._rules.step)
        self._move(tracked, self._value(tracked))

    def _grow(self, tracked: Tracked, growth_tokens: float) -> None:
        """Set a request's expected growth."""
        if tracked.running is not None and growth_tokens != tracked.growth_tokens:
            self._order.regrown(tracked.growth_tokens, growth_tokens)
        tracked.growth_tokens = growth_tokens

    def _value(self, tracked: Tracked) -> float:
        """Return the ordering value: the index, or the arrival time minus the index's boost; and with it the standing."""
        boost_per_s = self._rules.boost_per_s
        unit_s = INDEX_UNIT_S if boost_per_s is None else 1.0 / boost_per_s
        arrival_s = tracked.arrival_s
        if self._rules.sessions and tracked.hit.tokens > CACHED_SHARE * tracked.prompt_tokens:
            arrival_s = max(tracked.session_began_s, arrival_s - SESSION_UNITS * unit_s)
        if self._rules.by_arrival:
            value = tracked.arrival_s
        elif boost_per_s is None:
            value = tracked.index_s
        else:
            value = arrival_s - boost_s(tracked.index_s, boost_per_s)
        return value + STANDING_UNITS * unit_s * tracked.standing

    def _move_all(self, moved: Iterable[Tracked]) -> None:
        """Set the keys of requests whose tenant is in another round."""
        for tracked in moved:
            self._move(tracked, tracked.key[2])

    def _move(self, tracked: Tracked, value: float) -> None:
        """Set a request's key, and remember its key in the last plan."""
        priority = LAST_CLASS if tracked.impossible else tracked.priority
        key = (priority, self._shares.round_of(tracked), value, tracked.arrival_s, tracked.serial)
        if tracked.running is None:
            self._stood.setdefault(tracked.request_id, tracked.key)
        else:
            self._order.rekeyed(tracked.key, key)
        tracked.key = key
