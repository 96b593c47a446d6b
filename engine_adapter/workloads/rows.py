"""A workload as rows of prompts and answer lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine_adapter.workloads.token_ids import PREFIX_BLOCK_TOKENS
from store.errors import WorkloadError


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadRow:
    """One request and the length of its answer; the first seven fields are the file's columns."""

    task: str
    model: str
    prompt: str | None
    """None where the source has no text."""
    prompt_len_tokens: int
    response_len_tokens: int
    """At least 1: the end-of-sequence token counts."""
    arrival_s: float | None = None
    """Seconds since the start of the source's trace; None if it has no times."""
    client: str | None = None
    session: str | None = None
    """Conversation or agent's program that the request belongs to; None where unknown."""
    expected_output_tokens: int | None = None
    """Length that the client says it expects of the answer; None where it says nothing."""
    max_tokens: int | None = None
    """The client's own limit on the answer; None where it set none."""
    priority: int = 0
    """The client's own strict class; lower is served first."""
    block_hashes: tuple[int, ...] = ()
    """Hashes of the prompt's blocks, from traces with common prefixes instead of text."""
    block_size_tokens: int = PREFIX_BLOCK_TOKENS
    """Tokens of each block in ``block_hashes``, the last one perhaps fewer."""
    continues: int | None = None
    """Number of the row, from 0, whose prompt and answer come before this one's prompt, and whose end it follows."""
    pause_s: float = 0.0
    """Seconds between the end of the request that it continues and its arrival."""
    own_prompt: bool = False
    """Whether the prompt is its own alone, though it follows another's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A named, ordered collection of rows; never empty."""

    name: str
    rows: tuple[WorkloadRow, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise WorkloadError(f"workload {self.name} has no rows: give one with at least one request")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def timed(self) -> bool:
        """Whether every row has an arrival time of its own."""
        return all(row.arrival_s is not None for row in self.rows)


def trace_of(name: str, rows: Sequence[WorkloadRow]) -> Workload:
    """Sort the rows of a trace by time, counted from its first request; all have one."""
    times_s = [row.arrival_s for row in rows if row.arrival_s is not None]
    assert len(times_s) == len(rows), "every row of a trace has a time"
    start_s = min(times_s, default=0.0)
    order = sorted(range(len(rows)), key=times_s.__getitem__)
    return Workload(
        name=name,
        rows=tuple(replace(rows[index], arrival_s=times_s[index] - start_s) for index in order),
    )


def sample(workload: Workload, requests: int, seed: int) -> Workload:
    """Draw ``requests`` rows without replacement, in random order.

    From a workload with arrival times a random window of consecutive rows is drawn, with order and times unchanged.
    """
    _require_enough(workload, requests)
    generator = np.random.default_rng([seed, 1])
    if not workload.timed:
        chosen = generator.permutation(len(workload))[:requests]
        return Workload(name=workload.name, rows=tuple(workload.rows[index] for index in chosen))
    rows = sorted(workload.rows, key=_arrival_s)
    start = int(generator.integers(0, len(rows) - requests + 1))
    return Workload(name=workload.name, rows=tuple(rows[start : start + requests]))


def split(workload: Workload, *, warmup: int, measured: int) -> tuple[Sequence[WorkloadRow], Sequence[WorkloadRow]]:
    """Split off the first rows as warm-up and the next ones as measured; together no more than there are."""
    _require_enough(workload, warmup + measured)
    return workload.rows[:warmup], workload.rows[warmup : warmup + measured]


def fitting(workload: Workload, *, tokens: int) -> Workload:
    """Exclude rows whose prompt and answer together exceed ``tokens``, such as an engine's whole KV cache."""
    rows = tuple(row for row in workload.rows if row_tokens(row) <= tokens)
    if not rows:
        raise WorkloadError(f"no row of workload {workload.name} fits into {tokens} tokens: use a larger profile")
    return Workload(name=workload.name, rows=rows)


def row_tokens(row: WorkloadRow) -> int:
    """Return the tokens of prompt and answer, which the request holds in the KV cache when it ends."""
    return row.prompt_len_tokens + row.response_len_tokens


def _require_enough(workload: Workload, requests: int) -> None:
    if requests < 1:
        raise WorkloadError(f"{requests} requests of workload {workload.name} were asked for: ask for 1 or more")
    if requests > len(workload):
        raise WorkloadError(
            f"workload {workload.name} has {len(workload)} rows and {requests} were asked for: ask for fewer "
            "(warm-up and measured requests count together)"
        )


def _arrival_s(row: WorkloadRow) -> float:
    assert row.arrival_s is not None, "only timed workloads are ordered by time"
    return row.arrival_s
