"""Measures the overhead: in vLLM's process in addition to its scheduling, and in the controller from arrival to table.

The engine's half is vLLM's scheduler in virtual time, with the plugin on a real socket to a controller in this process,
against the stock class in the same run (`engine_adapter.serving.vllm_overhead`).
The controller's half is `controller.benchmark.system.arrival_latency`.
"""

from __future__ import annotations

import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from controller.benchmark.synthetic_history import report_history
from controller.benchmark.system.arrival_latency import PROFILE, ArrivalTimes, measure_arrivals
from controller.core.in_process import IN_PROCESS, LEASE_S, InProcessController
from controller.policy.policies import policy_named
from engine_adapter.transport.zmq_sockets import ZmqHub, ZmqLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.workloads.requests import request_stream
from online_learning.calibration.calibration import CalibrationSettings
from online_learning.calibration.guard import GuardSettings
from online_learning.mixture.mixture import MixtureLearner
from store.errors import ConfigError
from store.records import Hello

if TYPE_CHECKING:
    from engine_adapter.serving.vllm_overhead import Occupied

Timer: TypeAlias = Callable[[], float]
Traffic: TypeAlias = Callable[[], Iterator[TraceRequest]]
Progress: TypeAlias = Callable[[str, int], None]
"""Receives the name of the current part of `OverheadSpec.parts`, and the number of its done steps or arrivals."""

ALLOCATIONS = "allocations"
ARRIVALS = "arrivals"
ALLOCATION_STEPS = 400
ALLOCATION_LOOK_STEPS = 40
ALLOCATION_OCCUPANCY = (16, 48)
ALLOCATION_PROMPT_TOKENS = 64
ALLOCATION_TOKENS = 24
"""Longest answer while allocations are measured, so that many requests end in few steps."""
ALLOCATION_PAUSE_S = 0.02
"""After each step, so that the sockets' threads keep up on a busy machine: what waits to be sent is held as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadSpec:
    """Settings of a measurement; raises `ConfigError` for invalid ones."""

    occupancies: tuple[tuple[int, int], ...] = ((16, 100), (256, 1_000), (256, 10_000))
    """Requests running and waiting in the engine."""
    steps: int = 300
    """Number of steps of each of the two schedulers."""
    unfinished: tuple[int, ...] = (16, 256, 1_256)
    """Numbers of unfinished requests in the controller when another one arrives."""
    arrivals: int = 200
    taught: int = 500
    """Number of answers that the learner is taught before."""

    def __post_init__(self) -> None:
        for running, waiting in self.occupancies:
            if not (1 <= running <= 1024 and 1 <= waiting <= 100_000):
                raise ConfigError(
                    f"occupancy is {running}/{waiting}: give running (1 to 1024) and waiting (1 to 100000) requests"
                )
        if len(set(self.occupancies)) < len(self.occupancies):
            raise ConfigError("one of the occupancies is given twice: give each once")
        for name, value in (("steps", self.steps), ("arrivals", self.arrivals)):
            if value < 10:
                raise ConfigError(f"{name} is {value}: give 10 or more, so that figures mean something")

    def parts(self) -> dict[str, int]:
        """The parts of the measurement, each with its number of steps or arrivals."""
        engine = {engine_part(*occupancy): self.steps for occupancy in self.occupancies}
        return {**engine, ALLOCATIONS: ALLOCATION_STEPS, ARRIVALS: self.arrivals * len(self.unfinished)}


def engine_part(running: int, waiting: int) -> str:
    """The name of the part that measures an engine at this occupancy."""
    return f"schedule() with {running} running, {waiting} waiting"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """Median seconds of one call of vLLM's scheduler, with the stock class and with the plugin."""

    stock_s: float
    sage_s: float

    @property
    def added(self) -> float:
        """Added time as a share of the stock class's time."""
        return self.sage_s / self.stock_s - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCost:
    """Time that the plugin adds to vLLM's scheduler at one occupancy."""

    running: int
    waiting: int
    schedule: CallCost
    update: CallCost
    """``update_from_output()``, in which the plugin observes tokens and completed requests."""

    def as_json(self) -> dict[str, Any]:
        """The figures as plain values."""
        return {
            "running": self.running,
            "waiting": self.waiting,
            "schedule_stock_s": self.schedule.stock_s,
            "schedule_sage_s": self.schedule.sage_s,
            "schedule_added": self.schedule.added,
            "update_stock_s": self.update.stock_s,
            "update_sage_s": self.update.sage_s,
            "update_added": self.update.added,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocationGrowth:
    """Memory that the plugin holds in the engine's process as more requests end, at one occupancy."""

    finished: tuple[int, ...]
    """Numbers of requests that have ended since the start."""
    held_bytes: tuple[int, ...]

    @property
    def bytes_per_finished(self) -> float:
        """Slope of a straight line through the points; about 0 when nothing grows with history."""
        return float(np.polyfit(self.finished, self.held_bytes, 1)[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class OverheadResult:
    """The result of the measurement."""

    engine: tuple[EngineCost, ...]
    allocations: AllocationGrowth
    controller: tuple[ArrivalTimes, ...]

    def as_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "engine": [cost.as_json() for cost in self.engine],
            "allocations": {
                **asdict(self.allocations),
                "bytes_per_finished_request": self.allocations.bytes_per_finished,
            },
            "controller": [asdict(times) for times in self.controller],
        }


def run_overhead(
    spec: OverheadSpec, *, clock: Timer, timer: Timer, cpu_timer: Timer, progress: Progress
) -> OverheadResult:
    """Measure both halves.

    ``clock`` gives Unix seconds; ``timer`` is ``time.perf_counter`` and times the controller;
    ``cpu_timer`` is ``time.thread_time`` and times vLLM's scheduler, which never waits, so that a busy machine
    does not count as overhead. Raises `ConfigError` if vLLM cannot be imported.
    """
    _require_vllm()
    engine = tuple(_engine_cost(running, waiting, spec, cpu_timer, progress) for running, waiting in spec.occupancies)
    allocations = _allocation_growth(spec, cpu_timer, progress)
    with tempfile.TemporaryDirectory(prefix="sagesched-overhead-") as folder:
        controller = measure_arrivals(
            spec.unfinished,
            arrivals=spec.arrivals,
            taught=spec.taught,
            folder=Path(folder),
            clock=clock,
            timer=timer,
            progress=lambda done: progress(ARRIVALS, done),
        )
    return OverheadResult(engine=engine, allocations=allocations, controller=tuple(controller))


def _require_vllm() -> None:
    try:
        import engine_adapter.serving.vllm_overhead  # noqa: F401 - vLLM takes seconds to import
    except ImportError as error:
        raise ConfigError(f"vLLM cannot be imported ({error}): install it to measure the overhead in it") from error


# --- the engine's half ----------------------------------------------------------------------------


def _engine_cost(running: int, waiting: int, spec: OverheadSpec, timer: Timer, progress: Progress) -> EngineCost:
    from engine_adapter.serving.vllm_overhead import take_turns

    with _pair(running, waiting, spec.taught, timer) as (stock, sage):
        stock.fill()
        sage.fill()
        part = engine_part(running, waiting)
        take_turns(stock, sage, steps=spec.steps, progress=lambda done: progress(part, done))
        return EngineCost(
            running=running,
            waiting=waiting,
            schedule=_call_cost(stock.times.schedule_s, sage.times.schedule_s),
            update=_call_cost(stock.times.update_s, sage.times.update_s),
        )


def _call_cost(stock_s: Sequence[float], sage_s: Sequence[float]) -> CallCost:
    return CallCost(stock_s=float(np.median(stock_s)), sage_s=float(np.median(sage_s)))


def _allocation_growth(spec: OverheadSpec, timer: Timer, progress: Progress) -> AllocationGrowth:
    """Serve at one occupancy, and measure the held memory repeatedly, once all first requests have been replaced."""
    from engine_adapter.serving.vllm_overhead import plugin_bytes

    finished, held_bytes = [], []
    tracemalloc.start()
    try:
        with _pair(*ALLOCATION_OCCUPANCY, spec.taught, timer, traffic=_equal_requests) as (_, sage):
            sage.fill()
            for number in range(1, ALLOCATION_STEPS + 1):
                sage.top_up()
                sage.step()
                time.sleep(ALLOCATION_PAUSE_S)
                progress(ALLOCATIONS, number)
                if number % ALLOCATION_LOOK_STEPS == 0 and sage.finished > sum(ALLOCATION_OCCUPANCY):
                    finished.append(sage.finished)
                    held_bytes.append(plugin_bytes())
    finally:
        tracemalloc.stop()
    return AllocationGrowth(finished=tuple(finished), held_bytes=tuple(held_bytes))


@contextmanager
def _pair(
    running: int,
    waiting: int,
    taught: int,
    timer: Timer,
    *,
    traffic: Traffic = lambda: request_stream(seed=1, rate_rps=1.0),
) -> Iterator[tuple[Occupied, Occupied]]:
    """The stock scheduler and ours, both empty, with the same traffic."""
    from engine_adapter.serving.vllm_overhead import Occupancy, ours, stock

    occupancy = Occupancy(running=running, waiting=waiting)
    with tempfile.TemporaryDirectory(prefix="sagesched-overhead-") as folder:
        endpoint = f"ipc://{folder}/run/engine.sock"
        controller = _SocketController(endpoint, taught)
        link = ZmqLink(endpoint)
        sage = ours(occupancy, traffic(), link=link, timer=timer, exchange=controller.exchange)
        try:
            yield stock(occupancy, traffic(), timer=timer), sage
        finally:
            sage.engine.close()
            controller.close()


def _equal_requests() -> Iterator[TraceRequest]:
    """Requests that take the same memory: the order lets those with long prompts wait, so that they would gather."""
    for request in request_stream(seed=1, rate_rps=1.0):
        yield replace(
            request,
            token_ids=tuple(islice(cycle(request.token_ids), ALLOCATION_PROMPT_TOKENS)),
            max_tokens=min(request.max_tokens, ALLOCATION_TOKENS),
        )


class _SocketController:
    """A controller in this process behind a real socket; it handles messages when `exchange` is called."""

    def __init__(self, endpoint: str, taught: int) -> None:
        self._hub = ZmqHub(endpoint)
        self._history = list(islice(request_stream(seed=2, rate_rps=1.0), taught))
        config = replace(
            IN_PROCESS,
            # A controller with many learned answers rarely predicts a request again.
            refresh_interval_s=LEASE_S,
            # In a run of a few seconds mostly short answers end, which would look like wrong predictions.
            calibration=CalibrationSettings(guard=GuardSettings(enabled=False)),
        )
        self._controller = InProcessController(MixtureLearner(), policy_named("sage"), config=config)

    def exchange(self, now_s: float) -> None:
        """Handle the messages of the engine, and send the answers."""
        for connection, message in self._hub.receive(0.0):
            if isinstance(message, Hello) and self._history:
                report_history(self._controller, self._history, profile=PROFILE, model=message.model, now_s=now_s)
                self._history = []
            for address, answer in self._controller.handle(connection, message, now_s):
                self._hub.send(address, answer)

    def close(self) -> None:
        """Close the socket."""
        self._hub.close()
