"""Overhead of the plugin: vLLM's scheduler with and without it, at constant occupancy, timed call by call.

Both schedulers run in one process and take turns, step by step, so that other load on the machine affects both.
The timed calls are vLLM's own entry points: ``schedule()``, with all hooks of the plugin, and
``update_from_output()``.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.engine import EngineCoreOutputs

import engine_adapter
import store
from engine_adapter.transport.link import EngineLink, NoLink
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import Profile
from engine_adapter.vllm import virtual_time
from engine_adapter.vllm.virtual_time import VllmVirtualTimeEngine
from engine_adapter.vllm_scheduler import SageScheduler

ARRIVALS_AT_ONCE = 200
"""Arrivals at a time while an engine is filled, so that the answers fit into the sockets' buffers."""

FILLING_STEPS = 2000
"""Bound on the steps until an engine has filled all its slots."""

Exchange = Callable[[float], None]
"""Lets the controller receive from and answer the engine, at the engine's time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupancy:
    """Numbers of requests in the engine while it is timed."""

    running: int
    waiting: int

    @property
    def requests(self) -> int:
        """Number of running and waiting requests."""
        return self.running + self.waiting


@dataclass(slots=True)
class CallTimes:
    """Seconds of each call of a scheduler, step by step."""

    schedule_s: list[float] = field(default_factory=list)
    update_s: list[float] = field(default_factory=list)

    def clear(self) -> None:
        """Discard the times recorded before."""
        self.schedule_s.clear()
        self.update_s.clear()


class Occupied:
    """A vLLM scheduler in virtual time with a constant number of requests: one arrives for each that ends."""

    def __init__(
        self,
        occupancy: Occupancy,
        requests: Iterator[TraceRequest],
        *,
        scheduler_class: type[AsyncScheduler],
        link: EngineLink,
        timer: Callable[[], float],
        exchange: Exchange,
    ) -> None:
        self.times = CallTimes()
        self.finished = 0
        self._occupancy = occupancy
        self._requests = requests
        self._exchange = exchange
        self.engine = VllmVirtualTimeEngine(
            _profile(occupancy),
            link=link,
            scheduler_class=_timed(scheduler_class, timer, self.times),
            prefix_caching=True,
        )

    def fill(self) -> None:
        """Submit requests until all slots are taken and the rest waits."""
        for _ in range(FILLING_STEPS):
            self.top_up()
            if self.step() >= self._occupancy.running and self.engine.unfinished >= self._occupancy.requests:
                return
        raise AssertionError(f"the engine does not fill up to {self._occupancy}")

    def top_up(self) -> None:
        """Exchange messages with the controller, and submit a request for each that has ended."""
        self._exchange(self.engine.now_s)
        missing = min(self._occupancy.requests - self.engine.unfinished, ARRIVALS_AT_ONCE)
        for request in islice(self._requests, missing):
            self.engine.submit(replace(request, arrival_s=self.engine.now_s))

    def step(self) -> int:
        """Carry out one step; return the number of running requests."""
        step = self.engine.step()
        self.finished += len(step.finished)
        return step.running


def stock(occupancy: Occupancy, requests: Iterator[TraceRequest], *, timer: Callable[[], float]) -> Occupied:
    """Make an engine with vLLM's own class."""
    return Occupied(
        occupancy, requests, scheduler_class=AsyncScheduler, link=NoLink(), timer=timer, exchange=lambda _now_s: None
    )


def ours(
    occupancy: Occupancy,
    requests: Iterator[TraceRequest],
    *,
    link: EngineLink,
    timer: Callable[[], float],
    exchange: Exchange,
) -> Occupied:
    """Make an engine with `SageScheduler`, linked to a controller that answers whenever ``exchange`` is called."""
    return Occupied(occupancy, requests, scheduler_class=SageScheduler, link=link, timer=timer, exchange=exchange)


def take_turns(one: Occupied, other: Occupied, *, steps: int, progress: Callable[[int], None]) -> None:
    """Time both for ``steps`` steps, in turns, with alternating order.

    All that is not timed, above all the controller's work, runs before both: it leaves the processor's caches cold,
    at the expense of the first. The heap is frozen meanwhile, as vLLM's engine core does with its own.
    """
    one.times.clear()
    other.times.clear()
    with _frozen_heap():
        for number in range(steps):
            one.top_up()
            other.top_up()
            for engine in (one, other) if number % 2 else (other, one):
                engine.step()
            progress(number + 1)


def plugin_bytes() -> int:
    """Return the bytes that this project's code holds allocated in the engine's process, under ``tracemalloc``.

    A controller in the same process adds what it keeps of the messages that it has decoded.
    """
    gc.collect()
    folders = [str(Path(path, "*")) for package in (engine_adapter, store) for path in package.__path__]
    ours_alone = [tracemalloc.Filter(inclusive=True, filename_pattern=folder) for folder in folders]
    watching = [
        tracemalloc.Filter(inclusive=False, filename_pattern=file) for file in (__file__, virtual_time.__file__)
    ]
    statistics = tracemalloc.take_snapshot().filter_traces([*ours_alone, *watching]).statistics("filename")
    return sum(statistic.size for statistic in statistics)


@contextmanager
def _frozen_heap() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _profile(occupancy: Occupancy) -> Profile:
    """Return an H800's step times with one slot per running request and ample KV memory: slots bound, not memory."""
    return Profile(
        name="overhead",
        base_s=0.033,
        prefill_token_s=1.4e-4,
        decode_seq_s=3e-5,
        kv_token_s=1.3e-7,
        kv_tokens=max(16_384, 4096 * occupancy.running),
        max_num_seqs=occupancy.running,
        token_budget=8192,
        max_model_len_tokens=16_384,
    )


def _timed(base: type[AsyncScheduler], timer: Callable[[], float], times: CallTimes) -> type[AsyncScheduler]:
    """Derive the class with a timer around its two calls; the timer's own cost is the same for both."""

    class Timed(base):  # type: ignore[misc]  # mypy does not follow vLLM
        def schedule(self, *args: object, **kwargs: object) -> SchedulerOutput:
            started_s = timer()
            output = super().schedule(*args, **kwargs)
            times.schedule_s.append(timer() - started_s)
            return output

        def update_from_output(self, *args: object, **kwargs: object) -> dict[int, EngineCoreOutputs]:
            started_s = timer()
            outputs: dict[int, EngineCoreOutputs] = super().update_from_output(*args, **kwargs)
            times.update_s.append(timer() - started_s)
            return outputs

    return Timed
