"""Length distributions of synthetic prompts and answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from store.errors import BadInputError

Tokens = NDArray[np.int64]


class Lengths(Protocol):
    """A distribution of token counts, each 1 or more."""

    def draw(self, generator: np.random.Generator, count: int) -> Tokens:
        """Draw ``count`` independent lengths."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Lengths whose logarithm is normal; the usual shape of one task's answers.

    >>> LogNormal(median_tokens=100, sigma=0.0).draw(np.random.default_rng(0), 2).tolist()
    [100, 100]
    """

    median_tokens: float
    sigma: float
    """Standard deviation of the natural logarithm."""

    def __post_init__(self) -> None:
        _require(self.median_tokens >= 1, "median_tokens of a log-normal length", self.median_tokens, "1 or more")
        _require(0 <= self.sigma <= 10, "sigma of a log-normal length", self.sigma, "0 to 10")

    def draw(self, generator: np.random.Generator, count: int) -> Tokens:
        """Draw ``count`` independent lengths."""
        return _whole(self.median_tokens * np.exp(self.sigma * generator.standard_normal(count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """Lengths of at least ``least_tokens`` with a power-law tail: P(L > x) = (least / x)^alpha.

    With ``alpha`` up to 1 the mean is infinite, up to 2 the variance.
    """

    least_tokens: float
    alpha: float

    def __post_init__(self) -> None:
        _require(self.least_tokens >= 1, "least_tokens of a Pareto length", self.least_tokens, "1 or more")
        _require(self.alpha > 0, "alpha of a Pareto length", self.alpha, "more than 0")

    def draw(self, generator: np.random.Generator, count: int) -> Tokens:
        """Draw ``count`` independent lengths."""
        return _whole(self.least_tokens * (1.0 + generator.pareto(self.alpha, count)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture:
    """Mixture of several distributions, for example bimodal answers, or a light body with a heavy tail."""

    parts: tuple[Lengths, ...]
    weights: tuple[float, ...]
    """One nonnegative weight for each part; only their ratios matter."""

    def __post_init__(self) -> None:
        _require(
            0 < len(self.parts) == len(self.weights), "weights of a length mixture", self.weights, "one for each part"
        )
        sound = all(np.isfinite(weight) and weight >= 0 for weight in self.weights) and sum(self.weights) > 0
        _require(sound, "weights of a length mixture", self.weights, "numbers of 0 or more, not all 0")

    def draw(self, generator: np.random.Generator, count: int) -> Tokens:
        """Draw ``count`` independent lengths."""
        weights = np.asarray(self.weights, dtype=np.float64)
        chosen = generator.choice(len(self.parts), size=count, p=weights / weights.sum())
        drawn = np.stack([part.draw(generator, count) for part in self.parts])
        return np.asarray(drawn[chosen, np.arange(count)])


def _whole(lengths: NDArray[np.float64]) -> Tokens:
    """Round to whole tokens, 1 or more, and clip far tails to the integer range."""
    return np.rint(np.clip(lengths, 1.0, 1e15)).astype(np.int64)


def _require(condition: bool, name: str, value: object, remedy: str) -> None:  # noqa: FBT001 - an assertion's shape
    if not condition:
        raise BadInputError(f"{name} is {value}: give {remedy}")
