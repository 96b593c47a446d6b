"""Which segments a history gives up: by age, as far as the clock can be trusted, and by size. Pure functions.

All tables are cut at one place, so that a request that is kept has all its rows: what is known of it later than its arrival
lies in segments of other lengths, which end and are merged at other moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

KEPT_TABLES = ("engines", "settings_history")
"""Tables of a few rows, without which the rest is hard to read: no retention takes them."""

_FIRST_TABLE = "arrivals"
"""The table of a request's first row."""

_DAY_S = 86_400.0
_GAP_S = 3 * _DAY_S
"""Time without a row after which the clock is not believed at once."""

_PROOF_S = _DAY_S
"""Time for which rows must have come since such a gap until it is."""


class Aged(Protocol):
    """What must be known of a segment."""

    @property
    def table_name(self) -> str:
        """Its table."""
        ...

    @property
    def bytes(self) -> int:
        """Its size."""
        ...

    @property
    def first_received_s(self) -> float:
        """When its first row came."""
        ...

    @property
    def last_received_s(self) -> float:
        """When its last row came."""
        ...


AnySegment = TypeVar("AnySegment", bound=Aged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What the history keeps."""

    days: float
    bytes: int
    grace_s: float
    """Time for which a replaced or expired segment stays on the disk for its readers."""

    @property
    def seconds(self) -> float:
        """The age beyond which a row may go."""
        return self.days * _DAY_S


def trusted_now_s(active: Iterable[Aged], now_s: float, retention_s: float) -> float:
    """The time that ages are counted from: now, or the newest row before a gap that now does not explain yet.

    A clock that is set wrong makes all rows old at once. It is believed when rows have come under it for a day, as after a
    real pause. A segment holds the rows of a day at most, unless the clock was set or nothing wrote for days between them:
    such a one counts at both of its ends only.
    """
    gap_s, proof_s = min(_GAP_S, retention_s), min(_PROOF_S, retention_s)
    spans = sorted(span for segment in active for span in _spans(segment) if span[0] <= now_s)
    until_s, trusted_s = (spans[0][1] if spans else now_s), now_s
    for first_s, last_s in (*spans, (now_s, now_s)):
        if first_s - until_s > gap_s:
            trusted_s = now_s if now_s - first_s >= proof_s else min(trusted_s, until_s)
        until_s = max(until_s, last_s)
    return trusted_s


def _spans(segment: Aged) -> tuple[tuple[float, float], ...]:
    first_s, last_s = segment.first_received_s, segment.last_received_s
    return ((first_s, last_s),) if last_s - first_s <= _DAY_S else ((first_s, first_s), (last_s, last_s))


def outlived(active: Sequence[AnySegment], now_s: float, retention: Retention) -> list[AnySegment]:
    """The segments to give up: all that are too old, then the oldest while the rest is too much.

    A segment with rows of a clock that was ahead ages from its first row: its last one lies in the future.
    """
    mortal = [segment for segment in active if segment.table_name not in KEPT_TABLES]
    last_s = {id(s): s.last_received_s if s.last_received_s <= now_s else s.first_received_s for s in mortal}
    tried = (_from(mortal, cut_s, last_s) for cut_s in _cuts(mortal, now_s - retention.seconds, last_s))
    kept = {id(s) for s in next(kept for kept in tried if sum(s.bytes for s in kept) <= retention.bytes)}
    return [segment for segment in mortal if id(segment) not in kept]


def _cuts(mortal: Sequence[Aged], oldest_s: float, last_s: Mapping[int, float]) -> Iterator[float]:
    """Moments to cut at, each of which takes one more of the segments of first rows; the last takes everything."""
    first_rows = [segment for segment in mortal if segment.table_name == _FIRST_TABLE] or mortal
    yield oldest_s
    for moment_s in sorted({last_s[id(segment)] for segment in first_rows}):
        if moment_s >= oldest_s:
            yield math.nextafter(moment_s, math.inf)
    yield math.inf


def _from(mortal: Sequence[AnySegment], cut_s: float, last_s: Mapping[int, float]) -> list[AnySegment]:
    """What stays: first rows since the cut, and of the other tables all since the oldest of these."""
    first_rows = [s for s in mortal if s.table_name == _FIRST_TABLE and last_s[id(s)] >= cut_s]
    since_s = min((cut_s, *(segment.first_received_s for segment in first_rows)))
    return [*first_rows, *(s for s in mortal if s.table_name != _FIRST_TABLE and last_s[id(s)] >= since_s)]
