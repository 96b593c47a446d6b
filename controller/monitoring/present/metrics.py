"""What the rules judge, and what they find, as metrics: alerts and Grafana see the numbers that *Now* sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.monitoring.live_state import Live
from controller.monitoring.present.demand import present_demand, slow_growth
from controller.monitoring.present.pulse import Pulse
from controller.monitoring.present.verdict import findings, free_bytes, loop_shares
from store.rules import LEVELS, RULES


class PresentCollector(Collector):
    """Read at each scrape."""

    def __init__(self, live: Live, pulse: Pulse, folder: Path, clock: Callable[[], float]) -> None:
        self._live = live
        self._pulse = pulse
        self._folder = folder
        self._clock = clock

    def describe(self) -> Iterator[Metric]:
        """Describe no metrics in advance."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        """The numbers, then the findings by rule; a rule that finds nothing is 0."""
        bins, now_s, free = self._pulse.bins, self._clock(), free_bytes(self._folder)
        ratio = GaugeMetricFamily(
            "sagesched_demand_ratio",
            "Requests that come over those that are served; 1 where the queue does not grow by more than chance.",
            labels=["window"],
        )
        for window, seen in (("now", present_demand(bins)), ("5m", slow_growth(bins))):
            ratio.add_metric([window], (seen.ratio if seen else None) or 0.0)
        yield ratio
        held, late = loop_shares(bins, now_s)
        yield GaugeMetricFamily(
            "sagesched_loop_held_ratio",
            "Share of the last minute in which the control loop had work and waited for a core, the disk or another thread.",
            value=held,
        )
        yield GaugeMetricFamily(
            "sagesched_loop_late_ratio",
            "Share of the last minute that went into turns of the control loop of more than half a second.",
            value=late,
        )
        if free is not None:
            yield GaugeMetricFamily("sagesched_store_free_bytes", "Bytes free on the disk of the history.", value=free)
        yield from self._findings(now_s, free)

    def _findings(self, now_s: float, free: int | None) -> Iterator[Metric]:
        metric = GaugeMetricFamily(
            "sagesched_finding", "What the page Now says of each rule: 0 nothing, 1 amber, 2 red.", labels=["rule"]
        )
        snapshot = self._live.live_snapshot
        if snapshot is None:
            return
        worst = dict.fromkeys(RULES, 0)
        for each in findings(snapshot, self._pulse.bins, free_bytes=free, now_s=now_s):
            worst[each.rule] = max(worst[each.rule], LEVELS.index(each.level) - 1)
        for rule, value in worst.items():
            metric.add_metric([rule], value)
        yield metric
        yield GaugeMetricFamily(
            "sagesched_verdict", "The worst that any rule finds: 0 green, 1 amber, 2 red.", value=max(worst.values())
        )
