"""The controller's own records for the history: predictions, decisions, outcomes and changes.

The engine never sees these; units are those of `store.records`.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from store.records import Arrived, Finished, FirstToken, Hello, Mode, Preempted, Record, Settings, Snapshot, Targets


class EngineSeen(Record, frozen=True, kw_only=True):
    """An engine connected, reconnected or left."""

    time_s: float
    """When that happened."""
    event: Literal["connected", "reconnected", "left", "lost"]
    """connected, reconnected, left or lost."""
    hello: Hello


class Promised(Record, frozen=True, kw_only=True):
    """The class and the targets of a request, from what it said and what was configured when it arrived."""

    request_id: str
    time_s: float
    """When the request arrived."""
    service_class: str | None
    """Its service class; None for a request that brought targets and is in no class."""
    targets: Targets | None
    """The targets in force for it."""
    account: str | None = None
    """Tenant that its service is charged to; None where no shares are kept."""
    weight: float | None = None
    """Weight of that tenant; None where no shares are kept."""
    objective: float | None = None
    """Share of the requests of its class that is to meet all targets; None for a request that is in none."""


class Prediction(Record, frozen=True, kw_only=True):
    """What was predicted of a request's output length when it arrived."""

    request_id: str
    time_s: float
    """When it was predicted."""
    cluster: int | None
    """Prompt cluster; None before there are clusters."""
    features: bytes
    """Prompt features, little-endian float32."""
    prompt_hash: str
    """Keyed hash of the prompt's token ids."""
    mean_tokens: float
    """Expected output length."""
    p10_tokens: int
    """10% quantile of the predicted output length."""
    p25_tokens: int
    """25%."""
    p50_tokens: int
    """50% quantile, the median."""
    p75_tokens: int
    """75%."""
    p90_tokens: int
    """90%."""
    p95_tokens: int
    """95%."""
    p99_tokens: int
    """99%."""
    evidence: float
    """Effective number of past answers behind the prediction."""
    experts: dict[str, float]
    """Weight of each expert in the mixture."""
    predict_s: float
    """Time that the prediction took."""


class Decision(Record, frozen=True, kw_only=True):
    """An index table that was published for a request, and why."""

    request_id: str
    time_s: float
    """When it was decided."""
    policy: str
    """Policy that decided."""
    reason: Literal["arrival", "resent", "prediction"]
    """arrival, resent, or prediction where the length was predicted again."""
    cost_s: float
    """Expected cost of the whole request in engine-seconds."""
    index_s: float
    """Index at the attained tokens at the time of decision."""
    attained_tokens: tuple[int, ...]
    """The table's steps: output tokens from which an entry holds."""
    table_index_s: tuple[float, ...]
    """Index in each step, engine-seconds; lower runs first."""
    growth_tokens: tuple[float, ...]
    """Expected further output tokens within the gate's horizon in each step."""


class Outcome(Record, frozen=True, kw_only=True):
    """How a prediction turned out, when its request ended."""

    request_id: str
    time_s: float
    """When the request ended."""
    output_tokens: int
    """Tokens generated."""
    censored: bool
    """Whether only a lower bound of the length is known."""
    cluster: int | None
    """Prompt cluster of the prediction."""
    pit: float
    """Probability integral transform of the outcome under the prediction, randomised within its bin; uniform if calibrated."""
    crps_tokens: float
    """Continuous ranked probability score; lower is better."""
    log_score: float
    """Log score of the outcome."""
    within_50: bool
    """Inside the central 50% interval."""
    within_90: bool
    """Inside the central 90% interval."""
    answer: int
    """Number of the answer in the order in which the learner processed them, over all engines and starts."""
    model_surprise: float | None = None
    """By how much answers of the model were longer than predicted since one last ended, those still running included: a sum of
    differences of natural logarithms, of mean zero unless lengths drift; None if unknown."""
    cluster_surprise: float | None = None
    """The same for the prompt cluster."""
    service_s: float | None = None
    """What the request used, in engine-seconds at the engine's prices when it ended; ``Decision.cost_s`` expected it."""


class CalibrationMeasured(Record, frozen=True, kw_only=True):
    """Recent calibration of the predictions for a model or a cluster, and whether they are trusted."""

    time_s: float
    """When it was measured, Unix seconds of the controller's clock."""
    model: str
    """Model whose answers were predicted."""
    scope: Literal["model", "cluster", "rest"]
    """model: all its answers; cluster: those of one; rest: those of the clusters that are not measured by themselves."""
    cluster: int | None
    """Prompt cluster; None unless the scope is one."""
    answers: int
    """Answers in the window."""
    censored: int
    """Of these, censored: only a lower bound of the length is known."""
    coverage_50: float
    """Share inside the central 50% interval; 0.5 when calibrated."""
    coverage_90: float
    """Share inside the central 90% interval; 0.9 when calibrated."""
    crps_tokens: float
    """Mean continuous ranked probability score; lower is better."""
    log_score: float
    """Mean log score in nats; higher is better."""
    prior_log_score: float
    """The same of the model's prior, which ignores the prompt."""
    pinball_tokens: float
    """Mean quantile loss over the 10, 25, 50, 75 and 90% quantiles."""
    kendall_tau: float
    """Rank correlation of predicted median and length, over the window's latest answers."""
    pit_histogram: tuple[float, ...]
    """Share of the answers in each tenth of the PIT; a tenth each when calibrated."""
    trusted: bool
    """Whether the guard allows these predictions to be used."""
    reason: str
    """due, or how trust was lost or regained."""


class DriftDetected(Record, frozen=True, kw_only=True):
    """A length distribution changed and part of its past was forgotten."""

    time_s: float
    """When it was detected."""
    model: str
    """Model whose answers changed."""
    cluster: int
    """Prompt cluster."""
    before_mean_tokens: float
    """Mean output length before."""
    after_mean_tokens: float
    """Mean output length after."""
    forgotten: float
    """Effective number of answers forgotten."""
    renewed_requests: int
    """Unfinished requests with a prediction that was renewed because of it."""


class ClusterChanged(Record, frozen=True, kw_only=True):
    """A prompt cluster was created, split, merged or removed; all models share them."""

    time_s: float
    """When the answer that caused it was learned."""
    kind: Literal["born", "split", "merged", "retired"]
    """born, split, merged or retired."""
    cluster: int
    """Prompt cluster that was created (born, split) or removed (merged, retired)."""
    other_cluster: int | None = None
    """The one that it was split from, or merged into; None for the others."""


class SettingsChanged(Record, frozen=True, kw_only=True):
    """Settings sent to the engines, and why."""

    time_s: float
    """When they were sent."""
    reason: str
    """Why they changed."""
    settings: Settings


Credential: TypeAlias = Literal["token", "loopback", "read_token"]
"""How a caller of the API showed that it may ask: the token that may switch, being on this machine while there is no token, or
the token that may only look."""


class ModeSwitched(Record, frozen=True, kw_only=True):
    """Who switched the mode of all engines over HTTP, whether it changed or not."""

    time_s: float
    """When it was switched."""
    before: Mode
    """The requested mode until then."""
    mode: Mode
    """The mode asked for from then on."""
    reason: str
    """The reason given."""
    who: str | None
    """The name that the caller gave; the dashboard gives that of the person who is logged in. Not proven by itself."""
    credential: Credential
    """token, or loopback where the API asks for none."""
    address: str
    """The caller's address; as the proxy says, where there is one."""


StoreRecord: TypeAlias = (
    Arrived
    | FirstToken
    | Preempted
    | Finished
    | Snapshot
    | EngineSeen
    | Promised
    | Prediction
    | Decision
    | Outcome
    | CalibrationMeasured
    | DriftDetected
    | ClusterChanged
    | SettingsChanged
    | ModeSwitched
)


class Entry(Record, frozen=True, kw_only=True):
    """One record to be written to the history, with its engine."""

    engine_id: str
    """Empty for records that concern no single engine."""
    session_id: str
    batch: int | None
    """Number of the batch of facts that contained it; None for records that no engine sent in a batch."""
    record: StoreRecord
