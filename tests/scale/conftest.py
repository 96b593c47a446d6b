"""Traffic of many engines through a controller in virtual time, and counts of the work that it does."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import islice
from types import FrameType

import pytest

from controller.core.core import Core, CoreConfig
from controller.monitoring.live_state import Live
from controller.monitoring.request_tracker import RequestTracker
from controller.policy.policies import policy_named
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.request_progress import RequestProgress
from engine_adapter.workloads.requests import request_stream
from engine_adapter.workloads.synthetic import SyntheticOptions
from online_learning.evaluation.global_learner import GlobalLearner
from online_learning.length_learner import LengthLearner
from online_learning.mixture.mixture import MixtureLearner
from store.entries import Entry
from store.records import Fact, Facts, Hello, RunningRequest, Snapshot

RATE_RPS = 8.0
SERVICE_S = 5.0
SNAPSHOT_EVERY = 4
"""Requests of an engine between two of its snapshots."""


@dataclass
class BusyController:
    """A core and its live snapshot under steady traffic of ``engines`` with ``unfinished`` requests each."""

    engines: int = 4
    unfinished: int = 24
    learner: LengthLearner = field(default_factory=MixtureLearner)
    refresh_interval_s: float = 5.0
    backlog: int = 0
    now_s: float = 1_000.0
    recorded: Callable[[list[Entry]], None] = lambda _entries: None

    def __post_init__(self) -> None:
        self.core = Core(
            learner=self.learner,
            policy=policy_named("sage"),
            config=CoreConfig(
                controller_id="c",
                mode="on",
                hash_key=b"k",
                refresh_interval_s=self.refresh_interval_s,
                backlog=self.backlog,
            ),
            now_s=self.now_s,
            timer=lambda: 0.0,
        )
        self.live = Live()
        self.requests = RequestTracker()
        self.live.watch(self.core)
        self.served = 0
        self._works = request_stream(seed=5, rate_rps=RATE_RPS * self.engines, options=SyntheticOptions(tenants=3))
        self._drawn: deque[TraceRequest] = deque()
        self._batches = [0] * self.engines
        self._open: list[deque[RequestProgress]] = [deque() for _ in range(self.engines)]
        self._start_s = self.now_s
        for number in range(self.engines):
            self.core.handle(b"%d" % number, _hello(number), self.now_s)

    def serve(self, requests: int) -> None:
        """Let so many requests arrive, and as many end."""
        for _ in range(requests):
            self.serve_one()

    def draw(self, requests: int) -> None:
        """Make the next requests now, so that making them is not counted as the controller's work."""
        self._drawn.extend(islice(self._works, requests))

    def serve_one(self) -> None:
        """One arrival, the end of the oldest request of its engine, now and then a snapshot, and a tick."""
        number, work = self.served % self.engines, self._drawn.popleft() if self._drawn else next(self._works)
        self.now_s = self._start_s + work.arrival_s
        progress = RequestProgress(replace(work, request_id=f"r{self.served}", arrival_s=self.now_s))
        self._open[number].append(progress)
        self._tell(number, progress.arrived())
        if len(self._open[number]) > self.unfinished:
            self.end_oldest(number)
        if (self.served // self.engines) % SNAPSHOT_EVERY == 0:
            self.report(number)
        self.core.tick(self.now_s)
        self._record()
        self.served += 1

    def report(self, number: int) -> None:
        """A snapshot of an engine."""
        running = tuple(
            RunningRequest(progress.request.request_id, place, 10) for place, progress in enumerate(self._open[number])
        )
        snapshot = Snapshot(
            time_s=self.now_s,
            waiting=0,
            running=len(running),
            kv_blocks_used=100,
            kv_blocks=1000,
            mode="on",
            steps=5,
            step_s=0.1,
            prefill_tokens=50,
            decode_tokens=5 * len(running),
            kv_tokens_read=1000,
            preemptions=0,
            recomputed_tokens=0,
            running_requests=running,
        )
        self.core.handle(b"%d" % number, snapshot, self.now_s)

    def end_oldest(self, number: int) -> None:
        """The request of an engine that has been unfinished for longest ends."""
        progress = self._open[number].popleft()
        progress.start(self.now_s - SERVICE_S)
        progress.generate(self.now_s - SERVICE_S + 0.1)
        progress.output_tokens = min(progress.request.true_output_tokens, progress.request.max_tokens)
        stopped = progress.output_tokens < progress.request.max_tokens
        self._tell(number, progress.first_token(), progress.finished(self.now_s, "stop" if stopped else "length"))

    def _tell(self, number: int, *facts: Fact) -> None:
        self._batches[number] += 1
        batch = self._batches[number]
        self.core.handle(b"%d" % number, Facts(batch=batch, facts=facts, oldest=batch), self.now_s)

    def _record(self) -> None:
        self.core.drain_messages()
        entries = self.core.drain_entries()
        for entry in entries:
            self.requests.observe(entry)
        self.recorded(entries)


def calls_of(action: Callable[[], object]) -> int:
    """Calls of functions, in Python and in C, that an action makes: work that no busy machine can change."""
    calls = 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in {"call", "c_call"}

    sys.setprofile(count)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def _hello(number: int) -> Hello:
    return Hello(
        engine_id=f"e{number}",
        session_id=f"s{number}",
        model="m",
        engine="simulated",
        engine_version="1",
        kv_blocks=1000,
        block_size_tokens=16,
        max_num_seqs=256,
        token_budget=8192,
        max_model_len_tokens=32_768,
        prefix_caching=False,
        started_s=0.0,
    )


@pytest.fixture(scope="session")
def busy() -> Callable[..., BusyController]:
    """Make a busy controller."""
    return BusyController


@pytest.fixture(scope="session")
def quick_busy() -> Callable[..., BusyController]:
    """Make one whose learner is the simplest, for what does not depend on it."""
    return lambda **settings: BusyController(learner=GlobalLearner(), **settings)


@pytest.fixture(scope="session")
def calls() -> Callable[[Callable[[], object]], int]:
    """Count the calls of an action."""
    return calls_of
