"""The four tiles of *Now* in words: latency against its targets, demand against capacity, and the gain with its trust."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dashboard.data.client import Trouble
from dashboard.data.last_known import LastKnown
from dashboard.text.gain import interval, ratio_change
from store.formatting import DASH, count, percent, span
from store.http_api import GainView
from store.http_now import AttainedNow, LatencyNow, LatencyPoint, NowView
from store.rules import Level
from store.service_levels import DEFAULT_TARGETS, NOT_CONFIGURED


@dataclass(frozen=True)
class Tile:
    """A title, a few figures with their names, a trend, and lines of text."""

    title: str
    figures: tuple[tuple[str, str], ...]
    lines: tuple[str, ...] = ()
    level: Level = "green"
    trend: tuple[LatencyPoint, ...] = ()


def tiles(now: NowView, gain: GainView | Trouble, mode: str) -> list[Tile]:
    """The tiles, in their order."""
    found = {each.rule: each.level for each in now.verdict.findings}
    targets = found.get("missed_targets", "green")
    return [
        _latency("Time to first token", now.ttft, (_targets(now.attained),), targets),
        _latency("Time to last token", now.ttlt, (), "green"),
        _demand(now, found.get("overload", found.get("queue_growing", "green"))),
        _gain(gain, mode),
    ]


def last_tiles(found: LastKnown) -> list[Tile]:
    """What was waiting when the engines were heard last, and how long requests took until then."""
    waiting, running = (sum(getattr(each, name) or 0 for each in found.engines) for name in ("waiting", "running"))
    queue = Tile("Queue", (("waiting", count(waiting)), ("running", count(running))), level="info")
    return [
        _latency("Time to first token", found.ttft, (), "info"),
        _latency("Time to last token", found.ttlt, (), "info"),
        queue,
    ]


def _latency(title: str, of: LatencyNow, more: tuple[str, ...], level: Level) -> Tile:
    figures = (("P50", span(of.p50_s)), ("P99", span(of.p99_s)))
    trend = trend_words(of)
    return Tile(title, figures, tuple(line for line in (trend, *more) if line), level, of.points)


def trend_words(of: LatencyNow) -> str:
    """How the median compares with that of the five minutes before.

    >>> fast = LatencyNow(requests=9, p50_s=0.2, p99_s=1.0, before_p50_s=0.8, points=())
    >>> trend_words(fast)
    '↘ median was 800 ms, 9 requests in a minute'
    """
    if not of.requests:
        return "No request ended within a minute."
    ended = f"{count(of.requests)} request{'s' * (of.requests != 1)} in a minute"
    if of.p50_s is None or of.before_p50_s is None:
        return ended
    arrow = "↗" if of.p50_s > 1.1 * of.before_p50_s else "↘" if of.p50_s < of.before_p50_s / 1.1 else "→"
    return f"{arrow} median was {span(of.before_p50_s)}, {ended}"


def _targets(classes: Sequence[AttainedNow]) -> str:
    """The share within targets of the class that misses most, against what it is to be.

    >>> _targets([AttainedNow(service_class="chat", objective=0.99, judged=100, missed=3)])
    'chat: 97% within targets, wanted 99%'
    >>> _targets([AttainedNow(service_class=NOT_CONFIGURED, objective=0.95, judged=100, missed=20)])
    '80% within the default targets (TTFT 2 s)'
    """
    known = [each for each in classes if each.judged]
    if not known:
        return ""
    worst = max(known, key=lambda each: each.missed / each.judged / (1.0 - each.objective))
    share = percent(1.0 - worst.missed / worst.judged)
    if worst.service_class == NOT_CONFIGURED:
        return f"{share} within the default targets (TTFT {span(DEFAULT_TARGETS.ttft_s)})"
    return f"{worst.service_class}: {share} within targets, wanted {percent(worst.objective)}"


def _demand(now: NowView, level: Level) -> Tile:
    title, demand = "Demand and capacity", now.demand
    if demand is None:
        return Tile(title, (("in", DASH), ("out", DASH)), ("Counting has just begun.",))
    figures = (("in", f"{demand.arrived_per_s:.3g}/s"), ("out", f"{demand.ended_per_s:.3g}/s"))
    return Tile(title, figures, (demand.text,), level)


def _gain(view: GainView | Trouble, mode: str) -> Tile:
    """The change against first come, first served; what the replay is off by is said before anybody believes it."""
    title = "Against first come, first served" if mode == "on" else "What mode on would bring"
    if isinstance(view, Trouble) or view.gain is None:
        reason = (
            "" if isinstance(view, Trouble) or view.reason is None else f"{view.reason[:1].upper()}{view.reason[1:]}."
        )
        return Tile(title, (("mean", DASH), ("P99", DASH)), (reason or "No comparison yet.",), "info")
    gain = view.gain
    tail = gain.modelled.p99_ttlt_s / gain.fcfs.p99_ttlt_s if gain.fcfs.p99_ttlt_s else None
    figures = (("mean", ratio_change(gain.ratio.mean)), ("P99", ratio_change(tail)))
    found = gain.reproduction
    if found.poor:
        return Tile(title, figures, (f"Do not trust it yet: {'; '.join(found.poor)}.",), "amber")
    sure = f"90% sure: {interval(gain.ratio)}. " if gain.ratio.low <= gain.ratio.high else ""
    off = "" if found.mean_ttlt_error is None else f"The replay is off by {percent(abs(found.mean_ttlt_error))}."
    return Tile(title, figures, (f"{sure}{off}",), "amber" if gain.ratio.low > 1.0 else "green")
