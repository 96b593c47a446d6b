"""Nothing that is done for a request grows with history, with uptime or with the other engines.

Work is counted in calls, not in seconds, so that a busy machine changes nothing;
``sagesched load-test`` and docs/scale_growth.py measure the seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from online_learning.clustering.clusters import ClusterSettings
from online_learning.evaluation.memory import held_bytes
from online_learning.experts.neighbours import NeighbourSettings
from online_learning.mixture.mixture import MixtureLearner, MixtureSettings
from online_learning.mixture.settings import LearnerSettings

EARLY, FULL, LATE = 500, 1_200, 2_400
"""Requests served: when every expert is at work, when all that is bounded is nearly full, and long after."""

LOOKED_AT = 120

SMALL = MixtureSettings(
    common=LearnerSettings(clusters=ClusterSettings(clusters=16, seed_prompts=300)),
    neighbours=NeighbourSettings(history_prompts=500, fit_prompts=(60, 200, 500)),
    judge_all=200,
)
"""The whole learner with small windows, so that they are full after thousands of answers and not after tens of them."""


@dataclass
class Course:
    """What was counted on the way."""

    early_calls: int
    late_calls: int
    full_bytes: int
    late_bytes: int


@pytest.fixture(scope="module")
def course(busy: Callable[..., Any], calls: Callable[..., int]) -> Course:
    """Thousands of requests at four engines."""
    controller = busy(learner=MixtureLearner(SMALL))
    controller.serve(EARLY)
    controller.draw(LOOKED_AT)
    early = calls(lambda: controller.serve(LOOKED_AT))
    controller.serve(FULL - EARLY - LOOKED_AT)
    full = held_bytes(controller.core)
    controller.serve(LATE - FULL)
    late = held_bytes(controller.core)
    controller.draw(LOOKED_AT)
    return Course(early, calls(lambda: controller.serve(LOOKED_AT)), full, late)


def test_a_request_costs_no_more_after_thousands_of_others(course: Course) -> None:
    """Arrival, end, learning, snapshots and ticks take as many calls at 2,400 answers as at 500, or fewer."""
    assert course.late_calls < 1.15 * course.early_calls


def test_memory_does_not_grow_once_all_windows_are_full(course: Course) -> None:
    """After twice as many answers the core holds about as much: a request that stayed would show."""
    assert course.late_bytes < 1.15 * course.full_bytes


def test_a_request_costs_no_more_in_a_long_queue(quick_busy: Callable[..., Any], calls: Callable[..., int]) -> None:
    """With twenty times as many unfinished requests an arrival and an end take as many calls.

    Without the refresh, which forms each of them anew when the learner knows twice as much: that is seldom.
    """

    def cost(unfinished: int) -> int:
        controller = quick_busy(unfinished=unfinished, engines=1, refresh_interval_s=1e9)
        controller.serve(unfinished + 40)
        controller.draw(LOOKED_AT)
        controller.report = lambda _number: None
        return calls(lambda: controller.serve(LOOKED_AT))

    assert cost(600) < 1.1 * cost(30)


def test_a_snapshot_costs_in_proportion_to_what_runs(quick_busy: Callable[..., Any], calls: Callable[..., int]) -> None:
    """A running request takes a few calls of each snapshot, however many run beside it."""

    def cost(unfinished: int) -> float:
        controller = quick_busy(unfinished=unfinished, engines=1)
        controller.serve(unfinished + 40)
        controller.report(0)
        return calls(lambda: controller.report(0)) / unfinished

    assert cost(600) < 1.1 * cost(60)
    assert cost(600) < 10


def test_a_request_costs_no_more_among_many_engines(quick_busy: Callable[..., Any], calls: Callable[..., int]) -> None:
    """With sixteen times as many engines a request takes a tenth more calls, at most, ticks and heartbeats included."""

    def cost(engines: int) -> int:
        controller = quick_busy(engines=engines, unfinished=4)
        controller.serve(12 * engines)
        # The next ticks are due for all engines alike: what is counted is what each request costs beside them.
        controller.core.tick(controller.now_s)
        controller.draw(LOOKED_AT)
        return calls(lambda: controller.serve(LOOKED_AT))

    assert cost(64) < 1.1 * cost(4)


def test_a_tick_at_which_nothing_is_due_looks_at_no_engine(
    quick_busy: Callable[..., Any], calls: Callable[..., int]
) -> None:
    """The loop ticks a thousand times a second; with 64 engines that takes no more calls than with one."""

    def cost(engines: int) -> int:
        controller = quick_busy(engines=engines, unfinished=4)
        controller.serve(128)
        controller.core.tick(controller.now_s)
        return calls(lambda: controller.core.tick(controller.now_s))

    assert cost(64) <= cost(1)


def test_what_can_wait_does_not_hold_up_an_arrival(busy: Callable[..., Any], calls: Callable[..., int]) -> None:
    """With a backlog the end of a request takes a fraction of the calls, and the rest is done piece by piece later."""
    at_once, later = busy(engines=1, unfinished=4), busy(engines=1, unfinished=4, backlog=100)
    for controller in (at_once, later):
        controller.serve(60)
        while controller.core.backlog:
            controller.core.work(controller.now_s)
    assert calls(lambda: later.end_oldest(0)) < 0.3 * calls(lambda: at_once.end_oldest(0))
    assert (later.core.counts.completions, later.core.backlog) == (at_once.core.counts.completions - 1, 1)
    later.core.work(later.now_s)
    assert (later.core.counts.completions, later.core.backlog) == (at_once.core.counts.completions, 0)


def test_a_full_backlog_is_bounded(quick_busy: Callable[..., Any]) -> None:
    """Beyond its bound answers are not learnt from, and counted: memory is bounded and no arrival waits for them."""
    controller = quick_busy(engines=1, unfinished=2, backlog=5)
    controller.serve(40)
    counts = controller.core.counts
    assert controller.core.backlog == 5
    assert (counts.completions, counts.not_learnt, counts.predictions) == (0, 40 - 2 - 5, 40)
