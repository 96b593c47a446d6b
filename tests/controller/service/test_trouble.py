from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.core.pause import PauseLimits
from controller.service.trouble import LEARNER_FAILURES, LEARNER_WINDOW_S, Trouble
from online_learning.survival.length_sketch import LengthSketch, SketchSettings

LIMITS = PauseLimits(first_s=5.0, limit_s=300.0)


def fail(trouble: Trouble, now_s: float, error: Exception | None = None) -> float:
    """Fail once; how long order is given up from now on."""
    error = error or ZeroDivisionError("by design")
    trouble.observe(error, now_s)
    trouble.fail(error, "on", LIMITS, now_s)
    assert trouble.until_s is not None
    return trouble.until_s - now_s


def test_failures_now_and_then_cost_the_first_pause_each() -> None:
    """A hundred failures in a lifetime, and the last still costs 5 s of first come, first served."""
    trouble = Trouble()
    for number in range(100):
        assert fail(trouble, 60.0 * number) == 5.0
        assert trouble.is_over(60.0 * number + 5.0)
    assert trouble.errors == 100


def test_a_core_that_fails_as_soon_as_it_is_back_is_left_alone_for_longer_and_longer() -> None:
    """5, 10, 20 ... 300 s; after as long a time in order as the pause was, it is 5 s again."""
    trouble, now_s, pauses = Trouble(), 0.0, []
    for _ in range(8):
        pauses.append(fail(trouble, now_s))
        now_s += pauses[-1]
        assert trouble.is_over(now_s)
        now_s += 1.0
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert fail(trouble, now_s + 300.0) == 5.0


@given(st.lists(st.floats(10.0, 1e4), min_size=1, max_size=50))
def test_spaced_failures_leave_order_in_force_half_of_the_time(gaps_s: list[float]) -> None:
    """Whatever the rhythm, as long as no two failures come within 10 s."""
    trouble, now_s, paused_s = Trouble(), 0.0, 0.0
    for gap_s in gaps_s:
        paused_s += fail(trouble, now_s)
        now_s += gap_s
        trouble.is_over(now_s)
    assert paused_s <= 0.5 * now_s


def test_a_learner_that_fails_again_and_again_is_named_until_it_does_not() -> None:
    """The third failure within ten minutes makes a state of it; one of other parts of the core does not count."""
    trouble = Trouble()
    for number in range(LEARNER_FAILURES):
        fail(trouble, float(number))
        assert [state.kind for state in trouble.states(float(number))] == ["loop_failing"]
    for number in range(LEARNER_FAILURES):
        try:
            LengthSketch(np.array([1, 2]), SketchSettings()).learn_one(None)  # type: ignore[arg-type]
        except AttributeError as error:
            fail(trouble, float(number), error)
    [failing] = [state for state in trouble.states(LEARNER_WINDOW_S - 1.0) if state.kind == "learner_failing"]
    assert "3 times within 600 s" in failing.text
    trouble.is_over(LEARNER_WINDOW_S)
    assert list(trouble.states(LEARNER_WINDOW_S)) == []
