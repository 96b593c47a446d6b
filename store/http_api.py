"""The answers of the controller's HTTP API: the controller encodes these structs, the dashboard decodes them.

Both sides run the same release: an answer without one of these fields, or with another type in it, does not decode.
Units are last in names; moments (``time_s``) are Unix seconds, spans are seconds.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from store.entries import DriftDetected
from store.history.writer_stats import WriterStats
from store.records import Mode, Settings, Snapshot, Targets

QueueState: TypeAlias = Literal["waiting", "running"]
QueueReason: TypeAlias = Literal["priority", "target", "short", "waited", "long", "arrival"]
"""Why a request stands where it stands in the queue.

priority: its strict class goes first; target: it was promised a time; short: its expected cost is below the queue's median;
waited: it is longer and has waited long; long: shorter ones go first; arrival: the engine serves in order of arrival.
"""
PartKind: TypeAlias = Literal["class", "length", "cluster"]
DegradedKind: TypeAlias = Literal[
    "loop_failing",
    "learner_failing",
    "engine_failing",
    "facts_damaged",
    "frames_refused",
    "clock_off",
    "name_shared",
    "deaf_endpoint",
    "connection_flood",
    "files_near_limit",
    "history_replaced",
    "history_behind",
    "clock_ahead",
    "learning_past",
]
"""Ways in which a controller does less than it should while it runs: also the metric's label."""


class View(msgspec.Struct, frozen=True):
    """Base of all answers and of their parts."""


class LivenessView(View, frozen=True, kw_only=True):
    """Answer of ``/healthz`` while the control loop runs."""

    status: Literal["ok"] = "ok"
    loop_age_s: float
    """Time since the control loop last published its state."""


class DegradedState(View, frozen=True, kw_only=True):
    """One way in which the controller does less than it should at present; it ends by itself once its cause is gone."""

    kind: DegradedKind
    text: str
    """What is wrong, what happens meanwhile, and what to do."""


class ReadinessView(View, frozen=True, kw_only=True):
    """Answer of ``/readyz`` once engines may connect."""

    status: Literal["ready"] = "ready"
    engines: int
    """Engines that are connected."""
    degraded: tuple[DegradedKind, ...] = ()
    """What is amiss meanwhile; ``/api/state`` says more."""


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
    """The learner's counts and calibration; figures are None before the first outcome."""

    predictions: int
    completions: int
    censored: int
    not_learnt: int
    """Answers that were skipped for lack of time."""
    not_predicted: int
    """Requests that ended before they could be predicted."""
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
    """The latest ones, oldest first."""
    models: tuple[CalibrationView, ...]
    distrusted_clusters: tuple[CalibrationView, ...]


ALL_HOLD = "all names and "
"""How an engine begins what it tells where all that the plugin relies on holds."""


class EngineView(View, frozen=True, kw_only=True):
    """One engine that the controller knows."""

    engine_id: str
    session_id: str
    model: str
    engine: str
    engine_version: str
    contract: str | None = None
    """What the engine found of the names and behaviours that the plugin relies on; None where nothing is checked."""
    connected: bool
    gone: Literal["left", "lost"] | None = None
    """How an engine that is not connected went: it said so, or its connection broke."""
    last_seen_s: float
    kv_blocks: int
    block_size_tokens: int
    max_num_seqs: int
    unfinished: int
    tables_sent: int
    snapshot: Snapshot | None
    """The last one, without its lists of requests; None before the first."""

    @property
    def contract_holds(self) -> bool:
        """Whether it found all that it looked for, so that the plugin steers it."""
        return self.contract is not None and self.contract.startswith(ALL_HOLD)


class StateView(View, frozen=True, kw_only=True):
    """Answer of ``/api/state``."""

    controller: ControllerView
    learner: LearnerView
    store: WriterStats
    engines: tuple[EngineView, ...]
    degraded: tuple[DegradedState, ...] = ()
    """What is amiss at present; empty where all is well."""


class QueueRow(View, frozen=True, kw_only=True):
    """One unfinished request; waiting ones are in the order of admission."""

    position: int
    request_id: str
    engine_id: str
    state: QueueState
    priority: int
    age_s: float
    prompt_tokens: int
    attained_tokens: int
    index_s: float
    expected_remaining_tokens: float
    p50_tokens: int
    p90_tokens: int
    cluster: int | None
    service_class: str | None = None
    """Its service class; None for a request that is in none."""
    targets: Targets | None = None
    """The targets in force for it; None for none."""
    starts_in_s: float | None = None
    """Expected wait until it gets memory and a place; None while it runs."""
    ends_in_s: float | None = None
    """Expected time to its last token."""
    because: QueueReason | None = None
    """None while it runs."""


class QueueView(View, frozen=True, kw_only=True):
    """Answer of ``/api/queue``."""

    time_s: float
    rows: tuple[QueueRow, ...]


BANDS_PER_DECADE = 8
"""Bands of a heatmap per factor of ten: each reaches 1.33 times as high as the one below."""


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
    """Counts of the semantic encoder's prompts since it started."""

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
    """None without a semantic encoder."""


class Finding(View, frozen=True, kw_only=True):
    """Result of one check of ``doctor``, with the remedy if it failed."""

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
    """A mean over another, with the 90% interval of a block bootstrap over the requests."""

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
    """Single requests under the policy, compared with first come, first served."""

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


class Attained(View, frozen=True, kw_only=True):
    """Shares of some requests that met their targets; None where nobody has such a target."""

    goodput: float | None
    """All targets that a request has."""
    ttft: float | None
    tpot: float | None
    e2e: float | None


class GainService(View, frozen=True, kw_only=True):
    """The targets of the requests of one class, or of all, as measured and under three orders, all replayed."""

    service_class: str | None
    """None for all requests."""
    requests: int
    """Requests that have a target, the default ones where none was promised."""
    actual: Attained
    """Measured."""
    fcfs: Attained
    priority: Attained
    """vLLM's own order by priority; first come, first served where all have the same one."""
    modelled: Attained
    """Under the policy."""


class ObjectiveGain(View, frozen=True, kw_only=True):
    """The same requests replayed under the policy with one of its objectives."""

    objective: Literal["mean", "balanced", "tail"]
    in_use: bool
    """Whether it is the configured one."""
    latency: Latency
    p99_ttft_s: float
    max_ttlt_s: float


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
    objectives: tuple[ObjectiveGain, ...] = ()
    """Each objective of the policy; empty where the policy has none."""
    service: tuple[GainService, ...] = ()
    """All requests first, then each class."""
    assumed_targets: int = 0
    """Number of requests without class and targets, for which the default ones are assumed."""
    method: str
    """How these figures were computed, as text for readers."""


class GainView(View, frozen=True, kw_only=True):
    """Answer of ``/api/gain``."""

    status: Literal["warming up", "ready", "unavailable"]
    reason: str | None = None
    """Why there is no comparison."""
    computed_s: float | None = None
    gain: Gain | None = None
    """Present when ``status`` is ``ready``."""
