"""Formats numbers, moments and lists for sentences."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from store import formatting

count = partial(formatting.count, unknown="an unknown number of")
"""A whole number with thousands separators."""


def clock(time_s: float) -> str:
    """A moment, UTC.

    >>> clock(1.25)
    '1970-01-01 00:00:01.250 UTC'
    """
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence joined by commas and, before the last, "and".

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
