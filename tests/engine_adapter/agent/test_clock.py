"""Stamps of a front end, by a system clock that somebody sets, as moments of the engine's own clock."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine_adapter.agent.clock import OLDEST_STAMP_S, StampClock

NEARLY_S = 0.011
WAITS_S = st.floats(0.0, OLDEST_STAMP_S - 1.0)


class Machine:
    """A machine whose steady clock says 1,000 at first; the system clock is ahead of it by what was set."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self.ahead_s = 5e8
        self.clock = StampClock(lambda: self.now_s, lambda: self.now_s + self.ahead_s)

    def stamp_s(self) -> float:
        return self.now_s + self.ahead_s


@given(st.floats(-86_400.0, 86_400.0), WAITS_S, WAITS_S, st.floats(0.0, 100.0))
@example(3.0, 0.1, 0.1, 0.0)
@example(-3.0, 0.1, 0.1, 0.0)
def test_a_request_under_way_while_the_clock_is_set_keeps_its_arrival(
    by_s: float, before_s: float, after_s: float, idle_s: float
) -> None:
    """It never seems to have come before it was sent; a wait shorter than the step is known exactly."""
    machine = Machine()
    machine.clock.own_s(machine.stamp_s())
    machine.now_s += idle_s
    sent_s, stamp_s = machine.now_s, machine.stamp_s()
    waited_s = min(before_s, OLDEST_STAMP_S - 1.0 - after_s)
    machine.now_s += max(0.0, waited_s)
    machine.ahead_s += by_s
    machine.now_s += after_s
    arrival_s = machine.clock.own_s(stamp_s)
    assert sent_s - NEARLY_S <= arrival_s <= machine.now_s
    if abs(by_s) > machine.now_s - sent_s + NEARLY_S:
        assert arrival_s == pytest.approx(sent_s, abs=NEARLY_S)
    assert machine.clock.replaced == 0


@given(st.floats(-86_400.0, 86_400.0), WAITS_S, st.lists(st.floats(0.0, 20.0), max_size=6))
def test_a_request_that_is_sent_after_the_clock_was_set_keeps_its_arrival(
    by_s: float, waited_s: float, pauses_s: list[float]
) -> None:
    """The same, at once after the step and for as long as the one before is remembered."""
    machine = Machine()
    machine.ahead_s += by_s
    for pause_s in (0.0, *pauses_s):
        machine.now_s += pause_s
        sent_s, stamp_s = machine.now_s, machine.stamp_s()
        machine.now_s += waited_s
        arrival_s = machine.clock.own_s(stamp_s)
        assert sent_s - NEARLY_S <= arrival_s <= machine.now_s
        if abs(by_s) > waited_s + NEARLY_S:
            assert arrival_s == pytest.approx(sent_s, abs=NEARLY_S)
    assert machine.clock.replaced == 0


def test_a_stamp_that_cannot_be_is_replaced_and_counted() -> None:
    """Of the future, or older than a request can wait."""
    machine = Machine()
    for off_s in (5.0, -OLDEST_STAMP_S - 5.0):
        assert machine.clock.own_s(machine.stamp_s() + off_s) == machine.now_s
    assert machine.clock.replaced == 2
