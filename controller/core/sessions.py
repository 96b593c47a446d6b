"""What the controller remembers of each engine and of each unfinished request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from controller.core.engine_tuning import EngineTuning
from controller.core.step_time import DEFAULT_STEP_S
from controller.policy.policy import EngineFacts
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Features, Forecast
from online_learning.survival.running_answers import Standing
from store.records import Arrived, Facts, FirstToken, Hello, IndexTable, Preempted, Snapshot

BatchVerdict: TypeAlias = Literal["known", "repeated", "early", "new", "unrecorded"]
"""Of a batch of facts: handled before; handled before and now recorded; one before it lacks; new; new, not recorded."""


QUEUE_INTERVAL_S = 1.0
"""How often all requests are looked through."""


@dataclass(slots=True, kw_only=True, eq=False)
class ServedRequest:
    """One unfinished request and what is believed of it."""

    arrived: Arrived
    features: Features
    forecast: Forecast
    prior: LengthDistribution
    """What was believed of any answer of the model when the forecast was made."""
    trusted: bool
    """Whether the belief is the forecast; otherwise it is the prior."""
    predicted: LengthDistribution
    """What decisions rest on: the forecast or the prior, cut at the request's max_tokens."""
    table: IndexTable
    cost_s: float
    taught: int
    """Answers that the learner had seen when the belief was formed."""
    attained_tokens: int = 0
    first_token_s: float | None = None
    preemptions: int = 0
    standing: Standing | None = None
    """How far it is counted among the answers that still run."""
    late: bool = False
    """Whether it was put off: those that ended before are not known, so that the others tell of long answers only."""
    counted_until: int = -1
    """Attained tokens up to which its standing stays as it is."""

    @property
    def index_s(self) -> float:
        """The index at the attained tokens."""
        return self.table.index_s[self.table.entry(self.attained_tokens)]


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One run of one engine."""

    hello: Hello
    connection: bytes
    connected: bool
    last_seen_s: float
    received_batch: int
    recorded_batch: int
    """Last batch that was handed to the history; behind the received one when the history could take no more."""
    durable_batch: int
    next_heartbeat_s: float
    next_refresh_s: float
    tuning: EngineTuning
    prior_taught: int = 0
    snapshot: Snapshot | None = None
    detailed: Snapshot | None = None
    """The last snapshot that named the requests."""
    tables_sent: int = 0
    queue_s: float = 0.0
    """Expected cost of what waits and half of what runs: so long would first come, first served keep the next one waiting."""
    next_queue_s: float = 0.0
    requests: dict[str, ServedRequest] = field(default_factory=dict)

    def judge(self, facts: Facts, *, recording: bool) -> BatchVerdict:
        """What is to be done with a batch, whose number is remembered if it is taken.

        Batches are handled in their order, each once, and recorded in their order, each once: the history may take
        later what it could not take when the batch first came, because the engine tells it again until it is durable.
        """
        if facts.batch <= self.received_batch:
            if facts.batch <= self.durable_batch or not self._is_due(facts, recording=recording):
                return "known"
            self.recorded_batch = facts.batch
            return "repeated"
        if facts.batch > max(self.received_batch + 1, facts.oldest):
            return "early"
        due = self._is_due(facts, recording=recording)
        self.received_batch = facts.batch
        if due:
            self.recorded_batch = facts.batch
        return "new" if due else "unrecorded"

    def _is_due(self, facts: Facts, *, recording: bool) -> bool:
        """Whether the history takes a batch: it lacks it, and has all before it that the engine still had to tell."""
        if not recording or facts.batch <= self.recorded_batch:
            return False
        return facts.batch <= max(self.recorded_batch + 1, facts.oldest)

    def observe(self, snapshot: Snapshot) -> None:
        """Take over a snapshot: where the engine stands, and how long steps take."""
        self.snapshot = snapshot
        if snapshot.detailed:
            self.detailed = snapshot
        self.tuning.observe(snapshot)
        if snapshot.time_s >= self.next_queue_s:
            self.next_queue_s = snapshot.time_s + QUEUE_INTERVAL_S
            self.queue_s = sum(
                request.cost_s if request.first_token_s is None else request.cost_s / 2
                for request in self.requests.values()
            )

    def note(self, fact: FirstToken | Preempted) -> None:
        """Take over what happened to a request on its way."""
        request = self.requests.get(fact.request_id)
        if isinstance(fact, Preempted):
            self.tuning.recompute.take(fact)
            if request is not None:
                request.preemptions += 1
        elif request is not None:
            request.first_token_s = fact.time_s

    @property
    def engine(self) -> EngineFacts:
        """What a policy may know of this engine."""
        hello = self.hello
        prices = self.tuning.prices
        kv_weight, slot_weight = prices.weights(hello.max_num_seqs)
        model = prices.model
        return EngineFacts(
            kv_tokens=hello.kv_blocks * hello.block_size_tokens,
            block_size_tokens=hello.block_size_tokens,
            max_num_seqs=hello.max_num_seqs,
            base_s=DEFAULT_STEP_S if prices.step_s is None else prices.step_s,
            prefill_token_s=prices.prefill_token_s,
            decode_seq_s=model.decode_seq_s if model else 0.0,
            kv_token_s=model.kv_token_s if model else 0.0,
            kv_weight=kv_weight,
            slot_weight=slot_weight,
            service_s=self.tuning.service.service_s,
            tail_s=self.tuning.tail.p99_s,
            queue_s=self.queue_s,
        )
