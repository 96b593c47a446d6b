"""Facts on their way to the controller: numbered in batches and retained until they are acknowledged as durable.

A link loses messages when its connection breaks, and a controller loses what it had not yet written.
A batch is therefore resent until it is acknowledged. It names the oldest retained batch, so a controller that lacks an
earlier one waits for it.
A fact that has no encoding is left out of its batch and counted, so that it holds up no other.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterator

from msgspec import structs

from engine_adapter.transport.link import EngineLink
from store.errors import ProtocolError
from store.records import Arrived, Fact, Facts, Finished, encode

FACT_BYTES = 512
"""Bytes of a fact without its texts and token ids, in memory as well as in a frame, and no less than it takes."""


class Outbox:
    """The facts of one engine that no controller has acknowledged as durable; bounded, the oldest are dropped first.

    An arrival is sent at once, with all pending facts; other facts wait for the next arrival or for ``interval_s``.

    Args:
        facts_per_batch: Largest number of facts in a batch.
        batch_bytes: Largest size of a batch of several facts, in bytes.
        retained_facts: Largest number of facts retained.
        retained_bytes: Largest size of the facts retained, in bytes.
        interval_s: Interval in seconds at which pending facts are batched when no request arrives.
        resend_s: Seconds without an acknowledgement after which the retained batches are resent; doubles each time.
        resend_limit_s: Upper bound of the doubled ``resend_s``.
    """

    def __init__(
        self,
        *,
        facts_per_batch: int,
        batch_bytes: int,
        retained_facts: int,
        retained_bytes: int,
        interval_s: float,
        resend_s: float,
        resend_limit_s: float,
    ) -> None:
        self._facts_per_batch = facts_per_batch
        self._batch_bytes = batch_bytes
        self._most_facts = retained_facts
        self._most_bytes = retained_bytes
        self._interval_s = interval_s
        self._gather_due_s = -math.inf
        self._urgent = False
        """Whether an arrival is pending: its request waits for a table."""
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
        """Number of facts dropped before they were ever sent, or because they have no encoding."""

    def __len__(self) -> int:
        """Number of facts that are not known to be durable."""
        return self._retained_facts + len(self._pending)

    def add(self, fact: Fact) -> None:
        """Append a fact to those pending."""
        self._pending.append(fact)
        self._urgent = self._urgent or isinstance(fact, Arrived)

    def gather_due(self, now_s: float) -> None:
        """Batch the pending facts if an arrival is among them or the interval has passed."""
        if self._urgent or now_s >= self._gather_due_s:
            self._gather_due_s = now_s + self._interval_s
            self.gather()

    def arrivals(self) -> set[str]:
        """Return the ids of the requests whose arrival is in a retained batch."""
        return {fact.request_id for facts in self._retained for fact in facts.facts if isinstance(fact, Arrived)}

    def restart(self, durable_batch: int) -> None:
        """Resend all batches after ``durable_batch`` to a new controller."""
        self.gather()
        self.release(durable_batch)
        self._send_again()

    def gather(self) -> None:
        """Batch all pending facts."""
        self._urgent = False
        for batched in self._cut_pending():
            self.batch += 1
            facts = Facts(batch=self.batch, facts=batched, oldest=self.batch)  # `send` sets ``oldest``.
            self._retained.append(facts)
            self._unsent.append(facts)
            self._retained_facts += len(facts.facts)
            self._retained_bytes += _bytes(facts)
        self._pending.clear()

    def _cut_pending(self) -> Iterator[tuple[Fact, ...]]:
        """Yield the pending facts in batches within the bounds."""
        batched: list[Fact] = []
        size = 0
        for fact in self._pending:
            fact_size = fact_bytes(fact)
            if len(batched) >= self._facts_per_batch or (batched and size + fact_size > self._batch_bytes):
                yield tuple(batched)
                batched, size = [], 0
            batched.append(fact)
            size += fact_size
        if batched:
            yield tuple(batched)

    def bound(self) -> None:
        """Drop the oldest batches beyond the bounds; facts that were never sent count as dropped."""
        while self._retained_facts > self._most_facts or self._retained_bytes > self._most_bytes:
            oldest = self._retained[0]
            if self._unsent and self._unsent[0] is oldest:
                self.dropped += len(oldest.facts)
            self._drop_oldest()

    def release(self, batch: int) -> None:
        """Drop all batches up to ``batch``, which are durable."""
        kept = len(self._retained)
        while self._retained and self._retained[0].batch <= batch:
            self._drop_oldest()
        if len(self._retained) < kept:
            self._pause_s, self._resend_due_s = self._resend_s, math.inf

    def send(self, link: EngineLink, now_s: float) -> None:
        """Send what the link accepts; once a resend is due, from the oldest batch on."""
        if now_s >= self._resend_due_s:
            self._pause_s = min(2.0 * self._pause_s, self._resend_limit_s)
            self._send_again()
        while self._unsent and self._send_next(link):
            self._unsent.popleft()
        if self._resend_due_s == math.inf and len(self._unsent) < len(self._retained):
            self._resend_due_s = now_s + self._pause_s

    def _send_next(self, link: EngineLink) -> bool:
        try:
            return link.send(structs.replace(self._unsent[0], oldest=self._retained[0].batch))
        except ProtocolError:
            self._leave_out(self._unsent[0])
            return link.send(structs.replace(self._unsent[0], oldest=self._retained[0].batch))

    def _leave_out(self, facts: Facts) -> None:
        """Replace the oldest unsent batch by its facts that have an encoding."""
        sound = structs.replace(facts, facts=tuple(filter(_has_encoding, facts.facts)))
        left_out = len(facts.facts) - len(sound.facts)
        self.dropped += left_out
        self._retained_facts -= left_out
        self._retained_bytes -= _bytes(facts) - _bytes(sound)
        self._unsent[0] = sound
        place = next(place for place, retained in enumerate(self._retained) if retained is facts)
        self._retained[place] = sound

    def _send_again(self) -> None:
        self._unsent = deque(self._retained)
        self._resend_due_s = math.inf

    def _drop_oldest(self) -> None:
        facts = self._retained.popleft()
        self._retained_facts -= len(facts.facts)
        self._retained_bytes -= _bytes(facts)
        if self._unsent and self._unsent[0] is facts:
            self._unsent.popleft()


def fact_bytes(fact: Fact) -> int:
    """Return an upper bound on the bytes of a fact, in memory and in a frame."""
    texts: tuple[str | bytes | None, ...] = (fact.request_id,)
    if isinstance(fact, Arrived):
        texts = (*texts, fact.token_ids, fact.tenant, fact.lora, fact.session, fact.service_class)
    elif isinstance(fact, Finished):
        texts = (*texts, fact.shed)
    return FACT_BYTES + sum(map(sys.getsizeof, texts))


def _bytes(facts: Facts) -> int:
    return sum(map(fact_bytes, facts.facts))


def _has_encoding(fact: Fact) -> bool:
    try:
        encode(Facts(batch=1, facts=(fact,), oldest=1))
    except ProtocolError:
        return False
    return True
