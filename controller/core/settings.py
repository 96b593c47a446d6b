"""Settings of the brain, and its counts of what it did."""

from __future__ import annotations

from dataclasses import dataclass, field

from online_learning.calibration.calibration import CalibrationSettings
from store.records import Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConfig:
    """Settings of the brain."""

    controller_id: str
    mode: Mode
    hash_key: bytes
    """Key of the hash under which prompts are recorded."""
    lease_s: float = 2.0
    refresh_interval_s: float = 5.0
    refresh_requests: int = 256
    """Beliefs that one refresh may form anew."""
    max_sessions: int = 1024
    max_unfinished: int = 100_000
    """Unfinished requests that are remembered for each engine; those beyond keep the prior's index."""
    forget_lost_s: float = 60.0
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    calibration_interval_s: float = 0.5
    """How often it is asked which windows of predictions are due to be measured."""
    backlog: int = 0
    """Pieces of learning and of forming beliefs anew that may wait for `Core.work`; 0 has each done where it comes up."""
    acknowledge_at_once: bool = False
    """True where there is no store: facts count as durable when they are received."""


@dataclass(slots=True)
class Counts:
    """What the brain has done since it started."""

    predictions: int = 0
    completions: int = 0
    censored: int = 0
    tables_sent: int = 0
    drift_events: int = 0
    distrusts: int = 0
    """Times that a model's or a cluster's predictions lost the guard's trust."""
    duplicate_batches: int = 0
    unrecorded_batches: int = 0
    """Batches that were handled while the history could take no more, and are to come once again for it."""
    early_batches: int = 0
    """Batches left for later because one before them was missing."""
    unknown_connections: int = 0
    """Messages over connections that have not said hello, or one too many."""
    not_tracked: int = 0
    """Arrivals beyond ``max_unfinished``."""
    not_learnt: int = 0
    """Answers that the learner was not taught, because too much waited to be done."""
    not_renewed: int = 0
    """Beliefs that were not formed anew, for the same reason."""
    put_off: int = 0
    """Arrivals that went by the prior at first, because the brain was hurried; their answers are not learnt from."""
    not_predicted: int = 0
    """Of those the ones that ended, or whose engine went, before there was time for a belief."""
