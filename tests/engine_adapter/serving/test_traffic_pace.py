"""Traffic of a simulated engine on a host that is late."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.serving.traffic_pace import SHARE, TrafficPace


@given(st.lists(st.tuples(st.floats(0.001, 0.05), st.floats(0.0, 0.1)), min_size=200, max_size=400))
def test_the_traffic_never_gains_on_the_device(steps: list[tuple[float, float]]) -> None:
    """However late the host is: what the device has been given time for is all that has arrived, and never less."""
    pace, now_s, reached_s = TrafficPace(speed=1.0, start_s=0.0), 0.0, 0.0
    for step_s, late_s in steps:
        before = pace.speed
        now_s += step_s + late_s
        reached_s += step_s * before
        lowered = pace.stepped(now_s=now_s, device_s=step_s, busy_s=step_s + late_s)
        assert abs(pace.moment(reached_s) - now_s) < 1e-6, "the traffic is where the device has got to"
        assert lowered is None or lowered < SHARE * before


def test_a_host_that_keeps_up_is_left_alone() -> None:
    """A tenth of the time between steps is what any host needs."""
    pace = TrafficPace(speed=6.0, start_s=0.0)
    assert all(pace.stepped(now_s=0.01 * n, device_s=0.009, busy_s=0.01) is None for n in range(1, 3000))
    assert pace.speed == 6.0
