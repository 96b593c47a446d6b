"""Built-in workloads in which one client's requests stand beside another's: tenants, and a batch beside interactive ones.

The shares of the requests are fixed, so that a smaller run is shorter and otherwise the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine_adapter.workloads.length_distributions import LogNormal
from engine_adapter.workloads.rows import WorkloadRow

IN_FLIGHT = 40
"""Jobs that a tenant with a backlog keeps in flight: as one ends the next arrives."""

SMALL, SMALL_ALONE, LARGE = "small", "small-alone", "large"
"""Names of tenants; ``small-alone`` is the small one before the large one comes."""

BATCH_PRIORITY = 10
BATCH_SHARE, LARGE_SHARE, LARGE_OF_TWO = 1 / 3, 2 / 9, 1 / 6
"""Shares of the requests: of the batch among interactive ones, of the large tenant in either workload."""

ALONE_SHARE = 2 / 7
"""Share of the small tenant's requests that arrive before the large one's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """Requests of a kind: tokens of the prompt, and of the answer in the median."""

    task: str
    prompt_tokens: int
    answer_tokens: int

    def rows(self, count: int, generator: np.random.Generator) -> list[WorkloadRow]:
        answers = LogNormal(median_tokens=self.answer_tokens, sigma=0.2).draw(generator, count)
        return [
            WorkloadRow(
                task=self.task,
                model="synthetic",
                prompt=None,
                prompt_len_tokens=self.prompt_tokens,
                response_len_tokens=tokens,
                arrival_s=0.0,
            )
            for tokens in answers.tolist()
        ]


_LONG_JOB = _Job(task="long job", prompt_tokens=8_000, answer_tokens=1_000)
_JOB = _Job(task="job", prompt_tokens=2_000, answer_tokens=500)
_BATCH_JOB = _Job(task="batch job", prompt_tokens=2_000, answer_tokens=1_000)
_INTERACTIVE = _Job(task="question", prompt_tokens=300, answer_tokens=100)


def tenants(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
    """A request a second of the small tenant; in the second part the large one has `IN_FLIGHT` long jobs in flight."""
    generator = np.random.default_rng([seed, 9])
    large = round(LARGE_SHARE * requests)
    asked = _each_second(_INTERACTIVE.rows(requests - large, generator), generator)
    alone = round(ALONE_SHARE * len(asked))
    jobs = [replace(row, arrival_s=asked[alone].arrival_s) for row in _LONG_JOB.rows(large, generator)]
    return _after_warm_up(
        [*_named(asked[:alone], SMALL_ALONE), *_named(asked[alone:], SMALL)],
        loops=[_named(jobs, LARGE)],
        warmup=_in_turn(
            _named(_LONG_JOB.rows(warmup, generator), LARGE), _named(_INTERACTIVE.rows(warmup, generator), SMALL)
        ),
    )


def tenants_backlog(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
    """Two tenants with `IN_FLIGHT` jobs in flight each: of 8,000 and 1,000 tokens, and of 2,000 and 500."""
    generator = np.random.default_rng([seed, 10])
    large = round(LARGE_OF_TWO * requests)
    return _after_warm_up(
        [],
        loops=[
            _named(_LONG_JOB.rows(large, generator), LARGE),
            _named(_JOB.rows(requests - large, generator), SMALL),
        ],
        warmup=_in_turn(_named(_LONG_JOB.rows(warmup, generator), LARGE), _named(_JOB.rows(warmup, generator), SMALL)),
    )


def batch_interactive(warmup: int, requests: int, seed: int) -> tuple[WorkloadRow, ...]:
    """A batch of `BATCH_PRIORITY` at the start, and a request a second of priority 0."""
    generator = np.random.default_rng([seed, 11])
    batch = round(BATCH_SHARE * requests)
    return _after_warm_up(
        [
            *_as_batch(_BATCH_JOB.rows(batch, generator)),
            *_each_second(_INTERACTIVE.rows(requests - batch, generator), generator),
        ],
        warmup=_in_turn(_as_batch(_BATCH_JOB.rows(warmup, generator)), _INTERACTIVE.rows(warmup, generator)),
    )


def _after_warm_up(
    rows: Sequence[WorkloadRow], *, warmup: Sequence[WorkloadRow], loops: Sequence[Sequence[WorkloadRow]] = ()
) -> tuple[WorkloadRow, ...]:
    """The warm-up, then the rows and the first `IN_FLIGHT` of each loop by time, then the others of each as these end."""
    openers = [list(loop[:IN_FLIGHT]) for loop in loops]
    measured = sorted([*rows, *(row for loop in openers for row in loop)], key=_arrival_s)
    numbers = {id(row): len(warmup) + number for number, row in enumerate(measured)}
    last_s = _arrival_s(measured[-1])
    for loop, opening in zip(loops, openers, strict=True):
        followed = [numbers[id(row)] for row in opening]
        for number, row in enumerate(loop[IN_FLIGHT:]):
            followed.append(len(warmup) + len(measured))
            measured.append(replace(row, arrival_s=last_s, continues=followed[number], own_prompt=True))
    return (*warmup, *measured)


def _arrival_s(row: WorkloadRow) -> float:
    return row.arrival_s or 0.0


def _each_second(rows: Sequence[WorkloadRow], generator: np.random.Generator) -> list[WorkloadRow]:
    """One a second on average, at independent times."""
    times_s = np.cumsum(generator.exponential(1.0, len(rows))).tolist()
    return [replace(row, arrival_s=time_s) for row, time_s in zip(rows, times_s, strict=True)]


def _named(rows: Sequence[WorkloadRow], tenant: str) -> list[WorkloadRow]:
    return [replace(row, client=tenant) for row in rows]


def _as_batch(rows: Sequence[WorkloadRow]) -> list[WorkloadRow]:
    return [replace(row, priority=BATCH_PRIORITY) for row in rows]


def _in_turn(*kinds: Sequence[WorkloadRow]) -> list[WorkloadRow]:
    """One of every kind in turn, as many in all as each kind has."""
    return [kinds[number % len(kinds)][number] for number in range(len(kinds[0]))]
