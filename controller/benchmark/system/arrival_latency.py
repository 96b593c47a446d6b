"""Measures the controller's half of the overhead: the time from an arrival to the index table at the engine.

A complete controller is opened as `serve` opens it, with history, HTTP and the gain watcher, and its loop runs in this
thread. The engine's end of a real socket sends arrivals one at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path

import numpy as np

from controller.benchmark.synthetic_history import synthetic_facts, synthetic_hello
from controller.config import load_config
from controller.service.service import Service, service
from engine_adapter.transport.zmq_sockets import ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.request_progress import RequestProgress
from engine_adapter.workloads.requests import request_stream
from store.errors import EngineError
from store.records import Acknowledged, Arrived, ControllerMessage, Fact, Facts, IndexTable, Welcome

PROFILE = PROFILES["h800-qwen3-32b"]
FACTS_AT_ONCE = 200
ARRIVALS_AT_ONCE = 20
"""Number of arrivals that are timed one by one before the same number of old requests end."""
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalTimes:
    """Seconds from sending an arrival to receiving its table, at ``unfinished`` known requests."""

    unfinished: int
    arrivals: int
    p50_s: float
    p99_s: float


def measure_arrivals(
    unfinished: Sequence[int],
    *,
    arrivals: int,
    taught: int,
    folder: Path,
    clock: Callable[[], float],
    timer: Callable[[], float],
    progress: Callable[[int], None],
) -> list[ArrivalTimes]:
    """Teach a fresh controller ``taught`` answers, then time ``arrivals`` at each number of unfinished requests.

    ``folder`` takes its history and its socket. ``progress`` is called with the number of timed arrivals.
    """
    requests = request_stream(seed=1, rate_rps=1.0)
    with _controller(folder, clock, timer) as running:
        engine = _Engine(running, clock)
        try:
            engine.connect()
            engine.report(fact for request in islice(requests, taught) for fact in synthetic_facts(request, PROFILE))
            times: list[ArrivalTimes] = []
            for level in unfinished:
                engine.fill(requests, level)
                taken_s: list[float] = []
                while len(taken_s) < arrivals:
                    some = islice(requests, min(ARRIVALS_AT_ONCE, arrivals - len(taken_s)))
                    taken_s.extend(engine.arrive(request, timer) for request in some)
                    engine.end_oldest(level)
                    progress(len(times) * arrivals + len(taken_s))
                p50_s, p99_s = np.percentile(taken_s, (50, 99)).tolist()
                times.append(ArrivalTimes(unfinished=level, arrivals=arrivals, p50_s=p50_s, p99_s=p99_s))
            return times
        finally:
            engine.link.close()


@contextmanager
def _controller(folder: Path, clock: Callable[[], float], timer: Callable[[], float]) -> Iterator[Service]:
    flags = {
        "mode": "on",
        "store": {"path": folder / "history"},
        "engine": {"endpoint": f"ipc://{folder}/run/engine.sock"},
        "http": {"port": 0},
    }
    with service(load_config(flags, environment={}), clock=clock, timer=timer) as running:
        running.loop.startup()
        try:
            yield running
        finally:
            running.loop.shutdown()


class _Engine:
    """The engine's end of the socket; it turns the controller's loop at the other end."""

    def __init__(self, running: Service, clock: Callable[[], float]) -> None:
        self.link = ZmqLink(running.config.engine.endpoint)
        self._loop = running.loop
        self._clock = clock
        self._batches = count(1)
        self._unfinished: deque[TraceRequest] = deque()

    def connect(self) -> None:
        """Send hello until the controller answers."""
        hello = synthetic_hello(PROFILE, "overhead", self._clock())
        until_s = self._clock() + PATIENCE_S
        while not any(isinstance(message, Welcome) for message in self.link.receive()):
            self.link.send(hello)
            self._turn(until_s)

    def report(self, facts: Iterable[Fact]) -> None:
        """Send facts, and run the loop until all of them are durable, so that no work is left."""
        facts = iter(facts)
        for some in iter(lambda: tuple(islice(facts, FACTS_AT_ONCE)), ()):
            batch = self._send(some)
            until_s = self._clock() + PATIENCE_S
            while not any(_acknowledges(message, batch) for message in self.link.receive()):
                self._turn(until_s)

    def fill(self, requests: Iterator[TraceRequest], level: int) -> None:
        """Let requests arrive until ``level`` are unfinished."""
        missing = max(0, level - len(self._unfinished))
        self.report(self._arrival(request) for request in islice(requests, missing))

    def arrive(self, request: TraceRequest, timer: Callable[[], float]) -> float:
        """Send an arrival; returns the seconds until its table is received."""
        arrival = self._arrival(request)
        until_s = self._clock() + PATIENCE_S
        started_s = timer()
        self._send((arrival,))
        self._turn(until_s)
        while not any(_is_about(message, request) for message in self.link.receive()):
            if self._clock() > until_s:
                raise EngineError(f"the controller sends no table within {PATIENCE_S:g} s of an arrival")
        return timer() - started_s

    def end_oldest(self, level: int) -> None:
        """Report the ends of the oldest unfinished requests, until ``level`` are left."""
        oldest = [self._unfinished.popleft() for _ in range(len(self._unfinished) - level)]
        self.report(synthetic_facts(request, PROFILE)[-1] for request in oldest)

    def _arrival(self, request: TraceRequest) -> Arrived:
        request = replace(request, arrival_s=self._clock())
        self._unfinished.append(request)
        return RequestProgress(request).arrived()

    def _send(self, facts: tuple[Fact, ...]) -> int:
        batch = next(self._batches)
        if not self.link.send(Facts(batch=batch, facts=facts, oldest=batch)):
            raise EngineError("the controller's socket takes no message")
        return batch

    def _turn(self, until_s: float) -> None:
        if self._clock() > until_s:
            raise EngineError(f"the controller does not answer within {PATIENCE_S:g} s")
        self._loop.turn()


def _is_about(message: ControllerMessage, request: TraceRequest) -> bool:
    return isinstance(message, IndexTable) and message.request_id == request.request_id


def _acknowledges(message: ControllerMessage, batch: int) -> bool:
    return isinstance(message, Acknowledged) and message.batch >= batch
