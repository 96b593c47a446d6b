from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_adapter.workloads.arrivals import Wave, all_at_zero, arrival_plan, gamma_arrivals, trace_arrivals
from store.errors import BadInputError


@pytest.mark.parametrize("cv", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("rate_rps", [0.2, 40.0])
def test_gamma_arrivals_have_the_rate_and_the_variation_asked_for(cv: float, rate_rps: float) -> None:
    """Mean rate within 5% and coefficient of variation of the gaps within 5% over many arrivals."""
    times_s = gamma_arrivals(np.random.default_rng(7), count=60_000, rate_rps=rate_rps, cv=cv)
    gaps_s = np.diff(times_s, prepend=0.0)
    assert len(times_s) / times_s[-1] == pytest.approx(rate_rps, rel=0.05)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05, abs=1e-6)
    assert (gaps_s >= 0).all()


def test_poisson_arrivals_in_disjoint_seconds_are_counted_as_poisson() -> None:
    """The variance of the counts equals their mean, and neighbouring counts do not correlate."""
    times_s = gamma_arrivals(np.random.default_rng(3), count=50_000, rate_rps=5.0, cv=1.0)
    counts = np.bincount(times_s.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.05)
    assert abs(np.corrcoef(counts[:-1], counts[1:])[0, 1]) < 0.03


@pytest.mark.slow
@given(seed=st.integers(0, 2**32), count=st.integers(0, 50), cv=st.floats(0, 100), rate_rps=st.floats(0.01, 1000))
def test_arrivals_depend_on_the_seed_alone_and_never_fall(seed: int, count: int, cv: float, rate_rps: float) -> None:
    """Two generators of one seed give the same times; times are ordered and as many as asked for."""
    first, second = (
        gamma_arrivals(np.random.default_rng(seed), count=count, rate_rps=rate_rps, cv=cv) for _ in range(2)
    )
    assert first.tolist() == second.tolist()
    assert len(first) == count
    assert (np.diff(first, prepend=0.0) >= 0).all()


@given(times_s=st.lists(st.floats(0, 1e6), min_size=2, max_size=30), rate_rps=st.floats(0.01, 1000))
def test_a_trace_scaled_to_a_rate_keeps_its_shape(times_s: list[float], rate_rps: float) -> None:
    """Mean rate is the one asked for, the order is the trace's, and gaps keep their ratios."""
    own_s = trace_arrivals(times_s)
    assert own_s[0] == 0.0
    if own_s[-1] < 1e-3:
        return
    scaled_s = trace_arrivals(times_s, rate_rps=rate_rps)
    assert (len(times_s) - 1) / scaled_s[-1] == pytest.approx(rate_rps)
    np.testing.assert_allclose(scaled_s / scaled_s[-1], own_s / own_s[-1], atol=1e-9)


def test_a_trace_is_ordered_and_starts_at_zero_and_the_callers_list_stays_as_it_is() -> None:
    """A trace's first arrival is its time zero; the argument is not changed."""
    times_s = np.array([30.0, 10.0, 15.0])
    assert trace_arrivals(times_s).tolist() == [0.0, 5.0, 20.0]
    assert times_s.tolist() == [30.0, 10.0, 15.0]
    assert trace_arrivals([]).tolist() == []


def test_all_at_zero_is_there_from_the_start() -> None:
    """For capacity: every request arrives at once."""
    assert all_at_zero(3).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rate_rps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused_by_name_and_value(rate_rps: float) -> None:
    """The message holds the value."""
    with pytest.raises(BadInputError, match=f"rate in requests/s is {rate_rps}"):
        gamma_arrivals(np.random.default_rng(0), count=1, rate_rps=rate_rps, cv=1.0)
    with pytest.raises(BadInputError, match=f"rate in requests/s is {rate_rps}"):
        trace_arrivals([0.0, 1.0], rate_rps=rate_rps)


def test_senseless_variation_and_traces_are_refused() -> None:
    """A negative coefficient, a time that is no number, a trace of one moment that shall get a rate."""
    with pytest.raises(BadInputError, match="variation of the arrivals is -1"):
        gamma_arrivals(np.random.default_rng(0), count=1, rate_rps=1.0, cv=-1.0)
    with pytest.raises(BadInputError, match="variation of the arrivals is nan"):
        gamma_arrivals(np.random.default_rng(0), count=1, rate_rps=1.0, cv=float("nan"))
    with pytest.raises(BadInputError, match="no number"):
        trace_arrivals([0.0, float("nan")])
    with pytest.raises(BadInputError, match="all 2 arrivals of the trace are at one moment"):
        trace_arrivals([4.0, 4.0], rate_rps=1.0)


@given(st.floats(0.0, 0.9), st.floats(10.0, 1000.0))
def test_a_wave_keeps_order_and_mean(depth: float, period_s: float) -> None:
    """Bent times rise as the steady ones do, and agree with them after each whole period."""
    steady = np.arange(0.0, 5.0, 0.01) * period_s
    bent = Wave(period_s=period_s, depth=depth).bend(steady)
    assert np.all(np.diff(bent) > 0.0)
    assert bent[::100] == pytest.approx(steady[::100], abs=1e-3 * period_s)
    first_half = np.searchsorted(bent, period_s / 2)
    assert first_half == pytest.approx(100 * (0.5 + depth / np.pi), abs=2.0), "the crest comes first"


@pytest.mark.parametrize(("period_s", "depth"), [(0.0, 0.5), (-1.0, 0.5), (10.0, 1.0), (10.0, -0.1)])
def test_a_wave_that_makes_no_sense_is_refused(period_s: float, depth: float) -> None:
    """A wave has a positive period and never stops the arrivals."""
    with pytest.raises(BadInputError, match="wave"):
        Wave(period_s=period_s, depth=depth)


def generator() -> np.random.Generator:
    """The same one every time."""
    return np.random.default_rng(7)


def test_a_plan_takes_the_source_s_times_where_it_has_any() -> None:
    """As they come, stretched to the rate, with equal moments still equal; a source without times gets Poisson ones."""
    own_s = [5.0, 5.0, 6.0, 9.0]
    for text in ("own", "trace"):
        found_s = arrival_plan(text).times_s(own_s, rate_rps=1.0, generator=generator())
        assert found_s.tolist() == pytest.approx([0.0, 0.0, 0.75, 3.0])
        assert found_s[0] == found_s[1]
    poisson_s = arrival_plan("poisson").times_s(own_s, rate_rps=1.0, generator=generator())
    assert poisson_s.tolist() == arrival_plan("own").times_s([0.0] * 4, rate_rps=1.0, generator=generator()).tolist()
    assert poisson_s.tolist() != found_s.tolist()


def test_at_once_is_at_the_start_at_any_rate() -> None:
    """A batch, whatever times the workload has of its own."""
    assert arrival_plan("at-once").times_s([5.0, 9.0], rate_rps=3.0, generator=generator()).tolist() == [0.0, 0.0]


def test_unscaled_times_are_those_of_the_workload_at_any_rate() -> None:
    """Counted from the first."""
    assert arrival_plan("unscaled").times_s([5.0, 9.0], rate_rps=3.0, generator=generator()).tolist() == [0.0, 4.0]


@pytest.mark.parametrize("plan", ["trace", "unscaled"])
def test_a_trace_is_not_made_up(plan: str) -> None:
    """Who insists on a trace's times is told that there are none."""
    with pytest.raises(BadInputError, match=f"{plan}' and the workload has no times of its own"):
        arrival_plan(plan).times_s([3.0, 3.0], rate_rps=1.0, generator=generator())


@given(cv=st.floats(0.5, 6.0))
def test_gamma_arrivals_have_the_variation_that_is_named(cv: float) -> None:
    """The gaps of a plan vary as much as its words say, at the rate asked for."""
    plan = arrival_plan(f"gamma:{cv:.3f}")
    times_s = plan.times_s([0.0] * 60_000, rate_rps=4.0, generator=generator())
    gaps_s = np.diff(times_s)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.15)
    assert times_s.size / times_s[-1] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("text", ["weekly", "gamma", "gamma:", "gamma:-1", "gamma:1e9", "gamma:101", "poisson:2", ""])
def test_words_that_are_no_plan_are_refused(text: str) -> None:
    """With the choice."""
    with pytest.raises(BadInputError, match="own, poisson, trace, unscaled, at-once or gamma:CV"):
        arrival_plan(text)
