"""What the controller adds for the history: what was believed, decided, learned and changed, and each record's way into it.

The engine never sees these; units are those of `store.records`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from store.records import Arrived, Finished, FirstToken, Hello, Preempted, Record, Settings, Snapshot


class EngineSeen(Record, frozen=True, kw_only=True):
    """An engine connected, reconnected or left."""

    time_s: float
    event: Literal["connected", "reconnected", "left", "lost"]
    hello: Hello


class Prediction(Record, frozen=True, kw_only=True):
    """What was believed of a request's output length when it arrived."""

    request_id: str
    time_s: float
    cluster: int | None
    features: bytes
    """Prompt features, little-endian float32."""
    prompt_hash: str
    """Keyed hash of the prompt's token ids."""
    mean_tokens: float
    p10_tokens: int
    p25_tokens: int
    p50_tokens: int
    p75_tokens: int
    p90_tokens: int
    p95_tokens: int
    p99_tokens: int
    evidence: float
    """Effective number of past answers behind the prediction."""
    experts: dict[str, float]
    """Weight of each expert in the mixture."""
    predict_s: float
    """Time that the prediction took."""


class Decision(Record, frozen=True, kw_only=True):
    """An index table was published for a request, and why."""

    request_id: str
    time_s: float
    policy: str
    reason: Literal["arrival", "resent", "belief"]
    cost_s: float
    """Expected cost of the whole request in engine-seconds."""
    index_s: float
    """Index at the attained tokens at the time of decision."""
    attained_tokens: tuple[int, ...]
    table_index_s: tuple[float, ...]
    growth_tokens: tuple[float, ...]
    patience_s: float | None = None
    """Bound on its waiting; None for none."""


class Outcome(Record, frozen=True, kw_only=True):
    """How a prediction turned out, when its request ended."""

    request_id: str
    time_s: float
    output_tokens: int
    censored: bool
    """The length is only known to be at least this much."""
    cluster: int | None
    pit: float
    """Probability integral transform of the outcome under the prediction, randomised within its bin."""
    crps_tokens: float
    log_score: float
    within_50: bool
    within_90: bool
    answer: int
    """Number of the answer in the order in which the learner was taught, over all engines and starts."""


class CalibrationMeasured(Record, frozen=True, kw_only=True):
    """How the learner's predictions for a model or a cluster turned out lately, and whether they are trusted."""

    time_s: float
    model: str
    scope: Literal["model", "cluster", "rest"]
    """All of the model, one of its clusters, or its predictions for no cluster that is watched by itself."""
    cluster: int | None
    answers: int
    """Answers in the window."""
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
    """Share of the answers in each tenth of the PIT."""
    trusted: bool
    reason: str
    """``due``, or how trust was lost or came back."""


class DriftDetected(Record, frozen=True, kw_only=True):
    """A length distribution moved and part of its past was forgotten."""

    time_s: float
    model: str
    cluster: int
    before_mean_tokens: float
    after_mean_tokens: float
    forgotten: float
    """Effective number of answers forgotten."""
    renewed_requests: int
    """Unfinished requests whose belief was formed anew because of it."""


class ClusterChanged(Record, frozen=True, kw_only=True):
    """A prompt cluster came, was divided or went; all models share them."""

    time_s: float
    kind: Literal["born", "split", "merged", "retired"]
    cluster: int
    """The one that came or went."""
    other_cluster: int | None = None
    """The one that it was split from, or merged into."""


class SettingsChanged(Record, frozen=True, kw_only=True):
    """Settings sent to the engines, and why."""

    time_s: float
    settings: Settings
    reason: str


StoreRecord: TypeAlias = (
    Arrived
    | FirstToken
    | Preempted
    | Finished
    | Snapshot
    | EngineSeen
    | Prediction
    | Decision
    | Outcome
    | CalibrationMeasured
    | DriftDetected
    | ClusterChanged
    | SettingsChanged
)


class Entry(Record, frozen=True, kw_only=True):
    """One record on its way into the history, with the engine that it is about."""

    engine_id: str
    """Empty for what concerns no single engine."""
    session_id: str
    batch: int | None
    """Number of the batch of facts that brought it; None for what no engine sent in a batch."""
    record: StoreRecord
