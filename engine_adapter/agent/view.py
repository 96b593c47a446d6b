"""Bounds of an `Agent`, the engine's state as it reports it, and sums over its steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from store.records import RunningRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentLimits:
    """Bounds and intervals of an `Agent`."""

    snapshot_interval_s: float = 0.1
    details_interval_s: float = 0.3
    """Interval between snapshots that name the running and waiting requests."""
    beat_interval_s: float = 1.0
    """Interval of the snapshots of an engine that makes no step."""
    hello_interval_s: float = 1.0
    facts_interval_s: float = 0.1
    """Interval at which non-urgent facts are sent, unless an arrival takes them along: each frame costs both ends."""
    facts_per_batch: int = 256
    retained_facts: int = 20_000
    retained_bytes: int = 64 << 20
    batch_bytes: int = 2 << 20
    """Largest size of a batch: far below that of a frame which the controller reads."""
    queue_in_snapshot: int = 200
    running_in_snapshot: int = 1024
    resend_s: float = 5.0
    """Time without an acknowledgement after which facts are resent; doubles each time, up to ``resend_limit_s``."""
    resend_limit_s: float = 60.0
    error_pause_s: float = 1.0
    error_pause_limit_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The engine's state that a snapshot reports."""

    kv_blocks_used: int
    waiting: int
    running: int
    queue: Iterable[str]
    """Request ids in the order in which the engine tries to admit them."""
    running_requests: Iterable[RunningRequest]
    """Like ``queue`` iterated only for a detailed snapshot."""
    clock_off_s: float = 0.0
    """System clock minus the engine's own."""
    stamps_replaced: int = 0
    """Arrivals whose stamp could not be, since the engine started."""
    admission_limit: int | None = None
    reserved_blocks: int = 0
    step_tokens: int | None = None
    chunk_tokens: int | None = None


@dataclass(slots=True)
class StepSums:
    """Sums over the steps between two snapshots."""

    steps: int = 0
    step_s: float = 0.0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    kv_tokens_read: int = 0
    preemptions: int = 0
    recomputed_tokens: int = 0
    hook_s: float = 0.0
