"""The answers of the HTTP API about requests: the recent past in figures, one request's timeline and its explanation."""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from store.http_api import View
from store.records import FinishReason, Mode, PreemptionCause, Targets
from store.service_levels import Course, Judgement, ServiceLevel, judge, service_level


class FinishedPoint(View, frozen=True):
    """One request that ended in the recent past, with what was predicted of it."""

    request_id: str
    time_s: float
    engine_id: str = ""
    ttft_s: float | None = None
    ttlt_s: float | None = None
    output_tokens: int | None = None
    reason: str | None = None
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    queue_s: float | None = None
    priority: int | None = None
    tenant: str | None = None
    cluster: int | None = None
    p10_tokens: float | None = None
    p50_tokens: float | None = None
    p90_tokens: float | None = None
    pit: float | None = None


class FinishedView(View, frozen=True):
    """Answer of ``/api/finished``."""

    finished: tuple[FinishedPoint, ...]
    """The oldest first."""


class LoadPoint(View, frozen=True):
    """State and throughput of the chosen engines in one bin; None where no engine reported."""

    time_s: float
    """End of the bin."""
    waiting: float | None = None
    running: float | None = None
    used_blocks: float | None = None
    peak_blocks: float | None = None
    """Largest use within the bin."""
    reserved_blocks: float | None = None
    total_blocks: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    recomputed_tokens_per_s: float | None = None

    @property
    def predicted_peak_blocks(self) -> float | None:
        """The peak of KV memory expected within the gate's horizon: blocks in use plus the growth reserve."""
        if self.used_blocks is None or self.reserved_blocks is None:
            return None
        held = self.used_blocks + self.reserved_blocks
        return held if self.total_blocks is None else min(held, self.total_blocks)


class LoadView(View, frozen=True):
    """Answer of ``/api/load``."""

    points: tuple[LoadPoint, ...]
    """The oldest first."""
    steps: int
    """Steps of the engines in the whole span."""
    step_s: float
    """Time that these took."""


class Percentiles(View, frozen=True):
    """Percentiles of one latency over the requests that ended in one bucket."""

    time_s: float
    """Start of the bucket."""
    requests: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


class Cell(View, frozen=True):
    """How many requests of one bucket had a value within one band."""

    time_s: float
    """Start of the bucket."""
    band: int
    """The values from ``10 ** (band / BANDS_PER_DECADE)`` up to the next band's."""
    requests: int


class Phases(View, frozen=True):
    """Mean times of the requests that ended in one bucket; None where none did."""

    time_s: float
    """Start of the bucket."""
    queue_s: float | None
    """From arrival to the first place in a step."""
    prefill_s: float | None
    """From there to the first token."""
    decode_s: float | None
    """From there to the last one."""


class PartLatency(View, frozen=True):
    """Latency of the requests of one engine, class, tenant, model or cluster."""

    by: str
    name: str
    requests: int
    p50_ttft_s: float | None
    mean_ttlt_s: float | None
    p50_ttlt_s: float | None
    p99_ttlt_s: float | None
    mean_output_tokens: float | None
    p99_ttft_s: float | None = None
    p50_tpot_s: float | None = None


class LatenciesView(View, frozen=True):
    """Answer of ``/api/latency``: how long requests took, over time; aborted and failed ones have no TTLT."""

    newest_s: float | None
    """When the last request ended, in the span or before it; None where none has."""
    bucket_s: float
    since_s: float = 0.0
    """Begin of the span."""
    until_s: float = 0.0
    """End of the span."""
    ttft: tuple[Percentiles, ...] = ()
    ttlt: tuple[Percentiles, ...] = ()
    tpot: tuple[Percentiles, ...] = ()
    ttft_heat: tuple[Cell, ...] = ()
    ttlt_heat: tuple[Cell, ...] = ()
    tpot_heat: tuple[Cell, ...] = ()
    phases: tuple[Phases, ...] = ()
    totals: dict[str, Percentiles] = msgspec.field(default_factory=dict)
    """Of all requests of the span together, by ``ttft``, ``ttlt`` and ``tpot``; empty where none ended."""
    parts: tuple[PartLatency, ...] = ()
    """Of all requests, whatever part of them the rest is about."""
    whole: int = 0
    """Requests that ran to their end."""
    cut: int = 0
    """Requests that were aborted or failed."""


RequestState: TypeAlias = Literal["waiting", "running", "ended", "unknown"]


class Predicted(View, frozen=True, kw_only=True):
    """What was predicted of the output length at the arrival."""

    time_s: float
    cluster: int | None
    mean_tokens: float
    p10_tokens: int
    p25_tokens: int
    p50_tokens: int
    p75_tokens: int
    p90_tokens: int
    p95_tokens: int
    p99_tokens: int
    evidence: float
    """Effective number of past answers behind it."""
    experts: dict[str, float]
    """Weight of each expert."""

    @property
    def quantiles(self) -> tuple[tuple[float, int], ...]:
        """Pairs of probability and output tokens, ascending."""
        return (
            (0.1, self.p10_tokens),
            (0.25, self.p25_tokens),
            (0.5, self.p50_tokens),
            (0.75, self.p75_tokens),
            (0.9, self.p90_tokens),
            (0.95, self.p95_tokens),
            (0.99, self.p99_tokens),
        )


class Choice(View, frozen=True, kw_only=True):
    """An index table that was published."""

    time_s: float
    policy: str
    reason: str
    cost_s: float
    """Expected cost of the whole request in engine-seconds."""
    index_s: float
    """Index at the output tokens attained then."""
    attained_tokens: tuple[int, ...]
    table_index_s: tuple[float, ...]


class Loss(View, frozen=True, kw_only=True):
    """A preemption."""

    time_s: float
    lost_tokens: int
    attained_tokens: int
    cause: PreemptionCause


class ScoredPrediction(View, frozen=True, kw_only=True):
    """How the prediction turned out."""

    pit: float
    crps_tokens: float
    within_50: bool
    within_90: bool
    censored: bool


class Moment(View, frozen=True, kw_only=True):
    """A snapshot of the engine, and where the request stood in it."""

    time_s: float
    waiting: int
    running: int
    kv_blocks_used: int
    kv_blocks: int
    admission_limit: int | None
    reserved_blocks: int
    mode: Mode
    fallback: str | None
    ahead: int | None
    """Requests before it in the queue; None when it is not in the head of the queue that snapshots contain."""
    head_prompt_tokens: int | None
    """Prompt of the first in the queue, where known."""
    attained_tokens: int | None
    """Output tokens so far; None when it is not running."""


class CompetingRequest(View, frozen=True, kw_only=True):
    """A request that was given its first place while this one waited."""

    request_id: str
    arrival_s: float
    scheduled_s: float
    prompt_tokens: int
    priority: int
    index_s: float | None
    """Its index at no output tokens when it was started; None when no table had been decided."""


class Order(View, frozen=True, kw_only=True):
    """Settings that were sent to the engine."""

    time_s: float
    reason: str
    mode: Mode
    boost_per_s: float | None
    gate_horizon_tokens: int | None


class Shift(View, frozen=True, kw_only=True):
    """A drift of the request's cluster."""

    time_s: float
    before_mean_tokens: float
    after_mean_tokens: float


class RequestTimeline(View, frozen=True, kw_only=True):
    """All that is recorded of one request; None stands for what is not known (yet)."""

    request_id: str
    engine_id: str
    session_id: str
    known_until_s: float
    """The facts reach up to here."""
    arrival_s: float
    prompt_tokens: int
    max_tokens: int
    model: str | None = None
    block_size_tokens: int | None = None
    max_num_seqs: int | None = None
    temperature: float | None = None
    priority: int | None = None
    tenant: str | None = None
    lora: str | None = None
    session: str | None = None
    """Conversation or agent's program that it belongs to."""
    service_class: str | None = None
    targets: Targets | None = None
    objective: float | None = None
    """Share of the requests of its class that is to meet all targets."""
    account: str | None = None
    """Tenant that it was charged to; None where no shares are kept."""
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    reason: FinishReason | None = None
    output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    recomputed_tokens: int | None = None
    preemptions: int | None = None
    """How often it was preempted; None until it has ended."""
    itl_max_s: float | None = None
    itl_p99_s: float | None = None
    shed: str | None = None
    predicted: Predicted | None = None
    scored: ScoredPrediction | None = None
    choices: tuple[Choice, ...] = ()
    losses: tuple[Loss, ...] = ()
    moments: tuple[Moment, ...] = ()
    competing: tuple[CompetingRequest, ...] = ()
    orders: tuple[Order, ...] = ()
    """The settings in force at the arrival, then every change."""
    shifts: tuple[Shift, ...] = ()
    other_sessions: int = 0
    """Other sessions of engines that knew a request of this name."""

    @property
    def level(self) -> ServiceLevel:
        """What was promised to it, or is assumed where that is nothing."""
        return service_level(self.service_class, self.targets, self.objective)

    @property
    def judgement(self) -> Judgement | None:
        """Whether it met its targets; None until it has ended."""
        if self.finished_s is None or self.reason is None:
            return None
        return judge(self.course, self.level.targets)

    @property
    def course(self) -> Course:
        """What happened to it, up to where it is known."""
        return Course(
            arrival_s=self.arrival_s,
            finished_s=self.until_s,
            reason=self.reason or "stop",
            output_tokens=self.output_tokens or 0,
            scheduled_s=self.scheduled_s,
            first_token_s=self.first_token_s,
            preemptions=self.preemptions or 0,
            itl_max_s=self.itl_max_s,
            shed=self.shed,
        )

    @property
    def started_s(self) -> float | None:
        """When it was first scheduled: as reported, or else as first seen running."""
        if self.scheduled_s is not None:
            return self.scheduled_s
        return next((moment.time_s for moment in self.moments if moment.attained_tokens is not None), None)

    @property
    def until_s(self) -> float:
        """When it ended, or up to when facts are known."""
        return self.known_until_s if self.finished_s is None else self.finished_s

    @property
    def state(self) -> RequestState:
        """Where it stands at the end of what is known."""
        if self.finished_s is not None:
            return "ended"
        last = self.moments[-1] if self.moments else None
        if last is not None and last.attained_tokens is not None:
            return "running"
        return "waiting" if last is not None or self.started_s is None else "unknown"


Why: TypeAlias = Literal["class", "index", "prior", "engine", "unexplained"]
"""``class``: its strict class goes first; ``index``: its index, with the boost in force, gave it the lower
order value;
``prior``: one of the two had no table yet and stood with the prior's index; ``engine``: the engine served its own
order then; ``unexplained``: none of these is on record.
"""

Cause: TypeAlias = Literal["slots", "memory", "gate", "step"]
"""What kept the first of the queue from starting.

``slots``: as many ran as the engine runs at once; ``memory``: its prompt did not fit into the free KV blocks;
``gate``: it would have fitted, but the gate held room back for the growth of what ran; ``step``: none of these, a place
was free and it was a matter of the next steps.
"""

Topic: TypeAlias = Literal[
    "arrival", "prediction", "index", "queue", "wait", "preemptions", "mode", "end", "outcome", "service"
]


class Overtaker(View, frozen=True, kw_only=True):
    """A request that arrived later and was served first."""

    request_id: str
    arrival_s: float
    scheduled_s: float
    priority: int
    index_s: float | None
    own_index_s: float | None
    """Index of the request that waited, at the same moment."""
    why: Why


class Wait(View, frozen=True, kw_only=True):
    """A part of a time without a place."""

    cause: Cause
    behind: bool
    """Whether others stood before it in the queue, so that the cause held them first."""
    span_s: float


class Sentence(View, frozen=True, kw_only=True):
    """One statement, and what it is about."""

    about: Topic
    text: str


class Explanation(View, frozen=True, kw_only=True):
    """A request explained."""

    request_id: str
    engine_id: str
    session_id: str
    state: RequestState
    known_until_s: float
    sentences: tuple[Sentence, ...]
    overtakers: tuple[Overtaker, ...]
    """Requests that arrived later and were served first."""
    waits: tuple[Wait, ...]
    """The wait for the first place, by causes."""


class ExplainView(View, frozen=True):
    """Answer of ``/api/explain``."""

    facts: RequestTimeline
    explanation: Explanation | None = None
    """None where only the history was asked."""
