"""How often the gain is computed, and what it may cost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controller.replay.gain_pace import GainLimits, GainPace

LIMITS = GainLimits(interval_s=30.0, unseen_interval_s=600.0, first_after_s=5.0, share=0.05)


@given(costs_s=st.lists(st.floats(0.0, 90.0), min_size=30, max_size=30), cores=st.integers(1, 64))
def test_comparisons_never_take_more_than_their_share_of_the_host(costs_s: list[float], cores: int) -> None:
    """Whatever each costs, and though somebody asks all the time: each is paid for before the next one begins."""
    pace, now_s = GainPace(LIMITS, cores=cores, now_s=0.0), 0.0
    for cost_s in costs_s:
        pace.asked(pace.due_s)
        began_s = max(now_s, pace.due_s)
        now_s = began_s + cost_s
        pace.ran(began_s=began_s, ended_s=now_s, cpu_s=cost_s)
        pace.asked(pace.due_s)
        assert pace.due_s - began_s >= cost_s / (LIMITS.share * cores) - 1e-6
        assert pace.due_s - now_s >= LIMITS.interval_s - 1e-6


def test_while_nobody_looks_ten_minutes_pass_between_two() -> None:
    """And an old look does not count."""
    pace = GainPace(LIMITS, cores=64, now_s=0.0)
    pace.asked(0.0)
    pace.ran(began_s=5.0, ended_s=15.0, cpu_s=1.0)
    assert pace.due_s == 45.0
    pace.ran(began_s=45.0, ended_s=55.0, cpu_s=1.0)
    assert pace.due_s == 645.0
    pace.asked(300.0)
    assert pace.due_s == 85.0
