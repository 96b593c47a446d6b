from __future__ import annotations

import numpy as np
import pytest

from engine_adapter.workloads.length_distributions import Lengths, LogNormal, Mixture, Pareto
from store.errors import BadInputError

EXAMPLES: dict[str, Lengths] = {
    "log-normal": LogNormal(median_tokens=120, sigma=0.8),
    "pareto": Pareto(least_tokens=20, alpha=1.4),
    "mixture": Mixture(
        parts=(LogNormal(median_tokens=10, sigma=0.2), Pareto(least_tokens=500, alpha=2)), weights=(3, 1)
    ),
}


def draw(lengths: Lengths, count: int = 40_000, seed: int = 5) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return lengths.draw(np.random.default_rng(seed), count)


@pytest.mark.parametrize("name", EXAMPLES)
def test_lengths_are_whole_tokens_of_one_or_more_and_depend_on_the_seed_alone(name: str) -> None:
    """Every distribution: integers, at least 1, as many as asked for, repeatable, different for another seed."""
    drawn = draw(EXAMPLES[name])
    assert drawn.dtype == np.int64
    assert drawn.shape == (40_000,)
    assert drawn.min() >= 1
    assert (drawn == draw(EXAMPLES[name])).all()
    assert (drawn != draw(EXAMPLES[name], seed=6)).any()
    assert draw(EXAMPLES[name], count=0).shape == (0,)


def test_a_log_normal_has_its_median_and_the_spread_of_its_logarithm() -> None:
    """Within 2%."""
    drawn = draw(LogNormal(median_tokens=1000, sigma=0.8))
    assert np.median(drawn) == pytest.approx(1000, rel=0.02)
    assert np.log(drawn).std() == pytest.approx(0.8, rel=0.02)


def test_a_pareto_falls_as_its_power_law() -> None:
    """P(L > 10 x least) is 10^-alpha."""
    drawn = draw(Pareto(least_tokens=100, alpha=1.5), count=200_000)
    assert drawn.min() == 100
    assert (drawn > 1000).mean() == pytest.approx(10**-1.5, rel=0.05)


def test_a_mixture_draws_from_its_parts_by_weight() -> None:
    """One quarter of the lengths is of the part with a quarter of the weight."""
    drawn = draw(EXAMPLES["mixture"])
    assert (drawn >= 500).mean() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogNormal(median_tokens=0, sigma=1), "median_tokens of a log-normal length is 0"),
        (lambda: LogNormal(median_tokens=5, sigma=float("nan")), "sigma of a log-normal length is nan"),
        (lambda: Pareto(least_tokens=5, alpha=0), "alpha of a Pareto length is 0"),
        (lambda: Pareto(least_tokens=0.5, alpha=1), "least_tokens of a Pareto length is 0.5"),
        (lambda: Mixture(parts=(), weights=()), "weights of a length mixture"),
        (lambda: Mixture(parts=(EXAMPLES["pareto"],), weights=(1.0, 2.0)), "weights of a length mixture"),
        (lambda: Mixture(parts=(EXAMPLES["pareto"],), weights=(-1.0,)), "weights of a length mixture"),
        (lambda: Mixture(parts=(EXAMPLES["pareto"],), weights=(0.0,)), "weights of a length mixture"),
    ],
)
def test_senseless_parameters_are_refused_by_name_and_value(make: object, message: str) -> None:
    """At the time they are given, not when lengths are drawn."""
    assert callable(make)
    with pytest.raises(BadInputError, match=message):
        make()
