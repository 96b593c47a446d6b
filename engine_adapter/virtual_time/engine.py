"""The interface of an engine in virtual time: requests go in, steps happen, completed requests come out.

Two engines stand behind `VirtualEngine`: the simulated one and vLLM's own scheduler with our plugin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count
from typing import Protocol
from zlib import crc32

from store.records import FinishReason, Targets

END_OF_SEQUENCE_ID = 2
"""The token that ends an answer of its true length."""


def answer_token_ids(request_id: str) -> range:
    """Return the ids of the tokens that a device generates for a request, end-of-sequence apart; all fit 32 bits.

    Each request has its own, so that no two answers share a prefix, and a later prompt may repeat them.

    >>> answer_token_ids("request-7")[:3] == answer_token_ids("request-7")[:3] != answer_token_ids("request-8")[:3]
    True
    """
    return range(END_OF_SEQUENCE_ID + 1 + crc32(request_id.encode()) // 2, 2**32)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a workload, with the answer length that only the engine's device may read."""

    request_id: str
    arrival_s: float
    token_ids: Sequence[int]
    """The whole prompt; its length is the prompt's length in tokens."""
    max_tokens: int
    true_output_tokens: int
    """Tokens up to and including the end-of-sequence token; the answer is cut at ``max_tokens``."""
    temperature: float = 1.0
    priority: int = 0
    tenant: str | None = None
    session: str | None = None
    service_class: str | None = None
    targets: Targets | None = None
    sheds: bool = False
    expected_output_tokens: int | None = None
    """Length that the client says it expects of the answer."""
    abort_after_tokens: int | None = None
    """Number of output tokens after which the client disconnects."""
    attained_tokens: int = 0
    """Output tokens that it has when it is submitted: of a request that was under way when a replay begins.
    The simulated engine alone can continue one."""
    running: bool = False
    """Whether it was running then, with everything computed."""
    leaves_s: float | None = None
    """Time at which the client disconnects if the answer has not ended; `serve` aborts the request then."""
    continues: str | None = None
    """Id of the request whose conversation this one continues: `serve` lets it arrive ``pause_s`` after that one's end,
    with that one's prompt and answer before its own tokens. A request is continued at most once."""
    pause_s: float = 0.0
    own_prompt: bool = False
    """Whether a request that continues another has its own tokens alone as its prompt, as the next job of a client that
    keeps a number of them in flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletedRequest:
    """How a request was served; times are virtual seconds."""

    request_id: str
    arrival_s: float
    scheduled_s: float
    first_token_s: float
    finished_s: float
    prompt_tokens: int
    output_tokens: int
    reason: FinishReason
    preemptions: int
    recomputed_tokens: int
    cached_prompt_tokens: int = 0
    """Tokens found in the prefix cache when it was first scheduled."""
    itl_max_s: float | None = None
    """Longest time between two output tokens; None with fewer than two."""
    itl_p99_s: float | None = None
    """99% quantile of these times."""

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.first_token_s - self.arrival_s

    @property
    def ttlt_s(self) -> float:
        """Time to last token: the request's latency."""
        return self.finished_s - self.arrival_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for an answer of one token."""
        return (self.finished_s - self.first_token_s) / max(1, self.output_tokens - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One engine step, as scheduled and carried out."""

    start_s: float
    duration_s: float
    scheduled_tokens: dict[str, int]
    """Tokens computed for each request in this step, in the order in which they were scheduled."""
    preempted: tuple[str, ...] = ()
    finished: tuple[CompletedRequest, ...] = ()
    waiting: int = 0
    running: int = 0
    kv_blocks_used: int = 0
    """KV blocks in use after the step's allocation, before those of answers that end in it are freed."""


@dataclass(slots=True)
class Totals:
    """Sums over a run."""

    steps: int = 0
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    completed: list[CompletedRequest] = field(default_factory=list)


class VirtualEngine(Protocol):
    """An engine that computes nothing; its clock advances by the step times of a profile."""

    @property
    def now_s(self) -> float:
        """The engine's clock, in seconds."""
        ...

    @property
    def unfinished(self) -> int:
        """Requests submitted and not yet finished."""
        ...

    def submit(self, request: TraceRequest) -> None:
        """Add a request that arrives now; raise `WorkloadError` for one that the engine cannot serve."""
        ...

    def abort(self, request_id: str) -> None:
        """Abort an unfinished request, as when its client disconnects."""
        ...

    def step(self) -> Step:
        """Schedule and carry out one step; with nothing to compute, a step of zero duration."""
        ...

    def advance_to(self, time_s: float) -> None:
        """Advance the clock of an idle engine to a later time."""
        ...


def serve(
    engine: VirtualEngine, requests: Iterable[TraceRequest], *, on_step: Callable[[Step], None] = lambda _step: None
) -> Totals:
    """Serve a trace to its end; requests arrive, and clients disconnect, at their time or at the end of that step.

    A request that continues another arrives after that one's end, if that one was not aborted.

    Args:
        engine: The engine to serve on.
        requests: The trace, in any order; of equal arrivals the first comes first.
        on_step: Called after each step.
    """
    totals = Totals()
    pending = _Pending(requests)
    clients = _ImpatientClients()
    while pending or engine.unfinished:
        if not engine.unfinished:
            engine.advance_to(pending.next_s)
        for request in pending.arriving(engine.now_s):
            engine.submit(request)
            clients.add(request)
        for request_id in clients.leaving(engine.now_s):
            engine.abort(request_id)
        step = engine.step()
        did = step.scheduled_tokens or step.preempted or step.finished
        assert did or pending, "the engine has requests and does nothing"
        clients.remove(step.finished)
        pending.end(step.finished)
        totals.steps += 1
        totals.computed_tokens += sum(step.scheduled_tokens.values())
        totals.preemptions += len(step.preempted)
        totals.completed.extend(step.finished)
        on_step(step)
    totals.recomputed_tokens = sum(request.recomputed_tokens for request in totals.completed)
    return totals


class _Pending:
    """Requests that have not arrived: those with a time, and those that wait for another's end."""

    def __init__(self, requests: Iterable[TraceRequest]) -> None:
        self._serial = count()
        self._timed: list[tuple[float, int, TraceRequest]] = []
        self._following: dict[str, TraceRequest] = {}
        self._followed: dict[str, TraceRequest] = {}
        """Requests that have arrived and that others continue."""
        for request in requests:
            if request.continues is None:
                heappush(self._timed, (request.arrival_s, next(self._serial), request))
            else:
                assert request.continues not in self._following, f"{request.continues!r} is continued twice"
                self._following[request.continues] = request

    def __bool__(self) -> bool:
        return bool(self._timed)

    @property
    def next_s(self) -> float:
        """The time of the next arrival."""
        return self._timed[0][0]

    def arriving(self, now_s: float) -> Iterator[TraceRequest]:
        """Remove and yield the requests that arrive until now."""
        while self._timed and self._timed[0][0] <= now_s:
            _, _, request = heappop(self._timed)
            if request.request_id in self._following:
                self._followed[request.request_id] = request
            yield request

    def end(self, completed: Iterable[CompletedRequest]) -> None:
        """Schedule the requests that continue those that have ended."""
        for life in completed:
            former = self._followed.pop(life.request_id, None)
            if former is None or life.reason == "abort":
                continue
            request = self._following.pop(life.request_id)
            arrival_s = life.finished_s + request.pause_s
            before = () if request.own_prompt else (*former.token_ids, *_answer(life))
            continued = replace(request, arrival_s=arrival_s, token_ids=(*before, *request.token_ids))
            heappush(self._timed, (arrival_s, next(self._serial), continued))


def _answer(life: CompletedRequest) -> tuple[int, ...]:
    """Return the ids of an answer's tokens, with end-of-sequence if it was not cut."""
    generated = tuple(answer_token_ids(life.request_id)[: life.output_tokens])
    return (*generated[:-1], END_OF_SEQUENCE_ID) if life.reason == "stop" else generated


class _ImpatientClients:
    """Clients that disconnect at a given time, in the order of these times, then of the request ids."""

    def __init__(self) -> None:
        self._queue: list[tuple[float, str]] = []
        self._waiting: set[str] = set()

    def add(self, request: TraceRequest) -> None:
        if request.leaves_s is not None:
            heappush(self._queue, (request.leaves_s, request.request_id))
            self._waiting.add(request.request_id)

    def remove(self, completed: Iterable[CompletedRequest]) -> None:
        self._waiting.difference_update(request.request_id for request in completed)

    def leaving(self, now_s: float) -> Iterator[str]:
        """Remove the clients that disconnect until now; yield their requests that have not ended."""
        while self._queue and self._queue[0][0] <= now_s:
            _, request_id = heappop(self._queue)
            if request_id in self._waiting:
                yield request_id


def capacity_rps(completed: Sequence[CompletedRequest]) -> float:
    """Return the requests per second that an engine completes while its queue is never empty.

    The rate is measured between the 20th and the 80th percentile of the completions of requests that all arrived at
    once, which excludes the start and the last long answers.

    >>> from types import SimpleNamespace
    >>> capacity_rps([SimpleNamespace(finished_s=0.5 * n) for n in range(11)])
    2.0
    """
    finished_s = sorted(request.finished_s for request in completed)
    first, last = round(0.2 * (len(finished_s) - 1)), round(0.8 * (len(finished_s) - 1))
    span_s = finished_s[last] - finished_s[first]
    return (last - first) / span_s if span_s > 0.0 else len(finished_s) / max(finished_s[-1], 1e-9)
