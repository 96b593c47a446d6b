"""Converts workload rows to an engine's requests with token ids, limits and arrival times.

Arrivals are set separately, because the same requests are first served all at once, to measure
an engine's capacity, and then at a rate relative to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.workloads.arrivals import ArrivalPlan, Seconds, Wave, all_at_zero, gamma_arrivals, trace_arrivals
from engine_adapter.workloads.built_in import BUILT_IN
from engine_adapter.workloads.formats import load_workload, require_format
from engine_adapter.workloads.rows import Workload, WorkloadRow, fitting, row_tokens, sample, split
from engine_adapter.workloads.synthetic import SyntheticOptions, synthetic_stream
from engine_adapter.workloads.token_ids import VOCABULARY_SIZE, block_token_ids, random_token_ids, token_ids
from engine_adapter.workloads.variants import split_variant, varied, within
from store.errors import WorkloadError

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "BenchTrace",
    "Workload",
    "WorkloadRow",
    "bench_trace",
    "fitting",
    "load_workload",
    "planned_arrivals",
    "request_stream",
    "require_workload",
    "sample",
    "split",
    "to_requests",
    "with_arrivals",
]

DEFAULT_MAX_TOKENS = 8192
"""Limit of a request whose client set none: a constant, so that it reveals nothing about the true length."""

SYNTHETIC = {
    "synthetic": SyntheticOptions(tenants=3),
    "synthetic:drift": SyntheticOptions(tenants=3),
    "synthetic:no-signal": SyntheticOptions(tenants=3, informative=False),
    "synthetic:heavy-tail": SyntheticOptions(tenants=3, length_factor=2.75, client_limits=False),
    "classes": SyntheticOptions(tenants=3, classes=True),
}
"""Names of built-in workloads with texts, accepted in place of a file's path, as those of `BUILT_IN` are.

``synthetic:drift`` changes its answers' lengths in the middle of the measured requests;
the prompts of ``synthetic:no-signal`` are independent of their answers;
the answers of ``synthetic:heavy-tail`` are as long as those of reasoning models (240 tokens in the median, 8,000 at P99).
``classes`` is ``synthetic`` with its long tasks in priority 10, as a batch beside interactive requests of priority 0.
Any workload, file or built in, may be followed by one of `engine_adapter.workloads.variants.VARIANTS`.
"""

_BLOCK = 256
"""Number of arrivals that an endless stream draws at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTrace:
    """The requests of a benchmark: warm-up requests to learn from, all completed before the measured ones arrive."""

    name: str
    warmup: list[TraceRequest]
    measured: list[TraceRequest]
    measured_rows: tuple[WorkloadRow, ...]
    """The rows behind the measured requests, in the same order."""
    timed: bool
    """Whether the measured requests carry the source's own arrival times."""
    left_out_share: float
    """Share of the source's rows that were excluded because they never fit into the cache."""


def bench_trace(
    path_or_name: Path | str,
    *,
    requests: int,
    warmup: int,
    seed: int,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    kv_tokens: int | None = None,
    closed_loops: bool = False,
) -> BenchTrace:
    """Read or generate the warm-up and measured requests of a workload.

    Measured requests have the source's own times, or all arrive at time zero.
    Request ids are unique over both lists; the same arguments give the same requests.

    Args:
        path_or_name: A file, or a name in `SYNTHETIC` or `BUILT_IN`; a suffix ``:no-signal``, ``:drift`` or ``:heavy-tail`` changes
            the answers' lengths (`varied`).
        requests: Number of measured requests.
        warmup: Number of warm-up requests.
        seed: Seed of all draws.
        max_tokens: Limit of requests whose client set none.
        kv_tokens: Size of the KV cache; excludes requests that never fit into it.
        closed_loops: Whether the caller lets requests arrive after others' end, as `serve` does.

    Raises:
        WorkloadError: The workload is invalid or has too few rows, or is a closed loop and the caller serves none.
    """
    if requests < 1 or warmup < 0:
        raise WorkloadError(f"{requests} requests after {warmup} of warm-up: give at least 1 and 0")
    opened = _open(str(path_or_name), requests=requests, warmup=warmup, seed=seed, kv_tokens=kv_tokens)
    workload = opened.workload
    if not closed_loops and any(row.continues is not None for row in workload.rows):
        raise WorkloadError(f"workload {workload.name} is a closed loop, which bench and sweep serve: use another here")
    drawn = to_requests(workload.rows, _own_arrivals(workload), seed=seed, max_tokens=max_tokens)
    measured = drawn[warmup:]
    arrivals_s = trace_arrivals([request.arrival_s for request in measured])
    return BenchTrace(
        name=workload.name,
        warmup=drawn[:warmup],
        measured=with_arrivals(measured, arrivals_s),
        measured_rows=workload.rows[warmup:],
        timed=workload.timed,
        left_out_share=opened.left_out_share,
    )


def to_requests(
    rows: Sequence[WorkloadRow],
    arrivals_s: Seconds | Sequence[float],
    *,
    seed: int,
    max_tokens: int = DEFAULT_MAX_TOKENS,
) -> list[TraceRequest]:
    """Make one request for each row, in order, with ids ``request-0``, ``request-1`` and so on.

    Args:
        rows: The rows; a row's client becomes the tenant.
        arrivals_s: Arrival time of each row, in seconds.
        seed: Seed of the token ids of rows with neither text nor block hashes.
        max_tokens: Limit of rows that have none of their own.
    """
    assert len(rows) == len(arrivals_s), "every row has one arrival"
    made = _Maker(seed, max_tokens)
    return [
        made.request(row, number, arrival_s)
        for number, (row, arrival_s) in enumerate(zip(rows, arrivals_s, strict=True))
    ]


def request_stream(
    *,
    seed: int,
    rate_rps: float,
    cv: float = 1.0,
    wave: Wave | None = None,
    options: SyntheticOptions | None = None,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    vocabulary_size: int = VOCABULARY_SIZE,
) -> Iterator[TraceRequest]:
    """Endless requests of the synthetic workload, in order of arrival, at a mean rate with gamma-distributed gaps, in waves or without."""
    rows = synthetic_stream(seed, options)
    generator = np.random.default_rng([seed, 4])
    made = _Maker(seed, max_tokens, vocabulary_size)
    start_s = 0.0
    for block in count():
        arrivals_s = start_s + gamma_arrivals(generator, count=_BLOCK, rate_rps=rate_rps, cv=cv)
        bent_s = wave.bend(arrivals_s) if wave else arrivals_s
        for number, arrival_s in enumerate(bent_s, block * _BLOCK):
            yield made.request(next(rows), number, arrival_s)
        start_s = float(arrivals_s[-1])


def require_workload(path_or_name: str) -> None:
    """Raise `WorkloadError` unless it names a built-in workload, or a file with a suffix that can be read."""
    base = path_or_name
    if base not in SYNTHETIC and base not in BUILT_IN:
        base, _ = split_variant(path_or_name)
    if base not in SYNTHETIC and base not in BUILT_IN:
        require_format(Path(base))


def with_arrivals(requests: Sequence[TraceRequest], arrivals_s: Seconds | Sequence[float]) -> list[TraceRequest]:
    """Return the same requests with other arrival times."""
    assert len(requests) == len(arrivals_s), "every request has one arrival"
    return [
        replace(request, arrival_s=float(arrival_s)) for request, arrival_s in zip(requests, arrivals_s, strict=True)
    ]


def planned_arrivals(requests: Sequence[TraceRequest], plan: ArrivalPlan, *, rate_rps: float, seed: int) -> Seconds:
    """Return arrivals for these requests by the plan, at a mean rate; the same seed draws the same ones."""
    generator = np.random.default_rng([seed, 2])
    return plan.times_s([request.arrival_s for request in requests], rate_rps=rate_rps, generator=generator)


def _open(path_or_name: str, *, requests: int, warmup: int, seed: int, kv_tokens: int | None) -> _Opened:
    """Return exactly ``warmup + requests`` rows that fit."""
    drift_at = warmup + requests // 2
    if path_or_name in SYNTHETIC:
        options = SYNTHETIC[path_or_name]
        if path_or_name == "synthetic:drift":
            options = replace(options, drift_at=drift_at)
        rows = _synthetic_rows(requests + warmup, seed, options, kv_tokens)
        return _Opened(Workload(name=path_or_name, rows=rows), 0.0)
    if path_or_name in BUILT_IN:
        rows = BUILT_IN[path_or_name](warmup, requests, seed)
        _require_room(path_or_name, rows, kv_tokens)
        return _Opened(Workload(name=path_or_name, rows=rows), 0.0)
    base, variant = split_variant(path_or_name)
    if variant is None:
        return _chosen(base, requests + warmup, seed, kv_tokens)
    opened = (
        _open(base, requests=requests, warmup=warmup, seed=seed, kv_tokens=kv_tokens)
        if base in SYNTHETIC or base in BUILT_IN
        else _chosen(base, requests + warmup, seed, kv_tokens)
    )
    rows = varied(opened.workload.rows, variant, drift_at=drift_at, seed=seed)
    if kv_tokens is not None:
        rows = within(rows, kv_tokens)
    return _Opened(Workload(name=f"{opened.workload.name}:{variant}", rows=rows), opened.left_out_share)


@dataclass(frozen=True, slots=True)
class _Opened:
    workload: Workload
    left_out_share: float


def _chosen(path: str, rows: int, seed: int, kv_tokens: int | None) -> _Opened:
    """Return ``rows`` rows of a file, of those that fit."""
    whole = load_workload(path)
    kept = whole if kv_tokens is None else fitting(whole, tokens=kv_tokens)
    return _Opened(sample(kept, rows, seed), 1.0 - len(kept) / len(whole))


def _synthetic_rows(
    requests: int, seed: int, options: SyntheticOptions, kv_tokens: int | None
) -> tuple[WorkloadRow, ...]:
    limit = math.inf if kv_tokens is None else kv_tokens
    tried = islice(synthetic_stream(seed, options), 2 * requests + 1000)
    rows = tuple(islice((row for row in tried if row_tokens(row) <= limit), requests))
    if len(rows) < requests:
        raise WorkloadError(f"most requests of the synthetic workload exceed {limit} KV tokens: use a larger profile")
    return rows


def _require_room(name: str, rows: Sequence[WorkloadRow], kv_tokens: int | None) -> None:
    longest = max(map(row_tokens, rows))
    if kv_tokens is not None and longest > kv_tokens:
        raise WorkloadError(
            f"workload {name} has requests of {longest} tokens and the profile has room for {kv_tokens}: use a larger "
            "one, such as h800-qwen3-32b-480k"
        )


def _own_arrivals(workload: Workload) -> Seconds:
    if not workload.timed:
        return all_at_zero(len(workload))
    return trace_arrivals([row.arrival_s for row in workload.rows if row.arrival_s is not None])


@dataclass(frozen=True, slots=True)
class _Maker:
    """Converts rows to requests."""

    seed: int
    max_tokens: int
    vocabulary_size: int = VOCABULARY_SIZE

    def request(self, row: WorkloadRow, number: int, arrival_s: float) -> TraceRequest:
        return TraceRequest(
            request_id=f"request-{number}",
            arrival_s=float(arrival_s),
            token_ids=self._token_ids(row, number),
            max_tokens=row.max_tokens or self.max_tokens,
            true_output_tokens=row.response_len_tokens,
            priority=row.priority,
            tenant=row.client,
            session=row.session,
            expected_output_tokens=row.expected_output_tokens,
            continues=None if row.continues is None else f"request-{row.continues}",
            pause_s=row.pause_s,
            own_prompt=row.own_prompt,
        )

    def _token_ids(self, row: WorkloadRow, number: int) -> tuple[int, ...]:
        if row.prompt is not None:
            return token_ids(row.prompt, row.prompt_len_tokens, vocabulary_size=self.vocabulary_size)
        if row.block_hashes:
            return block_token_ids(
                row.block_hashes,
                row.prompt_len_tokens,
                block_size_tokens=row.block_size_tokens,
                vocabulary_size=self.vocabulary_size,
            )
        return random_token_ids(row.prompt_len_tokens, (self.seed, number), vocabulary_size=self.vocabulary_size)
