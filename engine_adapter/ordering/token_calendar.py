"""Finds the requests that may have reached the next entry of their tables, without a look at the others.

Of hundreds of running requests few reach an entry in a step, and fetching each from memory would cost more than all
else that is done for it. A request is therefore noted under the first step in which it can have the tokens it lacks.
"""

from __future__ import annotations

from collections.abc import Iterator

from engine_adapter.ordering.running_order import Tracked

LEAST_GAP_TOKENS = 8
"""Fewest tokens between two looks at a request: entries at the start of a table are closer than what they say differs."""

LARGEST_GAP_TOKENS = 1 << 20
"""Tokens after which a request is looked at again at the latest; none generates as many."""


FEWEST_SWEPT = 1_024
"""Notes below which none is dropped before its step."""


class TokenCalendar:
    """Running requests by the step in which they can reach the next entry of their tables.

    Its time is counted in tokens: in each step it moves by as many as one request may generate.
    """

    def __init__(self) -> None:
        self._now = 0
        self._due: dict[int, list[Tracked]] = {}
        self._notes = 0
        self._most_notes = FEWEST_SWEPT

    def watch(self, tracked: Tracked, lacking_tokens: float) -> None:
        """Note a request that lacks so many tokens to its next entry; only the latest note of each counts."""
        tracked.due = due = self._now + int(min(max(LEAST_GAP_TOKENS, lacking_tokens), LARGEST_GAP_TOKENS))
        self._due.setdefault(due, []).append(tracked)
        self._notes += 1
        if self._notes > self._most_notes:
            self._sweep()

    def advance(self, tokens: int) -> Iterator[Tracked]:
        """Move by a step in which each request generated at most ``tokens``; yield those that may be due."""
        for due in range(self._now + 1, self._now + tokens + 1):
            self._now = due
            noted = self._due.pop(due, ())
            self._notes -= len(noted)
            for tracked in noted:
                if tracked.due == due:
                    yield tracked

    def _sweep(self) -> None:
        """Drop the notes that do not count any more, those of requests that have ended among them."""
        swept = {due: [each for each in noted if each.due == due] for due, noted in self._due.items()}
        self._due = {due: noted for due, noted in swept.items() if noted}
        self._notes = sum(map(len, self._due.values()))
        self._most_notes = max(FEWEST_SWEPT, 2 * self._notes)
