"""Settings of the core, and the counts that it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.policy.service_levels import ServiceLevels
from online_learning.calibration.calibration import CalibrationSettings
from store.records import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Settings of the core."""

    controller_id: str
    mode: Mode
    hash_key: bytes
    """Key of the hash that stands for a prompt in the history."""
    lease_s: float = 2.0
    refresh_interval_s: float = 5.0
    refresh_requests: int = 256
    """Largest number of requests that one refresh predicts again."""
    max_sessions: int = 1024
    max_unfinished: int = 100_000
    """Largest number of unfinished requests of each engine; those beyond keep the prior's index."""
    forget_lost_s: float = 60.0
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    calibration_interval_s: float = 0.5
    """Seconds between two looks at which calibration windows are due."""
    backlog: int = 0
    """Largest number of answers and stale predictions that wait for `Core.work`; 0 handles each where it comes up."""
    service: ServiceLevels = field(default_factory=ServiceLevels)
    """Service classes and tenants."""
    acknowledge_at_once: bool = False
    """True without a store: facts count as durable when they are received."""


@dataclass(slots=True)
class Counts:
    """Counts since the start."""

    predictions: int = 0
    completions: int = 0
    censored: int = 0
    tables_sent: int = 0
    drift_events: int = 0
    distrusts: int = 0
    """Number of times that predictions of a model or a cluster lost the guard's trust."""
    duplicate_batches: int = 0
    unrecorded_batches: int = 0
    """Batches that were handled while the history was too far behind, and are recorded when they are sent again."""
    damaged_facts: int = 0
    """Facts that could not be read, or only after putting a count into its range."""
    engine_errors: int = 0
    """Failures on messages of one engine, which then serves first come, first served for a while."""
    early_batches: int = 0
    """Batches that were ignored because an earlier one was missing."""
    unknown_connections: int = 0
    """Messages over connections without an accepted hello."""
    not_tracked: int = 0
    """Arrivals beyond ``max_unfinished``."""
    not_learnt: int = 0
    """Answers that the learner was not taught, because too much work was deferred."""
    not_renewed: int = 0
    """Requests that were not predicted again, for the same reason."""
    deferred: int = 0
    """Arrivals that were deferred because too many came at once; nothing is learned from their answers."""
    not_predicted: int = 0
    """Deferred arrivals that ended, or lost their engine, before they were predicted."""
