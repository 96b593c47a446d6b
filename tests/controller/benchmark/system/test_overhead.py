from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from controller.benchmark.system.arrival_latency import measure_arrivals
from controller.benchmark.system.overhead import AllocationGrowth, CallCost, OverheadSpec, run_overhead
from controller.benchmark.system.overhead_report import overhead_tables
from store.errors import ConfigError

pytestmark = pytest.mark.slow


@pytest.mark.vllm
def test_both_halves_are_measured_and_memory_does_not_grow_with_history() -> None:
    """Each part is gone through to its end, both schedulers are timed, and what the plugin holds stays where it was."""
    spec = OverheadSpec(occupancies=((8, 20),), steps=12, unfinished=(4, 8), arrivals=10, taught=20)
    done: Counter[str] = Counter()
    result = run_overhead(
        spec, clock=time.time, timer=time.perf_counter, cpu_timer=time.thread_time, progress=done.__setitem__
    )
    assert dict(done) == spec.parts()
    (engine,) = result.engine
    assert engine.schedule.stock_s > 0.0
    assert engine.schedule.sage_s > 0.0
    assert [(times.unfinished, times.arrivals) for times in result.controller] == [(4, 10), (8, 10)]
    assert all(0.0 < times.p50_s <= times.p99_s for times in result.controller)
    growth = result.allocations
    assert growth.finished[-1] - growth.finished[0] >= 100
    # A request that stayed would hold its token ids, its table and its life: well over a thousand bytes.
    assert growth.bytes_per_finished < 500.0
    assert len(overhead_tables(result)) == 3


def test_the_controller_answers_every_arrival_it_is_timed_with(tmp_path: Path) -> None:
    """As many arrivals as asked for, at each number of unfinished requests, on a fresh controller."""
    told: list[int] = []
    times = measure_arrivals(
        [2, 5],
        arrivals=25,
        taught=3,
        folder=tmp_path,
        clock=time.time,
        timer=time.perf_counter,
        progress=told.append,
    )
    assert [level.unfinished for level in times] == [2, 5]
    assert told == [20, 25, 45, 50]


def test_added_time_and_growth_are_what_their_names_say() -> None:
    """A tenth more is 0.1, and the growth is the slope over the requests that have ended."""
    assert CallCost(stock_s=2.0, sage_s=2.2).added == pytest.approx(0.1)
    assert AllocationGrowth(finished=(10, 20, 30), held_bytes=(1000, 1500, 2000)).bytes_per_finished == pytest.approx(
        50
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"occupancies": ((0, 5),)}, "0/5"),
        ({"occupancies": ((1, 5), (1, 5))}, "twice"),
        ({"steps": 3}, "steps is 3"),
        ({"arrivals": 0}, "arrivals is 0"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, object], words: str) -> None:
    """The error names the thing and its value."""
    with pytest.raises(ConfigError, match=words):
        OverheadSpec(**settings)
