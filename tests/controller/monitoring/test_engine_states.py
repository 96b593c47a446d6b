from __future__ import annotations

import pytest

from controller.core.clock_difference import SNAPSHOTS, ClockDifference
from controller.monitoring.engine_states import CLOCK_OFF_S, REPORTED_S, RefusedFrames, own_clock_off


def test_refused_frames_are_named_for_a_while_after_the_last() -> None:
    """Each new one begins the time again; the count is of all since the start."""
    refused = RefusedFrames()
    assert list(refused.states(0, 0.0)) == []
    assert [state.kind for state in refused.states(2, 10.0)] == ["frames_refused"]
    assert [state.text[:10] for state in refused.states(3, 20.0)] == ["3 messages"]
    assert len(list(refused.states(3, 19.0 + REPORTED_S))) == 1
    assert list(refused.states(3, 20.0 + REPORTED_S)) == []


@pytest.mark.parametrize("off_s", [-600.0, -CLOCK_OFF_S - 0.1, CLOCK_OFF_S + 0.1, 86_400.0])
def test_a_step_of_the_controllers_clock_is_named(off_s: float) -> None:
    """With its sign; less than the bound is not."""
    (state,) = own_clock_off(off_s)
    assert state.kind == "clock_off"
    assert f"set by {off_s:+.0f} s" in state.text
    assert list(own_clock_off(CLOCK_OFF_S * (1 if off_s > 0 else -1))) == []


@pytest.mark.parametrize("off_s", [-600.0, 0.0, 600.0])
def test_a_late_snapshot_is_not_taken_for_another_clock(off_s: float) -> None:
    """One of the last snapshots came in time, and that one counts, whichever of the two clocks is ahead."""
    difference = ClockDifference()
    for number in range(3 * SNAPSHOTS):
        late_s = 0.01 if number % SNAPSHOTS == 7 else 8.0
        difference.observe(number * 0.1, number * 0.1 + late_s + off_s)
    assert difference.s == pytest.approx(off_s + 0.01)
