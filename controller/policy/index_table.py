"""Computes index tables from predicted distributions and costs: a table is the whole decision about a request.

A table is a step function of the attained tokens with the distribution's grid as breakpoints. The engine looks up the
index in it, so that the index changes without a message.
"""

from __future__ import annotations

import numpy as np
from msgspec import structs

from controller.policy.cost import CostModel
from controller.policy.gittins import gittins_index, mean_remaining, survival_beyond
from controller.policy.policy import IndexRule, RequestFacts
from online_learning.distribution import FloatArray, IntArray, LengthDistribution
from store.records import IndexTable

OUTLIVED = 1e-9
"""Survival probability below which a request counts as having outlived its predicted distribution."""

_AGE_0: IntArray = np.zeros(1, dtype=np.int64)
_NO_MASS: FloatArray = np.zeros(1)

SAME = 0.01
"""Relative difference of index and growth below which two entries are merged."""


def index_table(
    request: RequestFacts,
    predicted: LengthDistribution,
    cost: CostModel,
    *,
    horizon_tokens: int,
    refresh_tokens: int | None = None,
    index: IndexRule = "gittins",
) -> IndexTable:
    """Index and expected growth of a request by its attained tokens.

    Args:
        request: the request; its id may be None for the prior.
        predicted: distribution of its output length in tokens, cut at ``request.max_tokens``.
        cost: prices of the engine.
        horizon_tokens: bound of the growth that is counted.
        refresh_tokens: the index changes only at multiples of this number, as in the paper; None lets it change at
            every length of the distribution.
        index: functional of the remaining cost.

    Returns:
        A table with the index in engine-seconds and the growth in tokens.
    """
    ages, mass = _ages(predicted, request.max_tokens, refresh_tokens)
    price_s = cost.total_s(request.prompt_tokens, ages, cached_tokens=request.cached_tokens)
    alive = survival_beyond(mass) > OUTLIVED
    index_s = (gittins_index if index == "gittins" else mean_remaining)(price_s, mass)
    index_s = np.where(alive, index_s, _outlived_index_s(request, cost, ages, index_s[alive].max()))
    growth = np.where(alive, _growth_tokens(ages, mass, horizon_tokens), ages)
    growth = np.minimum(growth, np.minimum(request.max_tokens - ages, horizon_tokens))
    published = ages < request.max_tokens
    if refresh_tokens is not None:
        published &= ages % refresh_tokens == 0
    table = _compact(request.request_id, ages[published], index_s[published], growth[published])
    return structs.replace(table, cached_tokens=request.cached_tokens)


def expected_cost_s(request: RequestFacts, predicted: LengthDistribution, cost: CostModel) -> float:
    """Mean cost of the whole request in engine-seconds."""
    costs_s = cost.total_s(request.prompt_tokens, predicted.lengths, cached_tokens=request.cached_tokens)
    return float(costs_s @ predicted.mass)


def _ages(predicted: LengthDistribution, max_tokens: int, refresh_tokens: int | None) -> tuple[IntArray, FloatArray]:
    """Ages at which the index is computed, and the probability of ending at each.

    They are 0, the distribution's lengths, doublings beyond them below max_tokens, and the refresh points.
    """
    lengths = predicted.lengths
    extra = [0]
    doubled = 2 * int(lengths[-1])
    while doubled < max_tokens:
        extra.append(doubled)
        doubled *= 2
    if refresh_tokens is not None:
        extra.extend(range(refresh_tokens, max_tokens, refresh_tokens))
    if refresh_tokens is None and lengths[0] > 0:
        ages = np.concatenate((_AGE_0, lengths, np.array(extra[1:], dtype=np.int64)))
        return ages, np.concatenate((_NO_MASS, predicted.mass, np.zeros(len(extra) - 1)))
    ages = np.union1d(lengths, extra)
    mass = np.zeros(ages.size)
    mass[ages.searchsorted(lengths)] = predicted.mass
    return ages, mass


def _outlived_index_s(request: RequestFacts, cost: CostModel, ages: IntArray, highest_s: float) -> FloatArray:
    """Index beyond the predicted distribution: the cost of doubling the age, and at least the highest index before.

    Survival is the only evidence there, and lengths are heavy-tailed: a request that outlives all samples is not about
    to end.
    """
    prompt, cached = request.prompt_tokens, request.cached_tokens
    again_s = cost.total_s(prompt, np.minimum(2 * ages, request.max_tokens), cached_tokens=cached)
    return np.maximum(again_s - cost.total_s(prompt, ages, cached_tokens=cached), highest_s)


def _growth_tokens(ages: IntArray, mass: FloatArray, horizon_tokens: int) -> FloatArray:
    """E[min(length - age, horizon)] given that the answer is longer than each age; 0 where its probability is 0."""
    survival = survival_beyond(mass)
    tokens_beyond = survival_beyond(mass * ages)
    within = ages.searchsorted(ages + horizon_tokens, side="right") - 1
    ending = survival - survival[within]
    expected = tokens_beyond - tokens_beyond[within] - ages * ending + horizon_tokens * survival[within]
    growth: FloatArray = np.divide(expected, survival, out=np.zeros(ages.size), where=survival > 0.0)
    return np.maximum(growth, 0.0)


def _compact(request_id: str | None, ages: IntArray, index_s: FloatArray, growth: FloatArray) -> IndexTable:
    """Merge entries that hardly differ from the one before."""
    assert np.isfinite(index_s).all(), "an index must be a number"
    assert index_s.min() >= 0.0, "the remaining cost must not be negative"
    kept: list[tuple[int, float, float]] = []
    last, last_growth = -1.0, -1.0
    for entry in zip(ages.tolist(), index_s.tolist(), growth.tolist(), strict=True):
        _, index, grows = entry
        # Inlined, because it runs a hundred times for each decision.
        if (index - last > SAME * index if index > last else last - index > SAME * last) or (
            grows - last_growth > SAME * grows if grows > last_growth else last_growth - grows > SAME * last_growth
        ):
            kept.append(entry)
            last, last_growth = index, grows
    attained, indices, growths = zip(*kept, strict=True)
    return IndexTable(request_id=request_id, attained_tokens=attained, index_s=indices, growth_tokens=growths)
