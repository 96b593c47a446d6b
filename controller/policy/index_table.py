"""Computes index tables from predicted distributions and costs: a table is the whole decision about a request.

A table is a step function of the attained tokens with the distribution's grid as breakpoints. The engine looks up the
index in it, so that the index changes without a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from controller.policy.cost import CostModel
from controller.policy.gittins import gittins_index, mean_remaining, survival_beyond
from controller.policy.policy import IndexRule, RequestFacts
from controller.policy.promised_lengths import OUTLIVED, with_promise
from online_learning.distribution import FloatArray, IntArray, LengthDistribution
from online_learning.rows import Number
from store.records import IndexTable

_AGE_0: IntArray = np.zeros(1, dtype=np.int64)
_NO_MASS: FloatArray = np.zeros(1)

SAME = 0.01
"""Relative difference of index and growth below which two entries are merged."""


class Priced(NamedTuple):
    """A request, the predicted distribution of its output length, cut at its max_tokens, and the prices of its engine."""

    request: RequestFacts
    predicted: LengthDistribution
    cost: CostModel


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
    priced = [Priced(request, predicted, cost)]
    return index_tables(priced, horizon_tokens=horizon_tokens, refresh_tokens=refresh_tokens, index=index)[0]


def index_tables(
    priced: Sequence[Priced], *, horizon_tokens: int, refresh_tokens: int | None = None, index: IndexRule = "gittins"
) -> list[IndexTable]:
    """The tables of several requests, each as `index_table` gives it, to the last digit.

    Requests are rows. A row that has fewer ages than the longest is filled with its last age, at which no mass is.
    """
    aged = [_ages(each.predicted, each.request.max_tokens, refresh_tokens) for each in priced]
    ages, mass = _rows([each for each, _ in aged]), _rows([each for _, each in aged], 0.0)
    max_tokens = np.array([each.request.max_tokens for each in priced])[:, None]
    total_s = _prices(priced)
    price_s = total_s(ages)
    alive = survival_beyond(mass) > OUTLIVED
    index_s = _gittins_rows(price_s, mass) if index == "gittins" else mean_remaining(price_s, mass)
    highest_s = np.where(alive, index_s, -np.inf).max(axis=1, keepdims=True)
    index_s = np.where(alive, index_s, _outlived_index_s(total_s(np.minimum(2 * ages, max_tokens)), price_s, highest_s))
    growth = np.where(alive, _growth_tokens(ages, mass, horizon_tokens), ages)
    growth = np.minimum(growth, np.minimum(max_tokens - ages, horizon_tokens))
    published = (ages < max_tokens) & (np.arange(ages.shape[1]) < np.array([[each.size] for each, _ in aged]))
    if refresh_tokens is not None:
        published &= ages % refresh_tokens == 0
    return [
        with_promise(
            _compact(each.request, ages[row, kept], index_s[row, kept], growth[row, kept]), each.request, each.predicted
        )
        for row, (each, kept) in enumerate(zip(priced, published, strict=True))
    ]


def expected_cost_s(request: RequestFacts, predicted: LengthDistribution, cost: CostModel) -> float:
    """Mean cost of the whole request in engine-seconds."""
    return expected_costs_s([Priced(request, predicted, cost)])[0]


def expected_costs_s(priced: Sequence[Priced]) -> list[float]:
    """The mean costs of several requests, each as `expected_cost_s` gives it."""
    costs_s = _prices(priced)(_rows([each.predicted.lengths for each in priced]))
    return [
        float(row[: each.predicted.lengths.size] @ each.predicted.mass)
        for row, each in zip(costs_s, priced, strict=True)
    ]


def _rows(arrays: Sequence[NDArray[Number]], fill: float | None = None) -> NDArray[Number]:
    """Arrays of different lengths as rows, filled up with a value, or with the last one of each."""
    rows = np.empty((len(arrays), max(array.size for array in arrays)), dtype=arrays[0].dtype)
    for row, array in zip(rows, arrays, strict=True):
        row[: array.size] = array
        row[array.size :] = array[-1] if fill is None else fill
    return rows


def _prices(priced: Sequence[Priced]) -> Callable[[IntArray], FloatArray]:
    """What gives the cost of generating numbers of output tokens, a row for each request."""
    columns = np.array(
        [
            (cost.kv_token_step_s, cost.slot_step_s, cost.prefill_token_s, request.prompt_tokens, request.cached_tokens)
            for request, _, cost in priced
        ]
    )
    kv_s, slot_s, prefill_s, prompt, cached = (column[:, None] for column in columns.T)
    prices = CostModel(kv_token_step_s=kv_s, slot_step_s=slot_s, prefill_token_s=prefill_s)
    return lambda output_tokens: prices.total_s(prompt, output_tokens, cached_tokens=cached)


def _gittins_rows(price_s: FloatArray, mass: FloatArray) -> FloatArray:
    return np.stack([gittins_index(prices_s, chances) for prices_s, chances in zip(price_s, mass, strict=True)])


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


def _outlived_index_s(doubled_s: FloatArray, price_s: FloatArray, highest_s: FloatArray) -> FloatArray:
    """Index beyond the predicted distribution: the cost of doubling the age, and at least the highest index before.

    Survival is the only evidence there, and lengths are heavy-tailed: a request that outlives all samples is not about
    to end.
    """
    return np.maximum(doubled_s - price_s, highest_s)


def _growth_tokens(ages: IntArray, mass: FloatArray, horizon_tokens: int) -> FloatArray:
    """E[min(length - age, horizon)] given that the answer is longer than each age; 0 where its probability is 0."""
    survival = survival_beyond(mass)
    tokens_beyond = survival_beyond(mass * ages)
    within = np.stack([row.searchsorted(row + horizon_tokens, side="right") - 1 for row in ages])
    survival_within = np.take_along_axis(survival, within, axis=1)
    ending = survival - survival_within
    beyond = tokens_beyond - np.take_along_axis(tokens_beyond, within, axis=1)
    expected = beyond - ages * ending + horizon_tokens * survival_within
    growth: FloatArray = np.divide(expected, survival, out=np.zeros(ages.shape), where=survival > 0.0)
    return np.maximum(growth, 0.0)


def _compact(request: RequestFacts, ages: IntArray, index_s: FloatArray, growth: FloatArray) -> IndexTable:
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
    return IndexTable(
        request_id=request.request_id,
        attained_tokens=attained,
        index_s=indices,
        growth_tokens=growths,
        cached_tokens=request.cached_tokens,
    )
