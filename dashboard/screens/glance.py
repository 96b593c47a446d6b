"""What *Now* shows at a glance, as HTML: the verdict, four tiles, the engines, and what happened lately.

Colours follow Streamlit's theme, light or dark, and never speak alone: each level has its word. Text from outside is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from urllib.parse import quote

from dashboard.charts import palette
from dashboard.text.glance import Tile
from store.formatting import DASH, count, span
from store.http_now import EngineNow, Event, Finding, LatencyPoint, Verdict
from store.rules import Level

COLOURS: dict[Level, str] = {
    "green": palette.GREEN,
    "info": palette.BLUE,
    "amber": palette.AMBER,
    "red": palette.RED,
}
WORDS: dict[Level, str] = {"green": "Green", "info": "Note", "amber": "Amber", "red": "Red"}
SHOWN = 2
"""Findings that are shown below the worst; the rest is counted."""
ENGINES_SHOWN = 12
EVENTS_SHOWN = 8

STYLE = """<style>
.sage-glance { font-size: 0.9rem; line-height: 1.4; }
.sage-verdict { border: 1px solid color-mix(in srgb, currentColor 18%, transparent); border-left: 6px solid var(--level);
  border-radius: 6px; padding: 0.5rem 0.8rem; background: color-mix(in srgb, var(--level) 9%, transparent); }
.sage-verdict h2 { font-size: 1.15rem; margin: 0; padding: 0; }
.sage-verdict ul { margin: 0.25rem 0 0 0; padding-left: 1.1rem; }
.sage-dot { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 50%; background: var(--level); margin-right: 0.45em; }
.sage-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 0.6rem; margin-top: 0.6rem; }
.sage-tile { border: 1px solid color-mix(in srgb, currentColor 18%, transparent); border-top: 3px solid var(--level);
  border-radius: 6px; padding: 0.4rem 0.7rem; min-width: 0; }
.sage-tile h3 { font-size: 0.8rem; font-weight: 600; margin: 0; padding: 0; opacity: 0.8; }
.sage-tile .figures { font-size: 1.3rem; font-weight: 600; }
.sage-tile .figures small { font-size: 0.75rem; font-weight: 400; opacity: 0.8; }
.sage-tile img { display: block; width: 100%; height: 26px; }
.sage-table { width: 100%; border-collapse: collapse; margin-top: 0.6rem; font-variant-numeric: tabular-nums; }
.sage-table th { font-weight: 600; font-size: 0.78rem; text-align: right; opacity: 0.8; padding: 0.1rem 0.5rem; }
.sage-table td { text-align: right; padding: 0.15rem 0.5rem; border-top: 1px solid color-mix(in srgb, currentColor 14%, transparent); white-space: nowrap; }
.sage-table .text { text-align: left; overflow: hidden; text-overflow: ellipsis; max-width: 16rem; }
.st-key-now_lists [data-testid="stColumn"] { min-width: min(100%, 24rem); }
.sage-scroll { overflow-x: auto; }
.sage-bar { display: inline-block; width: 3.4rem; height: 0.55rem; margin-right: 0.4rem; border-radius: 2px; vertical-align: middle;
  background: linear-gradient(to right, #3f7fc1 var(--share), color-mix(in srgb, currentColor 15%, transparent) var(--share)); }
.sage-events { list-style: none; margin: 0; padding: 0; }
.sage-events li { margin: 0; padding: 0.12rem 0; overflow-wrap: anywhere; }
.sage-events time { opacity: 0.75; margin-right: 0.5em; font-variant-numeric: tabular-nums; }
</style>"""


def verdict(found: Verdict, words: str) -> str:
    """The level with its reason and what to do, then what else is amiss; ``words`` say what is in force and where."""
    first, others = found.findings[:1], found.findings[1:]
    head = f'<h2><span class="sage-dot"></span>{WORDS[found.level]}: {escape(found.text)}</h2>'
    if found.level == "green":
        first, others = (), found.findings
    reason = "".join(f"<div>{_reason(each)}</div>" for each in first)
    items = "".join(f"<li>{WORDS[each.level]}: {escape(each.title)}. {_reason(each)}</li>" for each in others[:SHOWN])
    more = len(others) - SHOWN
    rest = f"<li>and {more} more, under <i>Settings and health</i></li>" if more > 0 else ""
    listed = f"<ul>{items}{rest}</ul>" if items else ""
    return (
        f'<div class="sage-glance sage-verdict" role="status" data-level="{found.level}" style="--level: {COLOURS[found.level]}">'
        f"{head}{reason}{listed}<div>{escape(words)}</div></div>"
    )


def _reason(found: Finding) -> str:
    do = f" <b>{escape(found.do.replace('`', ''))}</b>" if found.do else ""
    return f"{escape(found.text)}{do}"


def tiles(shown: Iterable[Tile]) -> str:
    """Tiles in a grid that reflows; each with its trend where there is one."""
    return f'<div class="sage-glance sage-tiles">{"".join(map(_tile, shown))}</div>'


def _tile(tile: Tile) -> str:
    figures = " &nbsp; ".join(f"<small>{escape(name)}</small> {escape(value)}" for name, value in tile.figures)
    trend = sparkline(tile.trend, tile.title) if tile.trend else ""
    lines = "".join(f"<div>{escape(line)}</div>" for line in tile.lines)
    return (
        f'<div class="sage-tile" data-tile="{escape(tile.title)}" style="--level: {COLOURS[tile.level]}">'
        f'<h3>{escape(tile.title)}</h3><div class="figures">{figures}</div>{trend}{lines}</div>'
    )


def sparkline(points: Sequence[LatencyPoint], title: str) -> str:
    """The median, and above it the 99th percentile, on one logarithmic scale; gaps where no request ended."""
    values = [value for point in points for value in (point.p50_s, point.p99_s) if value]
    if not values:
        return ""
    low, high = math.log(min(values)), math.log(max(values))
    width = max(len(points) - 1, 1)

    def path(of: Callable[[LatencyPoint], float | None]) -> str:
        parts, pen = [], "M"
        for place, point in enumerate(points):
            value = of(point)
            if not value:
                pen = "M"
                continue
            up = (math.log(value) - low) / (high - low) if high > low else 0.5
            parts.append(f"{pen}{200 * place / width:.1f} {23 - 20 * up:.1f}")
            pen = "L"
        return "".join(parts)

    lines = ((palette.RED, path(lambda point: point.p99_s)), (palette.BLUE, path(lambda point: point.p50_s)))
    drawn = "".join(
        f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="1.5" stroke-linecap="round" '
        'vector-effect="non-scaling-stroke"></path>'
        for colour, d in lines
    )
    label = escape(f"{title}, the last 15 minutes: median blue, 99th percentile red")
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 200 26" preserveAspectRatio="none">{drawn}</svg>'
    # Streamlit lets no drawing through that is part of the page, only an image.
    return f'<img alt="{label}" src="data:image/svg+xml,{quote(drawing)}">'


def engines(shown: Sequence[EngineNow], now_s: float, usual: Level = "green") -> str:
    """One row an engine; those in trouble first, and those without in the colour of ``usual``."""
    ranked = sorted(shown, key=lambda each: (_ORDER.get(each.state, 9), each.engine_id))
    names = (
        "Engine",
        "Model",
        "State",
        "Waiting",
        "Running",
        "KV memory",
        "Tokens/s",
        "TTFT P50",
        "TTFT P99",
        "Preempted/min",
    )
    head = "".join(
        f'<th scope="col" class="{"text" if place < 3 else ""}">{name}</th>' for place, name in enumerate(names)
    )
    rows = "".join(_engine(each, now_s, usual) for each in ranked[:ENGINES_SHOWN])
    more = len(ranked) - ENGINES_SHOWN
    rest = f"<div>and {more} more engines; choose one in the sidebar</div>" if more > 0 else ""
    table = f'<table class="sage-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="sage-glance sage-scroll" tabindex="0" role="region" aria-label="Engines">{table}{rest}</div>'


_ORDER = {"lost": 0, "silent": 1, "fallback": 2}
_STATE_LEVELS: dict[str, Level] = {"lost": "red", "silent": "amber", "fallback": "amber", "left": "info"}


def _engine(each: EngineNow, now_s: float, usual: Level) -> str:
    colour = COLOURS[_STATE_LEVELS.get(each.state, usual)]
    state = f'<span class="sage-dot" style="--level: {colour}"></span>{escape(_state_words(each, now_s))}'
    share = f"{100 * each.kv_share:.0f}%" if each.kv_share is not None else ""
    memory = f'<span class="sage-bar" style="--share: {share}"></span>{share}' if share else DASH
    numbers = (
        *(count(each.waiting), count(each.running), memory, count(each.output_tokens_per_s)),
        *(span(each.ttft_p50_s), span(each.ttft_p99_s), count(each.preemptions_per_minute)),
    )
    texts = (
        f'<td class="text" title="{escape(each.version)}">{escape(each.engine_id)}</td>',
        f'<td class="text">{escape(each.model)}</td>',
        f'<td class="text">{state}</td>',
    )
    return f"<tr>{''.join(texts)}{''.join(f'<td>{number}</td>' for number in numbers)}</tr>"


def _state_words(each: EngineNow, now_s: float) -> str:
    if each.state == "idle":
        return "idle" if each.idle_since_s is None else f"idle for {span(max(0.0, now_s - each.idle_since_s))}"
    if each.state in {"lost", "silent"}:
        return f"{each.state}, heard {span(max(0.0, now_s - each.last_seen_s))} ago"
    return each.state


def events(shown: Sequence[Event], clock: Callable[[float], str]) -> str:
    """What happened lately, the latest first; ``clock`` writes a moment."""
    if not shown:
        return '<div class="sage-glance">Nothing has happened since the controller started.</div>'
    items = "".join(
        f'<li><time>{escape(clock(each.time_s))}</time><span class="sage-dot" style="--level: {COLOURS[each.level]}"></span>'
        f"{escape(each.text)}</li>"
        for each in shown[:EVENTS_SHOWN]
    )
    return f'<ul class="sage-glance sage-events">{items}</ul>'
