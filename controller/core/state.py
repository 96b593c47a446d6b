"""The state of one controller, which the parts of the core share."""

from __future__ import annotations

from dataclasses import dataclass, field

from controller.core.deferred_work import DeferredWork
from controller.core.journal import Journal
from controller.core.modes import Modes
from controller.core.outbox import Outbox
from controller.core.predictor import Predictor
from controller.core.sessions import Sessions
from controller.core.settings import CoreConfig, Counts
from controller.policy.policy import Policy


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CoreState:
    """What the parts of the core read and write; each part keeps nothing but a reference to it."""

    policy: Policy
    config: CoreConfig
    predictor: Predictor
    sessions: Sessions
    modes: Modes
    deferred: DeferredWork
    journal: Journal = field(default_factory=Journal)
    outbox: Outbox = field(default_factory=Outbox)
    counts: Counts = field(default_factory=Counts)
