"""Demand against capacity: how the work in the queues grows, and what that says of what comes and of what is served.

Requests are counted, and where they are followed their work too: in order of length the short ones are served first, so that
under an overload the number in the queue grows slowly while its work grows fast. A full engine serves an engine-second a second.
The higher of the two counts: what work is expected is known badly as long as a model is new.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.monitoring.present.pulse import BIN_S, Bin, EngineBin, chosen
from store.formatting import count
from store.rules import GROWTH_S, OVERLOAD_S

LONGEST_CALM_S = 2.0
"""A queue that is served within this time is none to speak of: it is the usual target of the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What came and what was served within a span, and how the queue grew."""

    span_s: float
    arrived: int
    ended: int
    waiting: int
    """Requests in the queue at the end of the span."""
    grown: int
    """By how many the queue grew."""
    waiting_s: float
    """Engine-seconds of work in the queue; 0 where it is not followed."""
    grown_s: float
    """By how much that grew."""
    engines: int

    @property
    def ratio(self) -> float | None:
        """What comes over what is served; 1 where the queue does not grow by more than chance, None without traffic.

        Arrivals and departures by chance alone let the queue grow by the root of their number. What came is not compared
        with what ended: an engine that fills up with requests is not overloaded.

        >>> common = {"span_s": 30.0, "engines": 1, "waiting_s": 0.0, "grown_s": 0.0}
        >>> Demand(arrived=60, ended=30, waiting=40, grown=30, **common).ratio
        2.0
        >>> Demand(arrived=60, ended=55, waiting=8, grown=5, **common).ratio
        1.0
        >>> Demand(arrived=60, ended=58, waiting=40, grown=2, span_s=30.0, engines=1, waiting_s=60.0, grown_s=45.0).ratio
        2.5
        """
        if not self.arrived and not self.ended:
            return None
        ended, chance = max(self.ended, 1), 2.0 * (self.arrived + self.ended) ** 0.5
        if self.waiting * self.span_s < LONGEST_CALM_S * ended:
            return 1.0
        by_number = (ended + self.grown) / ended if self.grown > chance else 1.0
        by_chance_s = chance * self.waiting_s / max(self.waiting, 1)
        by_work = 1.0 + self.grown_s / (self.span_s * self.engines) if self.grown_s > by_chance_s else 1.0
        return max(by_number, by_work)

    @property
    def grown_per_minute(self) -> float:
        """Growth of the queue in requests."""
        return 60.0 * self.grown / self.span_s


def demand(bins: Sequence[Bin], names: frozenset[str] | None, span_s: float) -> Demand | None:
    """Demand over the last bins, of the engines of these names, or of all; None before there are two bins."""
    recent = bins[-1 - round(span_s / BIN_S) :]
    if len(recent) < 2:
        return None
    first: dict[str, EngineBin] = {}
    for each in reversed(recent):
        first |= _queues(each, names)
    last = _queues(recent[-1], names)
    engines = [engine for each in recent[1:] for engine in chosen(each, names)]
    return Demand(
        span_s=BIN_S * (len(recent) - 1),
        arrived=sum(engine.arrived for engine in engines),
        ended=sum(engine.ended for engine in engines),
        waiting=sum(engine.waiting or 0 for engine in last.values()),
        grown=sum((engine.waiting or 0) - (first[name].waiting or 0) for name, engine in last.items()),
        waiting_s=sum(engine.waiting_s for engine in last.values()),
        grown_s=sum(engine.waiting_s - first[name].waiting_s for name, engine in last.items()),
        engines=max(len(last), 1),
    )


def present_demand(bins: Sequence[Bin], names: frozenset[str] | None = None) -> Demand | None:
    """Demand of now: the highest over a quarter of a minute, half of one, and one.

    What grows slowly is found over the longest, what grows fast within seconds.

    A queue that shrinks again is not overloaded, whatever was before.
    """
    latest = demand(bins, names, OVERLOAD_S)
    if latest is None or latest.grown + latest.grown_s < 0.0:
        return latest
    longer = (demand(bins, names, span_s) for span_s in (2.0 * OVERLOAD_S, 4.0 * OVERLOAD_S))
    return max((latest, *filter(None, longer)), key=lambda seen: seen.ratio or 0.0)


def slow_growth(bins: Sequence[Bin]) -> Demand | None:
    """Demand over minutes."""
    return demand(bins, None, GROWTH_S)


def demand_text(seen: Demand) -> str:
    """Demand against capacity in words.

    >>> common = {"span_s": 30.0, "engines": 1, "waiting_s": 0.0, "grown_s": 0.0, "arrived": 60}
    >>> demand_text(Demand(ended=30, waiting=40, grown=30, **common))
    'The queue of 40 grows by 60 a minute: demand is 2.0 of what the engines serve.'
    >>> demand_text(Demand(ended=60, waiting=3, grown=1, **common))
    'The queue of 3 does not grow.'
    """
    if seen.ratio is None:
        return f"The queue of {count(seen.waiting)} stands still." if seen.waiting else "Nothing is asked."
    if seen.ratio <= 1.0:
        return f"The queue of {count(seen.waiting)} does not grow." if seen.waiting else "Nothing waits."
    grows = f"by {count(seen.grown_per_minute)} a minute" if seen.grown > 0 else "in work"
    return f"The queue of {count(seen.waiting)} grows {grows}: demand is {seen.ratio:.1f} of what the engines serve."


def _queues(at: Bin, names: frozenset[str] | None) -> dict[str, EngineBin]:
    """The engines that are there: one that has just come did not grow its queue."""
    return {
        name: engine
        for name, engine in at.engines.items()
        if engine.waiting is not None and (names is None or name in names)
    }
