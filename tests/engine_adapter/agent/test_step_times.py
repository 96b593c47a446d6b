"""The times between output tokens, from the ends of the steps alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.agent import step_times
from engine_adapter.agent.step_times import InterTokenTimes, StepTimes

KEPT = 20


@pytest.fixture(autouse=True)
def _few_steps_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_times, "STEPS_KEPT", KEPT)


def expected(
    ends_s: dict[int, float], first: int, last: int, left_out: list[tuple[int, int]]
) -> InterTokenTimes | None:
    """Return the figures by a look at each step."""
    latest = sorted(ends_s)[-KEPT:]
    missed = {step for before, after in left_out for step in range(before + 1, after)}
    told_s = [ends_s[step] for step in latest if first <= step <= last and step not in missed]
    times_s = sorted((later - earlier for earlier, later in pairwise(told_s)), reverse=True)
    return InterTokenTimes(times_s[0], times_s[(len(told_s) - 1) // 100]) if times_s else None


@given(
    st.lists(st.floats(0.0, 1e6), min_size=1, max_size=5 * KEPT).map(sorted),
    st.lists(st.integers(1, 5 * KEPT), min_size=2, max_size=8, unique=True).map(sorted),
)
def test_the_figures_are_those_of_the_latest_steps_in_which_a_request_got_a_token(
    ends_s: list[float], steps: list[int]
) -> None:
    """Whatever steps are kept or left out, the figures are those of a look at each."""
    times = StepTimes()
    for end_s in ends_s:
        times.ended(end_s)
    first, *inner, last = sorted(min(step, len(ends_s)) for step in steps)
    left_out = list(zip(inner[::2], inner[1::2], strict=False))
    numbered = dict(enumerate(ends_s, start=1))
    assert times.between(first, last, left_out) == expected(numbered, first, last, left_out)


def test_no_more_than_twice_the_steps_that_count_are_held() -> None:
    """An engine that runs for days holds no more of its steps than one that runs for an hour."""
    times = StepTimes()
    for number in range(10 * KEPT):
        times.ended(float(number))
        assert len(times._ends_s) <= 2 * KEPT
