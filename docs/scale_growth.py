"""How the cost of a request grows with history, with the queue and with engines: ``python docs/scale_growth.py``.

Measures CPU time, the median of many calls, in virtual time: of an arrival (predict and decide), of an end (score and
learn), of a snapshot for each request in it, of the history for each request, and of ordering the queue in an engine's
step. Prints a table and draws ``docs/images/growth.svg``; a busy machine makes all figures larger, but none grow.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from controller.benchmark.synthetic_history import synthetic_facts
from controller.core.in_process import IN_PROCESS, InProcessController
from controller.policy.policies import policy_named
from engine_adapter.agent.agent import Agent
from engine_adapter.ordering.kv_memory import PlainMemory
from engine_adapter.ordering.ordered_queue import OrderedQueue
from engine_adapter.virtual_time.engine import TraceRequest
from engine_adapter.virtual_time.profiles import PROFILES
from engine_adapter.virtual_time.request_progress import RequestProgress
from engine_adapter.workloads.requests import request_stream
from online_learning.mixture.mixture import MixtureLearner
from store.entries import Entry
from store.history.writer import HistoryWriter
from store.records import Fact, Facts, Hello, RunningRequest
from store.records import Snapshot as EngineSnapshot

IMAGE = Path(__file__).parent / "images" / "growth.svg"
PROFILE = PROFILES["h800-qwen3-32b"]
HISTORY = (300, 1_000, 3_000, 10_000, 30_000)
QUEUE = (10, 100, 1_000, 10_000)
ENGINES = (1, 4, 16, 64, 256)
TOGETHER = (1, 4, 16, 32)
TAUGHT = 1_000
LOOKS = 200

Series = dict[str, list[tuple[float, float]]]
"""Points of size and microseconds, by what was measured."""


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the largest sizes")
    last = -1 if parser.parse_args().quick else None
    panels = {
        "answers learnt from": by_history(HISTORY[:last]),
        "unfinished requests of an engine": by_queue(QUEUE[:last]),
        "engines": by_engines(ENGINES[:last]),
        "requests that arrive together": by_requests_together(TOGETHER[:last]),
    }
    for across, series in panels.items():
        _print(across, series)
    IMAGE.write_text(_live_snapshot(panels), encoding="utf-8")
    sys.stdout.write(f"drawn in {IMAGE}\n")


@dataclass(slots=True)
class Controller:
    """A controller in this process with engines that only report what they are told to."""

    engines: int = 1
    now_s: float = 1e9
    controller: InProcessController = field(init=False)
    requests: Iterator[TraceRequest] = field(init=False)
    open: deque[tuple[int, TraceRequest]] = field(default_factory=deque)
    batches: int = 0

    def __post_init__(self) -> None:
        self.requests = request_stream(seed=1, rate_rps=100.0)
        config = replace(IN_PROCESS, refresh_interval_s=1e9)
        self.controller = InProcessController(MixtureLearner(), policy_named("sage"), config=config, now_s=self.now_s)
        for number in range(self.engines):
            self.controller.handle(b"%d" % number, _hello(number), self.now_s)

    def teach(self, answers: int) -> None:
        """Report ``answers`` requests from arrival to end."""
        for request in islice(self.requests, answers):
            self.report(0, *synthetic_facts(request, PROFILE))

    def arrive(self, number: int) -> float:
        """Report an arrival; returns its microseconds."""
        request = replace(next(self.requests), arrival_s=self.now_s)
        self.open.append((number, request))
        return self.report(number, RequestProgress(request).arrived())

    def arrive_together(self, count: int) -> float:
        """Report arrivals in one message; returns the microseconds of each."""
        requests = [replace(request, arrival_s=self.now_s) for request in islice(self.requests, count)]
        self.open.extend((0, request) for request in requests)
        return self.report(0, *(RequestProgress(request).arrived() for request in requests)) / count

    def end(self) -> float:
        """Report the end of the oldest request; returns its microseconds."""
        number, request = self.open.popleft()
        return self.report(number, synthetic_facts(request, PROFILE)[-1])

    def report(self, number: int, *facts: Fact) -> float:
        """Report facts; returns the microseconds of handling them and of the tick that follows."""
        self.batches += 1
        message = Facts(batch=self.batches, facts=facts, oldest=self.batches)
        core = self.controller.core

        def handle() -> None:
            core.handle(b"%d" % number, message, self.now_s)
            core.tick(self.now_s)

        cost_us = _us(handle)
        self.controller.deliver()
        return cost_us

    def look(self) -> dict[str, float]:
        """Medians over arrivals and ends in turn, spread over all engines."""
        arrivals, ends = [], []
        for look in range(LOOKS):
            arrivals.append(self.arrive(look % self.engines))
            ends.append(self.end())
        return {"predict and decide": statistics.median(arrivals), "judge and learn": statistics.median(ends)}


def by_history(sizes: Sequence[int]) -> Series:
    """Cost of a request, and of writing it down, after each number of answers."""
    controller, series = Controller(), Series()
    controller.arrive(0)
    with tempfile.TemporaryDirectory() as folder, HistoryWriter(Path(folder) / "history") as writer:
        known = 0
        for size in sizes:
            controller.teach(size - known)
            known = size
            for name, cost_us in controller.look().items():
                series.setdefault(name, []).append((size, cost_us))
            series.setdefault("write its facts down", []).append((size, _stored_us(writer, controller, size)))
    return series


def by_queue(sizes: Sequence[int]) -> Series:
    """Cost of a request at each number of unfinished ones, of a snapshot for each of them, and of an engine's step."""
    controller, series = Controller(), Series()
    controller.teach(TAUGHT)
    for size in sizes:
        while len(controller.open) < size:
            controller.arrive(0)
        for name, cost_us in controller.look().items():
            series.setdefault(name, []).append((size, cost_us))
        series.setdefault("snapshot, for each that runs", []).append((size, _snapshot_us(controller)))
        series.setdefault("in the engine: order of a step", []).append((size, _step_us(size)))
    return series


def by_engines(sizes: Sequence[int]) -> Series:
    """Cost of a request at each number of engines with 8 unfinished requests each."""
    series = Series()
    for size in sizes:
        controller = Controller(engines=size)
        controller.teach(TAUGHT)
        for number in range(8 * size):
            controller.arrive(number % size)
        for name, cost_us in controller.look().items():
            series.setdefault(name, []).append((size, cost_us))
    return series


def by_requests_together(sizes: Sequence[int]) -> Series:
    """Cost of each of several requests that arrive in one message."""
    controller, series = Controller(), Series()
    controller.teach(TAUGHT)
    for size in sizes:
        taken = [controller.arrive_together(size) for _ in range(LOOKS // size + 5)]
        while controller.open:
            controller.end()
        series.setdefault("predict and decide", []).append((size, statistics.median(taken)))
    return series


def _stored_us(writer: HistoryWriter, controller: Controller, size: int) -> float:
    """CPU time of all threads for a request's rows, over a thousand requests."""
    facts = [fact for request in islice(controller.requests, 1_000) for fact in synthetic_facts(request, PROFILE)]
    entries = [
        Entry(engine_id="e", session_id="s", batch=size + place, record=fact) for place, fact in enumerate(facts)
    ]
    before_s = time.process_time()
    writer.append(entries)
    writer.flush(60.0)
    return 1e3 * (time.process_time() - before_s)


def _snapshot_us(controller: Controller) -> float:
    running = tuple(RunningRequest(work.request_id, 20, 4) for _, work in controller.open)
    snapshot = EngineSnapshot(
        time_s=controller.now_s,
        waiting=0,
        running=len(running),
        kv_blocks_used=100,
        kv_blocks=1000,
        mode="on",
        steps=3,
        step_s=0.1,
        prefill_tokens=10,
        decode_tokens=30,
        kv_tokens_read=100,
        preemptions=0,
        recomputed_tokens=0,
        running_requests=running,
    )
    taken = [_us(lambda: controller.controller.core.handle(b"0", snapshot, controller.now_s)) for _ in range(20)]
    controller.controller.deliver()
    return statistics.median(taken) / len(running)


@dataclass(slots=True)
class _Waiting:
    request_id: str
    num_computed_tokens: int = 0
    num_tokens: int = 300


def _step_us(size: int) -> float:
    """An engine's plan with ``size`` requests waiting, one more in each step, and a change of one table."""
    controller = Controller()
    controller.teach(TAUGHT)
    agent = Agent(hello=_hello(0), link=controller.controller.link(lambda: controller.now_s))
    queue: OrderedQueue[_Waiting] = OrderedQueue()
    taken = []
    for place, work in enumerate(islice(controller.requests, size + LOOKS)):
        agent.arrived(RequestProgress(replace(work, arrival_s=controller.now_s)).arrived())
        queue.append(_Waiting(work.request_id))
        if place >= size:
            agent.poll(controller.now_s)
            agent.poll(controller.now_s)
            taken.append(
                _us(lambda: agent.plan(controller.now_s, waiting=queue, running=[], memory=PlainMemory(100, 16)))
            )
        elif place % 500 == 0:
            agent.poll(controller.now_s)
    return statistics.median(taken)


def _us(action: Callable[[], object]) -> float:
    before_s = time.thread_time()
    action()
    return 1e6 * (time.thread_time() - before_s)


def _hello(number: int) -> Hello:
    return Hello(
        engine_id=f"e{number}",
        session_id=f"s{number}",
        model="m",
        engine="simulated",
        engine_version="1",
        kv_blocks=10_000,
        block_size_tokens=16,
        max_num_seqs=256,
        token_budget=8192,
        max_model_len_tokens=32_768,
        prefix_caching=False,
        started_s=0.0,
    )


# --- what is shown --------------------------------------------------------------------------------


def _print(across: str, series: Series) -> None:
    sizes = [size for size, _ in next(iter(series.values()))]
    sys.stdout.write(f"| {across} | " + " | ".join(f"{size:,}" for size in sizes) + " |\n")
    sys.stdout.write("|---" * (len(sizes) + 1) + "|\n")
    for name, points in series.items():
        sys.stdout.write(f"| {name}, µs | " + " | ".join(f"{cost_us:.3g}" for _, cost_us in points) + " |\n")
    sys.stdout.write("\n")
    sys.stdout.flush()


WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 240, 56, 40, 60
COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea")
LOWEST_US, HIGHEST_US = 0.05, 20_000.0
FONT = "font-family='system-ui, sans-serif' font-size='12' fill='#374151'"


def _live_snapshot(panels: dict[str, Series]) -> str:
    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    parts = [
        _panel(across, series, names, LEFT + place * (WIDTH + GAP))
        for place, (across, series) in enumerate(panels.items())
    ]
    for place, name in enumerate(names):
        left, top = LEFT + 250 * (place % 4), TOP + HEIGHT + 64 + 20 * (place // 4)
        parts.append(f"<rect x='{left}' y='{top - 9}' width='14' height='4' fill='{_colour(place)}'/>")
        parts.append(f"<text x='{left + 20}' y='{top}' {FONT}>{name}</text>")
    width, height = LEFT + len(panels) * (WIDTH + GAP), TOP + HEIGHT + 110
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        f"<rect width='100%' height='100%' fill='white'/>{''.join(parts)}</svg>\n"
    )


def _panel(across: str, series: Series, names: list[str], left: float) -> str:
    sizes = sorted({size for points in series.values() for size, _ in points})
    ticks = [10.0**power for power in range(-1, 5)]
    parts = [
        f"<line x1='{left}' x2='{left + WIDTH}' y1='{_y(tick):.1f}' y2='{_y(tick):.1f}' stroke='#e5e7eb'/>"
        f"<text x='{left - 6}' y='{_y(tick) + 4:.1f}' text-anchor='end' {FONT}>{tick:g}</text>"
        for tick in ticks
    ]
    parts += [
        f"<text x='{_x(size, sizes, left):.1f}' y='{TOP + HEIGHT + 16}' text-anchor='middle' {FONT}>{size:,.0f}</text>"
        for size in sizes
    ]
    parts.append(f"<text x='{left}' y='{TOP - 14}' {FONT}>µs by {across}</text>")
    for name, points in series.items():
        places = [(_x(size, sizes, left), _y(cost_us)) for size, cost_us in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = _colour(names.index(name))
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        parts += [f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in places]
    return "".join(parts)


def _colour(place: int) -> str:
    return (*COLOURS, "#d97706")[place % 5]


def _x(size: float, sizes: Sequence[float], left: float) -> float:
    lowest, highest = math.log(sizes[0]), math.log(sizes[-1])
    return left + WIDTH * (math.log(size) - lowest) / (highest - lowest)


def _y(cost_us: float) -> float:
    share = math.log(min(max(cost_us, LOWEST_US), HIGHEST_US) / LOWEST_US) / math.log(HIGHEST_US / LOWEST_US)
    return TOP + HEIGHT * (1.0 - share)


if __name__ == "__main__":
    main()
