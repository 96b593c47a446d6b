"""What is counted as a pause of the control loop, and that a running controller shows it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from controller.monitoring.loop_pauses import LoopPauses


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def counted(registry: CollectorRegistry, cause: str) -> tuple[float, float]:
    """Number and sum of the pauses by a cause."""
    found = [
        registry.get_sample_value(f"sagesched_loop_pause_seconds_{part}", {"cause": cause}) for part in ("count", "sum")
    ]
    return found[0] or 0.0, found[1] or 0.0


def test_waiting_is_the_time_of_a_turn_without_its_own_work() -> None:
    """A turn of 30 ms that computed for 10 ms was held up for 20; one that only computed was not."""
    registry, wall, cpu = CollectorRegistry(), Clock(), Clock()
    pauses = LoopPauses(registry, timer=wall, cpu_timer=cpu)
    for wall_s, cpu_s in ((0.03, 0.01), (0.01, 0.01)):
        with pauses.turn():
            wall.now_s += wall_s
            cpu.now_s += cpu_s
    assert counted(registry, "waiting") == (2.0, pytest.approx(0.02))


def test_a_piece_of_work_counts_whole_also_where_it_fails() -> None:
    """Whatever holds the loop is seen."""
    registry, wall = CollectorRegistry(), Clock()
    pauses = LoopPauses(registry, timer=wall, cpu_timer=Clock())

    def fail() -> None:
        with pauses.work():
            wall.now_s += 0.25
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert counted(registry, "work") == (1.0, 0.25)


def test_garbage_collections_are_counted_at_the_end_of_a_turn() -> None:
    """Each once, and none after the controller has closed."""
    registry = CollectorRegistry()
    ticks = iter(range(1_000))
    pauses = LoopPauses(registry, timer=lambda: float(next(ticks)), cpu_timer=Clock())
    gc.disable()
    try:
        with pauses.collector_watched():
            gc.collect()
            assert counted(registry, "garbage") == (0.0, 0.0)
            with pauses.turn():
                pass
        assert counted(registry, "garbage") == (1.0, 1.0)
        gc.collect()
        with pauses.turn():
            pass
        assert counted(registry, "garbage") == (1.0, 1.0)
    finally:
        gc.enable()


def test_a_controller_shows_how_long_its_loop_was_held_up(start_controller: Callable[..., Any]) -> None:
    """Its turns are counted."""
    running = start_controller()
    engine = running.connect()
    engine.submit("a", output_tokens=4)
    engine.step_until(lambda: 'sagesched_loop_pause_seconds_count{cause="work"}' in running.client.get("/metrics").text)
    page = running.client.get("/metrics").text
    assert 'sagesched_loop_pause_seconds_bucket{cause="waiting",le="0.005"}' in page
    assert "sagesched_loop_pause_seconds" in generate_latest(running.service.loop._metrics.registry).decode()
