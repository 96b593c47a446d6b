"""What the controller's HTTP API says, as frozen values.

The dashboard and the controller may be of different releases: unknown fields are ignored, missing and null ones
are None and shown as a dash. Units are last in names; moments are Unix seconds, spans are seconds.
"""

from __future__ import annotations

import msgspec


class View(msgspec.Struct, frozen=True):
    """Base of all views."""


class GateView(View, frozen=True):
    """The admission gate as it is set."""

    horizon_tokens: int | None = None
    margin: float | None = None


class SettingsView(View, frozen=True):
    """What the controller tells the engines to do."""

    revision: int | None = None
    mode: str | None = None
    gate: GateView | None = None
    boost_per_s: float | None = None
    lease_s: float | None = None
    victims: str | None = None


class ControllerView(View, frozen=True):
    """The controller itself."""

    controller_id: str = ""
    version: str = ""
    started_s: float | None = None
    now_s: float | None = None
    mode: str | None = None
    policy: str | None = None
    settings: SettingsView | None = None
    store_path: str | None = None


class ModelCalibrationView(View, frozen=True):
    """How the predictions for one model turned out lately."""

    model: str
    answers: int = 0
    coverage_50: float | None = None
    coverage_90: float | None = None
    crps_tokens: float | None = None
    log_score: float | None = None
    prior_log_score: float | None = None
    kendall_tau: float | None = None
    trusted: bool = True
    reason: str | None = None
    """Why trust was lost, where it was."""


class LearnerView(View, frozen=True):
    """What the learner has seen and how well it is calibrated."""

    predictions: int | None = None
    completions: int | None = None
    censored: int | None = None
    not_learnt: int | None = None
    """Answers that there was no time to learn from."""
    not_predicted: int | None = None
    """Requests that ended before there was time to predict them."""
    backlog: int | None = None
    """Arrivals to predict, answers to learn from and beliefs to form anew that wait."""
    clusters: int | None = None
    coverage_50: float | None = None
    """Share of outcomes inside the central half of their prediction; ideally 0.5."""
    coverage_90: float | None = None
    crps_tokens: float | None = None
    log_score: float | None = None
    models: tuple[ModelCalibrationView, ...] = ()


class SnapshotView(View, frozen=True):
    """The last snapshot of an engine, as far as the dashboard shows it."""

    time_s: float | None = None
    waiting: int | None = None
    running: int | None = None
    kv_blocks_used: int | None = None
    kv_blocks: int | None = None
    mode: str | None = None
    """The mode in force in the engine, ``off`` during a fallback."""
    fallback: str | None = None
    reserved_blocks: int | None = None
    admission_limit: int | None = None
    tables_held: int | None = None
    tables_applied: int | None = None
    messages_dropped: int | None = None
    policy_errors: int | None = None
    overdue: int | None = None
    """Requests that went first because their patience was over, since the engine started."""


class EngineView(View, frozen=True):
    """One engine that the controller knows."""

    engine_id: str = ""
    session_id: str = ""
    model: str = ""
    engine: str = ""
    engine_version: str = ""
    connected: bool = False
    last_seen_s: float | None = None
    kv_blocks: int | None = None
    block_size_tokens: int | None = None
    max_num_seqs: int | None = None
    unfinished: int | None = None
    tables_sent: int | None = None
    snapshot: SnapshotView | None = None


class StoreView(View, frozen=True):
    """How the writer of the history fares."""

    queued: int | None = None
    dropped: int | None = None
    refused: int | None = None
    rejected: int | None = None
    damaged_segments: int | None = None
    last_error: str | None = None
    """Why the last attempt to write failed; None when it did not."""
    last_commit_s: float | None = None


class StateView(View, frozen=True):
    """Answer of ``/api/state``."""

    controller: ControllerView
    learner: LearnerView = LearnerView()
    store: StoreView = StoreView()
    engines: tuple[EngineView, ...] = ()


class QueueRow(View, frozen=True):
    """One unfinished request, in the order in which the engine will try the waiting ones."""

    request_id: str
    state: str
    position: int | None = None
    engine_id: str = ""
    priority: int | None = None
    age_s: float | None = None
    prompt_tokens: int | None = None
    attained_tokens: int | None = None
    index_s: float | None = None
    patience_left_s: float | None = None
    expected_remaining_tokens: float | None = None
    p50_tokens: float | None = None
    p90_tokens: float | None = None
    cluster: int | None = None


class QueueView(View, frozen=True):
    """Answer of ``/api/queue``."""

    time_s: float | None = None
    rows: tuple[QueueRow, ...] = ()


class SnapshotPoint(View, frozen=True):
    """One snapshot of the recent past; counts of work are sums since the one before."""

    time_s: float
    engine_id: str = ""
    waiting: int | None = None
    running: int | None = None
    kv_blocks_used: int | None = None
    kv_blocks: int | None = None
    reserved_blocks: int | None = None
    admission_limit: int | None = None
    mode: str | None = None
    fallback: str | None = None
    prefill_tokens: int | None = None
    decode_tokens: int | None = None
    step_s: float | None = None
    steps: int | None = None
    preemptions: int | None = None
    recomputed_tokens: int | None = None
    overdue: int | None = None


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


class RecentView(View, frozen=True):
    """Answer of ``/api/recent``."""

    snapshots: tuple[SnapshotPoint, ...] = ()
    finished: tuple[FinishedPoint, ...] = ()


class LatencyView(View, frozen=True):
    """Mean and percentiles of the time to the last token."""

    mean_ttlt_s: float | None = None
    p50_ttlt_s: float | None = None
    p90_ttlt_s: float | None = None
    p99_ttlt_s: float | None = None


class RatioView(View, frozen=True):
    """A mean over another, with the 90 % interval of a bootstrap."""

    mean: float | None = None
    low: float | None = None
    high: float | None = None


class PartView(View, frozen=True):
    """One part of the requests under both orders."""

    by: str
    name: str
    requests: int = 0
    fcfs_mean_ttlt_s: float | None = None
    mean_ttlt_s: float | None = None
    ratio: RatioView = RatioView()


class TaxView(View, frozen=True):
    """What an order has computed again after preemptions."""

    preemptions: int | None = None
    recomputed_tokens: int | None = None
    share: float | None = None


class WaitingView(View, frozen=True):
    """How single requests fare under the policy against first come, first served."""

    faster: float | None = None
    slower: float | None = None


class ReproductionView(View, frozen=True):
    """How well the replay of what was in force gives the measured figures again."""

    mode: str | None = None
    mean_ttlt_error: float | None = None
    """Replayed over recorded, less one."""
    p99_ttlt_error: float | None = None
    request_error_s: float | None = None
    poor: tuple[str, ...] = ()


class GainView(View, frozen=True):
    """Answer of ``/api/gain``: what was measured, and two replays of the same requests."""

    status: str
    method: str | None = None
    requests: int | None = None
    actual: LatencyView | None = None
    fcfs: LatencyView | None = None
    modelled: LatencyView | None = None
    ratio: RatioView | None = None
    """Mean TTLT of the policy in use over that of first come, first served, both replayed."""
    reproduction: ReproductionView | None = None
    parts: tuple[PartView, ...] = ()
    fcfs_tax: TaxView | None = None
    tax: TaxView | None = None
    waiting: WaitingView | None = None
