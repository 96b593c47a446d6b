"""Facts on their way to the controller: numbered in batches, kept until they are durable, sent again when nobody says so.

A link may lose what it was given (a connection that breaks does), and a controller what it had not written.
So a batch goes out again until it is acknowledged, and says which batches were before it, so that a controller that
misses one of those waits for it.
"""

from __future__ import annotations

import math
from collections import deque

from msgspec import structs

from engine_adapter.transport.link import EngineLink
from store.records import Arrived, Fact, Facts


class Outbox:
    """The facts of one engine that no controller has called durable yet; bounded, the oldest give way.

    An arrival goes out at once, with all that was told before it; what nobody waits for goes with the next arrival, or
    after ``patience_s``. ``resend_s`` is the time without any acknowledgement after which what is kept goes out once more; it doubles up
    to ``resend_limit_s`` while none comes.
    """

    def __init__(
        self,
        *,
        facts_per_batch: int,
        retained_facts: int,
        retained_bytes: int,
        patience_s: float,
        resend_s: float,
        resend_limit_s: float,
    ) -> None:
        self._facts_per_batch = facts_per_batch
        self._most_facts = retained_facts
        self._most_bytes = retained_bytes
        self._patience_s = patience_s
        self._gather_due_s = -math.inf
        self._awaited = False
        """Whether an arrival is pending, whose table is waited for."""
        self._resend_s = resend_s
        self._resend_limit_s = resend_limit_s
        self._pause_s = resend_s
        self._resend_due_s = math.inf
        self._pending: list[Fact] = []
        self._retained: deque[Facts] = deque()
        self._unsent: deque[Facts] = deque()
        self._retained_facts = 0
        self._retained_bytes = 0
        self.batch = 0
        """Number of the last batch."""
        self.dropped = 0
        """Facts that were let go before they were ever sent."""

    def __len__(self) -> int:
        """Facts that are not known to be durable."""
        return self._retained_facts + len(self._pending)

    def add(self, fact: Fact) -> None:
        """Something happened."""
        self._pending.append(fact)
        self._awaited = self._awaited or isinstance(fact, Arrived)

    def gather_due(self, now_s: float) -> None:
        """Number what is pending, if an arrival is among it or it has waited for long enough."""
        if self._awaited or now_s >= self._gather_due_s:
            self._gather_due_s = now_s + self._patience_s
            self.gather()

    def arrivals(self) -> set[str]:
        """Requests whose arrival is on its way."""
        return {fact.request_id for facts in self._retained for fact in facts.facts if isinstance(fact, Arrived)}

    def restart(self, durable_batch: int) -> None:
        """A controller begins, which has all batches up to this one: send it the rest."""
        self.gather()
        self.release(durable_batch)
        self._send_again()

    def gather(self) -> None:
        """Number all that is pending."""
        self._awaited = False
        size = self._facts_per_batch
        for start in range(0, len(self._pending), size):
            self.batch += 1
            told = tuple(self._pending[start : start + size])
            facts = Facts(batch=self.batch, facts=told, oldest=self.batch)  # What is oldest is told when it is sent.
            self._retained.append(facts)
            self._unsent.append(facts)
            self._retained_facts += len(facts.facts)
            self._retained_bytes += _bytes(facts)
        self._pending.clear()

    def bound(self) -> None:
        """Let go of the oldest beyond the bounds; those that were never sent count as dropped."""
        while self._retained_facts > self._most_facts or self._retained_bytes > self._most_bytes:
            oldest = self._retained[0]
            if self._unsent and self._unsent[0] is oldest:
                self.dropped += len(oldest.facts)
            self._let_go()

    def release(self, batch: int) -> None:
        """All batches up to this one are durable."""
        kept = len(self._retained)
        while self._retained and self._retained[0].batch <= batch:
            self._let_go()
        if len(self._retained) < kept:
            self._pause_s, self._resend_due_s = self._resend_s, math.inf

    def send(self, link: EngineLink, now_s: float) -> None:
        """Send what the link takes; after too long without an acknowledgement, from the oldest on."""
        if now_s >= self._resend_due_s:
            self._pause_s = min(2.0 * self._pause_s, self._resend_limit_s)
            self._send_again()
        while self._unsent and link.send(structs.replace(self._unsent[0], oldest=self._retained[0].batch)):
            self._unsent.popleft()
        if self._resend_due_s == math.inf and len(self._unsent) < len(self._retained):
            self._resend_due_s = now_s + self._pause_s

    def _send_again(self) -> None:
        self._unsent = deque(self._retained)
        self._resend_due_s = math.inf

    def _let_go(self) -> None:
        facts = self._retained.popleft()
        self._retained_facts -= len(facts.facts)
        self._retained_bytes -= _bytes(facts)
        if self._unsent and self._unsent[0] is facts:
            self._unsent.popleft()


def _bytes(facts: Facts) -> int:
    return sum(len(fact.token_ids) if isinstance(fact, Arrived) else 64 for fact in facts.facts)
