"""Numbers, spans and moments as words of a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def count(number: float | None) -> str:
    """A whole number with its thousands apart.

    >>> count(12345.6), count(None)
    ('12,346', 'an unknown number of')
    """
    return "an unknown number of" if number is None else f"{number:,.0f}"


def percent(share: float) -> str:
    """A share as a whole percentage, with what matters at the ends.

    >>> percent(0.25), percent(0.9999), percent(0.001)
    ('25 %', '99.99 %', '0.1 %')
    """
    edge = min(share, 1.0 - share)
    digits = 0 if edge >= 0.0095 or edge <= 0.0 else 1 if edge >= 0.00095 else 2
    return f"{100.0 * share:.{digits}f} %"


def span(seconds: float) -> str:
    """A span of time.

    >>> span(0.0421), span(2.345), span(75), span(7300), span(0.00002)
    ('42 ms', '2.35 s', '1 min 15 s', '2 h 1 min', 'less than a millisecond')
    """
    if abs(seconds) < 0.001:
        return "less than a millisecond"
    if abs(seconds) < 0.9995:
        return f"{1000.0 * seconds:.2g} ms" if abs(seconds) < 0.01 else f"{1000.0 * seconds:.0f} ms"
    if abs(seconds) < 59.95:
        return f"{seconds:.3g} s"
    minutes, rest_s = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest_s} s" if rest_s else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def clock(time_s: float) -> str:
    """A moment, UTC.

    >>> clock(1.25)
    '1970-01-01 00:00:01.250 UTC'
    """
    return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3] + " UTC"


def listed(parts: Sequence[str]) -> str:
    """Parts of a sentence, the last after "and".

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
