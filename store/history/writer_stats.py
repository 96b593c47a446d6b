"""Counts and timings of a history's writer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterStats:
    """What the writer did since it started."""

    rows: Mapping[str, int] = field(default_factory=dict)
    """Rows made durable, by table."""
    queued: int = 0
    """Entries that are not durable yet."""
    waiting_since_s: float | None = None
    """Since when they wait without a commit, Unix seconds; None when there are none."""
    position: int = 0
    durable_position: int = 0
    dropped: int = 0
    """Predictions, decisions, snapshots and the like that were given up because the queue was full."""
    refused: int = 0
    """Facts that the full queue could not take; from the first on, nothing is acknowledged until the next start."""
    rejected: int = 0
    """Rows that no column type could hold."""
    duplicates: int = 0
    """Facts of batches that the history held already."""
    commits: int = 0
    last_commit_s: float | None = None
    """When the last commit was done, Unix seconds."""
    commit_s: float = 0.0
    """How long the last commit took."""
    seals: int = 0
    last_seal_s: float | None = None
    seal_s: float = 0.0
    """How long the last sealing took, with compaction and catalog."""
    sealed_rows: int = 0
    segments: int = 0
    """Segments that the catalog lists."""
    damaged_segments: int = 0
    """Segments that it leaves out because they are missing or not as they were written."""
    errors: int = 0
    last_error: str | None = None
    """Why the last attempt to write failed; None when it did not."""
    replaced_s: float | None = None
    """When the history's files were last found removed or replaced while it was open, Unix seconds."""
    clock_ahead_s: float | None = None
    """By how much the clock is beyond the newest row, while that is too much for the retention by age to go by it."""
