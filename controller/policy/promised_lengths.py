"""What an engine must know of a request's predicted length to keep its targets, as columns of its index table."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from controller.policy.policy import RequestFacts
from online_learning.distribution import IntArray, LengthDistribution
from store.records import IndexTable

OUTLIVED = 1e-9
"""Survival probability below which a request counts as having outlived its predicted distribution."""

EARLY, LATE = 0.1, 0.9
"""Probabilities at which the columns ``early_tokens`` and ``late_tokens`` are quantiles."""


def with_promise(table: IndexTable, request: RequestFacts, predicted: LengthDistribution) -> IndexTable:
    """The table with the request's targets and account, and with the quantiles that an end-to-end target needs."""
    targets = request.targets
    if targets is None and request.account is None:
        return table
    early: tuple[int, ...] = ()
    late: tuple[int, ...] = ()
    if targets is not None and (targets.e2e_s is not None or targets.tpot_s is not None):
        ages = np.array(table.attained_tokens, dtype=np.int64)
        early, late = (
            tuple(lengths_beyond(predicted, ages, share, request.max_tokens).tolist()) for share in (EARLY, LATE)
        )
    return structs.replace(
        table,
        targets=targets,
        early_tokens=early,
        late_tokens=late,
        tenant=request.account,
        weight=request.weight,
    )


def lengths_beyond(predicted: LengthDistribution, ages: IntArray, share: float, max_tokens: int) -> IntArray:
    """The quantile of the output length given that it exceeds each age.

    Beyond the predicted lengths an answer is taken to double, as for the index, to ``max_tokens`` at most.

    Args:
        predicted: distribution of the output length in tokens.
        ages: output tokens generated, of shape (n,).
        share: the probability, between 0 and 1.
        max_tokens: largest output length.

    Returns:
        Lengths in tokens of shape (n,), each above its age where ``max_tokens`` is.

    >>> lengths = LengthDistribution(np.array([10, 20, 40]), np.array([0.5, 0.25, 0.25]))
    >>> lengths_beyond(lengths, np.array([0, 10, 40]), 0.5, 100).tolist()
    [10, 20, 80]
    """
    below = np.concatenate(([0.0], np.cumsum(predicted.mass)))
    at_age = below[predicted.lengths.searchsorted(ages, side="right")]
    places = (below[1:] + 1e-12).searchsorted(at_age + share * (below[-1] - at_age))
    known = (places < predicted.lengths.size) & (below[-1] - at_age > OUTLIVED)
    lengths = predicted.lengths[np.minimum(places, predicted.lengths.size - 1)]
    outlived = ~known | (lengths <= ages)
    found: IntArray = np.minimum(np.where(outlived, np.maximum(2 * ages, ages + 1), lengths), max_tokens)
    return found
