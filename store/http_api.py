"""The answers of the controller's HTTP API: the controller encodes these structs, the dashboard decodes them.

Both sides run the same release: an answer without one of these fields, or with another type in it, does not decode.
Units are last in names; moments (``time_s``) are Unix seconds, spans are seconds.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from store.entries import DriftDetected
from store.history.writer_stats import WriterStats
from store.records import FinishReason, Mode, PreemptionCause, Settings, Snapshot

QueueState: TypeAlias = Literal["waiting", "running"]
PartKind: TypeAlias = Literal["class", "length", "cluster"]


class View(msgspec.Struct, frozen=True):
    """Base of all answers and of their parts."""


class LivenessView(View, frozen=True, kw_only=True):
    """Answer of ``/healthz`` while the control loop runs."""

    status: Literal["ok"] = "ok"
    loop_age_s: float
    """Time since the control loop last published its state."""


class ReadinessView(View, frozen=True, kw_only=True):
    """Answer of ``/readyz`` once engines may connect."""

    status: Literal["ready"] = "ready"
    engines: int
    """Engines that are connected."""


class ControllerView(View, frozen=True, kw_only=True):
    """The controller itself."""

    controller_id: str
    version: str
    started_s: float
    now_s: float
    store_path: str | None
    """Folder of the history; None where the controller keeps none."""
    mode: Mode
    policy: str
    settings: Settings
    loop: dict[str, float]
    """Timings and counts of the control loop."""


class CalibrationView(View, frozen=True, kw_only=True):
    """How the latest predictions for a model or a cluster compare with the outcomes."""

    model: str
    scope: Literal["model", "cluster", "rest"]
    cluster: int | None
    answers: int
    censored: int
    coverage_50: float
    coverage_90: float
    crps_tokens: float
    log_score: float
    prior_log_score: float
    """Log score of the model's prior on the same answers."""
    pinball_tokens: float
    kendall_tau: float
    pit_histogram: tuple[float, ...]
    trusted: bool
    reason: str
    """``due``, or how trust was lost or regained."""


class LearnerView(View, frozen=True, kw_only=True):
    """What the learner has seen and how well it is calibrated; figures are None before the first outcome."""

    predictions: int
    completions: int
    censored: int
    not_learnt: int
    """Answers that there was no time to learn from."""
    not_predicted: int
    """Requests that ended before there was time to predict them."""
    backlog: int
    """Arrivals to predict, answers to learn from and predictions to renew that are pending."""
    clusters: int
    coverage_50: float | None
    """Share of outcomes inside the central half of their predicted distribution; ideally 0.5."""
    coverage_90: float | None
    crps_tokens: float | None
    log_score: float | None
    pit_histogram: tuple[float, ...] | None
    drift_events: int
    drifts: tuple[DriftDetected, ...]
    """The latest, oldest first."""
    models: tuple[CalibrationView, ...]
    distrusted_clusters: tuple[CalibrationView, ...]


class EngineView(View, frozen=True, kw_only=True):
    """One engine that the controller knows."""

    engine_id: str
    session_id: str
    model: str
    engine: str
    engine_version: str
    connected: bool
    last_seen_s: float
    kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int
    unfinished: int
    tables_sent: int
    snapshot: Snapshot | None
    """The last one, without its lists of requests; None before the first."""


class StateView(View, frozen=True, kw_only=True):
    """Answer of ``/api/state``."""

    controller: ControllerView
    learner: LearnerView
    store: WriterStats
    engines: tuple[EngineView, ...]


class QueueRow(View, frozen=True, kw_only=True):
    """One unfinished request, in the order in which the engine will try the waiting ones."""

    position: int
    request_id: str
    engine_id: str
    state: QueueState
    priority: int
    age_s: float
    prompt_tokens: int
    attained_tokens: int
    index_s: float
    patience_left_s: float | None
    """Until no request of its class may pass it; negative once that is so, None when it never is."""
    expected_remaining_tokens: float
    p50_tokens: int
    p90_tokens: int
    cluster: int | None


class QueueView(View, frozen=True, kw_only=True):
    """Answer of ``/api/queue``."""

    time_s: float
    rows: tuple[QueueRow, ...]


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

    finished: tuple[FinishedPoint, ...] = ()
    """The oldest first."""


class LoadPoint(View, frozen=True):
    """State and work of the chosen engines in one bin; None where no engine said anything."""

    time_s: float
    """End of the bin."""
    waiting: float | None = None
    running: float | None = None
    used_blocks: float | None = None
    peak_blocks: float | None = None
    """The most that was used within the bin."""
    reserved_blocks: float | None = None
    total_blocks: float | None = None
    decode_tokens_per_s: float | None = None
    prefill_tokens_per_s: float | None = None
    recomputed_tokens_per_s: float | None = None

    @property
    def foretold_blocks(self) -> float | None:
        """The peak of KV memory that is expected within the gate's horizon: what is used, and the growth reserve."""
        if self.used_blocks is None or self.reserved_blocks is None:
            return None
        held = self.used_blocks + self.reserved_blocks
        return held if self.total_blocks is None else min(held, self.total_blocks)


class LoadView(View, frozen=True):
    """Answer of ``/api/load``."""

    points: tuple[LoadPoint, ...] = ()
    """The oldest first."""
    steps: int = 0
    """Steps of the engines in the whole span."""
    step_s: float = 0.0
    """Time that these took."""


class Percentiles(View, frozen=True):
    """Percentiles of one latency over the requests that ended in one bucket."""

    time_s: float
    """Start of the bucket."""
    requests: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


BANDS_PER_DECADE = 8
"""Bands of a heatmap: each reaches 1.33 times as high as the one below."""


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
    """Latency of the requests of one class, tenant, model or cluster."""

    by: str
    name: str
    requests: int
    p50_ttft_s: float | None
    mean_ttlt_s: float | None
    p50_ttlt_s: float | None
    p99_ttlt_s: float | None
    mean_output_tokens: float | None


class LatenciesView(View, frozen=True):
    """Answer of ``/api/latency``: how long requests took, over time; aborted and failed ones have no TTLT."""

    newest_s: float | None = None
    """Up to when; None where no request has ended."""
    bucket_s: float = 60.0
    ttft: tuple[Percentiles, ...] = ()
    ttlt: tuple[Percentiles, ...] = ()
    tpot: tuple[Percentiles, ...] = ()
    ttft_heat: tuple[Cell, ...] = ()
    ttlt_heat: tuple[Cell, ...] = ()
    tpot_heat: tuple[Cell, ...] = ()
    phases: tuple[Phases, ...] = ()
    parts: tuple[PartLatency, ...] = ()
    """Of all requests, whatever part of them the rest is about."""
    whole: int = 0
    """Requests that ran to their end."""
    cut: int = 0
    """Requests that were aborted or failed."""


class SettingView(View, frozen=True, kw_only=True):
    """One setting of the configuration; secrets are masked."""

    key: str
    value: str
    meaning: str


class WarningView(View, frozen=True, kw_only=True):
    """One warning or error of the controller's log."""

    time_s: float
    level: str
    logger: str
    text: str


class EncoderCounts(View, frozen=True, kw_only=True):
    """What the semantic encoder did with the prompts that it was given, since it started."""

    encoded: int = 0
    dropped: int = 0
    errors: int = 0
    waiting: int = 0


class HealthView(View, frozen=True, kw_only=True):
    """Answer of ``/api/health``."""

    configuration: tuple[SettingView, ...]
    versions: dict[str, str]
    recent_warnings: tuple[WarningView, ...]
    """The latest, newest first."""
    encoder: EncoderCounts | None
    """None where there is none."""


class Finding(View, frozen=True, kw_only=True):
    """What one check of ``doctor`` found, and what to do if it is wrong."""

    name: str
    state: Literal["ok", "note", "wrong"]
    text: str
    remedy: str = ""


class DoctorView(View, frozen=True, kw_only=True):
    """Answer of ``/api/doctor``."""

    time_s: float
    findings: tuple[Finding, ...]


class ModeView(View, frozen=True, kw_only=True):
    """Answer of ``/api/mode``: the settings in force after the switch."""

    settings: Settings


class Latency(View, frozen=True, kw_only=True):
    """Mean and percentiles of the TTLT over the same requests."""

    mean_ttlt_s: float
    p50_ttlt_s: float
    p90_ttlt_s: float
    p99_ttlt_s: float


class Ratio(View, frozen=True, kw_only=True):
    """A mean over another, with the 90 % interval of a block bootstrap over the requests."""

    mean: float
    low: float
    high: float


class GainPart(View, frozen=True, kw_only=True):
    """One part of the requests, replayed under both orders."""

    by: PartKind
    name: str
    requests: int
    fcfs_mean_ttlt_s: float
    mean_ttlt_s: float
    """Under the policy."""
    ratio: Ratio
    """Mean TTLT of the policy over that of first come, first served."""


class RecomputeTax(View, frozen=True, kw_only=True):
    """What an order recomputes after preemptions."""

    preemptions: int
    recomputed_tokens: int
    share: float
    """Of all tokens computed for these requests."""


class PerRequest(View, frozen=True, kw_only=True):
    """How single requests fare under the policy against first come, first served."""

    faster: float
    """Share of the requests that end more than a tenth sooner."""
    slower: float
    """Share that end more than a tenth later."""
    fcfs_max_ttlt_s: float
    max_ttlt_s: float


class Reproduction(View, frozen=True, kw_only=True):
    """How well the replay of the order that was in force reproduces the measured figures."""

    mode: Mode
    """The mode that was mostly in force, which decides which replay should reproduce them."""
    mean_ttlt_error: float | None
    """Replayed over recorded, less one; None where the recorded figure is 0 and the replayed one is not."""
    p99_ttlt_error: float | None
    request_error_s: float
    """Mean distance of a request's replayed TTLT from its recorded one."""
    poor: tuple[str, ...]
    """Why the reproduction is poor; empty when it is good."""


class Gain(View, frozen=True, kw_only=True):
    """A comparison with first come, first served: what was measured, and two replays of the same requests."""

    requests: int
    actual: Latency
    """Measured."""
    fcfs: Latency
    """Replayed first come, first served."""
    modelled: Latency
    """Replayed under the policy."""
    ratio: Ratio
    """Mean TTLT of the policy over that of first come, first served, both replayed."""
    reproduction: Reproduction
    parts: tuple[GainPart, ...]
    fcfs_tax: RecomputeTax
    tax: RecomputeTax
    per_request: PerRequest
    method: str
    """How these figures were made, for their readers."""


class GainView(View, frozen=True, kw_only=True):
    """Answer of ``/api/gain``."""

    status: Literal["warming up", "ready", "unavailable"]
    reason: str | None = None
    """Why there is no comparison."""
    computed_s: float | None = None
    gain: Gain | None = None
    """Present when ``status`` is ``ready``."""


RequestState: TypeAlias = Literal["waiting", "running", "ended", "unknown"]


class Predicted(View, frozen=True, kw_only=True):
    """What was believed of the output length at the arrival."""

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
    patience_s: float | None = None
    """Time of waiting after which nobody of its class passes it any more; None for none."""


class Loss(View, frozen=True, kw_only=True):
    """A preemption."""

    time_s: float
    lost_tokens: int
    attained_tokens: int
    cause: PreemptionCause


class Verdict(View, frozen=True, kw_only=True):
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
    """Requests before it in the queue; None when it is not at the head of the queue that snapshots tell of."""
    head_prompt_tokens: int | None
    """Prompt of the first in the queue, where known."""
    attained_tokens: int | None
    """Output tokens so far; None when it is not running."""


class Rival(View, frozen=True, kw_only=True):
    """A request that was given its first place while this one waited."""

    request_id: str
    arrival_s: float
    scheduled_s: float
    prompt_tokens: int
    priority: int
    index_s: float | None
    """Its index at no output tokens when it was started; None when no table had been decided."""
    patience_s: float | None = None
    """Bound on its waiting in the same table; None for none."""


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
    scheduled_s: float | None = None
    first_token_s: float | None = None
    finished_s: float | None = None
    reason: FinishReason | None = None
    output_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    recomputed_tokens: int | None = None
    predicted: Predicted | None = None
    verdict: Verdict | None = None
    choices: tuple[Choice, ...] = ()
    losses: tuple[Loss, ...] = ()
    moments: tuple[Moment, ...] = ()
    rivals: tuple[Rival, ...] = ()
    orders: tuple[Order, ...] = ()
    """The settings in force at the arrival, then every change."""
    shifts: tuple[Shift, ...] = ()
    other_sessions: int = 0
    """Other sessions of engines that knew a request of this name."""

    @property
    def started_s(self) -> float | None:
        """When it was first given a place: as told, or else as first seen running."""
        if self.scheduled_s is not None:
            return self.scheduled_s
        return next((moment.time_s for moment in self.moments if moment.attained_tokens is not None), None)

    @property
    def until_s(self) -> float:
        """When it ended, or up to when it is known."""
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


Why: TypeAlias = Literal["class", "patience", "index", "prior", "engine", "unexplained"]
"""``class``: its strict class goes first; ``patience``: it had waited for as long as its patience allows;
``index``: its index, with the boost in force, gave it the lower order value;
``prior``: one of the two had no table yet and stood with the prior's index; ``engine``: the engine served its own
order then; ``unexplained``: none of these is on record.
"""

Cause: TypeAlias = Literal["slots", "memory", "gate", "step"]
"""What kept the first of the queue from starting.

``slots``: as many ran as the engine runs at once; ``memory``: its prompt did not fit into the free KV blocks;
``gate``: it would have fitted, but the gate held room back for the growth of what ran; ``step``: none of these, a place
was free and it was a matter of the next steps.
"""

Topic: TypeAlias = Literal["arrival", "prediction", "index", "queue", "wait", "preemptions", "mode", "end", "outcome"]


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
