"""What the controller remembers of each engine and of each unfinished request."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

from controller.policy import EngineFacts
from controller.step_prices import DEFAULT_STEP_S
from controller.tuning import EngineTuning
from online_learning.distribution import LengthDistribution
from online_learning.prompt import Features, Forecast
from online_learning.unfinished import Standing
from store.records import Arrived, FirstToken, Hello, IndexTable, Preempted, Snapshot


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
    belief: LengthDistribution
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

    @property
    def index_s(self) -> float:
        """The index at the attained tokens."""
        entry = bisect_right(self.table.attained_tokens, self.attained_tokens) - 1
        return self.table.index_s[entry]

    @property
    def expected_remaining_tokens(self) -> float:
        """Mean of the tokens still to come, given those attained."""
        return self.belief.given(self.attained_tokens).mean_tokens - self.attained_tokens


@dataclass(slots=True, kw_only=True, eq=False)
class Session:
    """One run of one engine."""

    hello: Hello
    connection: bytes
    connected: bool
    last_seen_s: float
    received_batch: int
    durable_batch: int
    next_heartbeat_s: float
    next_refresh_s: float
    tuning: EngineTuning
    prior_taught: int = 0
    snapshot: Snapshot | None = None
    tables_sent: int = 0
    requests: dict[str, ServedRequest] = field(default_factory=dict)

    def observe(self, snapshot: Snapshot) -> None:
        """Take over a snapshot: where every running request stands, and how long steps take."""
        self.snapshot = snapshot
        for running in snapshot.running_requests:
            request = self.requests.get(running.request_id)
            if request is not None:
                request.attained_tokens = running.attained_tokens
        self.tuning.observe(snapshot)

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
        )
