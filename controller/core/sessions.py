"""The state of each engine and of each unfinished request, and the sessions of all known engines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import structs

from controller.core.clock_difference import ClockDifference
from controller.core.engine_tuning import EngineTuning
from controller.core.pause import Pause
from controller.core.prefix_hits import PrefixHits
from controller.policy.cost import hybrid_cost
from controller.policy.policy import DEFAULT_STEP_S, EngineFacts
from controller.policy.service_levels import Promise
from online_learning.calibration.evidence import Row, Watch
from online_learning.distribution import LengthDistribution
from online_learning.length_learner import Features, Forecast
from online_learning.survival.running_answers import Standing
from store.records import Arrived, Facts, Finished, FirstToken, Hello, IndexTable, Preempted, Snapshot

IDLE_RECORD_S = 10.0
"""Time between two recorded snapshots of an idle engine in which nothing changes: `store.reading.load` carries them on."""

MISSING_S = 60.0
"""Time without a request in its engine's lists after which it is taken as ended: the fact that says so was lost."""

BatchVerdict: TypeAlias = Literal["known", "repeated", "early", "new", "unrecorded"]
"""A batch of facts was handled before; was handled before and is recorded now; comes before one that is missing; is
new; is new and not recorded."""


class ServedRequest(msgspec.Struct, kw_only=True, eq=False, gc=False):
    """One unfinished request and its predicted length."""

    arrived: Arrived
    features: Features
    forecast: Forecast
    prior: LengthDistribution
    """The model's distribution of all answers when the forecast was made."""
    trusted: bool
    """Whether the forecast is served; otherwise the prior is."""
    predicted: LengthDistribution
    """The distribution that decisions use: the forecast or the prior, cut at the request's max_tokens."""
    table: IndexTable
    cost_s: float
    promise: Promise
    """What is promised to it."""
    taught: int
    """Answers that the learner had seen when the prediction was made."""
    ripe: bool
    """Whether it knew enough then for the guard to hold it to the prediction."""
    attained_tokens: int = 0
    first_token_s: float | None = None
    preemptions: int = 0
    standing: Standing | None = None
    """Its share in the count of running answers."""
    predicted_late: bool = False
    """Whether its arrival was deferred. Nothing is learned from such answers: the short ones among the deferred ended
    without a prediction, so that the rest are biased towards long answers."""
    cached_tokens: int = 0
    """Prompt tokens in the engine's prefix cache: expected, and from its first token on those that were found."""
    counted_until: int = -1
    """Attained tokens up to which its place in the order does not change."""
    watch: Watch | None = None
    """What its length so far says of the prediction; None until that is asked for, and where it is not held to it."""
    surprises: tuple[float, float] | None = None
    """Once it has ended, what `Observation.surprises` says."""

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
    gone: Literal["left", "lost"] | None = None
    """How an engine that is not connected went: it said so, or its connection broke."""
    last_seen_s: float
    received_batch: int
    recorded_batch: int
    """Last batch that was handed to the history; behind the received one while the history is too far behind."""
    durable_batch: int
    next_heartbeat_s: float
    next_refresh_s: float
    tuning: EngineTuning
    trouble: Pause
    """Failures on messages of this engine; during its pause the engine serves first come, first served."""
    clock: ClockDifference = field(default_factory=ClockDifference)
    damaged_facts: int = 0
    damaged_s: float | None = None
    """When the last of them came."""
    prefix_hits: PrefixHits = field(default_factory=PrefixHits)
    prior_taught: int = 0
    snapshot: Snapshot | None = None
    recorded: Snapshot | None = None
    """The last snapshot that the history was given."""
    detailed: Snapshot | None = None
    """The last snapshot that named the requests."""
    tables_sent: int = 0
    unreviewed: list[tuple[int | None, Row, Row]] = field(default_factory=list)
    """Cluster and evidence of the answers that ended since it was last reported how far the others are."""
    requests: dict[str, ServedRequest] = field(default_factory=dict)
    missing_since_s: dict[str, float] = field(default_factory=dict)
    """Unfinished requests that the engine's last whole list did not name, by its clock."""

    def judge(self, facts: Facts, *, recording: bool) -> BatchVerdict:
        """Decide what happens to a batch, and remember its number if it is handled or recorded.

        Batches are handled in order, each once, and recorded in order, each once. The history may record a batch later
        than it was handled, because the engine sends it again until it is durable.
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
        """Whether the history lacks this batch and has all earlier ones that the engine still keeps."""
        if not recording or facts.batch <= self.recorded_batch:
            return False
        return facts.batch <= max(self.recorded_batch + 1, facts.oldest)

    def has_news(self, snapshot: Snapshot) -> bool:
        """Whether the history is to have a snapshot; of an idle engine that nothing happens to, few tell all."""
        last = self.recorded
        if last is None or not snapshot.is_idle or not 0.0 <= snapshot.time_s - last.time_s < IDLE_RECORD_S:
            return True
        return _state_of(snapshot) != _state_of(last)

    def observe(self, snapshot: Snapshot) -> None:
        """Update the state of the engine and its step times from a snapshot."""
        self.snapshot = snapshot
        if snapshot.detailed:
            self.detailed = snapshot
        self.tuning.observe(snapshot)

    def remove_missing(self, snapshot: Snapshot) -> list[ServedRequest]:
        """Remove and return the requests that the engine has no longer had for `MISSING_S`.

        Their end was dropped while no controller heard it, or could not be read. Nothing else would ever remove them, and
        the engine would look busier than it is for good.
        """
        if not snapshot.detailed:
            return []
        if len(self.requests) <= snapshot.running + snapshot.waiting:
            self.missing_since_s.clear()
            return []
        if len(snapshot.running_requests) < snapshot.running or len(snapshot.queue) < snapshot.waiting:
            return []
        named = {request.request_id for request in snapshot.running_requests}.union(snapshot.queue)
        self.missing_since_s = {
            name: self.missing_since_s.get(name, snapshot.time_s) for name in self.requests if name not in named
        }
        ended = [name for name, since_s in self.missing_since_s.items() if snapshot.time_s - since_s >= MISSING_S]
        return [self.requests.pop(name) for name in ended]

    def record(self, fact: FirstToken | Preempted) -> None:
        """Update a request that got its first token or was preempted."""
        request = self.requests.get(fact.request_id)
        if isinstance(fact, Preempted):
            self.tuning.recompute.record(fact)
            if request is not None:
                request.preemptions += 1
        elif request is not None:
            request.first_token_s = fact.time_s
            request.cached_tokens = min(fact.cached_prompt_tokens, request.arrived.prompt_tokens)
            self.prefix_hits.record(request.arrived.token_ids, request.arrived.prompt_tokens, fact.cached_prompt_tokens)

    def expected_hit_tokens(self, arrived: Arrived) -> int:
        """Prompt tokens that a request is expected to find in this engine's prefix cache."""
        return self.prefix_hits.expected_tokens(arrived.token_ids, arrived.prompt_tokens)

    @property
    def engine(self) -> EngineFacts:
        """The facts about this engine that a policy may use."""
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
        )

    def service_s(self, finished: Finished) -> float:
        """What a request used, in engine-seconds at this engine's present prices."""
        cost = hybrid_cost(self.engine)
        output = np.array([finished.output_tokens])
        return float(cost.total_s(finished.prompt_tokens, output, cached_tokens=finished.cached_prompt_tokens)[0])


class Sessions:
    """The sessions of a controller by connection, at most ``limit``: connected engines and those lost lately."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: dict[bytes, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def full(self) -> bool:
        """Whether no further session can be entered."""
        return len(self._sessions) >= self._limit

    def of(self, connection: bytes) -> Session | None:
        """The session of a connection; None for an unknown one."""
        return self._sessions.get(connection)

    def named(self, session_id: str) -> list[Session]:
        """The session of this name, none or one."""
        return [session for session in self._sessions.values() if session.hello.session_id == session_id]

    def connected(self, model: str | None = None) -> list[Session]:
        """The connected engines, of one model or of all."""
        return [
            session for session in self._sessions.values() if session.connected and model in {None, session.hello.model}
        ]

    def is_of_another(self, hello: Hello) -> bool:
        """Whether the session id belongs to an engine of another name; it cannot be taken over."""
        return any(session.hello.engine_id != hello.engine_id for session in self.named(hello.session_id))

    def enter(self, session: Session) -> None:
        """Add a session; it replaces the one that used its connection before."""
        assert session.connection in self._sessions or not self.full, "sessions are bounded"
        self._sessions[session.connection] = session

    def drop(self, session_id: str) -> Session | None:
        """Remove a session, which may come back over another connection; returns it, None if unknown."""
        for session in self.named(session_id):
            return self._sessions.pop(session.connection)
        return None

    def forget_lost(self, before_s: float) -> list[Session]:
        """Remove the sessions that were lost before a time; returns them."""
        lost = [session for session in self if not session.connected and session.last_seen_s < before_s]
        for session in lost:
            del self._sessions[session.connection]
        return lost


def _state_of(snapshot: Snapshot) -> Snapshot:
    """A snapshot without what changes of itself."""
    return structs.replace(snapshot, time_s=0.0, detailed=True, hook_s=0.0, clock_off_s=round(snapshot.clock_off_s, 1))


Arrival: TypeAlias = tuple[Session, Arrived]
"""A request that arrived, and its engine."""

Item = TypeVar("Item")


def by_model(items: Sequence[tuple[Session, Item]]) -> list[list[tuple[Session, Item]]]:
    """Items of engines, those whose engines serve one model together, each in their order."""
    models: dict[str, list[tuple[Session, Item]]] = {}
    for session, item in items:
        models.setdefault(session.hello.model, []).append((session, item))
    return list(models.values())
