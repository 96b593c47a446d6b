"""Draws the gain against the load as SVG for documents, without a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from controller.benchmark.scheduling.plots import GAINS
from controller.benchmark.scheduling.result import BenchResult
from controller.reports.page import colour
from store.atomic_file import write_whole

PANEL_WIDTH, PANEL_HEIGHT, MARGIN_LEFT, MARGIN_TOP, GAP = 300, 210, 52, 46, 34
LEGEND_ROW, LEGEND_COLUMN = 18, 190
FONT = "font-family='system-ui, sans-serif' font-size='12' fill='#374151'"


def write_gain_chart(results: Sequence[BenchResult], path: Path, against: str) -> None:
    """Draw one panel for each profile and figure: the ratio to a policy against the load, a line for each policy."""
    write_whole(path, gain_chart(results, against))


def gain_chart(results: Sequence[BenchResult], against: str) -> str:
    """The chart as SVG text."""
    profiles = list(dict.fromkeys(result.spec.profile for result in results))
    policies = [policy for policy in results[0].spec.policies if policy != against]
    panels = [
        _panel([result for result in results if result.spec.profile == profile], policies, against, gain, at)
        for column, profile in enumerate(profiles)
        for row, gain in enumerate(GAINS)
        for at in [(MARGIN_LEFT + column * (PANEL_WIDTH + GAP), MARGIN_TOP + row * (PANEL_HEIGHT + 2 * GAP))]
    ]
    width = MARGIN_LEFT + len(profiles) * (PANEL_WIDTH + GAP)
    per_row = max(1, (width - MARGIN_LEFT) // LEGEND_COLUMN)
    legend_top = MARGIN_TOP + len(GAINS) * (PANEL_HEIGHT + 2 * GAP)
    legend = [
        _legend(
            policy, number, MARGIN_LEFT + number % per_row * LEGEND_COLUMN, legend_top + number // per_row * LEGEND_ROW
        )
        for number, policy in enumerate(policies)
    ]
    height = legend_top + (len(policies) // per_row + 1) * LEGEND_ROW
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>"
        f"<rect width='100%' height='100%' fill='white'/>{''.join(panels)}{''.join(legend)}</svg>\n"
    )


@dataclass(frozen=True, slots=True)
class _Scale:
    """Maps loads and ratios to positions in a panel."""

    left: float
    top: float
    lowest_load: float
    highest_load: float
    highest: float

    def x(self, load: float) -> float:
        span = self.highest_load - self.lowest_load
        return self.left + PANEL_WIDTH * ((load - self.lowest_load) / span if span else 0.5)

    def y(self, ratio: float) -> float:
        return self.top + PANEL_HEIGHT * (1.0 - min(ratio, self.highest) / self.highest)


def _panel(
    results: list[BenchResult], policies: list[str], against: str, gain: tuple[str, str], at: tuple[int, int]
) -> str:
    figure, title = gain
    ordered = sorted(results, key=lambda result: result.spec.load)
    loads = [result.spec.load for result in ordered]
    ratios = {policy: [result.ratio(policy, against, figure).mean for result in ordered] for policy in policies}
    highest = min(_HIGHEST_RATIO, max(1.2, *(1.05 * ratio for of_one in ratios.values() for ratio in of_one)))
    scale = _Scale(*at, loads[0], loads[-1], highest)
    lines = [
        _polyline([(scale.x(load), scale.y(ratio)) for load, ratio in zip(loads, ratios[policy], strict=True)], number)
        for number, policy in enumerate(policies)
    ]
    heading = f"{title} / {against}, {ordered[0].spec.profile}"
    left, top = at
    return f"<text x='{left}' y='{top - 10}' {FONT}>{escape(heading)}</text>{_axes(scale, loads)}{''.join(lines)}"


_HIGHEST_RATIO = 4.0
"""Highest ratio in a panel; higher ones are drawn at its upper edge."""


def _axes(scale: _Scale, loads: list[float]) -> str:
    grid = [1.0, *(tick for tick in (0.5, 1.5, 2.0, 3.0, 4.0) if tick <= scale.highest)]
    parts = [
        f"<line x1='{scale.left}' x2='{scale.left + PANEL_WIDTH}' y1='{scale.y(tick):.1f}' y2='{scale.y(tick):.1f}' "
        f"stroke='{'#111827' if tick == 1.0 else '#e5e7eb'}'/>"
        f"<text x='{scale.left - 8}' y='{scale.y(tick) + 4:.1f}' text-anchor='end' {FONT}>{tick:g}</text>"
        for tick in grid
    ]
    bottom = scale.top + PANEL_HEIGHT
    parts += [
        f"<text x='{scale.x(load):.1f}' y='{bottom + 16}' text-anchor='middle' {FONT}>{load:g}</text>" for load in loads
    ]
    parts.append(
        f"<line x1='{scale.left}' x2='{scale.left + PANEL_WIDTH}' y1='{bottom}' y2='{bottom}' stroke='#9ca3af'/>"
    )
    parts.append(f"<text x='{scale.left + PANEL_WIDTH / 2}' y='{bottom + 32}' text-anchor='middle' {FONT}>load</text>")
    return "".join(parts)


def _polyline(points: list[tuple[float, float]], number: int) -> str:
    stroke = colour(number + 1)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dots = "".join(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{stroke}'/>" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{stroke}' stroke-width='2'/>{dots}"


def _legend(policy: str, number: int, left: int, top: int) -> str:
    stroke = colour(number + 1)
    return (
        f"<rect x='{left}' y='{top - 9}' width='14' height='4' fill='{stroke}'/>"
        f"<text x='{left + 20}' y='{top}' {FONT}>{escape(policy)}</text>"
    )
