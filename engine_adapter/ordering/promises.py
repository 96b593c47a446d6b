"""Requests that have targets: which are about to miss them, and which will miss them whatever is done.

A request can meet its targets if it is started early enough. How long its answer will be is not known, so that an
end-to-end target has two latest moments: one from the 90% quantile of the length (started by then it very probably
ends in time) and one from the 10% quantile (started later it very probably does not). A time to first token is short
beside the time in which a place becomes free, so that it is urgent from the first moment on, unless it is longer than
`NEAR_TTFT_S`: whoever asks for a first token within a day does not go before all others for it. So each request is, at any
time,

- safe: there is time, and it goes by its index like one without targets;
- urgent: between both moments, and goes before all others of its class, among the urgent ones by its index;
- lost: beyond both, or a target is missed already, and goes behind all others of its class.

Among the urgent ones the index decides, and not the nearest moment: in overload the nearest moments belong to requests
that are nearly lost, and serving those first loses the others too.
The standing changes with the clock; the next moment at which it does is kept in a heap, so that a step looks only at
the requests whose standing changes in it. Sources: QoServe (eager relegation), Kairos (slack).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from itertools import count

from engine_adapter.ordering.running_order import Tracked
from store.records import StepCost

SAFE, URGENT, LOST = 0, -1, 1

NEAR_TTFT_S = 30.0
"""Seconds before the last moment for a time to first token at which a request becomes urgent."""

DEFAULT_STEP_S = 0.03
"""Assumed seconds of a step before any was measured."""

STEP_MEMORY = 0.05
"""Weight of the newest step in the running mean of their seconds."""

PREFILL_MEMORY = 0.1
"""Weight of the newest step in the running mean of the seconds that a prompt token takes."""

FEWEST_SWEPT = 1_024
"""Moments below which none is dropped before it comes."""

LONGEST_STEP_S = 10.0
"""Times between two plans beyond this are pauses of the engine."""


class Promises:
    """The standing of the requests that have targets."""

    def __init__(self) -> None:
        self.now_s = -math.inf
        """The engine's clock at the last plan."""
        self.step_s = DEFAULT_STEP_S
        """Running mean of the seconds of a step."""
        self.prefill_token_s = 0.0
        """Running mean of the seconds that a prompt token takes in steps that are full of them."""
        self._to_shed: list[str] = []
        self._due: list[tuple[float, int, Tracked]] = []
        self._most_due = FEWEST_SWEPT
        self._number = count()
        self._busy = False

    def begin_step(self, now_s: float, *, busy: bool) -> None:
        """Advance the clock to a step; ``busy`` if requests run in it."""
        passed_s = now_s - self.now_s
        if self._busy and busy and 0.0 < passed_s < LONGEST_STEP_S:
            self.step_s += STEP_MEMORY * (passed_s - self.step_s)
        self.now_s, self._busy = now_s, busy

    def observe_prefill(self, token_s: float) -> None:
        """Record the seconds that a prompt token takes in a step that is full of them."""
        self.prefill_token_s += PREFILL_MEMORY * (token_s - self.prefill_token_s)

    def due(self) -> Iterator[Tracked]:
        """Yield the requests whose standing may have changed with the clock."""
        while self._due and self._due[0][0] <= self.now_s:
            moment_s, _, tracked = heappop(self._due)
            if tracked.standing_until_s == moment_s:
                yield tracked

    def take_shed(self) -> list[str]:
        """Return the requests that were found lost since the last call and whose clients want to know, each once."""
        taken, self._to_shed = self._to_shed, []
        return taken

    def judge(self, tracked: Tracked, cost: StepCost | None) -> None:
        """Find a request's standing, and when it changes next unless something happens to it.

        Args:
            tracked: A request with a table.
            cost: The engine's step times, if known.
        """
        safe_s, latest_s = self._latest_s(tracked, cost)
        tracked.standing, until_s = LOST, math.inf
        if self.now_s < safe_s:
            tracked.standing, until_s = SAFE, safe_s
        elif self.now_s <= latest_s:
            tracked.standing, until_s = URGENT, math.nextafter(latest_s, math.inf)
        tracked.standing_until_s = until_s
        if tracked.sheds and tracked.standing == LOST and tracked.running is None and tracked.first_token_s is None:
            tracked.sheds = False
            self._to_shed.append(tracked.request_id)
        if until_s < math.inf:
            heappush(self._due, (until_s, next(self._number), tracked))
            if len(self._due) > self._most_due:
                self._sweep()

    @staticmethod
    def ttft_lost_s(tracked: Tracked) -> float:
        """Return when a request misses its target of time to first token; infinite without one, or with its first token."""
        targets = None if tracked.table is None else tracked.table.targets
        if targets is None or targets.ttft_s is None or tracked.first_token_s is not None:
            return math.inf
        return tracked.arrival_s + targets.ttft_s

    def _sweep(self) -> None:
        """Drop the moments of requests that have ended, or whose next change is at another one by now."""
        self._due = [entry for entry in self._due if entry[2].standing_until_s == entry[0]]
        heapify(self._due)
        self._most_due = max(FEWEST_SWEPT, 2 * len(self._due))

    def _latest_s(self, tracked: Tracked, cost: StepCost | None) -> tuple[float, float]:
        """Return until when a request is safe, and from when on it is lost."""
        table = tracked.table
        assert table is not None
        targets = table.targets
        assert targets is not None
        prefill_s = self._prefill_s(tracked, cost)
        safe_s = latest_s = math.inf
        if targets.ttft_s is not None:
            if tracked.first_token_s is None:
                latest_s = tracked.arrival_s + targets.ttft_s - prefill_s
                safe_s = latest_s - NEAR_TTFT_S
            elif tracked.first_token_s > tracked.arrival_s + targets.ttft_s:
                return -math.inf, -math.inf
        if targets.e2e_s is not None:
            entry = table.entry(tracked.attained_tokens)
            end_s = tracked.arrival_s + targets.e2e_s - prefill_s
            safe_s = min(safe_s, end_s - self.step_s * (table.late_tokens[entry] - tracked.attained_tokens))
            latest_s = min(latest_s, end_s - self.step_s * (table.early_tokens[entry] - tracked.attained_tokens))
        return min(safe_s, latest_s), latest_s

    def _prefill_s(self, tracked: Tracked, cost: StepCost | None) -> float:
        """Return the seconds until a request can generate its next token, if it is started now.

        A prompt that is being computed counts whole: one that is late by that gives way to those that are not, which cost
        no goodput in any measurement and saved some.
        """
        if tracked.running is not None and not tracked.filling:
            return 0.0
        if cost is None:
            return self.step_s
        lacking_tokens = max(1, tracked.prompt_tokens + tracked.attained_tokens - tracked.hit.tokens)
        return cost.base_s + max(self.prefill_token_s, cost.prefill_token_s) * lacking_tokens
